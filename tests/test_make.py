"""make hands its variables on as they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("model", "out"),
    [
        ("export/sample", "build/sample"),
        ("a b/c d.safetensors", "build/c d"),
        ('it\'s "my" model/', 'build/it\'s "my" model'),
    ],
)
def test_model_may_hold_spaces_and_quotes(tmp_path: Path, model: str, out: str) -> None:
    program = tmp_path / "print"
    program.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    program.chmod(0o755)
    command = ["make", "-s", "export", f"MODEL={model}", f"CLIPSKIP={program}", "--old-file=.venv/installed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"<export><{model}><--out><{out}>"), done.stderr
