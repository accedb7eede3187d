"""The soak in small: a real server passes it, and what is not as it should be is counted."""

import json
import sys
from pathlib import Path

import pytest

import clipskip
from clipskip.bench import soak

SMALL = ["--clients", "4", "--each", "1", "--more", "2", "--large", "128"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process's memory")
def test_a_server_passes_with_every_limit_looked_at(sample_store, monkeypatch, capsys):
    monkeypatch.setattr(soak, "SETTLED", 0.2)
    soak.main([str(sample_store), *SMALL])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["broken"] == []
    assert told["soak"]["pictures asked for"] == 4
    assert told["soak"]["MB at most, of a large one"] >= told["soak"]["MB after them"] > 1


def test_another_picture_than_the_twin_is_counted(sample_store):
    asked = soak.requests(2, (1, 1), 1, None)
    with clipskip.open(sample_store) as pipe:
        whole = [soak.Answer(200, str(each.seed), pipe(each).png()) for each in asked]
    assert soak.unlike_twins(sample_store, None, asked, whole) == 0
    assert soak.unlike_twins(sample_store, None, asked, whole[::-1]) == 2


def test_of_eight_requests_two_have_the_lora_at_one_weight_each():
    prompts = [each.prompt for each in soak.requests(8, (1, 1), 1, Path("noise.safetensors"))]
    assert [prompt.partition("<lora:")[2] for prompt in prompts if "<" in prompt] == ["noise:0.5>", "noise:1>"]


def test_a_broken_limit_is_named_and_ends_with_1(monkeypatch, capsys):
    monkeypatch.setattr(soak, "soak", lambda args: {"refused": (3, 0), "MB after them": (9.5, None)})
    with pytest.raises(SystemExit, match="beyond its limit: refused"):
        soak.main(["nowhere"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["broken"] == ["refused"]
