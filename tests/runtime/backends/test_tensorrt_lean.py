"""What an installation with only TensorRT has to load, and what it says where there is no GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clipskip.backends.tensorrt import tensorrt_backend
from clipskip.engines import gpu
from clipskip.engines.gpu import cuda_runtime
from clipskip.errors import BackendUnavailable

HEAVY = ("torch", "transformers", "diffusers", "onnx", "onnxruntime", "safetensors", "polygraphy")
BLOCK = f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\n"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tensorrt_backend_and_builder_load_with_nothing_but_numpy() -> None:
    run("import clipskip.backends.tensorrt, clipskip.engines.tensorrt, clipskip.engines.tensorrt_compile")


def test_loading_loads_no_foreign_package() -> None:
    names = "('tensorrt_rtx', 'tensorrt', 'cuda')"
    assert run(f"import clipskip.backends.tensorrt; print(*(n for n in {names} if n in sys.modules))").split() == []


def test_without_a_gpu_the_backend_says_so_before_any_file_is_read_c6() -> None:
    pytest.importorskip("cuda.bindings")
    try:
        gpu.gpus(cuda_runtime())
    except BackendUnavailable:
        with pytest.raises(BackendUnavailable, match="NVIDIA") as caught:
            tensorrt_backend("tensorrt-rtx")
        assert caught.value.exit_status == 5
