"""Noise against PyTorch's own generator, and against published numbers where there is no GPU to ask."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pace import pace

from clipskip.noise import KEPT, BrownianTree, CpuNoise, NvNoise, image_seeds, initial, slerp

SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 1, *range(1000, 1040)]
SHAPES = [(4, 64, 64), (16,), (17,), (31,), (4, 9, 7), (1, 4, 24, 40)]


def torch_generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_cpu_noise_equals_torch_over_successive_draws_of_any_size(seed: int) -> None:
    ours, theirs = CpuNoise(seed), torch_generator(seed)
    for shape in SHAPES * 2:
        drawn = ours.normal(shape)
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, torch.randn(shape, generator=theirs).numpy(), rtol=0, atol=5e-7)


def test_fewer_numbers_than_a_block_are_refused_rather_than_drawn_differently() -> None:
    with pytest.raises(ValueError, match="fewer than 16"):
        CpuNoise(0).normal((3, 5))


def test_nv_noise_equals_the_published_numbers_of_seed_0() -> None:
    published = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    np.testing.assert_allclose(NvNoise(0).normal((3, 4)), published, rtol=0, atol=3e-7)


def philox_of_one_counter(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as its paper states it, in Python integers."""
    for _ in range(10):
        left, right = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        low = 0xFFFFFFFF
        counter = [(right >> 32) ^ counter[1] ^ key[0], right & low, (left >> 32) ^ counter[3] ^ key[1], left & low]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return counter


def test_the_reference_above_gives_the_papers_known_answers() -> None:
    ones = 0xFFFFFFFF
    assert philox_of_one_counter([0] * 4, [0, 0]) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox_of_one_counter([ones] * 4, [ones, ones]) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**63 + 12345, 2**64 - 1])
def test_nv_noise_counts_its_draws_and_uses_all_64_bits_of_the_seed(seed: int) -> None:
    noise = NvNoise(seed)
    for draw in range(3):
        drawn = noise.normal((2, 3))
        for position, number in enumerate(drawn.reshape(-1)):
            x, y, *_ = philox_of_one_counter([draw, 0, position, 0], [seed & 0xFFFFFFFF, seed >> 32])
            u, v = (x + 0.5) / 2**32, (y + 0.5) / 2**32 * 2 * np.pi
            assert abs(number - np.sqrt(-2 * np.log(u)) * np.sin(v)) < 1e-6


@pytest.mark.parametrize("source", [CpuNoise, NvNoise])
def test_noise_has_the_moments_of_a_normal_distribution(source: type[CpuNoise] | type[NvNoise]) -> None:
    drawn = source(5).normal((4, 128, 128)).astype(np.float64)
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02
    assert abs((drawn**4).mean() - 3) < 0.15


def test_the_latents_are_an_images_first_draw_and_its_step_noise_follows() -> None:
    latents, noise = initial(11, (4, 8, 8), "cpu", None, 0.0)
    generator = torch_generator(11)
    np.testing.assert_allclose(latents, torch.randn((4, 8, 8), generator=generator).numpy(), atol=5e-7)
    np.testing.assert_allclose(noise.normal((4, 8, 8)), torch.randn((4, 8, 8), generator=generator).numpy(), atol=5e-7)


TREE = np.load(Path(__file__).parent / "data" / "brownian.npz")


@pytest.mark.parametrize("number", range(3))
def test_a_brownian_tree_equals_torchsdes_in_any_order(number: int) -> None:
    limits, shape = TREE["limits"], TREE["draws"].shape[2:]
    forwards, backwards = (BrownianTree(int(TREE["seeds"][number]), "cpu", *limits) for _ in range(2))
    for k, (s, t) in enumerate(TREE["intervals"]):
        drawn = forwards.normal(shape, s, t)
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, TREE["draws"][number, k], rtol=0, atol=2e-6)
    for k, (s, t) in reversed([*enumerate(TREE["intervals"])]):
        np.testing.assert_allclose(backwards.normal(shape, s, t), TREE["draws"][number, k], rtol=0, atol=2e-6)


def test_increments_of_a_brownian_tree_add_up_and_their_variance_is_one() -> None:
    tree, shape = BrownianTree(3, "nv", 0.03, 14.6), (4, 32, 32)
    levels = [14.6, 9.0, 2.0, 0.4, 0.03]
    parts = [tree.normal(shape, s, t) * np.sqrt(s - t) for s, t in pairwise(levels)]
    whole = tree.normal(shape, 14.6, 0.03) * np.sqrt(14.6 - 0.03)
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, atol=1e-4)
    for (s, t), part in zip(pairwise(levels), parts, strict=True):
        assert abs((part / np.sqrt(s - t)).std() - 1) < 0.05


def test_a_brownian_tree_remembers_few_draws_and_none_between_levels_that_are_the_same() -> None:
    tree = BrownianTree(3, "cpu", 0.03, 14.6)
    for s, t in pairwise(np.linspace(14.6, 0.03, 60)):
        tree.normal((4, 4, 4), s, t)
    assert len(tree._kept) == KEPT
    assert not tree.normal((4, 4, 4), 2.0, 2.0 - 1e-8).any()


def torch_slerp(t: float, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The arc along dimension 1 between two noises, written with torch's vector functions."""
    omega = torch.acos(torch.nn.functional.cosine_similarity(low, high, dim=1, eps=0)).unsqueeze(1)
    return (torch.sin((1 - t) * omega) * low + torch.sin(t * omega) * high) / torch.sin(omega)


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.93])
def test_a_variation_lies_on_the_arc_between_two_seeds_columns(strength: float) -> None:
    low, high = (torch.randn((4, 12, 8), generator=torch_generator(seed)) for seed in (3, 4))
    latents, _ = initial(3, (4, 12, 8), "cpu", 4, strength)
    np.testing.assert_allclose(latents, torch_slerp(strength, low, high).numpy(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("rng", ["cpu", "nv"])
def test_a_variations_ends_are_the_two_seeds_and_the_step_noise_stays_the_seeds(rng: str) -> None:
    shape = (4, 8, 8)
    plain, step_noise = initial(3, shape, rng, None, 0.0)
    other, _ = initial(4, shape, rng, None, 0.0)
    np.testing.assert_array_equal(initial(3, shape, rng, 4, 0.0)[0], plain)
    full, full_noise = initial(3, shape, rng, 4, 1.0)
    np.testing.assert_allclose(full, other, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(full_noise.normal(shape), step_noise.normal(shape))


def test_a_variation_towards_the_same_seed_changes_nothing() -> None:
    plain, _ = initial(3, (4, 8, 8), "cpu", None, 0.0)
    np.testing.assert_array_equal(slerp(0.5, plain, plain), plain)
    assert np.isfinite(initial(3, (4, 8, 8), "cpu", 3, 0.5)[0]).all()


def test_a_batch_counts_up_the_seed_or_for_variations_the_subseed_and_wraps_at_the_end() -> None:
    assert image_seeds(5, None, 0.0, 3) == [(5, None), (6, None), (7, None)]
    assert image_seeds(5, 9, 0.0, 2) == [(5, 9), (6, 9)]
    assert image_seeds(5, 9, 0.3, 2) == [(5, 9), (5, 10)]
    assert image_seeds(2**64 - 1, None, 0.0, 2) == [(2**64 - 1, None), (0, None)]


def test_noise_for_a_512_pixel_image_takes_well_under_five_milliseconds() -> None:
    noise = CpuNoise(0)
    assert pace(lambda: noise.normal((4, 64, 64)), times=5) < 0.2  # measured: 0.2 ms
