"""The weights of prompts in the network's two outputs: the guided one, and the reference of CFG++ and cfg_rescale."""

from __future__ import annotations

import numpy as np
import pytest
from fake_step import FakeStep, finished, image, row
from resolving import resolved

CFGPP = ("DDIM CFG++", "Euler CFG++", "Euler a CFG++")
BEFORE = "cfg_rescale is not used "


def weights(prompt: str = "a", **fields: object) -> list[tuple[float, float]]:
    """Of each row of the network, in both outputs."""
    found = resolved(prompt, **{"negative_prompt": "x", "clip_skip": 1, **fields})  # type: ignore[arg-type]
    return [(text.weight, text.reference) for text in found.texts]


def test_a_reference_is_weighed_only_where_somebody_takes_it() -> None:
    assert weights(cfg=7) == [(7, 0), (-6, 0)]
    assert weights(cfg=7, sampler="Euler", cfg_rescale=0.7) == [(7, 1), (-6, 0)]
    assert weights(cfg=2, sampler="Euler CFG++") == [(2, 0), (-1, 1)]


def test_a_cfg_of_ddim_cfgpp_is_divided_by_12_5_as_in_a1111() -> None:
    assert weights(cfg=12.5, sampler="DDIM CFG++") == [(1, 0), (0, 1)]  # the negative prompt is run for its answer
    assert weights(cfg=5, sampler="DDIM CFG++") == [(pytest.approx(0.4), 0), (pytest.approx(0.6), 1)]
    assert weights(cfg=0, sampler="DDIM CFG++") == [(1, 1)]


def test_the_reference_of_several_parts_is_the_mean_of_those_that_weigh_more_than_0() -> None:
    prompt = "a :2 AND b AND c :-1 AND d :0"
    assert weights(prompt=prompt, cfg=3, cfg_rescale=0.5) == [(6, 2 / 3), (3, 1 / 3), (-3, 0), (-5, 0)]
    assert weights(prompt="a AND b", cfg=1, cfg_rescale=0.5) == [(1, 0.5), (1, 0.5), (-1, 0)]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        *(({"sampler": name, "cfg": 1}, f"by {name}") for name in CFGPP),
        ({"cfg": 1}, "at cfg 1: the guided answer is one prompt's alone"),
        ({"cfg": 0}, "at cfg 0: the guided answer is one prompt's alone"),
    ],
)
def test_a_rescaling_without_effect_is_noted_and_not_in_the_request(fields: dict[str, object], why: str) -> None:
    found = resolved("a", clip_skip=1, cfg_rescale=0.7, **fields)  # type: ignore[arg-type]
    assert f"{BEFORE}{why}" in found.notes
    assert found.request.cfg_rescale == 0
    assert weights(**fields, cfg_rescale=0.7) == weights(**fields)


def test_no_part_that_draws_near_is_nothing_to_rescale_to() -> None:
    found = resolved("a :-1 AND b :-0.5", clip_skip=1, cfg=3, cfg_rescale=0.7)
    assert [note for note in found.notes if note.startswith(BEFORE)]


def test_a_cfg_beyond_what_cfgpp_is_made_for_is_noted() -> None:
    assert resolved("a", clip_skip=1, sampler="DDIM CFG++").notes == ()
    high = "cfg 7 is high for Euler CFG++, which is made for 0 to 1"
    assert resolved("a", clip_skip=1, sampler="Euler CFG++").notes == (high,)
    assert resolved("a", clip_skip=1, sampler="Euler CFG++", cfg=1.5).notes == ()


def test_a_batch_gives_each_image_its_own_reference() -> None:
    def rows(reference: float) -> tuple[object, ...]:
        guided, plain = row(2.0, 0.3), row(-1.0, 0.1)
        return (guided, type(plain)(-1.0, plain.ends, plain.which, plain.variants, reference))

    makes = [
        {"seed": 1, "sampler": "Euler CFG++", "rows": rows(1.0)},
        {"seed": 2, "sampler": "Euler", "rows": rows(0.0)},
        {"seed": 3, "sampler": "DDIM CFG++", "rows": rows(1.0), "steps": 4},
    ]
    together = finished(FakeStep(), *(image(**fields) for fields in makes))
    for fields, latents in zip(makes, together, strict=True):
        np.testing.assert_array_equal(finished(FakeStep(), image(**fields))[0], latents)
    other = finished(FakeStep(), image(seed=1, sampler="Euler CFG++", rows=rows(0.0)))[0]
    assert np.abs(other - together[0]).max() > 0.1
