"""Latents and pictures: several in a call, large ones in tiles; on the sample model, and on decoders of a few lines."""

import math
import os
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clipskip
from clipskip.engines.manifest import Artefact, AxisRange, Role
from clipskip.engines.shapes import LATENT
from clipskip.errors import DeviceOutOfMemory, NumericalError
from clipskip.pipeline import TILES
from clipskip.resolve import ANY_LIMITS
from clipskip.vae import OVERLAP, SMALLEST_TILE, Vae, cuts


class Networks:
    """A decoder that draws each latent as a block of pixels, and an encoder that undoes it; counts what it is given."""

    def __init__(self, most=8, least=8):
        axes = {"B": AxisRange(1, 1, most), "h": AxisRange(least, 64, 256), "w": AxisRange(least, 64, 256)}
        self.artefact, self.given, self.broken = Artefact(Role("decode"), "onnx", "fp32", (), (), axes), [], ()

    @contextmanager
    def use(self, role):
        yield self

    def run(self, feeds):
        ((name, array),) = feeds.items()
        self.given.append(array.shape)
        if name == "image":
            mean = array[:, ::LATENT, ::LATENT, [0, 1, 2, 0]].transpose(0, 3, 1, 2).astype(np.float32)
            return {"mean": mean, "std": mean / 2}
        image = array[:, :3].transpose(0, 2, 3, 1).repeat(LATENT, 1).repeat(LATENT, 2).astype(np.uint8)
        finite = [index not in self.broken for index in range(len(array))]
        return {"image": image, "finite": np.array(finite)}


def vae(networks, tile_pixels=None, **limits):
    return Vae(networks, replace(ANY_LIMITS, batch=64, pixels=2**30, **limits), tile_pixels)


def latents(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (4, h, w)).astype(np.float32)


def expected(*several):
    return [each[:3].transpose(1, 2, 0).repeat(LATENT, 0).repeat(LATENT, 1).astype(np.uint8) for each in several]


def test_pictures_of_one_size_share_calls_by_powers_of_two_and_keep_their_order():
    networks = Networks(most=4)
    waiting = [latents(8, 8, seed) for seed in range(7)] + [latents(8, 16)] + [latents(8, 8, 9)]
    pictures = vae(networks).decode(waiting, "they")
    assert [shape[0] for shape in networks.given] == [4, 2, 1, 1, 1]
    assert [np.asarray(each).tolist() for each in pictures] == [each.tolist() for each in expected(*waiting)]


def test_no_more_pictures_share_a_call_than_the_limits_allow():
    networks = Networks()
    small = Vae(networks, replace(ANY_LIMITS, batch=3, pixels=2**30), None)
    small.decode([latents(8, 8)] * 3, "they")
    Vae(networks, replace(ANY_LIMITS, batch=8, pixels=64 * 64), None).decode([latents(8, 8)] * 2, "they")
    assert [shape[0] for shape in networks.given] == [2, 1, 1, 1]


def test_fewer_pictures_share_a_call_where_the_device_has_no_memory_for_them():
    networks, waiting = Networks(), [latents(8, 8, seed) for seed in range(5)]
    run, room = networks.run, 2

    def full(feeds):
        if len(feeds["latents"]) > room:
            raise DeviceOutOfMemory("full")
        return run(feeds)

    networks.run = full
    pictures = vae(networks).decode(waiting, "they")
    assert [shape[0] for shape in networks.given] == [2, 2, 1]
    assert [np.asarray(each).tolist() for each in pictures] == [each.tolist() for each in expected(*waiting)]
    room = 0
    with pytest.raises(DeviceOutOfMemory):
        vae(networks).decode(waiting, "they")


@pytest.mark.parametrize(("h", "w"), [(96, 96), (33, 129), (256, 16), (8, 200), (40, 64)])
def test_tiles_of_a_decoder_without_context_give_the_whole_picture(h, w):
    networks, whole = Networks(), latents(h, w)
    made = np.asarray(vae(networks, SMALLEST_TILE).decode([whole], "it")[0])
    np.testing.assert_array_equal(made, expected(whole)[0])
    assert len(networks.given) > 1
    assert len(set(networks.given)) == 1, "a GPU compiles for every shape"
    assert math.prod(networks.given[0][2:]) * LATENT**2 <= SMALLEST_TILE


@pytest.mark.parametrize(("h", "w"), [(64, 64), (40, 33)])
def test_tiles_of_an_encoder_without_context_give_the_whole_latents(h, w):
    picture = expected(latents(h, w))[0]
    tiled, plain = (vae(Networks(), tile).encode(picture) for tile in (SMALLEST_TILE, None))
    for made, whole in zip(tiled, plain, strict=True):
        assert made.shape == (4, h, w)
        np.testing.assert_allclose(made, whole, rtol=1e-6, atol=1e-4)


def test_tiles_fade_into_each_other_and_show_no_edge():
    """A decoder that is brighter from tile to tile: neighbouring pixels still differ by little."""
    networks = Networks()
    run = networks.run

    def brighter(feeds):
        made = run(feeds)
        return {**made, "image": made["image"] + np.uint8(40 * len(networks.given))}

    networks.run = brighter
    made = np.asarray(vae(networks, SMALLEST_TILE).decode([np.zeros((4, 32, 48), np.float32)], "it")[0]).astype(int)
    assert made.max() - made.min() == 40 * (len(networks.given) - 1)
    assert np.abs(np.diff(made, axis=1)).max() <= math.ceil(40 / (OVERLAP * LATENT))


def test_a_tile_is_never_smaller_than_an_engine_takes():
    networks = Networks(least=40)
    vae(networks, SMALLEST_TILE).decode([latents(41, 50)], "it")
    assert {shape[2:] for shape in networks.given} == {(40, 40)}


@given(st.integers(8, 400), st.integers(2 * OVERLAP, 200), st.integers(1, 60))
def test_parts_are_equal_cover_everything_and_overlap(length, most, least):
    least = min(least, length)
    parts = cuts(length, most, least)
    assert {part.stop - part.start for part in parts} == {max(least, parts[0].stop)}
    assert (parts[0].start, parts[-1].stop) == (0, length)
    assert parts[0].stop <= max(most, least)
    for part, following in pairwise(parts):
        assert part.stop - following.start >= OVERLAP - 1


@pytest.mark.parametrize("tile_pixels", [None, SMALLEST_TILE])
def test_a_picture_of_a_call_that_is_not_finite_is_an_error(tile_pixels):
    networks = Networks()
    networks.broken = (1,) if tile_pixels is None else (0,)
    with pytest.raises(NumericalError, match="output for they is not finite"):
        vae(networks, tile_pixels).decode([latents(40, 40)] * 2, "they")
    with pytest.raises(NumericalError, match="they are not finite"):
        vae(networks).decode([latents(8, 8), np.full((4, 8, 8), np.nan, np.float32)], "they")


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store, tile_pixels=SMALLEST_TILE) as pipe:
        yield pipe


def test_a_decoded_picture_is_bit_for_bit_the_same_in_any_batch(pipe):
    several = [np.random.default_rng(seed).standard_normal((4, 12, 16)).astype(np.float32) for seed in range(5)]
    together = pipe._vae.decode(several, "they")
    for one, picture in zip(several, together, strict=True):
        assert pipe._vae.decode([one], "it")[0].tobytes() == picture.tobytes()


def test_a_large_picture_is_decoded_in_tiles_and_says_so(pipe):
    request = clipskip.Request(
        prompt="a ring", clip_skip=2, seed=7, steps=1, sampler="Euler", cfg=1, width=264, height=256
    )
    assert TILES in pipe(request).warnings
    assert not pipe(request, width=256).warnings


def test_tiles_are_close_to_the_whole_and_the_same_each_time(pipe):
    """Not equal: the norms of a tile see that tile alone."""
    whole = replace(pipe._vae, tile_pixels=None)
    picture = np.asarray(PIL.Image.effect_mandelbrot((384, 256), (-2, -1.2, 1, 1.2), 60).convert("RGB"))
    mean, std = whole.encode(picture)
    tiled, again, plain = (each.decode([mean], "it")[0] for each in (pipe._vae, pipe._vae, whole))
    assert tiled.tobytes() == again.tobytes() != plain.tobytes()
    assert 10 * math.log10(255**2 / np.mean(np.subtract(tiled, np.asarray(plain, float)) ** 2)) > 35
    for encoded, expected in zip(pipe._vae.encode(picture), (mean, std), strict=True):
        assert np.linalg.norm(encoded - expected) / np.linalg.norm(expected) < 0.1


def test_the_memory_that_is_warned_of_is_a_tiles_and_that_of_attention_where_it_holds_its_scores(pipe, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 300_000}.get)
    large = pipe.check(clipskip.Request(prompt="a ring", width=1024, height=1024))
    pipe._warn_of_memory([large])  # a tile's decoder has room in 1.2 GB, and attention in a form needs little
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "_vae", replace(pipe._vae, tile_pixels=None))
        with pytest.warns(RuntimeWarning, match="about 8 GB for the decoder"):
            pipe._warn_of_memory([large])
    artefact = pipe._engines.artefact
    monkeypatch.setattr(pipe._engines, "artefact", lambda role: replace(artefact(role), variant=""))
    with pytest.warns(RuntimeWarning, match=r"about 17 GB for attention \(8 heads\)"):
        pipe._warn_of_memory([large])


@pytest.mark.parametrize("value", [SMALLEST_TILE - 1, "1024", 1.5, True])
def test_a_tile_that_is_too_small_or_no_number_is_refused(sample_store, value):
    with pytest.raises(clipskip.RequestError) as caught:
        clipskip.open(sample_store, tile_pixels=value)
    assert caught.value.field == "tile_pixels"
