"""Every error of ours ends the command line with a status of its own kind, never with 0 or a bug's 1."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from clipskip import errors
from clipskip.__main__ import main
from clipskip.engines import report
from clipskip.errors import ClipskipError

STATUSES = {
    2: {"RequestError", "Closed"},
    3: {"CheckpointError", "UnsafeFileError", "UnsupportedModelError", "ExportError"},
    4: {"StoreError", "EngineMissing", "EngineCorrupt", "EngineIncompatible", "ManifestError", "NewerManifestError"},
    5: {"BackendUnavailable", "DeviceOutOfMemory", "DeviceLost", "Busy", "DeadlineExceeded"},
    6: {"NumericalError"},
    7: {"StorageError"},
}  # of the README's table


def kinds(base: type[ClipskipError]) -> Iterator[type[ClipskipError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


KINDS = sorted({*kinds(ClipskipError)}, key=lambda kind: kind.__name__)
KINDS = [kind for kind in KINDS if not kind.__module__.startswith("clipskip.serve")]  # HTTP's, which are no command's


def test_each_error_has_the_status_of_the_table_and_none_is_missing_there_b18() -> None:
    assert {kind.__name__: kind.exit_status for kind in KINDS} == {
        name: status for status, names in STATUSES.items() for name in names
    }
    assert {kind.__name__ for kind in KINDS} - {"NewerManifestError"} == {*errors.__all__} - {"ClipskipError"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_failure_ends_with_the_status_of_success_b18(
    kind: type[ClipskipError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kind.exit_status in range(2, 8)
    assert kind.code != ClipskipError.code

    def fail(root: object) -> None:
        raise kind("it went wrong", path="a/b", hint="do this")

    monkeypatch.setattr(report, "inspect", fail)
    assert main(["inspect", "store"]) == kind.exit_status
    assert capsys.readouterr() == ("", "clipskip: it went wrong\n  hint: do this\n")
    assert main(["inspect", "store", "--json"]) == kind.exit_status
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["path"], error["hint"]) == (kind.code, "a/b", "do this")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["inspekt"], 2),
        (["export", "/nowhere", "--out", "store"], 3),
        (["inspect", "/nowhere"], 4),
        (["verify", "/nowhere"], 4),
        (["build", "/nowhere", "--target", "tensorrt-rtx"], (4, 5)),  # 5 where the package is not installed
    ],
)
def test_the_process_itself_ends_with_that_status_b18(
    arguments: list[str], status: int | tuple[int, int], tmp_path: object
) -> None:
    done = subprocess.run([sys.executable, "-m", "clipskip", *arguments], capture_output=True, cwd=str(tmp_path))
    assert done.returncode in (status if isinstance(status, tuple) else (status,)), done.stderr
