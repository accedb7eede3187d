"""What `inspect` and `verify` say."""

from __future__ import annotations

import json

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
    assert "tiny (sd1, epsilon prediction, 3 text layers, clip skip 1 recommended)" in text
    header, *rows = text.splitlines()[2:6]
    assert header.split() == ["role", "target", "precision", "key", "size", "shapes", "parity"]
    assert [row.split()[0] for row in rows] == ["decode", "step", "text-00"]
    assert rows[0].endswith("R 1-8   l2 1e-06")


def test_a_store_that_everybody_may_write_to_is_warned_about(root):
    assert report.inspect(root)["warnings"] == []
    root.chmod(0o777)
    assert "chmod o-w" in report.inspection_text(report.inspect(root))


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
