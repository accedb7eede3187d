"""The recipe of the sample model, export/sample: scenes, captions, checker. A checkout has it, the wheel has not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import clipskip.export
from clipskip.errors import BackendUnavailable

FOLDER = Path(clipskip.export.__file__).parent / "sample"


def module(name: str) -> Any:
    """One of its modules. BackendUnavailable outside of a checkout."""
    if not (FOLDER / f"{name}.py").is_file():
        raise BackendUnavailable(f"{FOLDER} is not here", path=FOLDER, hint="run this in a checkout of clipskip")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)
