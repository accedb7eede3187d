"""Prompts that name every fact of a scene, and how much of it a picture shows. Knows nothing of networks or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from captions import EVERYTHING, Caption, Writer
from scenes import random_scene

Facts = Mapping[str, str]
PROMPT_SEED = 20_000
FORMS = {"tags": 1.0, "sentences": 0.0}
FINE = {"size": ("size",), "colour": ("colour",), "place": ("place", "axis"), "background": ("background",),
        "pattern": ("texture",)}  # fmt: skip
GROUPS = ("a shape", "the kind", *FINE, "fine", "everything")


def prompts(count: int) -> dict[str, list[Caption]]:
    """The same scenes, which no training picture shows, as lists of tags and as sentences; everything is named."""
    rng, written = np.random.default_rng(PROMPT_SEED), dict[str, list[Caption]]()
    drawn = [random_scene(rng, held_out=True) for _ in range(count)]
    for form, tags in FORMS.items():
        naming = replace(EVERYTHING, plain=1.0, tags=tags)
        writer = Writer(np.random.default_rng(PROMPT_SEED + 1), naming)
        written[form] = [writer.caption(scene) for scene in drawn]
    return written


def shares(seen: Facts, named: Facts) -> dict[str, float]:
    """How much of each group of the named facts a picture shows; coarse are the first two."""
    kinds, shown = ({value for name, value in facts.items() if name.startswith("kind")} for facts in (named, seen))
    found = {"a shape": float(bool(shown)), "the kind": float(bool(kinds & shown))}
    right = {name: seen.get(name) == value for name, value in named.items()}
    fine = {group: [right[name] for name in right if name.startswith(starts)] for group, starts in FINE.items()}
    found |= {group: sum(each) / len(each) for group, each in fine.items() if each}
    every = [value for each in fine.values() for value in each]
    return {**found, "fine": sum(every) / len(every), "everything": float(all(right.values()))}
