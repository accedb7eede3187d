"""Pictures with LoRAs of a request: against torch's networks with the same deltas, and against each other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import lora_files
import numpy as np
import onnx_ir as ir
import pytest
import reference
from reference import Wanted

import clipskip
from clipskip.backends import Engine
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines import trials, variants
from clipskip.engines.lora import read
from clipskip.engines.manifest import STEP, Artefact, FileRecord, Role
from clipskip.engines.store import Store
from clipskip.engines.variants import Active, Changed
from clipskip.errors import CheckpointError, NumericalError

PROMPT = "a large red circle on a green background"
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "sampler": "Euler", "seed": 3}


class Counting(OnnxRuntime):
    """ONNX Runtime that notes which engines it opens with other weights, how many at once, and the images of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.open_steps = self.most_steps = 0
        self.calls: list[int] = []

    def open_changed(self, artefact: Artefact, path: Path, changed: Any) -> Engine:
        engine = super().open_changed(artefact, path, changed)
        if changed:
            self.opened.append(str(artefact.role))
        if artefact.role == STEP:
            self._note(engine, bool(changed))
        return engine

    def _note(self, engine: Any, is_changed: bool) -> None:
        loop, close = engine.loop, engine.close
        self.open_steps += is_changed
        self.most_steps = max(self.most_steps, self.open_steps)

        def noted(feeds: Any, feedback: Any) -> Any:
            made = loop(feeds, feedback)
            run = made.run
            made.run = lambda changes: (self.calls.append(len(feeds["state"])), run(changes))
            return made

        def closed() -> None:
            self.open_steps -= is_changed
            close()

        engine.loop, engine.close = noted, closed


@pytest.fixture(scope="module")
def folder(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`all` changes every layer, `text` and `unet` those of one network."""
    folder, there = tmp_path_factory.mktemp("loras"), variants.changeable(Store(sample_store), "fp32")
    lora_files.write(folder / "all.safetensors", there, scale=0.06)
    for seed, network in enumerate(("text", "unet"), 1):
        pick = lambda name, start=network: name.startswith(start)  # noqa: E731
        lora_files.write(folder / f"{network}.safetensors", there, pick, seed=seed, scale=0.06)
    return folder


@pytest.fixture
def backend() -> Counting:
    return Counting()


@pytest.fixture
def pipe(sample_store: Path, folder: Path, backend: Counting) -> Iterator[clipskip.Pipeline]:
    with clipskip.open(sample_store, backend=backend, loras=folder) as pipe:
        yield pipe


def picture(pipe: clipskip.Pipeline, tags: str, **fields: Any) -> np.ndarray:
    return np.asarray(pipe(f"{PROMPT} {tags}", **{**SMALL, **fields}).images[0]).astype(int)


def test_pictures_at_several_depths_are_those_of_torch_with_the_same_deltas(
    pipe: clipskip.Pipeline, folder: Path, sample_checkpoint: Path
) -> None:
    truth = reference.load(sample_checkpoint)
    plain = truth.pictures([Wanted(prompt=PROMPT, clip_skip=1, steps=4, seed=5)])
    weights = {"text": 0.8, "unet": 0.6}
    lora_files.merge(folder / "all.safetensors", {"text": truth.text.encoder, "unet": truth.unet}, weights)
    skips = (1, 2, 7)
    made = [
        picture(pipe, "<lora:all:0.8:0.6>", width=128, height=128, steps=4, seed=5, schedule="uniform", clip_skip=skip)
        for skip in skips
    ]
    expected = truth.pictures([Wanted(prompt=PROMPT, clip_skip=skip, steps=4, seed=5) for skip in skips])
    for one, other in zip(made, expected, strict=True):
        assert np.abs(one - other).max() <= 2
    assert np.abs(made[0] - plain[0]).mean() > 2


def test_weight_nothing_is_none_and_two_commute(pipe: clipskip.Pipeline, backend: Counting) -> None:
    plain = picture(pipe, "")
    np.testing.assert_array_equal(picture(pipe, "<lora:all:0>"), plain)
    np.testing.assert_array_equal(picture(pipe, "<lora:all:1><lora:all:-1>"), plain)
    assert backend.opened == []
    one = picture(pipe, "<lora:text:0.7><lora:unet:0.5>")
    np.testing.assert_array_equal(picture(pipe, "<lora:unet:0.5><lora:text:0.7>"), one)
    np.testing.assert_array_equal(picture(pipe, "", loras=["text:0.7", "unet:0.5"]), one)
    assert np.abs(one - plain).mean() > 1
    assert backend.opened == ["text-11", "step"]


def test_a_lora_for_one_network_leaves_the_other_alone(pipe: clipskip.Pipeline, backend: Counting) -> None:
    requests = [clipskip.Request(prompt=f"{PROMPT} {tag}", **SMALL) for tag in ("", "<lora:text:1>", "<lora:all:1:0>")]
    results = pipe.run(requests)
    assert backend.opened == ["text-11", "text-11"]
    assert backend.calls == [4, 4], "pictures that differ in their texts alone share calls"
    for request, result in zip(requests, results, strict=True):
        np.testing.assert_array_equal(np.asarray(pipe(request).images[0]), np.asarray(result.images[0]))
    picture(pipe, "<lora:unet:1>")
    assert backend.opened == ["text-11", "text-11", "step"]
    assert results[1].loras.keys() == {"text"}


def test_at_no_layers_the_text_half_changes_nothing(pipe: clipskip.Pipeline, backend: Counting) -> None:
    np.testing.assert_array_equal(picture(pipe, "<lora:text:1>", clip_skip=13), picture(pipe, "", clip_skip=13))
    assert backend.opened == []


def test_three_weights_in_one_run_are_opened_once_each_and_write_nothing(
    pipe: clipskip.Pipeline, backend: Counting, sample_store: Path
) -> None:
    before = sorted(sample_store.rglob("*"))
    weights = [0.25, 0.5, 1, 0.25, 0.5, 1]
    results = pipe.run([clipskip.Request(prompt=f"{PROMPT} <lora:unet:{each}>", **SMALL) for each in weights])
    assert backend.opened == ["step"] * 3
    assert backend.most_steps == 1
    pictures = [np.asarray(result.images[0]) for result in results]
    for one, again in zip(pictures[:3], pictures[3:], strict=True):
        np.testing.assert_array_equal(one, again)
    assert len({each.tobytes() for each in pictures}) == 3
    assert sorted(sample_store.rglob("*")) == before


@pytest.mark.parametrize("most", [1, 3])
def test_eight_threads_with_a_lora_set_each_are_right_and_bounded(sample_store: Path, folder: Path, most: int) -> None:
    backend = Counting()
    tags = [f"<lora:unet:{0.2 * (each % 4 + 1)}><lora:text:{0.1 * each}>" for each in range(8)]
    with clipskip.open(sample_store, backend=backend, loras=folder, lora_engines=most) as pipe:
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(lambda tag: picture(pipe, tag, steps=1), tags))
        assert backend.most_steps <= most
        for number in (1, 6):
            np.testing.assert_array_equal(picture(pipe, tags[number], steps=1), together[number])
    assert len({each.tobytes() for each in together}) == 8


@pytest.mark.parametrize("role", ["step", "text-12", "text-06"])
def test_an_engine_with_other_weights_gives_the_bytes_of_a_graph_that_has_them(
    role: str, sample_store: Path, folder: Path, tmp_path: Path
) -> None:
    store = Store(sample_store)
    graph, there = store.find(Role.parse(role), "onnx", "fp32"), variants.changeable(store, "fp32")
    one = read(folder / "all.safetensors", there)
    mix = variants.mix(graph.role, there, [Active(one, folder, 0.7, 0.5)])
    changed = variants.changed(store, graph, mix)
    model = ir.load(store.verify(graph))
    for name, each in changed.items():
        model.graph.initializers[name].const_value = ir.tensor(each.array, name=name)
    (home := tmp_path / "merged").mkdir()
    ir.save(model, home / "merged.onnx", external_data="merged.bin")
    records = tuple(FileRecord(f"merged/merged.{kind}", 0, "0" * 64) for kind in ("onnx", "bin"))
    backend = OnnxRuntime()
    (feeds, *_) = trials.of(graph.role, store.manifest().model, False, graph.inputs)
    engine = backend.open_changed(graph, store.verify(graph), changed)
    given = engine.run(feeds)
    expected = backend.open(replace(graph, files=records), home / "merged.onnx").run(feeds)
    for name, array in given.items():
        np.testing.assert_array_equal(array, expected[name])
        assert np.abs(array - backend.open(graph, store.verify(graph)).run(feeds)[name]).max() > 1e-3


def test_depths_of_one_mix_share_the_weights_in_memory(sample_store: Path, folder: Path) -> None:
    store, known = Store(sample_store), dict[str, Any]()
    one = read(folder / "all.safetensors", variants.changeable(store, "fp32"))
    made: list[dict[str, Changed]] = []
    for role in ("text-12", "text-11"):
        graph = store.find(Role.parse(role), "onnx", "fp32")
        mix = variants.mix(graph.role, one.layers, [Active(one, folder, 0.7, 0.5)])
        made.append(variants.changed(store, graph, mix, known))
    twelve = {each.key: each.array for each in made[0].values()}
    assert made[1]
    assert len(made[1]) < len(made[0])
    assert all(twelve[each.key] is each.array for each in made[1].values())


def test_a_store_without_tables_says_how_to_get_them(sample_store: Path) -> None:
    store = Store(sample_store)
    graph = store.find(STEP, "onnx", "fp32")
    old = replace(graph, files=(graph.files[0], graph.files[2]))
    with pytest.raises(clipskip.EngineIncompatible, match="exported before LoRAs were") as caught:
        variants.table(store, old)
    assert "export CHECKPOINT" in str(caught.value.hint)


def test_metadata_names_the_loras_and_a_repeat_compares_them(
    pipe: clipskip.Pipeline, sample_store: Path, folder: Path, tmp_path: Path
) -> None:
    result = pipe(f"{PROMPT} <lora:text:1>", loras=["unet:0.5"], clip_skip=2, **SMALL)
    result.save(tmp_path / "one.png")
    ledger = clipskip.read_ledger(tmp_path / "one.png")
    assert ledger.request.prompt == f"{PROMPT} <lora:text:1>"
    assert ledger.loras == result.loras
    again = pipe(ledger)
    np.testing.assert_array_equal(np.asarray(again.images[0]), np.asarray(result.images[0]))
    assert again.warnings == result.warnings
    text = clipskip.metadata.parameters(result.origin(0))
    assert text.startswith(f"{PROMPT} <lora:text:1> <lora:unet:0.5>\n")
    assert f'Lora hashes: "text: {result.lora_hashes["text"][:12]}, unet: ' in text
    (tmp_path / "one.txt").write_text(text)
    again = pipe(clipskip.read_ledger(tmp_path / "one.txt"))
    np.testing.assert_array_equal(np.asarray(again.images[0]), np.asarray(result.images[0]))
    assert not any("LoRA" in warning for warning in again.warnings)

    there = variants.changeable(Store(sample_store), "fp32")
    for seed, name in enumerate(("text", "unet"), 7):
        lora_files.write(tmp_path / "others" / f"{name}.safetensors", there, seed=seed, scale=0.01)
    with clipskip.open(sample_store, loras=tmp_path / "others") as other:
        for file in ("one.png", "one.txt"):
            noted = [w for w in other(clipskip.read_ledger(tmp_path / file)).warnings if w.startswith("another LoRA")]
            assert len(noted) == 2
    with (
        clipskip.open(sample_store) as none,
        pytest.raises(clipskip.RequestError, match="there is no LoRA 'text': none are open"),
    ):
        none(ledger)


def test_weights_that_overflow_or_are_broken_are_refused_by_name(sample_store: Path, tmp_path: Path) -> None:
    there = variants.changeable(Store(sample_store), "fp32")
    pick = lambda name: name.endswith("layers.0.mlp.fc1.weight")  # noqa: E731
    lora_files.write(tmp_path / "huge.safetensors", there, pick, scale=1e20)
    with (
        clipskip.open(sample_store, loras=tmp_path) as pipe,
        pytest.raises((NumericalError, CheckpointError)) as caught,
    ):
        picture(pipe, "<lora:huge:1>")
    assert "huge" in str(caught.value)
