"""Checkpoint -> ONNX graphs in an engine store. Needs torch, which the runtime does not."""

from clipskip.export.job import export

__all__ = ["export"]
