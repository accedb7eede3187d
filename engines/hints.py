"""The commands that messages tell people to type, so that they work from where these people stand.

Knows nothing of what the commands do.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from shlex import quote


def clipskip() -> str:
    """What starts this command line: a name that PATH knows, a path, or the interpreter with -m."""
    script = shutil.which("clipskip", path=os.path.dirname(_python()))
    return _as_typed(script) if script else f"{_as_typed(_python())} -m clipskip"


def install(package: str) -> str:
    """The command that installs a package where this interpreter finds it."""
    return f"{_as_typed(_python())} -m pip install {quote(package)}"


def _python() -> str:
    return sys.executable or "python"  # a program that embeds Python may not know where that is


def _as_typed(program: str) -> str:
    """The shortest that a shell takes for this program, if it is started in the working folder."""
    name = os.path.basename(program)
    if shutil.which(name) == program:
        return name
    with suppress(OSError, ValueError):  # a working folder that is gone, or on another drive
        if not (inside := os.path.relpath(program)).startswith(os.pardir):
            return quote(inside)
    return quote(program)
