"""The command line: one module per group of verbs, and what they print. Its entrance is `clipskip.__main__`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


@dataclass(frozen=True)
class Outcome:
    """What a verb gives back: one object for machines, the same as text for people, and the exit status."""

    data: dict[str, Any]
    text: str
    status: int = 0


def store_verb(
    verbs: Verbs, run: Callable[[argparse.Namespace], Outcome], summary: str, description: str
) -> argparse.ArgumentParser:
    """The parser of a verb that is named after its function and takes a store."""
    verb = verbs.add_parser(run.__name__, help=summary, description=description)
    verb.add_argument("store", type=Path, metavar="STORE")
    verb.set_defaults(run=run)
    return verb
