"""Tensors of small safetensors files: see clipskip.engines.tensorfile."""

from clipskip.engines.strict import LARGEST as LONGEST_HEADER
from clipskip.engines.tensorfile import LARGEST, Tensor, parse, read

__all__ = ["LARGEST", "LONGEST_HEADER", "Tensor", "parse", "read"]
