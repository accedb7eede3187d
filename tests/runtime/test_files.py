"""Our safetensors reader against the safetensors package, and against files that are broken, hostile or others."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pace import pace
from safetensors.torch import save

from clipskip import files, inversions
from clipskip.engines import tensorfile
from clipskip.errors import CheckpointError, UnsafeFileError, UnsupportedModelError

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3) / 3,
    "brain": torch.linspace(-9, 9, 5).to(torch.bfloat16),
    "single": torch.linspace(-1, 1, 7),
    "double": torch.linspace(-1, 1, 3, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
}
SOUND = save(TENSORS, {"format": "pt"})


def made(header: Any, body: bytes = b"") -> bytes:
    """A file with this header, given as text or as an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(begin: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_every_float_format_is_read_as_the_safetensors_package_reads_it() -> None:
    header = files.header_of(SOUND)
    assert header.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        floats = tensorfile.floats(SOUND, header, name)
        assert floats.dtype == np.float32
        np.testing.assert_array_equal(floats, tensor.to(torch.float32).numpy())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_what_is_no_float_is_read_but_not_converted(dtype: torch.dtype) -> None:
    data = save({"x": torch.zeros(4, dtype=dtype)})
    header = files.header_of(data)
    with pytest.raises(UnsupportedModelError, match="F16, BF16, F32 and F64"):
        tensorfile.floats(data, header, "x")


def test_a_file_cut_anywhere_is_refused() -> None:
    for length in range(len(SOUND)):
        with pytest.raises(CheckpointError):
            files.header_of(SOUND[:length])


def test_a_cut_body_is_an_incomplete_download_with_both_numbers() -> None:
    with pytest.raises(CheckpointError, match=r"30 of 40 bytes of tensors are there: the download is incomplete"):
        files.header_of(made({"x": entry(0, 40)}, bytes(30)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"\0\0\0", "cut off in its header"),
        (SOUND + b"xyz", "3 extra bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "cut off in its header"),
        (made(b"{}" + b" " * 2**20), "a header of 1048578 bytes is more"),
        (made(b"[]"), "header is broken"),
        (made(b'{"x": '), "header is broken"),
        (made(b'{"x": 1, "x": 1}'), "twice"),
        (made(b'{"x":' + b"[" * 9999), "nested"),
        (made(b"{\xff}"), "header is broken"),
        (made({"__metadata__": {"a": 1}}), "metadata is not all text"),
        (made({"x": 5}), "at tensor 'x'"),
        (made({"x": {"dtype": "F32", "shape": [1]}}), "at tensor 'x'"),
        (made({"x": {**entry(0, 4), "more": 1}}, bytes(4)), "at tensor 'x'"),
        (made({"x": entry(0, 4, "F33")}, bytes(4)), "at tensor 'x'"),
        (made({"x": entry(0, 4, shape=[2])}, bytes(4)), "at tensor 'x'"),
        (made({"x": entry(0, 4, shape=[-1])}, bytes(4)), "at tensor 'x'"),
        (made({"x": entry(0, 4, shape=[True])}, bytes(4)), "at tensor 'x'"),
        (made({"x": entry(0, 4, shape=[1.0])}, bytes(4)), "at tensor 'x'"),  # type: ignore[list-item]
        (made({"x": entry(0, 4, shape=[2**62, 2**62, 0])}, bytes(4)), "at tensor 'x'"),
        (made({"x": entry(-4, 0)}, bytes(4)), "at tensor 'x'"),
        (made({"x": entry(4, 0)}, bytes(4)), "at tensor 'x'"),
        (made({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12)), "at tensor 'y': overlap or hole"),
        (made({"x": entry(0, 4), "y": entry(8, 12)}, bytes(12)), "at tensor 'y': overlap or hole"),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused_a3_a6(data: bytes, message: str) -> None:
    def refused() -> None:
        with pytest.raises(CheckpointError, match=message) as caught:
            files.header_of(data)
        assert caught.value.exit_status == 3

    assert pace(refused) < 25


def test_a_header_of_100_million_bytes_is_refused_without_reading_it_a4() -> None:
    data = (100_000_001).to_bytes(8, "little") + b"{" + b" " * 100
    with pytest.raises(CheckpointError, match="cut off in its header"):
        files.header_of(data)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return buffer.getvalue()


@pytest.mark.parametrize("data", [zipped(), *(pickle.dumps({"a": [1.0] * 50}, protocol=n) for n in (2, 3, 4, 5))])
def test_a_pickle_is_named_whatever_the_file_is_called_and_never_opened_a8_a9_a10(data: bytes) -> None:
    with pytest.raises(UnsafeFileError, match="pickle") as caught:
        files.header_of(data)
    assert "weights_only=True" in str(caught.value)


@pytest.mark.parametrize("padding", range(0, 512, 64))
def test_a_header_length_that_looks_like_a_pickles_first_bytes_is_no_pickle(padding: int) -> None:
    length = 0x0280 + padding  # little-endian: 80 02, a pickle of protocol 2
    text = json.dumps({"x": entry(0, 4)}).encode().ljust(length)
    assert files.header_of(made(text, bytes(4))).tensors["x"].shape == (1,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>" + b" " * 100, "web page"),
        (b"\n\n  <?xml version='1.0'?><Error>" + b" " * 100, "web page"),
        (b"GGUF\x03\0\0\0" + bytes(99), "GGUF"),
    ],
)
def test_what_was_downloaded_instead_is_named(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        files.header_of(data)
    assert message in str(caught.value)


def test_messages_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: the file is empty") as caught:
        inversions.load(path, 8)
    assert caught.value.path == str(path)


def test_a_link_is_followed_and_a_pipe_a_folder_or_nothing_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(SOUND)
    (tmp_path / "link").symlink_to("blob")
    assert files.header_of(files.read(tmp_path / "link", files.LARGEST + 1)).tensors.keys() == TENSORS.keys()
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing", "with\0nul"):
        with pytest.raises(CheckpointError):
            files.header_of(files.read(tmp_path / name, files.LARGEST + 1))


def test_a_file_of_gigabytes_is_refused_after_its_first_64_mib(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(made({"x": entry(0, 2**33)}))
        file.truncate(2**33)
    with pytest.raises(CheckpointError, match="more than 64 MiB") as caught:
        files.header_of(files.read(path, files.LARGEST + 1))
    assert "clipskip export" in str(caught.value)


@given(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_file_gives_tensors_or_a_checkpoint_error_and_nothing_else(place: int, damage: bytes) -> None:
    data = SOUND[:place] + damage + SOUND[place + len(damage) :]
    with suppress(CheckpointError):
        for tensor in files.header_of(data).tensors.values():
            assert tensor.end - tensor.begin >= np.prod(tensor.shape)
            assert tensor.end <= len(data)
