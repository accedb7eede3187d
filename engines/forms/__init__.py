"""Graphs derived from exported ones for one kind of device, over the same weights. Needs onnx-ir, never torch."""
