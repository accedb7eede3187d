"""clipskip beside others: on the same weights and inputs, turn by turn, and what cannot run is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipskip.bench import peers
from clipskip.bench.peers import Comparison, Failed, not_reproduced, over, waves


def test_a_peer_computes_the_same_and_one_that_cannot_run_is_left_out_with_its_reason(
    sample_store: Path, sample_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(peers, "FIRST_PICTURES", {})
    monkeypatch.setattr(peers, "IMPORTS", {})
    monkeypatch.setattr(peers, "OPTIONAL", {"optimum-onnx": ("--no-index", "no-such-package")})
    monkeypatch.setattr(peers.machine, "available", lambda: 1 << 50)
    asked = ["--peers", "OpenVINO,optimum-onnx", "--sizes", "64", "--size", "64", "--steps", "3", "--rounds", "5"]
    out = ["--minutes", "0.01", "--folder", str(tmp_path / "peers"), "--out", str(tmp_path / "report.json")]
    peers.main([str(sample_checkpoint), str(sample_store), *asked, *out])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    rows = [*(f"text, clip skip {skip}" for skip in range(1, 14)), "step 64", "decode 64"]
    assert [*report["ratios"]] == rows
    assert max(report["apart"][row]["OpenVINO"] for row in rows[:-1]) < 2e-5
    assert report["left_out"]["optimum-onnx"].startswith("does not install: ERROR: No matching distribution")
    assert {*report["by_skip"]} == {"1", "2", "12"}
    assert report["counts"]["step"]["flops"] > report["counts"]["text-12"]["flops"] > 0


def test_a_ratio_that_one_half_of_the_rounds_does_not_confirm_is_named() -> None:
    comparison = Comparison(Path(), Path(), [], 4, 0.0)
    comparison.seconds = {"step": {"steady": [2.0, 2.1, 2.0, 2.1], "fast": [1.0] * 4, "slower": [1.0, 1.0, 1.5, 1.5]}}
    comparison.ours = {"step": dict.fromkeys(comparison.seconds["step"], [1.0] * 4)}
    ratios = comparison.ratios()
    assert ratios["step"]["steady"] == {"ratio": 2.05, "halves": [2.05, 2.05]}
    assert not_reproduced(ratios) == ["step, slower (1.0 and 1.5)"]


def test_clip_skips_are_told_apart_by_rounds_and_not_where_the_error_is_larger() -> None:
    comparison = Comparison(Path(), Path(), [], 4, 0.0)
    comparison.paired = {1: [1.0, 2.0, 3.0, 4.0], 2: [1.1, 1.9, 3.1, 3.9], 12: [0.8, 1.81, 2.8, 3.79]}
    found = comparison.by_skip()
    assert [found[skip]["told"] for skip in ("2", "12")] == [False, True]
    assert found["12"]["longer_ms"] == -200


def test_peers_that_do_not_fit_into_memory_together_are_each_compared_with_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers.machine, "available", lambda: 16 << 30)
    assert waves(["clipskip", "a", "b", "c"], 4 << 30) == [["clipskip", "a"], ["clipskip", "b"], ["clipskip", "c"]]
    assert waves(["clipskip", "a", "b", "c"], 30 << 20) == [["clipskip", "a", "b", "c"]]


def test_a_peer_that_ends_is_said_to_have_ended() -> None:
    peer = peers.Peer("gone", ["false"])
    with pytest.raises(Failed, match="ended with status 1"):
        peer.run(1)
    peer.close()


def test_ratios_are_of_medians() -> None:
    assert over([(2.0, 1.0), (4.0, 1.0), (90.0, 1.0)]) == 4.0
