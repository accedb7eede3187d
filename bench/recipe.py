"""The recipe of the sample model, export/sample: scenes, captions, checker. A checkout has it, the wheel has not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import PIL.Image

import clipskip.export
from clipskip.errors import BackendUnavailable

FOLDER = Path(clipskip.export.__file__).parent / "sample"


def module(name: str) -> Any:
    """One of its modules. BackendUnavailable outside of a checkout."""
    if not (FOLDER / f"{name}.py").is_file():
        raise BackendUnavailable(f"{FOLDER} is not here", path=FOLDER, hint="run this in a checkout of clipskip")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)


def captioned(rng: Any, count: int, held_out: bool) -> list[tuple[PIL.Image.Image, str]]:
    """Drawn pictures and what one might write about them; held out are combinations that no training picture shows."""
    scenes, captions = module("scenes"), module("captions")
    writer, pairs = captions.Writer(rng), list[tuple[PIL.Image.Image, str]]()
    for _ in range(count):
        scene = scenes.random_scene(rng, held_out=held_out)
        pairs.append((PIL.Image.fromarray(scenes.draw(scene, rng)), writer.caption(scene).text))
    return pairs
