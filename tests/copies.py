"""A store of the session's, copied: others may be building into it meanwhile, and their hidden files come and go."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_of(store: Path, path: Path) -> Path:
    return shutil.copytree(store, path, ignore=shutil.ignore_patterns(".*"))
