"""`clipskip inspect` of a file: of weights what its header says, of a picture its ledger; never one for the other."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import PIL.PngImagePlugin
import pytest
from hollow import SD15, hollow

from clipskip.__main__ import main


def test_a_checkpoint_is_shown_for_people_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {name: (1, *shape[1:]) for name, shape in SD15.items() if not name.startswith("first_stage")}
    metadata = {"modelspec.encoder_layer": "2", "modelspec.title": "A\n\x1b[31mmodel"}
    path = hollow(tmp_path / "model.safetensors", shapes, metadata=metadata)
    assert main(["inspect", str(path)]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["missing"].split() == ["missing", "VAE"]
    assert lines["predicts"].endswith("not said")
    assert lines["clip skip"].endswith("2 suggested: modelspec.encoder_layer says so")
    assert "\x1b" not in lines["modelspec.title"]
    assert "AutoV2" not in lines
    assert main(["inspect", str(path), "--json", "--hashes"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["family"], facts["suggested_clip_skip"]) == ("checkpoint", "SD 1.x", 2)
    assert facts["hashes"]["AutoV2"] == facts["hashes"]["SHA-256"][:10]


def test_every_hash_is_shown_with_where_people_meet_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(hollow(tmp_path / "x.safetensors", {"emb_params": (2, 768)})), "--hashes"]) == 0
    out = capsys.readouterr().out
    for name, home in (("AutoV1", "A1111 until 2023"), ("AutoV3", "`Lora hashes`"), ("SHA-256", "`Model hash`")):
        assert any(line.startswith(name) and home in line for line in out.splitlines())


def test_the_text_beside_a_picture_is_no_file_of_weights_however_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.txt"
    path.write_text("<lora:a:1> {cat}\nSteps: 5, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64")
    assert main(["inspect", str(path)]) == 0
    assert "honoured" in capsys.readouterr().out


def test_a_picture_has_rows_for_its_loras_and_for_what_it_was_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = {"schema": 1, "request": {"prompt": "", "image": "sha256:00"}, "loras": {"style": "ab12"}}
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("clipskip", json.dumps(truth))
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    assert main(["inspect", str(tmp_path / "x.png")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["LoRA", "style:", "ab12"] in lines
    assert ["made", "from", "image:", "sha256:00"] in lines


@pytest.mark.parametrize("name", ["x.ckpt", "x"])
def test_a_pickle_is_refused_whatever_it_is_called(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    assert main(["inspect", str(tmp_path / name)]) != 0
    assert "this is a pickle" in capsys.readouterr().err


def test_hashes_of_a_picture_or_a_store_are_refused(
    sample_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a cat\nSteps: 5, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64")
    for argument in (path, sample_store):
        assert main(["inspect", str(argument), "--hashes", "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["field"] == "hashes"
