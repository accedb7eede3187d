"""A benchmark measures processes of its own: they run nothing of the folder that it is started in."""

import subprocess
import sys
from pathlib import Path

import pytest

from clipskip.bench import peers, store


@pytest.mark.parametrize("code", [store.PICTURES, peers.FIRST_PICTURES["clipskip"], peers.FIRST_PICTURES["diffusers"]])
def test_the_first_picture_of_a_process_runs_no_module_of_the_working_folder(code: str, tmp_path: Path) -> None:
    for name in ("clipskip", "torch", "json", "diffusers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('foreign code ran')")
    done = subprocess.run([sys.executable, "-c", code, *["nowhere"] * 5], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert "foreign code ran" not in done.stderr
