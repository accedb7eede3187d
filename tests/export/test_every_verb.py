"""Nobody is told what a user does: every verb once, as on a user's machine, seen by strace."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from users_machine import environment

from clipskip.engines.store import Store

WRITING = "mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,open,openat,creat,mknod,mknodat"
RUN = """
import sys
sys.path.pop(0)  # as for the installed command, the working folder is on no path
import json
from clipskip.__main__ import main
print(json.dumps([main(arguments) for arguments in json.loads(sys.argv[1])]), file=sys.stderr)
assert "torch" not in sys.modules, "an export's own process holds it, which ends with the export"
"""


@pytest.fixture
def trace(tiny: Path, half_store: Store, tmp_path: Path) -> list[str]:
    """What the verbs asked the system for: one line per call. They run in a folder full of modules of hostile names.

    The store has the step already, which takes longest to export, and lacks a text and an image encoder.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace, which sees every socket, is not installed")
    home, work, store, trace = (str(tmp_path / name) for name in ("home", "work", "store", "trace"))
    os.mkdir(home)
    os.mkdir(work)
    shutil.copytree(half_store.root, store)
    manifest = json.loads(Path(store, "manifest.json").read_text())
    manifest["artefacts"] = [each for each in manifest["artefacts"] if each["role"] not in ("text-02", "encode")]
    Path(store, "manifest.json").write_text(json.dumps(manifest))
    modules = ("json", "clipskip", "torch", "onnx", "numpy", "tensorrt_rtx", "re", "sitecustomize")
    hostile = [f"{name}.py" for name in modules]
    for name in hostile:
        Path(work, name).write_text("raise SystemExit('foreign code ran')")
    size = ["--steps", "1", "--width", "64", "--height", "64"]
    verbs = [
        ["export", str(tiny), "--out", store, "--precision", "fp16", "--skips", "1,2"],
        ["build", store, "--target", "tensorrt-rtx", "--skips", "2", "--sizes", "64", "--max-batch", "1"],
        ["generate", store, "a cat", "--out", f"{work}/made", "--clip-skip", "2", *size],
        ["grid", store, "a cat", "--x", "clip_skip=1,2", "--out", f"{work}/sheet.png", *size],
        *([verb, store] for verb in ("inspect", "verify", "gc")),
        ["bench", store, "--steps", "3", "--minutes", "1"],
        ["doctor"],
    ]
    watch = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-o", trace, "-e", f"trace=network,{WRITING}"]
    done = subprocess.run(
        [*watch, sys.executable, "-c", RUN, json.dumps(verbs)],
        env={**environment(home), "TMPDIR": work, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=work, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == [0] * len(verbs), done.stderr
    assert os.listdir(home) == []
    assert {*os.listdir(work)} == {*hostile, "made", "sheet.png"}, "a verb left something where it works"
    return Path(trace).read_text().splitlines()


def test_no_verb_opens_a_socket_writes_elsewhere_or_runs_the_working_folder_b16(
    trace: list[str], tmp_path: Path
) -> None:
    # urllib3, which transformers loads, binds the loopback address once to learn whether there is IPv6
    harmless = re.compile(r" (socket\(AF_INET6, SOCK_STREAM|bind\(.*::1)")
    assert [line for line in trace if "INET" in line and not harmless.search(line)] == []
    made = re.compile(r"O_CREAT|^\d+ +(mkdir|rename|link|symlink|creat|mknod)")
    written = [line for line in trace if made.search(line) and " = -1 " not in line]
    assert written
    store, work = re.escape(f"{tmp_path}/store"), re.escape(f"{tmp_path}/work")
    allowed = rf"{store}(/.*)?|{work}/made(/.*)?|{work}/(sheet\.png|\.clipskip-\w+\.tmp)|/dev/shm/sem\.\S+"
    paths = [path for line in written for path in re.findall(r'"(.*?)"', line)]
    assert [path for path in paths if not re.fullmatch(allowed, path)] == []
