"""Checkpoints as users have them: broken downloads, pickles, other models, odd but sound layouts."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clipskip.engines import hints, manifest
from clipskip.engines.manifest import Manifest
from clipskip.errors import CheckpointError, ExportError, UnsafeFileError, UnsupportedModelError
from clipskip.export.checkpoint import Checkpoint, open_checkpoint
from clipskip.export.families import facts

UNET = "unet/diffusion_pytorch_model.safetensors"


def refused(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.exit_status == 3
    return caught.value


def test_a_sound_checkpoint_is_described_without_reading_its_tensors(tiny: Path) -> None:
    found = open_checkpoint(tiny)
    assert isinstance(found, Checkpoint)
    assert len(found.sources) == 9
    assert all(len(digest) == 64 for digest in found.sources.values())
    assert found.vocabulary["cat</w>"] == 53
    assert found.tokenizer["merges.txt"].startswith(b"#version")


@pytest.mark.parametrize(
    ("content", "message", "kind"),
    [
        (b"", r"empty \(0 bytes\)", CheckpointError),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull", CheckpointError),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page", CheckpointError),
        (b"PK\x03\x04" + bytes(100), "pickle", UnsafeFileError),
        (b"\x80\x02}q\x00." + bytes(100), "pickle", UnsafeFileError),
        ((1 << 63).to_bytes(8, "little") + b"{}", "cut off", CheckpointError),
    ],
)
def test_a_weight_file_that_is_none_is_named_for_what_it_is_a1_a4_a7_a9(
    checkpoint: Path, content: bytes, message: str, kind: type[CheckpointError]
) -> None:
    (checkpoint / UNET).write_bytes(content)
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(checkpoint)
    assert UNET in str(caught.value)


@pytest.mark.parametrize("percent", range(1, 100, 7))
def test_a_download_that_broke_off_is_incomplete_a2_a3(checkpoint: Path, percent: int) -> None:
    path = checkpoint / UNET
    os.truncate(path, path.stat().st_size * percent // 100)
    error = refused(checkpoint)
    assert UNET in str(error)
    assert "of" in error.message or "cut off" in error.message


def test_trailing_bytes_are_counted_a5(checkpoint: Path) -> None:
    with (checkpoint / UNET).open("ab") as file:
        file.write(b"12345")
    assert "5 extra bytes" in refused(checkpoint).message


@pytest.mark.parametrize(
    "name",
    ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", UNET],
)
def test_a_missing_file_is_named_a20(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    message = refused(checkpoint).message
    assert name in message
    assert "is missing" in message


def test_only_pickled_weights_are_refused_with_a_way_out(checkpoint: Path) -> None:
    (checkpoint / UNET).rename(checkpoint / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="the weights are pickled") as caught:
        open_checkpoint(checkpoint)
    assert "safetensors" in str(caught.value)


def test_a_half_precision_variant_serves_where_it_is_alone(checkpoint: Path) -> None:
    variant = checkpoint / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    (checkpoint / UNET).rename(variant)
    assert open_checkpoint(checkpoint).unet.weights == variant


def test_several_strange_weight_files_are_not_guessed_between(checkpoint: Path) -> None:
    path = checkpoint / UNET
    shutil.copy(path, checkpoint / "unet" / "one.safetensors")
    path.rename(checkpoint / "unet" / "two.safetensors")
    assert "which of these" in refused(checkpoint).message


def test_a_cache_of_links_works_as_input_a23(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / UNET).rename(tmp_path / "blob")
    (checkpoint / UNET).symlink_to(tmp_path / "blob")
    (tmp_path / "snapshot").symlink_to(checkpoint)
    assert open_checkpoint(tmp_path / "snapshot").sources == open_checkpoint(checkpoint).sources


def test_pipes_folders_and_nothing_are_refused_at_once_a22(checkpoint: Path, tmp_path: Path) -> None:
    assert "no checkpoint at" in refused(tmp_path / "absent").message
    (checkpoint / UNET).unlink()
    os.mkfifo(checkpoint / UNET)
    assert "a pipe or a device" in refused(checkpoint).message
    (checkpoint / UNET).unlink()
    (checkpoint / UNET).mkdir()
    assert "found a folder" in refused(checkpoint).message


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff"])
def test_a_configuration_that_is_no_json_object_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / "vae" / "config.json").write_text(text, encoding="latin-1")
    assert "vae/config.json" in refused(checkpoint).message


def test_a_cut_vocabulary_or_merge_list_is_noticed_a20(checkpoint: Path) -> None:
    merges, vocabulary = checkpoint / "tokenizer" / "merges.txt", checkpoint / "tokenizer" / "vocab.json"
    whole = merges.read_text()
    merges.write_text("#version: 0.2\nc a\n")
    assert "nothing in it makes 'cat</w>'" in refused(checkpoint).message
    merges.write_text(whole + "d o\n")
    assert "makes 'do', which vocab.json has not" in refused(checkpoint).message
    tokens = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps({name: i for name, i in tokens.items() if name != "<|endoftext|>"}))
    assert "<|endoftext|>" in refused(checkpoint).message


def test_a_file_that_changes_after_it_was_hashed_is_noticed_a24(checkpoint: Path, edit: Callable[..., None]) -> None:
    found = open_checkpoint(checkpoint)
    found.files.check_unchanged()
    edit(checkpoint / "unet" / "config.json", sample_size=16)
    with pytest.raises(ExportError, match="changed while it was being read"):
        found.files.check_unchanged()


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("runwayml/stable-diffusion-v1-5", "downloaded first"),
        ("https://an.example/some//model.safetensors", "nothing is downloaded: fetch it"),
        ("models/../absent", ""),
        ("models/absent", ""),
        ("../absent", ""),
        ("./absent", ""),
        ("owner/name/more", ""),
        ("absent\0", ""),
    ],
)
def test_what_is_no_path_gets_a_hint_of_its_own_a22(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    error = refused(Path(path))
    assert "no checkpoint at" in error.message
    assert (error.hint is None) == (hint == "")
    assert hint in (error.hint or "")


@pytest.mark.parametrize("url", ["https://an.example/model.safetensors", "http://an.example/m", "hf://owner/name"])
def test_a_url_is_shown_as_it_was_typed_and_not_opened_a22(url: str) -> None:
    error = refused(Path(url))
    assert error.message == f"no checkpoint at {url}: no URL is opened"
    assert error.path == url


def test_an_engine_store_is_no_checkpoint_and_its_use_is_told_in_a_command_that_works_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "a store"
    root.mkdir()
    (root / "manifest.json").write_text("{}")
    monkeypatch.setattr(hints, "clipskip", lambda: ".venv/bin/clipskip")
    monkeypatch.chdir(tmp_path)
    error = refused(Path("a store"))
    assert error.message == "a store is an engine store, no checkpoint"
    assert error.hint == "to make pictures from it: .venv/bin/clipskip generate 'a store' PROMPT"


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("packed", [False, True])
def test_a_checkpoint_that_is_a_pickle_is_neither_run_nor_unpacked_a9_a10(tmp_path: Path, packed: bool) -> None:
    """A8 as well: by its content, whatever its name says."""
    path, ran = tmp_path / "model.safetensors", tmp_path / "ran"
    data = pickle.dumps(Payload(ran)) + bytes(1 << 25)
    if packed:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", data)
        data = path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(UnsafeFileError, match="pickle"):
        open_checkpoint(path)
    assert not ran.exists()
    assert path.stat().st_size < 1 << 20 or not packed


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ""])
def test_safetensors_by_another_name_are_read_a8(one_tensor: bytes, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"lora{suffix}"
    path.write_bytes(one_tensor)
    with pytest.raises(UnsupportedModelError, match="is a LoRA"):
        open_checkpoint(path)


@pytest.mark.parametrize("length", [0, 7, 2**63, 2**64 - 1, 100_000_001])
def test_a_hostile_header_length_costs_nothing_a1_a4(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little")[: length or 0])
    with path.open("ab") as file:
        file.truncate(1 << 30 if length == 100_000_001 else path.stat().st_size)  # sparse
    began = time.process_time()
    refused(path)
    assert time.process_time() - began < 0.5


NAMES = ["a b", "a\nb", "$(rm -rf x)", "-rf", "..b", "x" * 200, "naïve \u202e模型", os.fsdecode(b"\xff\xfe"), "a;b|c&d"]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_checkpoint_is_called_the_manifest_s_name_is_plain_a25(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(tiny, tmp_path / name)
    found = facts(open_checkpoint(copy))
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", found.name)
    manifest.dumps(Manifest(manifest.SCHEMA, found, (), ()))


@pytest.fixture
def one_tensor() -> bytes:
    """A sound file with one tensor of four bytes, which is a LoRA's by its name."""
    header = json.dumps({"lora_up.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)
