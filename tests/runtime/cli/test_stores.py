"""The verbs around the store refuse what was typed wrong before they look at anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipskip.__main__ import main


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "", "--out", "store"],
        ["export", "model", "--out", ""],
        ["export", "model", "--out", "store", "--vae", ""],
        ["generate", "store", "a cat", "--out", ""],
        ["grid", "store", "a cat", "--x", "seed=1", "--out", ""],
        ["generate", "", "a cat"],
        *([verb, ""] for verb in ("inspect", "verify", "gc", "bench")),
        ["build", "", "--target", "onnxruntime"],
    ],
)
def test_a_path_of_no_characters_is_not_taken_for_this_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "request"
    assert '"" is no path' in error["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digest", ["xyz", "0" * 63, "g" * 64, "sha256:" + "0" * 64, ""])
def test_what_is_no_sha256_is_a_mistake_of_usage_and_no_damaged_store(
    sample_store: Path, digest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(sample_store), "--manifest-sha256", digest, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["field"]) == ("request", "manifest_sha256")


@pytest.mark.parametrize("option", ["--max-batch", "--max-chunks"])
def test_engines_larger_than_any_graph_are_refused_before_any_work(
    sample_fp16_store: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    before = sorted(sample_fp16_store.iterdir())
    for value, message in (("100000", "must be at most 1000, not 100000"), ("999", "the graph of")):
        assert main(["build", str(sample_fp16_store), "--target", "tensorrt-rtx", option, value]) == 2
        assert message in capsys.readouterr().err
    assert sorted(sample_fp16_store.iterdir()) == before
