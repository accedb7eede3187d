"""Requests resolved for the sample model by engines that take nearly everything, for tests that need no engine."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from facts import MODEL, step_artefact

from clipskip.engines.manifest import ModelFacts
from clipskip.inversions import Inversions
from clipskip.request import Request
from clipskip.resolve import Limits, Resolved, resolve
from clipskip.tokenizer import Tokenizer

ROOMY = Limits.of(step_artefact(T=(77, 64 * 77)), 2**30, max_batch=None, build_command=None)
NO_INVERSIONS = Inversions(np.zeros((1, MODEL.width), np.float32))


@lru_cache
def sample_tokenizer() -> Tokenizer:
    return Tokenizer.open(Path(__file__).parents[1] / "export" / "sample" / "tokenizer")


def resolved(
    request: Request | str,
    *,
    model: ModelFacts = MODEL,
    limits: Limits = ROOMY,
    inversions: Inversions = NO_INVERSIONS,
    **fields: Any,
) -> Resolved:
    """What a request, or a prompt and fields, means for `model` and engines with these limits."""
    request = Request(prompt=request, **fields) if isinstance(request, str) else request
    return resolve(request, model, limits, sample_tokenizer(), inversions)
