"""Engines with LoRAs in their weights, really built by TensorRT-RTX for the sample model; and the disk budget."""

from __future__ import annotations

import json
import os
from pathlib import Path

import lora_files
import pytest
from copies import copy_of
from doubles.store import publish_plans, simulated

import clipskip
from clipskip.__main__ import main
from clipskip.engines import publish, tensorrt, variants
from clipskip.engines.manifest import Artefact, AxisRange, Identity, Role
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.errors import EngineMissing

pytest.importorskip("tensorrt_rtx")
TARGET = "tensorrt-rtx"


@pytest.fixture(scope="module")
def root(sample_fp16_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "store"
    copy_of(sample_fp16_store, path)
    return path


@pytest.fixture(scope="module")
def file(root: Path) -> Path:
    """A LoRA for the first layer of the text encoder: beyond a depth of none, and nothing for the step."""
    there = variants.changeable(Store(root), "fp16")
    pick = lambda name: name.startswith("text.encoder.layers.0.")  # noqa: E731
    return lora_files.write(root.parent / "loras" / "style.safetensors", there, pick)


def built(root: Path, *options: str) -> list[tuple[str, bool]]:
    output = root.parent / "said.json"
    command = ["build", str(root), "--target", TARGET, "--skips", "12,13", "--max-batch", "1", "--max-chunks", "1"]
    with output.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert main([*command, *options, "--sizes", "128", "--json"]) == 0
    return [(each["role"], each["rebuilt"]) for each in json.loads(output.read_text())["engines"]]


def test_engines_with_a_lora_are_built_once_of_what_it_changes_within_a_budget(
    root: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((stem, rebuilt),) = built(root, "--lora", f"{file}:0.5")
    assert stem.startswith("text-01-lora-")
    assert rebuilt
    said = capsys.readouterr().err
    assert "style: engines to build, and about how large each will be: text-01 (" in said
    assert built(root, "--lora", f"{file}:0.5") == [(stem, False)]
    store = Store(root)
    identity = Identity(Role("text", 1), TARGET, "fp16", stem.removeprefix("text-01-"))
    engine = store.manifest().find(identity)
    assert engine is not None
    assert store.verify(engine).stat().st_size > 10_000
    assert engine.notes[-1] == "LoRA style at 0.5"

    size, folder = engine.files[0].size, engine.files[0].path.partition("/")[0]
    assert folder not in publish.gc(root, lora_budget=0), "it is in use"
    del store
    assert publish.gc(root, lora_budget=0, dry_run=True).keys() == {folder}
    ((other, _),) = built(root, "--lora", f"{file}:0.75", "--lora-budget", "0")
    assert "removed " + folder in capsys.readouterr().err
    left = {each.identity.stem for each in Store(root).manifest().artefacts if each.target == TARGET}
    assert left == {other}
    assert not (root / folder).exists()
    assert publish.gc(root, lora_budget=2 * size) == {}


def test_without_the_engine_the_error_is_the_command_that_builds_it(root: Path, file: Path) -> None:
    """Backends of TensorRT change no weights; the double is one."""
    copy_of(root, plain := root.parent / "plain")
    backend, _ = simulated()
    with clipskip.open(publish_plans(Store(plain)).root, backend=backend, loras=file) as pipe:
        with pytest.raises(EngineMissing, match=r"has no text-01 for tensorrt-rtx with style at 0\.5") as caught:
            pipe.check(clipskip.Request(prompt="a ring <lora:style:0.5>", clip_skip=12))
        hint = str(caught.value.hint)
        assert f"build {plain} --target tensorrt-rtx --lora {file}:0.5:0.5" in hint
        assert pipe.check(clipskip.Request(prompt="a ring <lora:style:0.5>", clip_skip=13)).loras
        assert os.path.isfile(file)


def test_without_options_engines_with_a_lora_are_for_the_sizes_of_those_without(
    root: Path, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy_of(root, tmp_path / "store")
    options = BuildOptions(sizes=AxisRange(64, 64, 128), max_batch=2, max_chunks=1)
    store = publish_plans(Store(tmp_path / "store"), options)
    jobs: list[Artefact] = []

    def recorded(store: Store, what: tuple[Artefact, variants.Mix], *others: object) -> tensorrt.Built:
        jobs.append(what[0])
        return tensorrt.Built(what[1].variant, "", rebuilt=False)

    monkeypatch.setattr(tensorrt, "_build", recorded)
    loras, silent = variants.opened(store, "fp16", [str(file)]), lambda line: None
    for each in BuildOptions(layers=[1]), BuildOptions(layers=[1], max_batch=4):
        tensorrt.build(store, target=TARGET, options=each, progress=silent, loras=loras)
    assert [job.role for job in jobs] == [Role("text", 1)] * 2
    assert jobs[0].axes == store.find(Role("text", 1), TARGET, "fp16").axes
    assert (jobs[0].axes["R"].maximum, jobs[1].axes["R"].maximum) == (4, 24)
