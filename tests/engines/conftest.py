"""Fixtures of the store's tests."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

WORKSHOP = Path(__file__).parent / "workshop.py"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def workshop() -> ModuleType:
    """The pretend builder, see workshop.py."""
    spec = importlib.util.spec_from_file_location("engines_workshop", WORKSHOP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path, workshop: ModuleType) -> Path:
    """A store with a whole model at fp32."""
    workshop.make(tmp_path / "store", workshop.wanted(), model=workshop.facts())
    return tmp_path / "store"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `workshop.py VERB ROOT ...` as a process of its own."""
    processes = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(WORKSHOP), *map(str, arguments)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Run `mount`, undone afterwards; skips where that is not allowed."""
    mounted: list[str] = []

    def run(*arguments: object) -> None:
        command = ["mount", *map(str, arguments)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting is not allowed here")
        mounted.append(str(arguments[-1]))

    yield run
    for point in dict.fromkeys(reversed(mounted)):
        subprocess.run(["umount", point], check=True, capture_output=True)


@pytest.fixture
def make_read_only(mount: Callable[..., None]) -> Iterator[Callable[[Path], None]]:
    """Make a folder read-only, for root by a mount."""
    changed: list[Path] = []

    def run(folder: Path) -> None:
        if os.geteuid() == 0:
            mount("--bind", folder, folder)
            mount("-o", "remount,bind,ro", folder)
        else:
            changed.append(folder)
            folder.chmod(0o555)

    yield run
    for folder in changed:
        folder.chmod(0o755)
