"""What decoding a picture takes over the picture itself is given back when it is done."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

CODE = """
    import sys
    import numpy as np
    from clipskip.backends.onnxruntime import OnnxRuntime
    from clipskip.engines.manifest import DECODE
    from clipskip.engines.store import Store

    def memory(name, file="status"):
        lines = open(f"/proc/self/{file}").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1000

    store = Store(sys.argv[1])
    decode = store.find(DECODE, "onnx", "fp32", "cpu")
    engine = OnnxRuntime(threads=1).open(decode, store.verify(decode))
    before, pictures = memory("RssAnon"), []
    for _ in range(2):
        pictures.append(engine.run({"latents": np.ones((1, 4, 64, 64), np.float32)})["image"])
    assert (pictures[0] == pictures[1]).all()
    print(before, memory("VmHWM"), memory("RssAnon"))
"""


def test_little_is_kept_of_what_a_decode_took(sample_store: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CODE), str(sample_store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    before, peak, after = map(float, done.stdout.split())
    assert peak > before + 50, "this decode takes nothing worth giving back"
    assert after - before < (peak - before) / 4
