"""The pipeline from the outside: progress, refusals, what it keeps open, broken numbers, closing."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from copies import copy_of
from safetensors.numpy import save_file

import clipskip
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines.manifest import Role
from clipskip.engines.store import Store
from clipskip.errors import Closed, EngineCorrupt, EngineIncompatible, EngineMissing, NumericalError, RequestError
from clipskip.metadata import read_ledger

FAST = {"steps": 3, "width": 64, "height": 64, "seed": 1}


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store) as pipe:
        yield pipe


def test_progress_counts_the_calls_of_the_network_and_ends_with_the_results(pipe):
    seen = list(pipe.steps(clipskip.Request(prompt="a ring", sampler="Heun", **FAST)))
    assert [(each.call, each.calls) for each in seen] == [(i, 5) for i in (1, 2, 3, 4, 5, 5)]
    assert [len(each.results) for each in seen] == [0] * 5 + [1]


def test_a_preview_shows_the_picture_as_it_stands(pipe):
    for progress in pipe.steps(clipskip.Request(prompt="a ring", **FAST), clipskip.Request(prompt="a star", **FAST)):
        if progress.call == 2:
            assert [image.size for image in progress.preview()] == [(64, 64), (64, 64)]


def test_the_last_progress_previews_the_pictures_themselves(pipe):
    *_, last = pipe.steps(clipskip.Request(prompt="a ring", batch=2, **FAST), clipskip.Request(prompt="a star", **FAST))
    made = [image for result in last.results for image in result.images]
    assert [image.tobytes() for image in last.preview()] == [image.tobytes() for image in made]


def test_a_result_gives_png_bytes_and_writes_files_and_streams_in_every_format(pipe, tmp_path):
    result = pipe("a ring", batch=2, **FAST)
    assert read_ledger(result.png(1)).request == result.alone(1)
    for target, format, kind in (
        (io.BytesIO(), None, "PNG"),
        (io.BytesIO(), "webp", "WEBP"),
        (io.BytesIO(), "JPEG", "JPEG"),
    ):
        result.save(target, 1, format)
        assert PIL.Image.open(target).format == kind
        assert read_ledger(target.getvalue()).request == result.alone(1)
    result.save(str(tmp_path / "x.jpg"))
    result.save(tmp_path / "odd", format="PNG")
    assert read_ledger(tmp_path / "x.jpg").request == read_ledger(tmp_path / "odd").request == result.alone(0)
    with pytest.raises(FileExistsError):
        result.save(tmp_path / "x.jpg", overwrite=False)
    with pytest.raises(RequestError, match=r"not \.gif"):
        result.save(tmp_path / "x.gif")


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (lambda result: result.png(2), "index must be 0..1, not 2"),
        (lambda result: result.png(-1), "index must be at least 0, not -1"),
        (lambda result: result.png("a"), "index must be a whole number, not 'a'"),
        (lambda result: result.png(True), "index must be a whole number, not True"),
        (lambda result: result.save("q.png", index=5), "index must be 0..1, not 5"),
        (lambda result: result.save(3), "target must be a path or an open binary file, not 3"),
        (lambda result: result.save(io.StringIO()), "target must be a path or an open binary file, not <_io.StringIO"),
        (lambda result: result.save(b"q.png"), "target must be a path or an open binary file, not b'q.png'"),
        (lambda result: result.save("q\0.png"), "target must be a path, not 'q\\x00.png'"),
        (lambda result: result.save("q.png", format=3), "format must be a string, not 3"),
    ],
)
def test_what_is_no_picture_of_a_result_and_no_place_for_one_is_refused(pipe, monkeypatch, tmp_path, take, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as caught:
        take(pipe("a ring", batch=2, **FAST))
    assert caught.value.message.startswith(message)
    assert message.startswith(str(caught.value.field))
    assert [*tmp_path.iterdir()] == []


def test_a_repeated_picture_says_what_it_could_not_honour_before_all_else(pipe):
    text = "a ring\nSteps: 3, Sampler: Euler a, Seed: 5, Size: 64x64, Refiner: x, Model: toon, Model hash: 0123456789"
    ledger = read_ledger(text.encode())
    result = pipe(ledger)
    assert result.ledger == ledger
    assert [warning.split(":")[0] for warning in result.warnings[:3]] == [
        "not honoured from the picture",
        "the picture's settings have no CFG scale",
        "the picture was made with the model toon [0123456789]; sample [" + pipe.model.model_sha256[:10] + "] is open",
    ]
    again = pipe(ledger, cfg=3, steps=2)
    assert (again.request.cfg, again.request.steps) == (3, 2)
    assert not any("CFG" in warning for warning in again.warnings)


def test_used_inversions_are_recorded_and_compared_when_a_picture_is_repeated(sample_store, tmp_path):
    for name, value in (("big-ring", 0.1), ("unused", 0.2)):
        save_file({"emb_params": np.full((2, 64), value, np.float32)}, tmp_path / f"{name}.safetensors")
    digest = hashlib.sha256((tmp_path / "big-ring.safetensors").read_bytes()).hexdigest()
    with clipskip.open(sample_store, embeddings=tmp_path) as pipe:
        result = pipe("a Big-Ring", negative_prompt="red", **FAST)
        assert result.inversions == {"big-ring": digest}
        assert pipe("a star", negative_prompt="big-ring", **FAST).inversions == {"big-ring": digest}
        ledger, old = read_ledger(result.png()), read_ledger(pipe("a star", **FAST).png())
        assert ledger.inversions == {"big-ring": digest}
        assert old.inversions == {}
        again = pipe(ledger)
        assert again.images[0].tobytes() == result.images[0].tobytes()
        assert not any("inversion" in warning for warning in again.warnings)
    assert f'TI hashes: "big-ring: {digest[:12]}"' in PIL.Image.open(io.BytesIO(result.png())).text["parameters"]
    save_file({"emb_params": np.full((2, 64), 0.3, np.float32)}, tmp_path / "big-ring.safetensors")
    with clipskip.open(sample_store, embeddings=tmp_path) as pipe:
        assert "another textual inversion 'big-ring' [" in pipe(ledger).warnings[0]
    with clipskip.open(sample_store) as pipe:
        assert "'big-ring' is not open" in pipe(ledger).warnings[0]


def test_a_result_says_what_was_done(pipe):
    result = pipe("a ring", clip_skip=6, batch=2, sampler="euler", **FAST)
    assert result.seeds == (1, 2)
    assert (result.request.sampler, result.request.clip_skip, result.request.batch) == ("Euler", 6, 2)
    assert set(result.engines) == {"text-07", "step-cpu", "decode-cpu"}
    assert set(result.timings) == {"text", "denoise", "decode"}
    assert any("erratic" in warning for warning in result.warnings)


def test_every_image_of_a_batch_can_be_made_again_alone(pipe):
    result = pipe("a ring", batch=3, sampler="Euler a", **FAST)
    again = pipe(result.alone(2))
    np.testing.assert_array_equal(np.asarray(again.images[0]), np.asarray(result.images[2]))


def test_progress_of_several_images_counts_the_evaluations_of_each(pipe):
    seen = list(pipe.steps(clipskip.Request(prompt="a ring", batch=2, **FAST), clipskip.Request(prompt="b", **FAST)))
    assert [(each.call, each.calls) for each in seen] == [(3, 9), (6, 9), (9, 9), (9, 9)]
    assert [len(result.images) for result in seen[-1].results] == [2, 1]


def test_a_list_of_no_requests_gives_no_results(pipe):
    assert pipe.run([]) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_skpi": 2}, "unknown field 'clip_skpi'"),
        ({"cfg": 2, "guidance_scale": 2}, "cfg is given twice"),
        ({"clip_skip": 14}, "clip_skip must be 1..13"),
        ({"width": 4096, "height": 1024}, "width 4096 is outside 64..2048"),
        ({"clip_skip": 1, "clip_skip_diffusers": 0}, "two numberings"),
    ],
)
def test_a_wrong_request_is_refused_before_any_engine_runs(pipe, fields, message):
    with pytest.raises(RequestError, match=message):
        pipe("a ring", **{**FAST, **fields})


def test_one_wrong_request_of_several_stops_all_before_any_engine_runs(pipe, monkeypatch):
    def fail(*_):
        raise AssertionError("an engine was used")

    monkeypatch.setattr(pipe._engines, "use", fail)
    good, bad = (clipskip.Request(prompt=f"new words {steps}", **{**FAST, "steps": steps}) for steps in (3, 0))
    with pytest.raises(RequestError, match="steps must be"):
        pipe.run([good, bad])


def test_a_depth_that_was_not_built_names_the_command_that_builds_it_d2(sample_store, tmp_path):
    store = copy_of(sample_store, tmp_path / "store")
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["artefacts"] = [each for each in manifest["artefacts"] if each["role"] != "text-05"]
    (store / "manifest.json").write_text(json.dumps(manifest))
    with clipskip.open(store) as pipe:
        pipe("a ring", clip_skip=7, **FAST)
        with pytest.raises(EngineMissing, match="text-05") as caught:
            pipe("a ring", clip_skip=8, **FAST)
    assert "clipskip export" in caught.value.hint


def test_a_truncated_engine_is_refused_when_it_is_first_needed_c2(sample_store, tmp_path):
    store = copy_of(sample_store, tmp_path / "store")
    victim = store / Store(store).find(Role("decode"), "onnx", "fp32", "cpu").files[0].path
    victim.write_bytes(victim.read_bytes()[:-1])
    with clipskip.open(store) as pipe, pytest.raises(EngineCorrupt, match=r"decode-cpu\.onnx has \d+ bytes instead of"):
        pipe("a ring", **FAST)


def test_text_engines_are_opened_when_needed_and_kept_within_the_budget(sample_store):
    with clipskip.open(sample_store, text_engine_budget=40 * 2**20) as pipe:  # two of them
        for skip in (1, 2, 3, 4):
            pipe("a", clip_skip=skip, **FAST)
        assert sorted(map(str, pipe._engines.roles())) == ["decode", "step", "text-09", "text-10"]


def test_a_closed_pipeline_refuses_to_work_and_may_be_closed_again_e12(sample_store):
    with clipskip.open(sample_store) as pipe:
        pass
    pipe.close()
    with pytest.raises(Closed, match="closed"):
        pipe("a ring", **FAST)


class Broken(OnnxRuntime):
    """Gives engines one output of which holds what the test says."""

    def __init__(self, role, output, value):
        super().__init__()
        self.role, self.output, self.value = role, output, value

    def open(self, artefact, path):
        engine = super().open(artefact, path)
        if str(artefact.role) != self.role:
            return engine
        run, loop = engine.run, engine.loop

        def broken_loop(feeds, feedback):
            made = loop(feeds, feedback)
            read = made.read
            made.read = lambda name, slot=None: np.full_like(read(name, slot), self.value)
            return made

        engine.run = lambda feeds: {**run(feeds), self.output: np.full_like(run(feeds)[self.output], self.value)}
        engine.loop = broken_loop
        return engine


@pytest.mark.parametrize(
    ("role", "output", "value", "message"),
    [
        ("step", "next_state", np.nan, "latents are not finite"),
        ("step", "next_state", np.inf, "latents are not finite"),
        ("decode", "finite", False, "decoder's output for the finished latents is not finite"),
    ],
)
def test_numbers_that_are_not_finite_are_an_error_and_never_a_black_picture_e10(
    sample_store, role, output, value, message
):
    with clipskip.open(sample_store, backend=Broken(role, output, value)) as pipe:
        with pytest.raises(NumericalError, match=message) as caught:
            pipe("a ring", **FAST)
        assert caught.value.exit_status == 6


def test_a_backend_that_is_not_there_says_what_to_install():
    with pytest.raises(clipskip.ClipskipError) as caught:
        OnnxRuntime(providers=["OpenVINOExecutionProvider"])
    assert caught.value.exit_status == 5
    assert caught.value.hint == "install the build of ONNX Runtime that brings it"


@pytest.mark.parametrize("warm", [(64, 64, 1), [(64, 64)], "abc"])
def test_what_is_no_list_of_sizes_to_warm_up_for_is_refused(sample_store, warm):
    with pytest.raises(RequestError, match="width, height, images"):
        clipskip.open(sample_store, warm=warm)


@pytest.mark.parametrize("backend", ["onnxruntime", OnnxRuntime(threads=1)], ids=["by name", "an object"])
def test_a_pickled_pipeline_is_opened_anew_from_the_same_store_e7(sample_store, backend, monkeypatch, tmp_path):
    monkeypatch.chdir(sample_store.parent)
    with clipskip.open(sample_store.name, backend=backend, max_batch=1) as pipe:
        pickled = pickle.dumps(pipe)
        want = pipe("a ring", **FAST).images[0].tobytes()
    monkeypatch.chdir(tmp_path)
    code = f"import pickle, sys; print(pickle.load(sys.stdin.buffer)('a ring', **{FAST}).images[0].tobytes().hex())"
    child = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True, timeout=120)
    assert bytes.fromhex(child.stdout.decode()) == want


def test_a_pickled_pipeline_whose_store_holds_another_model_now_is_refused_e7(sample_store):
    with clipskip.open(sample_store) as pipe:
        reopen, (how, _) = pipe.__reduce__()
    with pytest.raises(EngineIncompatible, match="another model"):
        reopen(how, "0" * 64)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("path", 5), ("path", b"a"), ("path", "a\0b"), ("device", None), ("device", "0"), ("device", -1),
        ("embeddings", 5), ("embeddings", [None]), ("text_engine_budget", -1), ("text_engine_budget", 1.5),
        ("max_batch", "x"),
        ("max_batch", True), ("share_lengths", 1), ("warm", 5), ("warm", [(64, 64)]), ("warm", [(64, 64, 0)]),
        ("warm", [(63, 64, 1)]), ("warm", [("a", 64, 1)]), ("backend", "cuda"),
    ],
)  # fmt: skip
def test_what_is_no_argument_of_open_is_refused_in_its_own_name(sample_store, argument, value):
    with pytest.raises(RequestError) as caught:
        clipskip.open(**{"path": sample_store, argument: value})
    assert caught.value.field == {"backend": "target"}.get(argument, argument)


def test_a_picture_that_the_machine_will_hardly_make_is_warned_of_before_the_work(pipe, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 20_000}.get)
    with pytest.warns(RuntimeWarning, match=r"128x128 on the CPU needs about 0 GB for the decoder; this machine has 0"):
        next(pipe.steps(clipskip.Request(prompt="a ring", **{**FAST, "width": 128, "height": 128})))
    next(pipe.steps(clipskip.Request(prompt="a ring", **FAST)))  # warns of nothing


@pytest.mark.parametrize("backend", [3, None, ["tensorrt"], OnnxRuntime])
def test_what_is_no_backend_is_refused_with_the_names_that_there_are(sample_store, backend):
    with pytest.raises(RequestError, match=r"backend must be one of .*, or a backend object, not") as caught:
        clipskip.open(sample_store, backend=backend)
    assert caught.value.field == "backend"


def test_a_star_import_leaves_pythons_open_alone():
    namespace = {}
    exec("from clipskip import *", namespace)
    assert "open" not in namespace
    assert issubclass(namespace["Closed"], RuntimeError)


def test_opening_a_store_that_others_may_write_to_warns_c15(sample_store, tmp_path):
    store = copy_of(sample_store, tmp_path / "store")
    clipskip.open(store).close()
    (store / "manifest.json").chmod(0o646)
    with pytest.warns(RuntimeWarning, match=r"others may write to .*manifest.json, and engines are programs: chmod"):
        clipskip.open(store).close()
