"""What `inspect` and `verify` say."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from clipskip.engines import report
from clipskip.engines.manifest import Role
from clipskip.engines.store import Store
from clipskip.errors import EngineMissing


def test_an_inspection_is_json_and_tells_what_is_there(root, workshop):
    workshop.rebuild(root, "2")
    facts = json.loads(json.dumps(report.inspect(root)))
    assert facts["model"]["name"] == "tiny"
    assert [each["role"] for each in facts["artefacts"]] == ["decode", "step", "text-00"]
    decode = facts["artefacts"][0]
    assert decode["ingredients"]["version"] == "2"
    assert decode["key"] == Store(root).find(Role("decode"), "onnx", "fp32").key
    assert len({each["key"] for each in facts["artefacts"]}) == 3
    assert decode["size"] == sum(record["size"] for record in decode["files"])
    assert len(facts["unreferenced"]) == 1


def test_shared_weights_are_counted_once(root):
    facts = report.inspect(root)
    folder = Store(root).verify_tokenizer()
    assert facts["size"] == sum(path.stat().st_size for path in folder.iterdir())
    assert sum(each["size"] for each in facts["artefacts"]) > facts["size"]


def test_the_text_of_an_inspection_is_a_table(root):
    text = report.inspection_text(report.inspect(root))
    assert "tiny (sd1, epsilon prediction, 3 text layers, clip skip 1 by default)" in text
    header, *rows = text.splitlines()[2:6]
    assert header.split() == ["role", "target", "precision", "key", "size", "shapes", "parity"]
    assert [row.split()[0] for row in rows] == ["decode", "step", "text-00"]
    assert rows[0].endswith("R 1-8   l2 1e-06")


def test_the_text_of_an_inspection_says_what_engines_run_on_and_which_form_a_graph_has(root):
    facts = report.inspect(root)
    decode, step, text = facts["artefacts"]
    decode["variant"] = "cuda"
    for engine in (step, text):
        engine |= {"target": "rtx", "provenance": {"compute capability": "8.6, 8.9, 12.0"}}
    *rows, _, line = report.inspection_text(facts).splitlines()
    assert rows[3].split()[:4] == ["decode", "onnx", "cuda", "fp32"]
    assert line == "rtx for compute capability 8.6, 8.9, 12.0: step, text-00"
    text["provenance"] = {"compute capability": "8.9"}
    assert report.inspection_text(facts).splitlines()[-2:] == [
        "rtx for compute capability 8.6, 8.9, 12.0: step",
        "rtx for compute capability 8.9: text-00",
    ]


@pytest.mark.parametrize("place", ["", "manifest.json", "onnx", "onnx/step.onnx", "onnx/vocab.json"])
@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_what_others_may_write_to_is_warned_about_c15(root, place, mode):
    assert Store(root).exposed() == report.inspect(root)["warnings"] == []
    folder = Store(root).verify_tokenizer()
    path = root / place.replace("onnx", folder.name, 1)
    path.chmod(mode)
    if mode == 0o775:
        os.chown(path, -1, os.getgid() + 1 if os.getuid() == 0 else os.getgid())
    expected = os.getuid() == 0 or mode == 0o777 or os.getgid() != os.getuid()
    (line,) = report.inspect(root)["warnings"] if expected else [f"write to {path}, chmod -R go-w {root}"]
    assert f"write to {path}," in line
    assert f"chmod -R go-w {root}" in line


def test_the_manifest_is_held_against_a_hash_that_was_kept_elsewhere(root, workshop):
    kept = report.seal(root)
    assert kept == hashlib.sha256((root / "manifest.json").read_bytes()).hexdigest()
    assert report.verify(root, kept.upper())[0] == ("manifest", None)
    workshop.rebuild(root, "2")
    assert "another SHA-256" in report.verify(root, kept)[0][1]
    assert [problem for _, problem in report.verify(root)] == [None] * 4


def test_verify_looks_at_every_artefact_and_the_tokenizer(root):
    names = ["decode onnx fp32", "step onnx fp32", "text-00 onnx fp32", "tokenizer"]
    assert report.verify(root) == [(name, None) for name in names]
    folder = Store(root).verify_tokenizer()
    (folder / "step.onnx").unlink()
    (folder / "vocab.json").write_text("{}")
    problems = dict(report.verify(root))
    assert [name for name in names if problems[name]] == ["step onnx fp32", "tokenizer"]
    lines = report.verification_text(report.verify(root)).splitlines()
    assert lines[0] == "decode onnx fp32   ok"
    assert lines[1].endswith("step.onnx is missing")


def test_verify_names_an_artefact_of_another_model(root, workshop):
    text = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(text.replace(f'"model": "{workshop.MODEL}"', f'"model": "{"f" * 64}"', 1))
    assert "another model" in report.verify(root)[0][1]


@pytest.mark.parametrize("look", [report.inspect, report.verify])
def test_a_store_that_is_not_there_is_missing(tmp_path, look):
    with pytest.raises(EngineMissing):
        look(tmp_path)
