"""make hands its variables on as they are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Stands for clipskip: prints what it is given."""
    path = tmp_path / "print"
    path.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    path.chmod(0o755)
    return path


def make(target: str, program: Path, *variables: str) -> str:
    command = ["make", "-s", target, f"CLIPSKIP={program}", "--old-file=.venv/installed", *variables]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("model", "out"),
    [
        ("export/sample", "build/sample"),
        ("a b/c d.safetensors", "build/c d"),
        ('it\'s "my" model/', 'build/it\'s "my" model'),
    ],
)
def test_model_may_hold_spaces_and_quotes(program: Path, model: str, out: str) -> None:
    assert make("export", program, f"MODEL={model}").startswith(f"<export><{model}><--out><{out}>")


def test_the_sample_gets_the_clip_skip_that_it_was_trained_at_and_other_models_what_is_said(program: Path) -> None:
    option = "<--recommended-clip-skip="
    assert f"{option}2>" in make("export", program)
    assert option not in make("export", program, "MODEL=other")
    assert f"{option}3>" in make("export", program, "MODEL=other", "RECOMMENDED_CLIP_SKIP=3")


def test_every_variable_of_a_build_is_an_option_of_it(program: Path) -> None:
    options = {
        "SIZES": "256-512-768", "MAX_BATCH": "1", "MAX_CHUNKS": "2", "COMPUTE_CAPABILITY": "8.9 120",
        "WORKSPACE": "512", "DEVICE": "1",
    }  # fmt: skip
    said = make("engines", program, *(f"{name}={value}" for name, value in options.items()), "TARGET=tensorrt", "OUT=o")
    assert said.partition("<build>")[2] == (
        "<o><--target><tensorrt><--sizes=256-512-768><--max-batch=1><--max-chunks=2>"
        "<--compute-capability=8.9><--compute-capability=120><--workspace=512><--device=1>"
    )
    assert make("engines", program, "OUT=o").endswith("<build><o><--target><onnxruntime>")
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=240).stdout
    assert [name for name in options if f"  {name}=" not in listed] == []


@pytest.mark.parametrize(("target", "precision"), [("onnxruntime", "fp32"), ("onnxruntime-cuda", "fp16")])
def test_graphs_for_a_gpu_are_exported_in_fp16(program: Path, target: str, precision: str) -> None:
    assert f"<--precision><{precision}>" in make("export", program, f"TARGET={target}")


@pytest.mark.parametrize(
    ("variables", "message"),
    [(["TARGET=foo"], "there are onnxruntime"), (["TARGET=tensorrt-rtx", "PRECISION=fp32"], "tensorrt-rtx takes fp16")],
)
def test_what_no_build_takes_is_refused_before_the_export(variables: list[str], message: str, program: Path) -> None:
    command = ["make", "-s", "engines", f"CLIPSKIP={program}", "--old-file=.venv/installed", *variables]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, message in done.stderr) == (2, "", True), done.stderr


@pytest.mark.parametrize("target", ["test-gpu-onnxruntime", "bench-gpu", "report-gpu"])
def test_without_a_driver_nothing_is_installed_for_a_gpu(target: str, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    surroundings = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["make", "-s", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=surroundings)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no NVIDIA driver answers" in done.stderr
