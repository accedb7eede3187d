"""Nobody is told that a picture is made: ONNX Runtime, which reports to its maker, is asked not to before it loads."""

import re
import shutil
import subprocess
import sys
import textwrap

import figures
import pytest
from users_machine import SILENCED, environment

FAST = ("--steps", "2", "--width", "64", "--height", "64")


@pytest.fixture
def home(tmp_path):
    """An empty folder that a user's own folders would be made in."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def run(command, home):
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_making_a_picture_leaves_the_users_folders_empty(sample_store, home, tmp_path):
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "a cat", "--out", tmp_path / "a.png", *FAST]
    run(command, home)
    assert list(home.iterdir()) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which sees every socket, is not installed")
def test_making_a_picture_opens_no_socket_to_the_internet_b16(sample_store, home, tmp_path):
    trace = tmp_path / "trace"
    watch = ["strace", "-f", "-qq", "-e", "trace=socket,connect,sendto,sendmsg,sendmmsg", "-o", trace]
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "a cat", "--out", tmp_path / "a.png", *FAST]
    run([*watch, *command], home)
    assert (tmp_path / "a.png").exists()
    assert [line for line in trace.read_text().splitlines() if "INET" in line] == []


def test_the_variable_is_set_before_onnx_runtime_loads_and_children_inherit_it(sample_store, home):
    code = f"""
        import importlib.abc, os, subprocess, sys

        class Watch(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "onnxruntime":
                    print("loading", os.environ.get({SILENCED!r}))

        sys.meta_path.insert(0, Watch())
        import clipskip
        clipskip.open(sys.argv[1]).close()
        child = "import os; print('child', os.environ.get({SILENCED!r}))"
        print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
        """
    assert run([sys.executable, "-c", textwrap.dedent(code), sample_store], home).split() == [
        "loading",
        "1",
        "child",
        "1",
    ]


@pytest.mark.parametrize(
    "work",
    [
        "import clipskip.engines.tensorrt_compile",
        "import clipskip.export, onnxscript, torch\n"
        "torch.onnx.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),), dynamo=True, verbose=False)",
    ],
    ids=["the compiling child", "tracing, which comes before an export opens ONNX Runtime"],
)
def test_nothing_else_loads_onnx_runtime(work, home):
    run([sys.executable, "-c", f"{work}\nimport sys\nassert 'onnxruntime' not in sys.modules"], home)
    assert list(home.iterdir()) == []


def test_one_function_loads_onnx_runtime_for_all():
    loading = re.compile(
        r"^\s*(import|from) onnxruntime\b|(import_module|library)\([\"']onnxruntime[\"']\)", re.MULTILINE
    )
    homes = [str(path.relative_to(figures.ROOT)) for path, text in figures.sources().items() if loading.search(text)]
    assert homes == ["engines/gpu.py"]
