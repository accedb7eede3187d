"""Graphs derived from exported ones for one kind of device, over the same weights. Needs onnx-ir, never torch."""

from __future__ import annotations

from collections.abc import Mapping

from clipskip.engines.forms import cpu, cuda
from clipskip.engines.forms.attention import flat_attention
from clipskip.engines.forms.norms import half_norm
from clipskip.engines.forms.rewrite import Pattern

COMMON: tuple[Pattern, ...] = (flat_attention, half_norm)  # what export does to every graph
# variant -> part of the model -> what makes the form of the exported graph
FORMS: Mapping[str, Mapping[str, tuple[Pattern, ...]]] = {"cpu": cpu.PATTERNS, "cuda": cuda.PATTERNS}
