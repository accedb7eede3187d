"""Commands in messages work from where the user stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from clipskip.engines import hints
from clipskip.engines.store import build_command, export_command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment's folder of programs, below the working folder and not on PATH."""
    folder = tmp_path / "my venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "clipskip"):
        (folder / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(tmp_path)
    return folder


def test_what_is_not_on_path_is_named_by_its_path(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hints.clipskip() == "'my venv/bin/clipskip'"
    assert hints.install("a>=1") == "'my venv/bin/python' -m pip install 'a>=1'"
    assert (
        build_command(Path("a store"), "tensorrt", "fp16") == "'my venv/bin/clipskip' build 'a store' --target tensorrt"
    )
    monkeypatch.chdir(environment / "..")
    assert hints.clipskip() == "bin/clipskip"
    (elsewhere := environment / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert hints.clipskip() == f"'{environment}/clipskip'"


def test_what_is_on_path_is_named_as_such(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(environment))
    assert hints.clipskip() == "clipskip"
    assert export_command(Path("s")) == "clipskip export CHECKPOINT --out s --precision fp32"


def test_without_a_script_the_module_is_run(environment: Path) -> None:
    (environment / "clipskip").unlink()
    assert hints.clipskip() == "'my venv/bin/python' -m clipskip"


def test_nothing_tells_to_install_clipskip_from_an_index() -> None:
    sources = [path for folder in ("runtime", "engines", "export", "bench") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in sources if re.search(r"pip install .{0,9}clipskip|clipskip\[", path.read_text())] == []
