"""Checkpoints as users have them: broken downloads, pickles, other models, odd but sound layouts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clipskip.errors import CheckpointError, ExportError, UnsafeFileError
from clipskip.export.checkpoint import Checkpoint, open_checkpoint

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
def test_a_weight_file_that_is_none_is_named_for_what_it_is(
    checkpoint: Path, content: bytes, message: str, kind: type[CheckpointError]
) -> None:
    (checkpoint / UNET).write_bytes(content)
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(checkpoint)
    assert UNET in str(caught.value)


@pytest.mark.parametrize("percent", range(1, 100, 7))
def test_a_download_that_broke_off_is_incomplete(checkpoint: Path, percent: int) -> None:
    path = checkpoint / UNET
    os.truncate(path, path.stat().st_size * percent // 100)
    error = refused(checkpoint)
    assert UNET in str(error)
    assert "of" in error.message or "cut off" in error.message


def test_trailing_bytes_are_counted(checkpoint: Path) -> None:
    with (checkpoint / UNET).open("ab") as file:
        file.write(b"12345")
    assert "5 extra bytes" in refused(checkpoint).message


@pytest.mark.parametrize(
    "name",
    ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", UNET],
)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
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


def test_a_cache_of_links_works_as_input(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / UNET).rename(tmp_path / "blob")
    (checkpoint / UNET).symlink_to(tmp_path / "blob")
    (tmp_path / "snapshot").symlink_to(checkpoint)
    assert open_checkpoint(tmp_path / "snapshot").sources == open_checkpoint(checkpoint).sources


def test_pipes_folders_and_nothing_are_refused_at_once(checkpoint: Path, tmp_path: Path) -> None:
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


def test_a_cut_vocabulary_or_merge_list_is_noticed(checkpoint: Path) -> None:
    merges, vocabulary = checkpoint / "tokenizer" / "merges.txt", checkpoint / "tokenizer" / "vocab.json"
    whole = merges.read_text()
    merges.write_text("#version: 0.2\nc a\n")
    assert "nothing in it makes 'cat</w>'" in refused(checkpoint).message
    merges.write_text(whole + "d o\n")
    assert "makes 'do', which vocab.json has not" in refused(checkpoint).message
    tokens = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps({name: i for name, i in tokens.items() if name != "<|endoftext|>"}))
    assert "<|endoftext|>" in refused(checkpoint).message


def test_a_file_that_changes_after_it_was_hashed_is_noticed(checkpoint: Path, edit: Callable[..., None]) -> None:
    found = open_checkpoint(checkpoint)
    found.check_unchanged()
    edit(checkpoint / "unet" / "config.json", sample_size=16)
    with pytest.raises(ExportError, match="changed while it was being read"):
        found.check_unchanged()


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("runwayml/stable-diffusion-v1-5", "downloaded first"),
        ("https://huggingface.co/some/model.safetensors", "nothing is downloaded: fetch it"),
        ("models/../absent", None),
        ("absent\0", None),
    ],
)
def test_what_is_no_path_gets_a_hint_of_its_own_a22(path: str, hint: str | None) -> None:
    error = refused(Path(path))
    assert "no checkpoint at" in error.message
    assert error.hint == hint or (hint or "?") in (error.hint or "")


def test_an_engine_store_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    error = refused(tmp_path)
    assert "is an engine store" in error.message
    assert "clipskip generate" in (error.hint or "")
