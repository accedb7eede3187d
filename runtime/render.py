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

    Commands are `/name:value`, in any order before the prompt: every field of Request and every alias of one, `size`
    (512x768), and `parser:new`, the grammar there is. Case, `-` and `_` in names do not matter; `/render` itself may be
    left out. A value with spaces is quoted as in JSON: `/negative:"blurry, \\"low\\" quality"`. What follows is the
    prompt, in which a `/` is text; one that starts with it is written `/prompt:"/..."`. RequestError for an unknown
    command, one given twice, and values of a wrong type; ranges are checked when the request meets a model.
    """
    return Request.from_text(fields(text))


def fields(text: str) -> dict[str, str]:
    """What a `/render` line sets, by field of Request and as it was typed."""
    given: dict[str, str] = {}
    text, position = _START.sub("", text, count=1), 0
    while text.startswith("/", position):
        name, value, position = _command(text, position)
        if name == "parser":
            if value.lower() != "new":
                raise RequestError(f"/parser: takes only 'new', not {shown(value)}", field=name)
        elif name == "size":
            size = _SIZE.fullmatch(value)
            if size is None:
                message = f"size must be width x height in pixels, such as 512x768, not {shown(value)}"
                raise RequestError(message, field=name)
            _set(given, "width", size[1])
            _set(given, "height", size[2])
        else:
            _set(given, name, value)
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


def _command(text: str, position: int) -> tuple[str, str, int]:
    """The command at `position`: what it sets, its value, and where the next word starts."""
    command = _COMMAND.match(text, position)
    typed = command[1] if command else text[position + 1 :].split(maxsplit=1)[0].partition(":")[0]
    name = _squash(typed)
    if command is None or name not in COMMANDS:
        error = unknown("command", name, {each: f"/{each}:" for each in COMMANDS})
        if command is None:
            error.hint = f"commands are written /name:value; {error.hint}"
        raise error
    value = command[2]
    if value.startswith('"'):
        try:
            value = str(json.loads(value, strict=False))
        except ValueError as error:
            message = f"/{typed}: has no proper closing quote: {shown(value)}"
            hint = 'write quotes inside as \\" and a backslash as \\\\'
            raise RequestError(message, field=typed, hint=hint) from error
    return COMMANDS[name], value, command.end()


def _set(given: dict[str, str], name: str, value: str) -> None:
    if name in given:
        raise RequestError(f"{name} is given twice", field=name, hint="leave one of them out")
    given[name] = value
