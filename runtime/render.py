"""One request as people type it: the `/render` line, and the line of options that A1111 reads from files.

Knows the names of settings, and nothing of their ranges.
"""

from __future__ import annotations

import json
import re
import shlex

from .errors import RequestError
from .fields import NAMES, TEXT, at_least, parse, shown, written
from .request import ALIASES, FIELDS, LINE, Request, changed, given_twice, unknown, without_files, without_paths

_START = re.compile(r"\s*(?:/render(?!\S)\s*)?", re.IGNORECASE)
_COMMAND = re.compile(r'/([A-Za-z_-]+):("[^"\\]*(?:\\.[^"\\]*)*"(?!\S)|\S*)\s*', re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})", re.ASCII | re.IGNORECASE)
_BARE = re.compile(r"[\w.+-]+")


def _squash(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


COMMANDS = {_squash(name): ALIASES.get(name, name) for name in (*FIELDS, *ALIASES, "size", "parser")}
_MEANT = {"w": "/width:", "h": "/height:", "ar": "/size:", "aspect": "/size:", "no": "/negative:", "n": "/negative:"}
# Settings of A1111's lines that clipskip has not; what is off, or changes no picture here, may be said all the same.
_OF_A1111 = (
    "styles", "restore_faces", "tiling", "seed_resize_from_h", "seed_resize_from_w", "do_not_save_samples",
    "outpath_samples", "outpath_grids", "do_not_save_grid", "prompt_for_display",
)  # fmt: skip
_TIMES = "n_iter"  # how many batches, in these lines
_CHANGES_NOTHING, _OFF = _OF_A1111[-2:], ("", "0", "-1", "false", "none")


def parse_render(text: str) -> Request:
    """The request of a line such as `/render /clipskip:2 /seed:7 /size:512x768 /sampler:dpm2m a prompt`.

    Commands are `/name:value`, in any order before the prompt: every field of Request and every alias of one, `size`
    (512x768), and `parser:new`, the grammar there is. Case, `-` and `_` in names do not matter; `/render` itself may be
    left out. A value with spaces is quoted as in JSON: `/negative:"blurry, \\"low\\" quality"`. What follows is the
    prompt, in which a `/` is text; one that starts with it is written `/prompt:"/..."`. RequestError for an unknown
    command, one given twice, a value that seems to go on after a space, values of a wrong type, and the path of a
    picture; ranges are checked when the request meets a model.
    """
    return Request.from_text(fields(TEXT.check("line", text)))


def read(request: Request) -> Request:
    """The request; of one whose prompt is a `/render` line, what that says comes before its fields. RequestError."""
    return Request.from_text(fields(request.prompt), base=request) if LINE.match(request.prompt) else request


def fields(text: str) -> dict[str, str]:
    """What a `/render` line sets, by field of Request and as it was typed. RequestError for the path of a picture."""
    given: dict[str, str] = {}
    text, position = _START.sub("", text, count=1), 0
    while text.startswith("/", position):
        name, value, position = _command(text, position)
        if name == "parser":
            if value.lower() != "new":
                raise RequestError(f"/parser: takes only 'new', not {shown(value)}", field=name)
        else:
            _set(given, name, value)
    rest = text[position:].strip()
    if rest or "prompt" not in given:
        _set(given, "prompt", rest)
    return without_paths(given)


def options(line: str) -> dict[str, str]:
    """What a line of A1111's "Prompts from file or textbox" sets, such as `--prompt "a cat" --steps 20`.

    As there, both prompts go on to the next `--`, and `--batch_size` counts in each of `--n_iter`. Every name that a
    field has is known, and `--seed=5` as well. RequestError as above, and for settings that clipskip has not.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise RequestError(f"the line's quotes do not end ({error})", hint='write a quote inside as \\"') from error
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append(word.split("=", 1))
        else:
            groups[-1].append(word)
    given: dict[str, str] = {}
    for option, *values in groups:
        name, value = COMMANDS.get(_squash(option[2:])), " ".join(values)
        if name is None and option[2:] in _OF_A1111:
            if option[2:] not in _CHANGES_NOTHING and value.lower() not in _OFF:
                raise RequestError(f"{option} {value}: clipskip has no such setting", field=option, hint="leave it out")
        elif name is None or name == "parser":
            raise unknown("option", option, {f"--{each}": f"--{each}" for each in COMMANDS})
        elif len(values) == 1 or (values and name in ("prompt", "negative_prompt")):
            _set(given, _TIMES if option[2:] in ("n_iter", "batch_count") else name, value)
        else:
            raise RequestError(f"{option} takes one value, not {len(values)}", field=name, hint="quote one with spaces")
    if (times := given.pop(_TIMES, None)) is not None and (each := given.get("batch")) is not None:
        times = str(at_least("batch", parse(times), 1) * at_least("batch", parse(each), 1))
    return given if times is None else given | {"batch": times}


def render_line(request: Request) -> str:
    """The line that `parse_render` reads as this request, files as data URLs; what has its default is left out."""
    request = without_files(request)
    words = ["/render"]
    for name, value in changed(request).items():
        if name != "prompt":
            text = written(value)
            bare = not (isinstance(value, str) or FIELDS[name].kind is NAMES) or _BARE.fullmatch(text)
            words.append(f"/{_squash(name)}:{text if bare else json.dumps(text, ensure_ascii=False)}")
    prompt = request.prompt
    if prompt != prompt.strip() or prompt.startswith("/"):
        prompt = f"/prompt:{json.dumps(prompt, ensure_ascii=False)}"
    return " ".join([*words, prompt]).rstrip()


def _command(text: str, position: int) -> tuple[str, str, int]:
    """The command at `position`: what it sets, its value, and where the next word starts."""
    command = _COMMAND.match(text, position)
    typed = command[1] if command else (text[position + 1 :].split() or [""])[0].partition(":")[0]
    name = _squash(typed)
    if command is None or name not in COMMANDS:
        error = unknown("command", name, {each: f"/{each}:" for each in COMMANDS}, _MEANT)
        if command is None:
            error.hint = f"commands are written /name:value; {error.hint}"
        raise error
    value, goes_on = command[2], command.end() < len(text)
    if value.startswith('"'):
        try:
            value = str(json.loads(value, strict=False))
        except ValueError as error:
            message = f"/{typed}: has no proper closing quote: {shown(value)}"
            hint = 'write quotes inside as \\" and a backslash as \\\\'
            raise RequestError(message, field=typed, hint=hint) from error
    elif goes_on and (not value or value.endswith(",") or value.count("(") > value.count(")")):
        message = f"/{typed}: ends at the first space, with {shown(value)}"
        raise RequestError(message, field=COMMANDS[name], hint=f'quote a value that goes on: /{typed}:"..."')
    return COMMANDS[name], value, command.end()


def size(text: str) -> dict[str, str]:
    """Width and height of a size such as 512x768."""
    if found := _SIZE.fullmatch(text):
        return {"width": found[1], "height": found[2]}
    raise RequestError(f"size must be width x height in pixels, such as 512x768, not {shown(text)}", field="size")


def _set(given: dict[str, str], name: str, value: str) -> None:
    for field, each in size(value).items() if name == "size" else [(name, value)]:
        if field in given:
            raise given_twice(field)
        given[field] = each
