"""The tests for a GPU are tried where there is none: on the doubles, and for what they say of a machine without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipskip.engines import gpu
from clipskip.errors import BackendUnavailable

ROOT = Path(__file__).parents[2]


def run_gpu_tests(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900
    )


def test_they_pass_on_the_doubles_with_a_prepared_store_and_end_with_a_table(sample_fp16_store: Path) -> None:
    chosen = "(networks and decode) or how_long or five_steps or joins"
    prepared = {"CLIPSKIP_GPU_STORE": str(sample_fp16_store), "CLIPSKIP_TEST_CHECKPOINT": "none"}
    done = run_gpu_tests("-k", chosen, CLIPSKIP_TEST_GPU="simulated", **prepared)
    assert done.returncode == 0, done.stdout
    assert "decode" in done.stdout
    assert "decode-cuda" in done.stdout
    assert "psnr_db 1.2e+02" in done.stdout
    assert "in a loop, of which run() takes" in done.stdout


def test_without_a_gpu_they_say_so_and_end_with_status_five() -> None:
    pytest.importorskip("cuda.bindings")
    try:
        gpu.gpus(gpu.cuda_runtime())
    except BackendUnavailable:
        done = run_gpu_tests()
        assert done.returncode == 5
        assert "nothing to test on: no NVIDIA" in done.stdout + done.stderr
