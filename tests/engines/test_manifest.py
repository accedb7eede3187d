"""The manifest as JSON: what it says comes back, and nothing else is let in."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pace import pace

from clipskip.engines import manifest
from clipskip.engines.manifest import AxisRange, Dim, FileRecord, Identity, Manifest, NewerManifestError, Port, Role
from clipskip.errors import ManifestError

HASH = "d" * 64
MISSING = object()


@pytest.fixture(scope="module")
def sound(workshop) -> Manifest:
    def published(role):
        files = (FileRecord(f"onnx-fp32-key/{role}.onnx", 5, HASH), FileRecord("onnx-fp32-key/weights.bin", 7, HASH))
        return replace(workshop.artefact(role), files=files, ingredients={"model": workshop.MODEL}, notes=("naïve",))

    tokenizer = (FileRecord("onnx-fp32-key/vocab.json", 0, HASH),)
    return Manifest(1, workshop.facts(), (published("text-00"), published("step")), tokenizer)


@pytest.fixture(scope="module")
def tree(sound) -> dict:
    return json.loads(manifest.dumps(sound))


def changed(tree: dict, path: str, value: object) -> bytes:
    """The tree as JSON with the value at the dotted path replaced, or removed."""
    tree = json.loads(json.dumps(tree))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node = tree
    for part in parents:
        node = node[part]
    if value is MISSING:
        del node[last]
    else:
        node[last] = value
    return json.dumps(tree).encode()


def test_a_manifest_comes_back_as_it_was(sound):
    assert manifest.loads(manifest.dumps(sound).encode()) == sound


def test_an_artefact_is_found_by_role_target_and_precision_together(sound):
    assert sound.find(Identity(Role("step"), "onnx", "fp32")) is sound.artefacts[1]
    assert sound.find(Identity(Role("step"), "onnx", "fp16")) is None


def test_the_key_depends_on_every_ingredient_and_not_on_their_order():
    key = manifest.key_of({"a": "1", "b": "2"})
    assert key == manifest.key_of({"b": "2", "a": "1"})
    assert len({key, manifest.key_of({"a": "1"}), manifest.key_of({"a": "1", "b": "3"}), manifest.key_of({})}) == 4


OUTSIDE = [
    "",
    "x/y/z",
    "../x",
    "/etc/passwd",
    "a/../../b",
    "a/..",
    "a/.x",
    "./a",
    "a\\b",
    "a/b\\c",
    "a/b/",
    "a//b",
    "C:/x",
]


@pytest.mark.parametrize("field", [*OUTSIDE, "A/b", "a/b\n", "a/" + "x" * 300])
def test_a_path_that_is_not_a_file_in_a_folder_of_the_store_is_refused_c10_c22(tree, field):
    with pytest.raises(ManifestError) as caught:
        manifest.loads(changed(tree, "artefacts.0.files.0.path", field))
    assert caught.value.field == "manifest.artefacts[0].files[0].path"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", MISSING, "'model' is missing"),
        ("model.layers", MISSING, "manifest.model: the field 'layers' is missing"),
        ("model.colour", 1, "the field 'colour' is not known"),
        ("model.layers", True, "manifest.model.layers: must be a whole number, is a boolean"),
        ("model.layers", 3.0, "must be a whole number, is a number"),
        ("model.layers", "3", "must be a whole number, is a string"),
        ("model.layers", 0, "manifest.model.layers: 0 is not allowed here"),
        ("model.layers", 10**30, "is not allowed here"),
        ("model.beta_end", None, "manifest.model.beta_end: must be a number, is null"),
        ("model.beta_end", 10**400, "must be"),
        ("model.name", "../x", "manifest.model.name"),
        ("model.prediction", "sample", "manifest.model.prediction: 'sample' is not allowed here"),
        ("model.model_sha256", "D" * 64, "manifest.model.model_sha256"),
        ("model.sources", {"a": "1"}, "manifest.model.sources.a"),
        ("model.sources", {"a\x1b[2J": HASH}, "control characters"),
        ("artefacts", {}, "manifest.artefacts: must be a list, is an object"),
        ("artefacts.0", [], r"manifest.artefacts\[0\]: must be an object, is a list"),
        ("artefacts.0.role", "vae", r"manifest.artefacts\[0\].role: 'vae' is not allowed here"),
        ("artefacts.0.files", [], "text-00 onnx fp32: has no files"),
        ("artefacts.0.files.0.size", -1, "size: -1 is not allowed here"),
        ("artefacts.0.inputs.0.dtype", "object", "dtype"),
        ("artefacts.0.inputs.0.shape.1", 1.5, r"inputs\[0\].shape\[1\]: must be a whole number, is a number"),
        ("artefacts.0.inputs.0.shape.1", "__import__", "is not allowed here"),
        ("artefacts.0.inputs.0.name", "concepts", "two ports have one name"),
        ("artefacts.0.axes.R.minimum", 9, "axis R"),
        ("artefacts.0.notes", "note", "must be a list"),
        ("artefacts.0.notes", ["\ud800"], "control characters"),
        ("artefacts.0.ingredients", {}, "do not name the model"),
        ("artefacts.0.role", "step", "text-00.onnx is no step"),
        ("tokenizer.0.sha256", "", "manifest.tokenizer"),
        ("schema", "1", "not the manifest of an engine store"),
        ("schema", True, "not the manifest of an engine store"),
        ("schema", 0, "not the manifest of an engine store"),
        ("schema", 2, "made by a newer clipskip"),
    ],
)  # fmt: skip
def test_a_field_that_does_not_fit_is_named(tree, path, value, message):
    with pytest.raises(ManifestError, match=message) as caught:
        manifest.loads(changed(tree, path, value))
    assert caught.value.field.startswith("manifest")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"{}", "not the manifest of an engine store"),
        (b"[]", "not the manifest of an engine store"),
        (b"null", "not the manifest of an engine store"),
        (b"\xff\xfe", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"schema": 1, "schema": 1}', "the field 'schema' is there twice"),
        (b"[" * 13 + b"]" * 13, "nested deeper than 12"),
        (b'{"a":' * 100_000, "nested deeper than 12"),
        (b" " * (1 << 20) + b"{}", "larger than 1048576 bytes"),
        (b"1" * 10_000, "not valid JSON"),
    ],
)
def test_json_that_a_careless_reader_takes_is_refused_c8(data, message):
    with pytest.raises(ManifestError, match=message):
        manifest.loads(data)


def test_an_overflowing_number_is_refused(sound):
    data = manifest.dumps(sound).replace("0.00085", "1e999").encode()
    with pytest.raises(ManifestError, match=r"beta_start: must be finite"):
        manifest.loads(data)


@pytest.mark.parametrize("data", [b'"' + b'\\"' * 500_000, b'"' * 1_000_000, b"[[{" * 300_000, b"\\" * 1_000_000])
def test_a_hostile_megabyte_is_refused_in_no_time_c8(data):
    def refused():
        with pytest.raises(ManifestError):
            manifest.loads(data)

    assert pace(refused) < 50


def test_an_older_schema_says_so_c9(tree, monkeypatch):
    monkeypatch.setattr(manifest, "SCHEMA", 2)
    with pytest.raises(ManifestError, match="made by an older clipskip"):
        manifest.loads(json.dumps(tree).encode())


def test_a_newer_schema_asks_for_an_upgrade_whatever_else_it_holds_c9():
    with pytest.raises(NewerManifestError) as caught:
        manifest.loads(b'{"schema": 7, "new": []}')
    assert caught.value.hint == "upgrade clipskip"


def test_a_manifest_that_could_not_be_read_back_is_not_written(sound):
    for broken in (
        replace(sound.artefacts[0], parity={"l2": float("nan")}),
        replace(sound.artefacts[0], notes=("two\nlines",)),
        replace(sound.artefacts[0], axes={"R": AxisRange(4, 2, 1)}),
        replace(sound.artefacts[0], outputs=(Port("y", "complex64", ()),)),
    ):
        with pytest.raises(ManifestError):
            manifest.dumps(replace(sound, artefacts=(broken,)))
        with pytest.raises(ManifestError):
            manifest.validate(broken)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_error_c8(data):
    with pytest.raises(ManifestError):
        manifest.loads(data)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(st.data())
def test_a_garbled_manifest_is_sound_or_a_manifest_error_c8(tree, data):
    text = json.dumps(tree)
    if data.draw(st.booleans()):  # another value somewhere
        node, tree = tree, json.loads(text)
        node = tree
        while True:
            key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.integers(0, 4)) == 0:
                break
            node = node[key]
        node[key] = data.draw(VALUES)
        text = json.dumps(tree)
    else:  # a piece cut out
        begin = data.draw(st.integers(0, len(text)))
        text = text[:begin] + text[data.draw(st.integers(begin, len(text))) :]
    with suppress(ManifestError):
        assert isinstance(manifest.loads(text.encode("utf-8", "surrogatepass")), Manifest)


def test_roles_and_dimensions_are_written_as_they_are_read():
    for role in (Role("text", 0), Role("text", 11), Role("step"), Role("decode"), Role("decode-tiny"), Role("encode")):
        assert Role.parse(str(role)) == role
    for dimension in (Dim("h"), Dim("h", 8)):
        assert Dim.parse(str(dimension)) == dimension
    assert (str(Role("text", 3)), str(Dim("h", 8)), str(Dim("B"))) == ("text-03", "8*h", "B")
    assert Dim("h", 8).size({"h": 4}) == 32
    assert sorted([Role("text", 2), Role("step"), Role("text", 0)]) == [Role("step"), Role("text", 0), Role("text", 2)]


@pytest.mark.parametrize("text", ["text", "text-1", "text-١٢", "text-100", "step-01", "", "Step", "step\n"])
def test_another_role_is_none(text):
    with pytest.raises(ValueError, match="role"):
        Role.parse(text)


@pytest.mark.parametrize("text", ["0*h", "1000*h", "8*", "*h", "8*8", "h*8", "", "8*h\n", "-1*h"])
def test_another_dimension_is_none(text):
    with pytest.raises(ValueError, match="dimension"):
        Dim.parse(text)


def test_a_store_written_before_there_were_variants_opens_with_the_keys_it_had(sound, tree):
    assert not any("variant" in artefact for artefact in tree["artefacts"])
    read = manifest.loads(json.dumps(tree).encode())
    assert [artefact.variant for artefact in read.artefacts] == ["", ""]
    old = manifest.key_of({"artefact": "text-00 onnx fp32", "model": sound.artefacts[0].model})
    assert read.artefacts[0].key == old


def test_a_variant_is_another_artefact_with_another_key(sound):
    step = sound.artefacts[1]
    other = replace(step, variant="painterly")
    both = manifest.loads(manifest.dumps(replace(sound, artefacts=(step, other))).encode())
    assert both.find(Identity(Role("step"), "onnx", "fp32", "painterly")) == other
    assert both.find(Identity(Role("step"), "onnx", "fp32")) == step
    assert step.key != other.key


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.beta_start", -1),
        ("model.beta_start", 0),
        ("model.beta_end", 1),
        ("model.scaling_factor", 0.0),
        ("model.scaling_factor", 1e9),
        ("model.train_steps", 10**7),
        ("model.layers", 100),
        ("model.recommended_clip_skip", 5),
        ("model.default_size", 63),
        ("model.size_step", 4),
        ("model.size_step", 1 << 20),
    ],
)
def test_facts_out_of_range_are_refused_c8(tree, path, value):
    with pytest.raises(ManifestError) as caught:
        manifest.loads(changed(tree, path, value))
    assert caught.value.field == f"manifest.{path}"


def test_the_files_of_another_role_are_refused_c11(tree):
    """All depths of the text encoder take and give the same: only their names tell them apart."""
    files = tree["artefacts"][1]["files"]
    with pytest.raises(ManifestError, match=r"step.onnx is no text-00") as caught:
        manifest.loads(changed(tree, "artefacts.0.files", files))
    assert caught.value.field == "manifest.artefacts.text-00 onnx fp32.files"


def places(node, path=""):
    """The dotted paths of everything in a tree."""
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield f"{path}{key}"
        yield from places(inner, f"{path}{key}.")


HOSTILE = [None, True, -1, 0, 2**63, 10**400, 0.5, -0.0, 1e308, "", "x" * 5000, "../../x", "\ud800", "\x1b[2J", [], {}]
HOSTILE += [[[[[]]]], {"schema": 1}, [None] * 1000, {str(i): i for i in range(1000)}, MISSING]


def test_every_mutation_of_a_manifest_is_sound_or_names_its_field_in_no_time_c8(tree):
    counts = {True: 0, False: 0}
    for path in places(tree):
        if ("." in path and path.split(".")[0] in ("provenance", "parity")) or ".sources." in path:
            continue  # names are free there, and dots in them
        for value in HOSTILE:
            data = changed(tree, path, value)
            began, error = time.process_time(), None
            try:
                manifest.loads(data)
            except ManifestError as caught:
                error = caught
            assert error is None or (error.field or "").startswith("manifest"), (path, value)
            assert time.process_time() - began < 1
            counts[error is None] += 1
    assert counts[False] > 1000
    assert counts[True] > 50
