"""The `/render` line: one request as people type it into a chat. Knows the commands, and nothing of their ranges."""

from __future__ import annotations

import json
import re

from .errors import RequestError
from .fields import shown, written
from .request import ALIASES, FIELDS, Request, check_types, unknown

_START = re.compile(r"\s*(?:/render(?!\S)\s*)?", re.IGNORECASE)
_COMMAND = re.compile(r'/([A-Za-z_-]+):("(?:[^"\\]|\\.)*"(?!\S)|\S*)\s*', re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})", re.ASCII | re.IGNORECASE)
_BARE = re.compile(r"[\w.+-]+")


def _squash(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


COMMANDS = {_squash(name): name for name in (*FIELDS, "size", "parser")}
COMMANDS |= {_squash(alias): name for alias, name in ALIASES.items()}


def parse_render(text: str) -> Request:
    """The request of a line such as `/render /clipskip:2 /seed:7 /size:512x768 /sampler:dpm2m a prompt`.

    Commands are `/name:value`, in any order before the prompt; case, `-` and `_` in names do not matter, and
    `/render` itself may be left out. A value with spaces is quoted as in JSON: `/negative:"blurry, \\"low\\" quality"`.
    What follows the commands is the prompt, in which a `/` is text; a prompt that starts with one is written
    `/prompt:"/..."`.

    Every field of Request and every alias of one is a command (`COMMANDS`), and `size` (512x768), and `parser:new`, the
    grammar there is. Numbers are plain ASCII decimals.

    Raises RequestError for an unknown command, with the closest one, for one given twice, and for values of a wrong
    type. Ranges are checked when the request meets a model.
    """
    return Request.from_text(fields(text))


def fields(text: str) -> dict[str, str]:
    """What a `/render` line sets, by field of Request and as it was typed."""
    given: dict[str, str] = {}
    start = _START.match(text)
    position = start.end() if start else 0
    while text.startswith("/", position):
        command = _COMMAND.match(text, position)
        if command is None or _squash(command[1]) not in COMMANDS:
            raise _unknown(text, position, command)
        for name, value in _settings(COMMANDS[_squash(command[1])], _unquoted(command[1], command[2])).items():
            _set(given, name, value)
        position = command.end()
    rest = text[position:].strip()
    if rest or "prompt" not in given:
        _set(given, "prompt", rest)
    return given


def render_line(request: Request) -> str:
    """The line that `parse_render` reads as this request; fields that have their default are left out."""
    request = check_types(request)
    words = ["/render"]
    for name, field in FIELDS.items():
        value = getattr(request, name)
        if name != "prompt" and value != field.default:
            text = written(value)
            bare = not isinstance(value, str) or _BARE.fullmatch(text)
            words.append(f"/{_squash(name)}:{text if bare else json.dumps(text, ensure_ascii=False)}")
    prompt = request.prompt
    if prompt != prompt.strip() or prompt.startswith("/"):
        prompt = f"/prompt:{json.dumps(prompt, ensure_ascii=False)}"
    return " ".join([*words, prompt]).rstrip()


def _unknown(text: str, position: int, command: re.Match[str] | None) -> RequestError:
    """The RequestError for a word that is no command, or for a command that there is not."""
    word = text[position:].split(maxsplit=1)[0]
    name = _squash(command[1] if command else word[1:].partition(":")[0])
    error = unknown("command", name, {each: f"/{each}:" for each in COMMANDS})
    if command is None:
        error.hint = f"commands are written /name:value; {error.hint}"
    return error


def _settings(name: str, value: str) -> dict[str, str]:
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


def _set(given: dict[str, str], name: str, value: str) -> None:
    if name in given:
        raise RequestError(f"{name} is given twice", field=name, hint="leave one of them out")
    given[name] = value


def _unquoted(name: str, value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value, strict=False))
    except ValueError as error:
        message = f"/{name}: has no proper closing quote: {shown(value)}"
        raise RequestError(message, field=name, hint='write quotes inside as \\" and a backslash as \\\\') from error
