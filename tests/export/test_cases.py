"""The gates let nothing through that is not what torch computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipskip.engines import gates
from clipskip.engines.gates import Case
from clipskip.engines.manifest import Role
from clipskip.engines.store import Store
from clipskip.errors import ExportError, NumericalError
from clipskip.export import cases
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.graphs import step_graph
from clipskip.export.models import Networks, load


@pytest.fixture(scope="module")
def networks(tiny: Path) -> Networks:
    return load(open_checkpoint(tiny))


@pytest.fixture(scope="module")
def deepest(store: Store, networks: Networks) -> list[Case]:
    return cases.text(networks, store.manifest().model, half=False)[3]


def scaled(network: torch.nn.Module, name: str) -> torch.nn.Module:
    """The network with one matrix 2 % too large."""
    other = copy.deepcopy(network)
    other.get_parameter(name).data.mul_(1.02)
    return other


def path_of(store: Store, role: str) -> Path:
    return store.verify(store.find(Role.parse(role), "onnx", "fp32"))


def test_a_text_matrix_scaled_by_two_percent_fails_below_it_only(store: Store, networks: Networks) -> None:
    wrong = scaled(networks.texts[0], "encoder.layers.1.mlp.fc2.weight")
    trials = cases.text(replace(networks, texts=(wrong,)), store.manifest().model, half=False)
    for depth in (0, 1):
        assert gates.measure(Role("text"), path_of(store, f"text-{depth:02}"), trials[depth])["relative_l2"] <= 1e-5
    for depth in (2, 3):
        with pytest.raises(NumericalError, match="text differs from torch: relative_l2"):
            gates.measure(Role("text"), path_of(store, f"text-{depth:02}"), trials[depth])


def test_a_step_matrix_scaled_by_two_percent_fails(store: Store, networks: Networks, deepest: list[Case]) -> None:
    context = deepest[-1].exact["context"]
    facts = store.manifest().model
    right = cases.step(step_graph(networks, facts, "fp32"), context, half=False)
    assert gates.measure(Role("step"), path_of(store, "step"), right)["relative_l2"] <= 1e-5
    wrong = scaled(networks.unet, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    other = step_graph(replace(networks, unet=wrong), facts, "fp32")
    with pytest.raises(NumericalError) as caught:
        gates.measure(Role("step"), path_of(store, "step"), cases.step(other, context, half=False))
    assert caught.value.exit_status == 6


def test_a_vae_that_differs_fails_both_ways(store: Store, networks: Networks) -> None:
    wrong = scaled(networks.vae, "encoder.conv_out.weight")
    wrong.get_parameter("decoder.conv_out.bias").data.add_(0.1)
    with pytest.raises(NumericalError, match="encode differs"):
        gates.measure(Role("encode"), path_of(store, "encode"), cases.encode(wrong, half=False))
    with pytest.raises(NumericalError, match="PSNR"):
        gates.measure(Role("decode"), path_of(store, "decode"), cases.decode(wrong))


def test_a_nan_fails_though_it_compares_as_no_error(store: Store, deepest: list[Case]) -> None:
    poisoned = deepest[1].feeds["concepts"] * np.nan
    trial = replace(deepest[1], feeds=deepest[1].feeds | {"concepts": poisoned})
    with pytest.raises(NumericalError, match="is inf"):
        gates.measure(Role("text"), path_of(store, "text-03"), [trial])


def test_a_reference_that_is_not_finite_fails_too(store: Store, deepest: list[Case]) -> None:
    trial = replace(deepest[1], exact={"context": deepest[1].exact["context"] * np.nan})
    with pytest.raises(NumericalError):
        gates.measure(Role("text"), path_of(store, "text-03"), [trial])


def test_a_decoder_that_hides_a_nan_fails(store: Store, networks: Networks) -> None:
    trials = cases.decode(networks.vae)
    blind = replace(trials[-1], exact=trials[-1].exact | {"finite": np.array([True, True])})
    with pytest.raises(NumericalError, match="calls pictures finite as"):
        gates.measure(Role("decode"), path_of(store, "decode"), [*trials[:-1], blind])


def test_one_zeroed_token_of_77_is_seen(deepest: list[Case]) -> None:
    exact = deepest[0].exact["context"].astype(np.float64)
    found = exact.copy()
    found[0, 40] = 0
    assert gates.relative_l2(found, exact) == pytest.approx(1)


def test_half_precision_may_be_twice_as_wrong_as_torchs_own_and_no_more(store: Store, networks: Networks) -> None:
    text = copy.deepcopy(networks.texts[0])  # it is left in float16
    trial = cases.text(replace(networks, texts=(text,)), store.manifest().model, half=True)[3][1]
    path = path_of(store, "text-03")
    assert 1e-4 < gates.measure(Role("text"), path, [trial])["torch_fp16_relative_l2"] < 4e-3
    good_torch = replace(trial, half=trial.exact)
    with pytest.raises(NumericalError):
        gates.measure(Role("text"), path, [good_torch])


def test_a_graph_that_does_not_open_or_run_is_an_export_error_b11(
    store: Store, deepest: list[Case], tmp_path: Path
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot open"):
        gates.measure(Role("text"), tmp_path / "broken.onnx", deepest)
    odd = replace(deepest[0], feeds={"tokens": np.zeros((1, 5), np.int64)})
    with pytest.raises(ExportError, match="cannot run"):
        gates.measure(Role("text"), path_of(store, "text-03"), [odd])
