"""The published graphs compute what independent, plain torch code computes, on every dynamic axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from clipskip.backends import Array
from clipskip.engines.manifest import Dim, Role
from clipskip.engines.store import Store
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.models import Networks, load

CONTRACT = {
    "text-02": {
        "tokens": ("int64", ("R", 77)), "concepts": ("float32", ("E", 32)), "context": ("float32", ("R", 77, 32)),
    },
    "step": {
        "state": ("float32", ("B", 6, 4, "h", "w")), "rows": ("int64", ("N",)), "c_in": ("float32", ("B",)),
        "timestep": ("float32", ("B",)), "context": ("float32", ("N", "T", 32)), "mix": ("float32", ("B", "N")),
        "reference": ("float32", ("B", "N")), "rescale": ("float32", ("B",)),
        "mask": ("float32", ("B", 1, "h", "w")), "known": ("float32", ("B", 4, "h", "w")),
        "pull": ("float32", ("B", 2)), "noise": ("float32", ("B", 4, "h", "w")), "update": ("float32", ("B", 6, 8)),
        "next_state": ("float32", ("B", 6, 4, "h", "w")),
    },
    "decode": {
        "latents": ("float32", ("B", 4, "h", "w")), "image": ("uint8", ("B", "8*h", "8*w", 3)),
        "finite": ("bool", ("B",)),
    },
    "encode": {
        "image": ("uint8", ("B", "8*h", "8*w", 3)), "mean": ("float32", ("B", 4, "h", "w")),
        "std": ("float32", ("B", 4, "h", "w")),
    },
}  # fmt: skip
TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)", "uint8": "tensor(uint8)", "bool": "tensor(bool)"}


@pytest.fixture(scope="module")
def networks(tiny: Path) -> Networks:
    return load(open_checkpoint(tiny))


def session(store: Store, role: str) -> ort.InferenceSession:
    return ort.InferenceSession(
        store.verify(store.find(Role.parse(role), "onnx", "fp32")), providers=["CPUExecutionProvider"]
    )


def relative(found: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def written(size: int | Dim) -> int | str:
    return size if isinstance(size, int) else str(size)


@pytest.mark.parametrize("role", CONTRACT)
def test_the_borders_are_those_of_the_contract(store: Store, role: str) -> None:
    artefact, opened = store.find(Role.parse(role), "onnx", "fp32"), session(store, role)
    ports = {port.name: (port.dtype, tuple(map(written, port.shape))) for port in (*artefact.inputs, *artefact.outputs)}
    assert ports == CONTRACT[role]
    for value in (*opened.get_inputs(), *opened.get_outputs()):
        dtype, shape = CONTRACT[role][value.name]
        assert (value.type, tuple(value.shape)) == (TYPES[dtype], shape)


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("rows", [1, 4])
def test_a_textual_inversion_enters_before_the_first_layer(
    store: Store, networks: Networks, depth: int, rows: int
) -> None:
    rng = np.random.default_rng(depth)
    tokens = rng.integers(0, 56 + 3, (rows, 77))
    concepts = rng.standard_normal((3, 32)).astype(np.float32)
    got = session(store, f"text-{depth:02}").run(None, {"tokens": tokens, "concepts": concepts})[0]
    table = torch.cat([networks.texts[0].embeddings.token_embedding.weight, torch.from_numpy(concepts)])
    hidden = table[torch.from_numpy(tokens)] + networks.texts[0].embeddings.position_embedding.weight
    causal = torch.full((77, 77), -torch.inf).triu(1)
    for layer in networks.texts[0].encoder.layers[:depth]:
        hidden = layer(hidden, causal[None, None])
    assert relative(got, networks.texts[0].final_layer_norm(hidden).numpy()) <= 1e-6


def plain_step(unet: torch.nn.Module, feeds: dict[str, torch.Tensor]) -> torch.Tensor:
    """One image and one row at a time, as a person would write it."""
    state, next_state = feeds["state"], torch.zeros_like(feeds["state"])
    outs = []
    for n, b in enumerate(feeds["rows"].tolist()):
        sample = state[b, 0] * feeds["c_in"][b]
        outs.append(unet(sample[None], feeds["timestep"][b], feeds["context"][n][None]).sample[0])
    for b in range(len(state)):
        out, reference = (
            sum(weight * each for weight, each in zip(feeds[name][b], outs, strict=True))
            for name in ("mix", "reference")
        )
        out = rescale_noise_cfg(out[None], reference[None], feeds["rescale"][b])[0]
        kept = feeds["pull"][b, 0] * state[b, 0] + feeds["pull"][b, 1] * feeds["known"][b]
        both = [feeds["mask"][b] * each + (1 - feeds["mask"][b]) * kept for each in (out, reference)]
        for k in range(6):
            slots = [*state[b][:5], *both, feeds["noise"][b]]
            next_state[b, k] = sum(weight * each for weight, each in zip(feeds["update"][b, k], slots, strict=True))
    return next_state


@pytest.mark.parametrize(
    ("images", "rows", "chunks", "height", "width"),
    [(1, 1, 1, 2, 2), (1, 2, 1, 8, 4), (2, 3, 2, 4, 10), (3, 6, 3, 6, 6), (4, 9, 1, 12, 8), (1, 2, 1, 9, 7)],
)
def test_a_step_equals_plain_torch_for_any_batch_size_and_length(
    store: Store, networks: Networks, images: int, rows: int, chunks: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(images)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(np.float32)

    feeds = {
        "state": normal(images, 6, 4, height, width), "rows": rng.integers(0, images, rows), "c_in": normal(images),
        "timestep": rng.uniform(0, 999, images).astype(np.float32), "context": normal(rows, 77 * chunks, 32),
        "mix": normal(images, rows), "reference": normal(images, rows),
        "rescale": rng.choice([0, 0.3, 1], images).astype(np.float32),
        "mask": rng.uniform(0, 1, (images, 1, height, width)).astype(np.float32),
        "known": normal(images, 4, height, width), "pull": normal(images, 2),
        "noise": normal(images, 4, height, width), "update": normal(images, 6, 8),
    }  # fmt: skip
    got = session(store, "step").run(None, feeds)[0]
    with torch.no_grad():
        exact = plain_step(networks.unet, {name: torch.from_numpy(value) for name, value in feeds.items()})
    assert relative(got, exact.numpy()) <= 1e-5


@pytest.mark.parametrize("rescale", [0, 0.7])
def test_an_image_that_is_not_finite_spoils_no_other_of_its_call(store: Store, rescale: float) -> None:
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return draw.standard_normal(shape).astype(np.float32)

    feeds = {
        "state": normal(2, 6, 4, 8, 8), "rows": np.array([0, 0, 1]), "c_in": normal(2), "timestep": normal(2),
        "context": normal(3, 77, 32), "mix": np.array([[2, -1, 0], [0, 0, 1]], np.float32),
        "reference": np.array([[0, 1, 0], [0, 0, 0]], np.float32), "rescale": np.float32([rescale, 0]),
        "pull": normal(2, 2),
        "mask": np.ones((2, 1, 8, 8), np.float32), "known": normal(2, 4, 8, 8), "noise": normal(2, 4, 8, 8),
        "update": normal(2, 6, 8),
    }  # fmt: skip
    step = session(store, "step")
    sound = step.run(None, feeds)[0]
    feeds["state"][1] = np.nan
    spoilt = step.run(None, feeds)[0]
    np.testing.assert_array_equal(spoilt[0], sound[0])
    assert np.isnan(spoilt[1]).all()


@pytest.mark.parametrize(("images", "height", "width"), [(1, 8, 8), (3, 4, 12)])
def test_pictures_are_decoded_and_encoded_as_by_diffusers(
    store: Store, networks: Networks, images: int, height: int, width: int
) -> None:
    latents = torch.randn(images, 4, height, width, generator=torch.Generator().manual_seed(1))
    scale = networks.vae.config.scaling_factor
    with torch.no_grad():
        decoded = networks.vae.decode(latents / scale).sample
    exact = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    picture, finite = session(store, "decode").run(None, {"latents": latents.numpy()})
    assert picture.shape == (images, 8 * height, 8 * width, 3)
    assert np.abs(picture - exact).max() <= 1
    assert finite.all()
    mean, std = session(store, "encode").run(None, {"image": picture})
    with torch.no_grad():
        moments = networks.vae.encode(torch.from_numpy(picture).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    assert relative(mean, (moments.mean * scale).numpy()) <= 1e-5
    assert relative(std, (moments.std * scale).numpy()) <= 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_a_picture_that_is_not_finite_is_called_so_and_its_neighbour_is_not(store: Store, value: float) -> None:
    latents = np.zeros((2, 4, 8, 8), np.float32)
    latents[1, 2, 3, 4] = value
    assert session(store, "decode").run(None, {"latents": latents})[1].tolist() == [True, False]


def test_an_image_that_is_not_rescaled_is_that_without_a_reference_bit_for_bit(store: Store) -> None:
    draw = np.random.default_rng(3)
    shapes = {"state": (3, 6, 4, 8, 8), "c_in": (3,), "context": (3, 77, 32), "pull": (3, 2), "known": (3, 4, 8, 8)}
    feeds: dict[str, Array] = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds |= {"rows": np.arange(3), "timestep": np.float32([1, 500, 999]), "mask": np.ones((3, 1, 8, 8), np.float32)}
    feeds |= {"noise": np.zeros((3, 4, 8, 8), np.float32), "update": np.zeros((3, 6, 8), np.float32)}
    feeds["update"][:, 0, 5] = feeds["update"][:, 1, 6] = 1  # the guided output, and the reference
    feeds["mix"] = np.diag(np.float32([3, 2, 0]))  # the last is nobody's: its output has no deviation
    step = session(store, "step")
    still = {"reference": np.zeros((3, 3), np.float32), "rescale": np.zeros(3, np.float32)}
    plain = step.run(None, feeds | still)[0]
    moved = step.run(None, feeds | {"reference": np.eye(3, dtype=np.float32), "rescale": np.float32([0, 0.5, 0])})[0]
    np.testing.assert_array_equal(moved[0, 0], plain[0, 0])
    np.testing.assert_array_equal(moved[2, 0], np.zeros((4, 8, 8)))
    np.testing.assert_allclose(moved[1, 0], plain[1, 0] * 0.75, rtol=1e-6)  # half of the way from 2 to 1
    np.testing.assert_array_equal(moved[:2, 1] * np.float32([3, 2])[:, None, None, None], plain[:2, 0])
