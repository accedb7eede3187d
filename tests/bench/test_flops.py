"""Operations counted from graphs against torch's own counter on the same networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clipskip.bench import flops
from clipskip.engines.store import Store


@pytest.fixture(scope="module")
def counted(sample_store: Path) -> dict[str, dict[str, int]]:
    return flops.counts(Store(sample_store), 192)


def test_operations_are_those_that_torch_counts(counted: dict[str, dict[str, int]], sample_checkpoint: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    pipe = StableDiffusionPipeline.from_pretrained(sample_checkpoint, safety_checker=None)
    for network in (pipe.text_encoder, pipe.unet, pipe.vae):
        network.to("meta")  # nothing is computed
    calls: dict[str, Callable[[], object]] = {
        "text-12": lambda: pipe.text_encoder(torch.ones(2, 77, dtype=torch.int64)),
        "step": lambda: pipe.unet(torch.zeros(2, 4, 24, 24), torch.tensor(5), torch.zeros(2, 77, 64)),
        "decode": lambda: pipe.vae.decode(torch.zeros(1, 4, 24, 24)),
    }
    for role, call in calls.items():  # of attention it counts only the plain one
        with (
            torch.no_grad(),
            torch.device("meta"),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as seen,
        ):
            call()
        assert counted[role]["flops"] == pytest.approx(seen.get_total_flops(), rel=1e-3), role


def test_each_layer_costs_the_same_and_a_depth_reads_only_its_own_weights(
    counted: dict[str, dict[str, int]],
) -> None:
    depths = [counted[f"text-{layers:02}"] for layers in range(13)]
    each = depths[1]["flops"] - depths[0]["flops"]
    assert [depth["flops"] for depth in depths] == [layers * each for layers in range(13)]
    assert depths[0]["bytes"] < depths[1]["bytes"] < depths[12]["bytes"]
