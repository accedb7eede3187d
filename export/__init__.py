"""Checkpoint -> ONNX graphs in an engine store. Needs torch, which the runtime does not."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # asked once, when transformers or diffusers are first imported

from clipskip.export.job import export

__all__ = ["export"]
