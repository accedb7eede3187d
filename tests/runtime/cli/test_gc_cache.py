"""`clipskip gc --cache` lists what is kept in the user's own folder, and removes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipskip.__main__ import main


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two entries, a file and a lock."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "clipskip"
    for name in "step-cpu-0", "decode-cpu-1":
        (folder / "prepacked" / name).mkdir(parents=True)
        (folder / "prepacked" / name / "weights.bin").write_bytes(bytes(2000))
    (folder / "proved.json").write_text("{}")
    for lock in folder / "gpu-abc.lock", folder / "prepacked" / ".lock":
        lock.touch()
    return folder


def test_it_is_listed_and_then_removed_but_for_locks(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = {"prepacked/decode-cpu-1": 2000, "prepacked/step-cpu-0": 2000, "proved.json": 2}
    for option in ["--dry-run"], []:
        assert main(["gc", "--cache", "--json", *option]) == 0
        assert json.loads(capsys.readouterr().out)["cache"] == there
    assert sorted(path.name for path in own.rglob("*")) == [".lock", "gpu-abc.lock", "prepacked"]
    assert main(["gc", "--cache"]) == 0
    assert capsys.readouterr().out == f"0 bytes from {own}; prepacked weights take at most 20 GiB\n"


def test_a_store_and_the_cache_can_be_cleared_at_once(
    own: Path, sample_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gc", str(sample_store), "--cache", "--dry-run", "--json"]) == 0
    assert {"removed", "cache", "dry_run"} <= json.loads(capsys.readouterr().out).keys()


def test_gc_of_nothing_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc"]) == 2
    assert "gc takes a STORE, or --cache" in capsys.readouterr().err


def test_without_a_folder_of_one_s_own_there_is_nothing_to_clear(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert main(["gc", "--cache"]) == 0
    assert capsys.readouterr().out.startswith("0 bytes from no folder")
