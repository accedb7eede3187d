"""The `/render` line: one request as people type it into a chat. Knows the commands, and nothing of their ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from .errors import RequestError
from .request import ALIASES, DEFAULTS, Request, check_types, unknown
from .scalars import shown, written

Fields = dict[str, str]

_START = re.compile(r"\s*(?:/render(?!\S)\s*)?", re.IGNORECASE)
_COMMAND = re.compile(r'/([A-Za-z_-]+):("(?:[^"\\]|\\.)*"(?!\S)|\S*)\s*', re.DOTALL)
_WORD = re.compile(r"\S+")
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})", re.ASCII | re.IGNORECASE)
_BARE = re.compile(r"[\w.+-]+")


def parse_render(text: str) -> Request:
    """The request of a line such as `/render /clipskip:2 /seed:7 /size:512x768 /sampler:dpm2m a prompt`.

    Commands are `/name:value`, in any order before the prompt; case, `-` and `_` in names do not matter, and
    `/render` itself may be left out. A value with spaces is quoted as in JSON: `/negative:"blurry, \\"low\\" quality"`.
    What follows the commands is the prompt, in which a `/` is text; a prompt that starts with one is written
    `/prompt:"/..."`.

    Every field of Request is a command: clipskip, clipskipdiffusers, negativeclipskip (negclipskip), seed, subseed
    (variationseed), subseedstrength (variationstrength), steps, cfg (guidance), sampler, schedule (scheduler), width,
    height, size (512x768), batch, rng, emphasis, commabacktrack, compat, negativeprompt (negative), prompt; and
    `parser:new`, the grammar there is. Numbers are plain ASCII decimals.

    Raises RequestError for an unknown command, with the closest one, for one given twice, and for values of a wrong
    type. Ranges are checked when the request meets a model.
    """
    return Request.from_text(fields(text))


def fields(text: str) -> Fields:
    """What a `/render` line sets, by field of Request and as it was typed."""
    commands = {_squash(name): name for name in (*DEFAULTS, "size", "parser")}
    commands |= {_squash(alias): name for alias, name in ALIASES.items()}
    given: Fields = {}
    position = _end(_START, text)
    while text.startswith("/", position):
        name, value, position = _command(text, position, commands)
        for field, part in _fields(name, value).items():
            _set(given, field, part)
    rest = text[position:].strip()
    if rest or "prompt" not in given:
        _set(given, "prompt", rest)
    return given


def render_line(request: Request) -> str:
    """The line that `parse_render` reads as this request; fields that have their default are left out."""
    checked = check_types(request)
    values = {name: getattr(checked, name) for name in DEFAULTS if name != "prompt"}
    commands = [f"/{_squash(name)}:{_written(value)}" for name, value in values.items() if value != DEFAULTS[name]]
    prompt = checked.prompt
    if prompt != prompt.strip() or prompt.startswith("/"):
        prompt = f"/prompt:{json.dumps(prompt, ensure_ascii=False)}"
    return " ".join(["/render", *commands, prompt]).rstrip()


def _command(text: str, position: int, commands: Mapping[str, str]) -> tuple[str, str, int]:
    """The command at `position`: its field, its value, and where the next word starts."""
    found = _COMMAND.match(text, position)
    word = text[position : _end(_WORD, text, position)]
    if found is None:
        name = word[1:].partition(":")[0]
        error = _unknown(name, commands)
        error.hint = f"commands are written /name:value; {error.hint}"
        raise error
    name = _squash(found[1])
    if name not in commands:
        raise _unknown(name, commands)
    return commands[name], _unquoted(found[1], found[2]), found.end()


def _unknown(name: str, commands: Mapping[str, str]) -> RequestError:
    return unknown("command", _squash(name), {each: f"/{each}:" for each in commands})


def _fields(name: str, value: str) -> Fields:
    """What a command sets: `size` two fields, `parser` none, any other its own."""
    if name == "parser":
        if value.lower() != "new":
            raise RequestError(f"/parser: takes only 'new', not {shown(value)}", field=name)
        return {}
    if name != "size":
        return {name: value}
    size = _SIZE.fullmatch(value)
    if size is None:
        raise RequestError(f"size must be width x height in pixels, such as 512x768, not {shown(value)}", field=name)
    return {"width": size[1], "height": size[2]}


def _set(given: Fields, field: str, value: str) -> None:
    if field in given:
        raise RequestError(f"{field} is given twice", field=field, hint="leave one of them out")
    given[field] = value


def _unquoted(name: str, value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value, strict=False))
    except ValueError as error:
        message = f"/{name}: has no proper closing quote: {shown(value)}"
        raise RequestError(message, field=name, hint='write quotes inside as \\" and a backslash as \\\\') from error


def _written(value: object) -> str:
    if isinstance(value, (int, float)):
        return written(value)
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _squash(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


def _end(pattern: re.Pattern[str], text: str, position: int = 0) -> int:
    found = pattern.match(text, position)
    return position if found is None else found.end()
