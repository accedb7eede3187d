"""What a verb of the command line gives back."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


@dataclass(frozen=True)
class Outcome:
    """One object for machines, the same as text for people, and the exit status."""

    data: dict[str, Any]
    text: str
    status: int = 0
