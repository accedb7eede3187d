"""The command line: one module per group of verbs, and what they print. Its entrance is `clipskip.__main__`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from clipskip.engines import hints
from clipskip.errors import BackendUnavailable, RequestError
from clipskip.request import unknown

from .output import write

Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """Options are written out; what is wrong is a RequestError with the closest name; help goes where it can.

    `names` gives lines for the end of the help, when it is asked for.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.names: Callable[[], str] = str

    def format_help(self) -> str:
        self.epilog = self.names()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise RequestError(message, hint=self._hint())

    def _hint(self) -> str:
        return f"see {self.prog.replace('clipskip', hints.clipskip(), 1)} --help"

    def check_rest(self, rest: list[str]) -> None:
        """Refuse what was typed and is none of this verb's."""
        for word in rest:
            if not word.startswith("-"):
                self.error(f"unexpected {word!r}: a prompt of several words is quoted as one")
            error = unknown("option", word.partition("=")[0], {}, {each: each for each in self._option_string_actions})
            error.hint = error.hint if "did" in str(error.hint) else self._hint()
            raise error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = action.option_strings[0] if action.option_strings else "command"
            raise unknown(what, value, {str(each): str(each) for each in action.choices})

    def _print_message(self, message: str, file: object = None) -> None:
        if sys.stdout is not None:
            write(sys.stdout, message)


def path(text: str) -> Path:
    """A path that was typed."""
    if not text:
        raise argparse.ArgumentTypeError('"" is no path; this folder is "."')
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path: it contains NUL")
    return Path(text)


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """What is imported in here comes with an extra of the source tree. BackendUnavailable without it."""
    try:
        yield
    except ImportError as error:
        hint = f"{hints.install(f'.[{name}]')}, in the folder of clipskip's source"
        raise BackendUnavailable(f"{what} needs {error.name}", hint=hint) from error


@dataclass(frozen=True)
class Outcome:
    """What a verb gives back: one object for machines, the same as text for people, and the exit status."""

    data: dict[str, Any]
    text: str
    status: int = 0


def store_verb(verbs: Verbs, run: Callable[[argparse.Namespace], Outcome], summary: str, description: str) -> Parser:
    """The parser of a verb that is named after its function and takes a store."""
    verb = verbs.add_parser(run.__name__, help=summary, description=description)
    verb.add_argument("store", type=path, metavar="STORE")
    verb.set_defaults(run=run)
    return verb
