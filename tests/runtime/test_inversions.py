"""Textual inversions in the layouts that are about, and what is refused with the file's name."""

from __future__ import annotations

import hashlib
import os
import pickle
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import MODEL
from safetensors.torch import save_file

from clipskip.engines.manifest import ModelFacts
from clipskip.errors import CheckpointError, UnsafeFileError, UnsupportedModelError
from clipskip.inversions import Inversions, load, with_usable_names
from clipskip.request import Request
from clipskip.resolve import ANY_LIMITS, resolve
from clipskip.tokenizer import Tokenizer

WIDTH = 8


def vectors(*shape: int, start: float = 0.0) -> torch.Tensor:
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape) + start


def write(path: Path, **tensors: torch.Tensor) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("key", ["emb_params", "clip_l", "<cat-toy>", "*", "weight"])
@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (3, WIDTH)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_layout_and_float_format_gives_float32_rows(
    tmp_path: Path, key: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    inversions = load(write(tmp_path / "Cat Toy.safetensors", **{key: vectors(*shape).to(dtype)}), WIDTH)
    assert inversions.spans == {"cat toy": range(len(vectors(*shape).reshape(-1, WIDTH)))}
    assert inversions.vectors.dtype == np.float32
    np.testing.assert_array_equal(inversions.vectors, vectors(*shape).reshape(-1, WIDTH).numpy())


def test_as_many_vectors_as_a_chunk_has_room_for_are_taken(tmp_path: Path) -> None:
    assert load(write(tmp_path / "x.safetensors", emb_params=vectors(75, WIDTH)), WIDTH).spans == {"x": range(75)}


def test_the_known_key_is_taken_when_other_tensors_lie_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", emb_params=vectors(2, WIDTH), step=torch.tensor([7]))
    assert load(path, WIDTH).spans == {"x": range(2)}


def test_without_inversions_there_is_one_row_of_zeros_and_no_name(tmp_path: Path) -> None:
    for none in ([], tmp_path):
        inversions = load(none, WIDTH)
        assert inversions.vectors.shape == (1, WIDTH)
        assert not inversions.vectors.any()
        assert inversions.spans == {}


def test_files_and_folders_are_joined_in_one_array_and_each_file_counts_once(tmp_path: Path) -> None:
    folder = tmp_path / "inversions"
    first = write(folder / "a.safetensors", emb_params=vectors(2, WIDTH))
    write(folder / "B.SAFETENSORS", emb_params=vectors(1, WIDTH, start=100))
    (folder / "deeper").mkdir()
    write(folder / "deeper" / "c.safetensors", emb_params=vectors(3, WIDTH, start=200))
    (folder / "._a.safetensors").write_bytes(b"what macOS leaves behind")
    (folder / "readme.txt").write_text("not an inversion")
    inversions = load([first, str(folder), folder / "deeper" / "..", folder], WIDTH)
    assert inversions.spans == {"a": range(2), "b": range(2, 3), "c": range(3, 6)}
    assert [inversions.vectors[rows[0], 0] for rows in inversions.spans.values()] == [0, 100, 200]
    assert inversions.notes == ()


def test_two_files_of_one_name_are_refused_naming_both(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path / path, emb_params=vectors(WIDTH)) for path in ("x/Style.safetensors", "y/style.safetensors")
    )
    with pytest.raises(CheckpointError, match="both called 'style'") as caught:
        load([one, two], WIDTH)
    assert str(one) in caught.value.message
    assert str(two) in caught.value.message


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return Path.touch, (self.target,)


def test_a_pickle_is_refused_when_named_and_left_out_of_a_folder_with_a_note_and_never_run_a11(tmp_path: Path) -> None:
    bad = tmp_path / "easynegative.pt"
    bad.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    write(tmp_path / "good.safetensors", emb_params=vectors(WIDTH))
    with pytest.raises(UnsafeFileError, match=r"easynegative\.pt: this is a pickle"):
        load(bad, WIDTH)
    inversions = load(tmp_path, WIDTH)
    assert list(inversions.spans) == ["good"]
    assert "easynegative.pt is not used" in inversions.notes[0]
    assert not (tmp_path / "ran").exists()


def test_a_pickle_called_safetensors_is_refused_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(UnsafeFileError):
        load(path, WIDTH)
    assert not (tmp_path / "ran").exists()


def test_a_safetensors_file_called_bin_is_read_by_its_content(tmp_path: Path) -> None:
    assert load(write(tmp_path / "x.bin", emb_params=vectors(WIDTH)), WIDTH).spans == {"x": range(1)}


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"emb_params": vectors(2, 1024)}, UnsupportedModelError, "1024 wide, as for SD 2.x; this model's are 8"),
        ({"emb_params": vectors(2, 9)}, UnsupportedModelError, "9 wide; this model's are 8"),
        ({"clip_l": vectors(1, WIDTH), "clip_g": vectors(1, 1280)}, UnsupportedModelError, "SDXL's two text encoders"),
        ({"emb_params": torch.full((2, WIDTH), torch.nan)}, CheckpointError, "16 of its numbers are NaN or infinite"),
        ({"emb_params": torch.full((WIDTH,), 1e300, dtype=torch.float64)}, CheckpointError, "NaN or infinite"),
        ({"emb_params": vectors(0, WIDTH)}, CheckpointError, "shape [0, 8]"),
        ({"emb_params": vectors(1, 2, WIDTH)}, CheckpointError, "shape [1, 2, 8]"),
        ({"emb_params": torch.tensor(1.0)}, CheckpointError, "shape []"),
        ({"emb_params": vectors(76, WIDTH)}, CheckpointError, "76 vectors; a prompt's chunk has room for 75"),
        ({"emb_params": torch.zeros(1, WIDTH, dtype=torch.int64)}, UnsupportedModelError, "I64"),
        ({"a": vectors(WIDTH), "b": vectors(WIDTH)}, CheckpointError, "it holds 2 tensors ('a', 'b'), not one"),
        ({f"lora_te_{i}": vectors(WIDTH) for i in range(5)}, CheckpointError, "looks like a LoRA"),
        ({}, CheckpointError, "it holds 0 tensors"),
    ],
)
def test_what_is_no_inversion_for_this_model_is_refused_with_the_files_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], error: type[CheckpointError], message: str
) -> None:
    path = write(tmp_path / "odd one.safetensors", **tensors)
    with pytest.raises(error) as caught:
        load(path, WIDTH)
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
    assert (type(caught.value), caught.value.path) == (error, str(path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors is missing"):
        load([tmp_path / "nothing.safetensors"], WIDTH)


@pytest.mark.parametrize(("name", "message"), [("a", "word of the vocabulary"), (" ", "no letters")])
def test_a_name_that_prompts_use_for_something_else_is_refused(
    sample_checkpoint: Path, name: str, message: str
) -> None:
    inversions = Inversions(np.zeros((1, 64), np.float32), {name: range(1)})
    with pytest.raises(CheckpointError, match=message):
        with_usable_names(inversions, Tokenizer.open(sample_checkpoint / "tokenizer"))


def test_an_unusable_file_in_a_folder_is_left_out_with_a_note_and_refused_by_itself(tmp_path: Path) -> None:
    good = write(tmp_path / "good.safetensors", emb_params=vectors(WIDTH))
    write(tmp_path / "wide.safetensors", emb_params=vectors(768))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "gone.safetensors").symlink_to("nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    inversions = load(tmp_path, WIDTH)
    assert list(inversions.spans) == ["good"]
    names = ["broken", "folder", "gone", "pipe", "wide"]
    assert [note.split(" is not used: ")[0] for note in inversions.notes] == [
        str(tmp_path / f"{name}.safetensors") for name in names
    ]
    assert "its vectors are 768 wide" in inversions.notes[-1]
    for name in ("broken", "gone", "pipe", "wide"):
        with pytest.raises(CheckpointError):
            load([good, tmp_path / f"{name}.safetensors"], WIDTH)
        with pytest.raises(CheckpointError):
            load([tmp_path, tmp_path / f"{name}.safetensors"], WIDTH)


def test_of_two_files_of_one_name_in_folders_the_first_counts_and_a_named_one_before_all(tmp_path: Path) -> None:
    first = write(tmp_path / "x" / "Style.safetensors", emb_params=vectors(WIDTH))
    second = write(tmp_path / "y" / "style.safetensors", emb_params=vectors(WIDTH, start=100))
    inversions = load(tmp_path, WIDTH)
    assert inversions.vectors[0, 0] == 0
    assert inversions.notes == (f"{second} is not used: {first} and {second} are both called 'style' in prompts",)
    assert load([tmp_path, second], WIDTH).vectors[0, 0] == 100


def test_a_file_name_that_is_no_utf_8_is_left_out_of_a_folder_and_refused_by_itself(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/k\xe4se.safetensors"))
    write(tmp_path / "good.safetensors", emb_params=vectors(WIDTH)).rename(odd)
    inversions = load(tmp_path, WIDTH)
    assert inversions.spans == {}
    (note,) = inversions.notes
    assert note.isascii()
    assert "k\\xe4se.safetensors is not used: its name is no UTF-8" in note
    with pytest.raises(CheckpointError, match="no UTF-8"):
        load(odd, WIDTH)


def test_a_name_that_prompts_use_for_something_else_is_left_out_of_a_folder(
    sample_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("a", "big ring"):
        write(tmp_path / f"{name}.safetensors", emb_params=vectors(WIDTH))
    inversions = with_usable_names(load(tmp_path, WIDTH), Tokenizer.open(sample_checkpoint / "tokenizer"))
    assert list(inversions.spans) == list(inversions.digests) == ["big ring"]
    assert "'a' is a word of the vocabulary" in inversions.notes[0]


def test_every_inversion_has_the_sha_256_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "Ring.safetensors", emb_params=vectors(WIDTH))
    assert load(tmp_path, WIDTH).digests == {"ring": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("layout", ["AUTOMATIC1111", "diffusers"])
def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path: Path, layout: str) -> None:
    path, learnt = tmp_path / "my 'own' style.pt", vectors(3, WIDTH).requires_grad_()
    whole = {"string_to_token": {"*": 265}, "string_to_param": {"*": learnt}, "name": "x", "step": 7}
    torch.save(whole if layout == "AUTOMATIC1111" else {"<style>": learnt}, path)
    with pytest.raises(UnsafeFileError, match="this is a pickle") as caught:
        load(path, WIDTH)
    start, line = str(caught.value.hint).split(": ", 1)
    python, option, code = shlex.split(line)
    assert (start, python, option) == ("where you trust it, convert it once", "python", "-c")
    exec(code, {})
    np.testing.assert_array_equal(load(path.with_suffix(".safetensors"), WIDTH).vectors, learnt.detach().numpy())


def test_one_of_1024_numbers_is_for_a_store_of_sd_2_and_errors_name_both_widths(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", emb_params=vectors(2, 1024))
    assert load(path, 1024).vectors.shape == (2, 1024)
    with pytest.raises(UnsupportedModelError, match=r"1024 wide, as for SD 2\.x; this model's are 768, SD 1\.x"):
        load(path, 768)


def test_those_for_sdxl_in_a_folder_are_noted_and_skipped(tmp_path: Path) -> None:
    write(tmp_path / "xl.safetensors", clip_l=vectors(1, 768), clip_g=vectors(1, 1280))
    inversions = load(tmp_path, 768)
    assert (dict(inversions.spans), len(inversions.notes)) == ({}, 1)
    assert inversions.notes[0].endswith(
        "it has vectors for SDXL's two text encoders (clip_l, clip_g); this model's are 768, SD 1.x"
    )


def test_one_trained_at_another_clip_skip_gets_a_note_where_it_is_used_at_that(
    sample_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "big ring.safetensors"
    save_file({"emb_params": vectors(2, 64)}, path, metadata={"ss_clip_skip": "2"})
    tokenizer = Tokenizer.open(sample_checkpoint / "tokenizer")
    inversions = with_usable_names(load(path, 64), tokenizer)
    model = replace(MODEL, vocabulary=tokenizer.vocabulary)

    def notes(prompt: str, clip_skip: int | str, model: ModelFacts = model) -> list[str]:
        request = Request(prompt=prompt, clip_skip=clip_skip, negative_clip_skip=1, seed=1)
        made = resolve(request, model, ANY_LIMITS, tokenizer, inversions)
        return inversions.about_depths(made.texts, model)

    assert notes("a big ring", 2) == notes("a star", 1) == []
    assert notes("a big ring", 1) == ["the embedding 'big ring' is used at clip skip 1; its file says 2"]
    assert notes("a big ring", "[9:2:0.5]") == ["the embedding 'big ring' is used at clip skip 9; its file says 2"]
    assert notes("a big ring", 1, replace(model, clip_skips=(11,) * 13)) == [], "all depths are one"
