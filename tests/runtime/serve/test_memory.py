"""What a server frees goes back to the system, whatever lies between the blocks."""

import subprocess
import sys

import pytest

CHURN = """
import os, socket, sys
from pathlib import Path

import numpy as np
import uvicorn

from clipskip.serve import models, server
from clipskip.serve.service import Settings

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

def churn(*arguments, **options):
    np.ones(30 << 17)  # 30 MB, freed at once: from now on glibc itself keeps what is no larger
    before, blocks, between = resident(), [], []
    for _ in range(40):
        blocks.append(np.ones(4 << 17))
        between.append(bytes(70_000))
    taken = resident() - before
    del blocks
    print(taken, resident() - before)

uvicorn.Server.run = churn
with socket.create_server(("127.0.0.1", 0)) as listening:
    server.serve(models.Models([Path(sys.argv[1])], None), Settings(), listening)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not tell of memory, or tells it otherwise")
def test_a_server_returns_freed_blocks_between_which_others_live(sample_store):
    done = subprocess.run([sys.executable, "-c", CHURN, sample_store], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    taken, kept = map(int, done.stdout.split())  # MB of 40 blocks of 4 MB, and those still there when they were freed
    assert taken > 140
    assert kept < 20
