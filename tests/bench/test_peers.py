"""clipskip beside others: on the same weights and inputs, turn by turn, and what cannot run is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipskip.bench import peers
from clipskip.bench.peer import PEERS, Stage
from clipskip.bench.peers import Comparison, not_reproduced, over, waves
from clipskip.bench.report import chapter
from clipskip.errors import BackendUnavailable


def test_a_peer_computes_the_same_and_one_that_cannot_run_is_left_out_with_its_reason(
    sample_store: Path, sample_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "FIRST_PICTURES", {})
    monkeypatch.setattr(peers, "IMPORTS", {})
    monkeypatch.setattr(peers, "INSTALLED", {})
    monkeypatch.setattr(peers, "environment", lambda name, folder: sys.executable)
    monkeypatch.setattr(peers.machine, "available", lambda: 1 << 50)
    stages = [Stage("text", 64, [1, 12], 0), Stage("step", 64, [1], 0), Stage("picture", 64, [1, 12], 2)]
    comparison = Comparison(sample_checkpoint, sample_store, stages, 5, 0.0, say=lambda text: None)
    report = json.loads(json.dumps(peers.measure(comparison, ["clipskip", "OpenVINO", "optimum-onnx"], Path("/no"))))
    rows = ["text, clip skip 1", "text, clip skip 12", "step 64"]
    assert [*report["ratios"]] == rows
    assert all(0 < report["apart"][row]["OpenVINO"] < 2e-5 for row in rows)
    assert {name.partition(",")[2] for name in report["left_out"]} == {" optimum-onnx"}
    assert {*report["by_skip"]} == {"1", "12"}
    assert report["counts"]["step"]["flops"] > report["counts"]["text-12"]["flops"] > 0
    shown = "\n".join(chapter("sample", None, report)).splitlines()
    assert any(line.startswith("- left out: step 64, optimum-onnx: ") for line in shown)
    assert any(line.startswith("| 12 ") and "**not distinguishable**" in line for line in shown)


def test_an_environment_that_pip_cannot_fill_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, int("pip" in command), "", "Looking\nERROR: No such package\n")

    monkeypatch.setattr(peers.subprocess, "run", run)
    with pytest.raises(BackendUnavailable, match="does not install: ERROR: No such package"):
        peers.environment("optimum-onnx", tmp_path)
    (tmp_path / "optimum-onnx").mkdir()
    (tmp_path / "optimum-onnx" / "installed").touch()
    assert peers.environment("optimum-onnx", tmp_path) == str(tmp_path / "optimum-onnx" / "bin" / "python")


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
    with pytest.raises(BackendUnavailable, match="ended with status 1"):
        peer.run(1)
    peer.close()


def test_ratios_are_of_medians() -> None:
    assert over([(2.0, 1.0), (4.0, 1.0), (90.0, 1.0)]) == 4.0


def test_only_peers_that_could_be_loaded_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = Comparison(Path("checkpoint"), Path("store"), [], 5, 0.0)
    comparison.facts = {"clipskip": {"onnxruntime": "1"}, "diffusers": {}}
    commands: list[Any] = []
    monkeypatch.setattr(peers, "child", lambda command: commands.append(command) or "Rss: 1 kB\n")
    rows = peers.starts(comparison, Stage("picture", 64, [1], 2))
    assert [*rows["import"]] == ["Python alone", "clipskip"]
    assert rows["memory"] == {"clipskip": {"rss": 1024}}
    assert commands[-1][3:] == ["checkpoint", "store", peers.PROMPT, peers.NEGATIVE, "64", "2"]
    assert not any("diffusers" in command[2] for command in commands)


def test_what_is_installed_is_counted_with_all_that_it_requires() -> None:
    assert peers.installed("onnxruntime") > peers.installed("numpy") > 1 << 20
    assert peers.installed("numpy onnxruntime") == peers.installed("onnxruntime")  # which requires it
    assert peers.installed("no-such-package") == 0


def test_all_peers_can_be_asked_for_by_the_names_that_they_have() -> None:
    assert not [name for name in PEERS if "," in name], "the option lists them with commas"
