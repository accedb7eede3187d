"""The file that `make report-gpu` makes, from what its steps leave behind, however they ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
case "$*" in
*pytest*) echo "1 passed in $HOME"; echo '<testsuites><testcase name="a"/>\
<testcase name="b"><failure message="apart"/></testcase>\
<testcase name="c"><skipped message="no TensorRT"/></testcase></testsuites>' > build/report-gpu/tests.xml;;
*bench.gpu*) echo "step 9.1"; echo '{"bench": "gpu", "gpus": [{"name": "GPU", "uuid": "1234"}]}';;
*report.py*) exec PYTHON ROOT/tests/gpu/report.py build/report-gpu;;
esac
"""
DOCTOR = """#!/bin/sh
echo '{"gpus": [{"name": "NVIDIA GeForce RTX 4090", "uuid": "1234"}]}'
"""


def make_report(folder: Path, doctor: str = DOCTOR, python: str = PYTHON) -> tuple[str, str]:
    """What `make report-gpu` prints, and the text of its file; the programs that it runs are pretend ones."""
    programs = {"bin/clipskip": doctor, "bin/python": python, "driver/nvidia-smi": "#!/bin/sh\n"}
    for name, text in programs.items():
        program = folder / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.replace("PYTHON", sys.executable).replace("ROOT", str(ROOT)))
        program.chmod(0o755)
    (folder / "installed").touch()
    settings = ["GPU_BIN=bin", "CLIPSKIP_GPU_STORE=store"]
    command = ["make", "-s", "-f", str(ROOT / "Makefile"), "report-gpu", *settings]
    environment = {**os.environ, "HOME": str(folder / "home"), "PATH": f"{folder}/driver:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    (path,) = folder.glob("report-gpu-*.json")
    return f"{path.name} {done.stdout}{done.stderr}", path.read_text()


def test_one_file_has_doctor_tests_and_bench_but_no_serial_number_or_home(tmp_path: Path) -> None:
    said, text = make_report(tmp_path)
    report = json.loads(text)
    assert said.startswith("report-gpu-nvidia-geforce-rtx-4090-"), said
    assert "1 tests passed, 1 failed, 1 were skipped" in said
    assert report["bench"]["bench"] == "gpu"
    assert report["table"] == ["step 9.1"]
    assert report["tests"]["reasons"] == {"b": "failed: apart", "c": "skipped: no TensorRT"}
    assert report["tests"]["said"] == ["1 passed in ~"]
    assert "1234" not in text


@pytest.mark.parametrize("broken", ["exit 1", "echo oops; exit 3"])
def test_what_failed_is_said_in_its_place(tmp_path: Path, broken: str) -> None:
    report_step = PYTHON.splitlines()[-2]
    assert "report.py" in report_step
    python = f'#!/bin/sh\ncase "$*" in\n{report_step}\nesac\n{broken}\n'
    said, text = make_report(tmp_path, f"#!/bin/sh\n{broken}\n", python)
    report = json.loads(text)
    assert said.startswith("report-gpu-no-gpu-"), said
    assert report["doctor"] == {"failed": "clipskip doctor gave no JSON"}
    assert "failed" in report["bench"]
    assert report["tests"]["passed"] == 0
