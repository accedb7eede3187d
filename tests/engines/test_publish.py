"""What a build does to the rest of the store, what is rebuilt and why, and what may be thrown away."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from pathlib import Path

import pytest

from clipskip.engines import publish, stale
from clipskip.engines.manifest import Identity, Role
from clipskip.engines.report import verify
from clipskip.engines.store import Store
from clipskip.errors import EngineIncompatible, EngineMissing, ExportError, ManifestError


def identities(root):
    return {each.identity for each in Store(root).manifest().artefacts}


def folders(root):
    return {each.name for each in root.iterdir() if each.is_dir()}


def sound(root):
    return not [problem for _, problem in verify(root) if problem]


def test_a_build_publishes_one_folder_named_by_what_it_is_made_of(root, workshop):
    assert folders(root) == {publish.folder_name("onnx-fp32", workshop.wanted())}
    artefact = Store(root).find(Role("step"), "onnx", "fp32")
    assert [Path(record.path).name for record in artefact.files] == ["step.onnx", "weights.bin"]
    assert artefact.ingredients == workshop.wanted()[Identity(Role("step"), "onnx", "fp32")]
    assert sound(root)


def test_a_second_build_of_the_same_does_nothing(root, workshop):
    before, said = (root / "manifest.json").stat().st_mtime_ns, []
    assert not workshop.make(root, workshop.wanted(), model=workshop.facts(), progress=said.append)
    assert (root / "manifest.json").stat().st_mtime_ns == before
    assert said == [f"{publish.folder_name('onnx-fp32', workshop.wanted())}: up to date"]


def test_touched_and_copied_files_are_up_to_date_b14(root, workshop, tmp_path):
    for path in root.rglob("*"):
        os.utime(path)
    shutil.copytree(root, tmp_path / "copy")
    assert stale.reasons(tmp_path / "copy", workshop.wanted(), workshop.facts()) == {}


def test_a_build_replaces_its_own_artefacts_and_keeps_the_others(root, workshop):
    workshop.make(root, workshop.wanted(("step",), "tensorrt-rtx", "fp16"))
    workshop.make(root, workshop.wanted(("step",), version="2"))
    assert identities(root) == {*workshop.wanted(), Identity(Role("step"), "tensorrt-rtx", "fp16")}
    assert Store(root).find(Role("step"), "onnx", "fp32").ingredients["version"] == "2"
    assert "version" not in Store(root).find(Role("decode"), "onnx", "fp32").ingredients
    assert sound(root)


def test_artefacts_of_an_earlier_model_leave_the_manifest(root, workshop):
    workshop.make(root, workshop.wanted(target="tensorrt", precision="fp16"))
    new = workshop.facts(model_sha256=workshop.OTHER_MODEL)
    workshop.make(root, workshop.wanted(("step", "encode"), model=workshop.OTHER_MODEL), model=new)
    assert identities(root) == {*workshop.wanted(("step", "encode"))}
    with pytest.raises(EngineMissing):
        Store(root).find(Role("step"), "tensorrt", "fp16")


def test_an_engine_of_a_model_that_was_replaced_meanwhile_is_not_published_b13(root, workshop):
    what = workshop.wanted(("step",), "tensorrt", "fp16")

    def do(draft):
        (draft.folder / "step.engine").touch()
        draft.add(workshop.artefact("step", "tensorrt", "fp16"), ["step.engine"])
        new = workshop.facts(model_sha256=workshop.OTHER_MODEL)
        workshop.make(root, workshop.wanted(model=workshop.OTHER_MODEL), model=new)

    with pytest.raises(EngineIncompatible, match="model changed while step was being built"):
        workshop.work(root, what, do)
    assert identities(root) == {*workshop.wanted()}


def test_facts_that_change_no_bytes_are_published_without_a_build(root, workshop):
    before = folders(root)
    assert not workshop.make(root, workshop.wanted(), model=workshop.facts(recommended_clip_skip=2))
    assert Store(root).manifest().model.recommended_clip_skip == 2
    assert folders(root) == before
    assert sound(root)


def test_files_that_no_artefact_names_are_not_published(root, workshop):
    what = workshop.wanted(("encode",))

    def do(draft):
        (draft.folder / "scratch").mkdir()
        (draft.folder / "scratch" / "file").touch()
        (draft.folder / "notes.txt").touch()
        (draft.folder / "encode.onnx").touch()
        draft.add(workshop.artefact("encode"), ["encode.onnx"])

    workshop.work(root, what, do)
    assert os.listdir(root / publish.folder_name("onnx-fp32", what)) == ["encode.onnx"]


def add_a_link(draft, artefact):
    (draft.folder / "encode.onnx").symlink_to("elsewhere")
    draft.add(artefact, ["encode.onnx"])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lambda draft, artefact: None, "ended without encode onnx fp32"),
        (lambda draft, artefact: draft.add(artefact, ["encode.onnx"]), "recorded a file that is missing"),
        (add_a_link, "is a symbolic link"),
    ],
)
def test_a_build_that_did_not_make_what_it_was_to_make_publishes_nothing(root, workshop, record, message):
    before = folders(root)
    with pytest.raises(ExportError, match=message):
        workshop.work(root, workshop.wanted(("encode",)), lambda draft: record(draft, workshop.artefact("encode")))
    assert folders(root) == before


def test_a_file_name_outside_the_draft_is_refused_when_it_is_added(root, workshop):
    artefact = workshop.artefact("encode")
    with pytest.raises(ManifestError, match=r"files\[0\]\.path"):
        workshop.work(root, workshop.wanted(("encode",)), lambda draft: draft.add(artefact, ["../../encode.onnx"]))


def test_an_engine_cannot_be_built_into_a_store_without_a_model(tmp_path, workshop):
    with pytest.raises(EngineMissing, match="no engine store"):
        workshop.make(tmp_path / "typo", workshop.wanted())
    assert not (tmp_path / "typo").exists()


def test_the_reasons_for_a_rebuild_name_what_changed(root, workshop):
    new = workshop.wanted(("step", "decode", "encode"), **{"onnx runtime": "1.31.1"}, graph="e" * 64)
    lines = stale.explain(stale.reasons(root, new, workshop.facts()))
    assert lines == [
        "step, decode: graph: none -> eeeeeeeeeeee; onnx runtime: none -> 1.31.1",
        "encode: not built yet",
    ]
    workshop.make(root, new, model=workshop.facts())
    newer = {each: {**value, "onnx runtime": "1.32.0"} for each, value in new.items()}
    assert stale.explain(stale.reasons(root, newer, workshop.facts())) == [
        "step, decode, encode: onnx runtime: 1.31.1 -> 1.32.0"
    ]


def test_a_changed_checkpoint_is_named_by_its_files_b13(root, workshop):
    sources = {"unet/model.safetensors": "0" * 64, **{f"{i}.safetensors": "0" * 64 for i in range(4)}}
    new = workshop.facts(model_sha256=workshop.OTHER_MODEL, sources=sources)
    what = workshop.wanted(("step",), model=workshop.OTHER_MODEL)
    assert stale.explain(stale.reasons(root, what, new)) == [
        "step: the checkpoint changed: 0.safetensors, 1.safetensors, 2.safetensors and 2 more"
    ]
    assert stale.explain(stale.reasons(root, what)) == ["step: the checkpoint changed"]


@pytest.mark.parametrize("name", ["step.onnx", "weights.bin", "vocab.json"])
def test_a_damaged_store_is_rebuilt_beside_the_damage(root, workshop, name):
    reader = Store(root)
    path = reader.verify(reader.find(Role("step"), "onnx", "fp32")).with_name(name)
    path.write_bytes(b"x" * path.stat().st_size)
    said = []
    assert workshop.make(root, workshop.wanted(), model=workshop.facts(), progress=said.append)
    assert f"{name} is not what was published" in said[0]
    assert sound(root)
    assert path.exists()  # the reader may have it mapped


@pytest.mark.parametrize("text", ["", '{"schema": 1}', "\0"])
def test_an_export_starts_afresh_over_a_damaged_manifest_and_a_build_does_not(root, workshop, text):
    (root / "manifest.json").write_text(text)
    with pytest.raises(ManifestError):
        workshop.make(root, workshop.wanted(target="tensorrt"))
    said = []
    assert workshop.make(root, workshop.wanted(), model=workshop.facts(), progress=said.append)
    assert "the manifest is damaged" in said[0]
    assert sound(root)


def test_a_manifest_of_a_newer_clipskip_is_never_replaced(root, workshop):
    (root / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(ManifestError, match="newer"):
        workshop.make(root, workshop.wanted(), model=workshop.facts())
    assert (root / "manifest.json").read_text() == '{"schema": 2}'


def test_a_folder_that_was_never_committed_is_replaced(root, workshop):
    name = publish.folder_name("onnx-fp32", workshop.wanted(v="2"))
    (root / name).mkdir()
    (root / name / "junk").touch()
    workshop.make(root, workshop.wanted(v="2"), model=workshop.facts())
    assert name in folders(root)
    assert sound(root)


def test_published_files_have_the_mode_that_the_umask_gives(tmp_path, workshop):
    before = os.umask(0o022)
    try:
        workshop.rebuild(tmp_path / "store", "1")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert modes == {0o644}
    assert {(tmp_path / "store" / each).stat().st_mode & 0o777 for each in folders(tmp_path / "store")} == {0o755}


def test_gc_removes_what_no_manifest_names_and_nothing_else_c17(root, workshop):
    (old,) = folders(root)
    workshop.rebuild(root, "2")
    mine = "photos-0123456789abcdef", "onnx-fp32-0123456789abcdef", ".tmp-photos-0123456789abcdef-01234567"
    for name in ("mine", "notes-0123", ".tmp", ".tmp-mine", *mine):  # found.md, A8
        (root / name).mkdir()
    (root / f".tmp-{old}-01234567").mkdir()
    (root / f".tmp-{old}-89abcdef").symlink_to("mine")
    before = sorted(os.listdir(root))
    would = publish.gc(root, dry_run=True)
    assert sorted(os.listdir(root)) == before
    assert set(would) == {old, f".tmp-{old}-01234567"}
    assert would[old] > 10_000
    assert publish.gc(root) == would
    assert sorted(os.listdir(root)) == [name for name in before if name not in would]
    assert sound(root)


def test_gc_leaves_what_a_reader_has_open_until_the_reader_goes_c17(root, workshop):
    reader = Store(root)
    artefact = reader.find(Role("step"), "onnx", "fp32")
    workshop.rebuild(root, "2")
    assert publish.gc(root) == {}
    assert reader.verify(artefact).is_file()
    del reader
    assert len(publish.gc(root)) == 1


def test_gc_leaves_the_folder_of_a_living_builder(root, workshop):
    def do(draft):
        assert publish.gc(root) == {}
        assert draft.folder.exists()

    with pytest.raises(ExportError, match="ended without"):
        workshop.work(root, workshop.wanted(v="2"), do)


@pytest.mark.parametrize(("text", "error"), [(None, EngineMissing), ("{", ManifestError)])
def test_gc_removes_nothing_where_it_cannot_tell_what_is_referenced(root, text, error):
    before = folders(root)
    (root / "manifest.json").unlink() if text is None else (root / "manifest.json").write_text(text)
    with pytest.raises(error):
        publish.gc(root)
    assert folders(root) == before


def test_the_store_needs_nothing_but_the_standard_library():
    folder = Path(publish.__file__).parent
    for name in ("files", "locks", "manifest", "publish", "report", "stale", "store", "strict"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                assert module.split(".")[0] in sys.stdlib_module_names or module.startswith(
                    ("clipskip.engines", "clipskip.errors")
                ), f"{name} imports {module}"


@pytest.mark.parametrize("plant", ["symlink_to", "hardlink_to", "touch"])
def test_a_planted_draft_of_the_manifest_is_not_written_through(root, workshop, tmp_path, plant):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = root / ".manifest.json.new"
    planted.touch() if plant == "touch" else getattr(planted, plant)(victim)
    workshop.rebuild(root, "2")
    assert victim.read_text() == "precious"
    assert not (root / "manifest.json").is_symlink()
    assert sound(root)
    assert not planted.exists()


def test_facts_that_nobody_could_read_back_are_refused_before_any_work(root, workshop):
    before = sorted(os.listdir(root))
    with pytest.raises(ManifestError, match="beta_start"):
        workshop.make(root, workshop.wanted(version="2"), model=workshop.facts(beta_start=-1.0))
    assert sorted(os.listdir(root)) == before


def test_the_next_build_says_that_one_was_killed_and_removes_what_it_left_b2_b8(root, workshop):
    (name,) = folders(root)
    (root / f".tmp-{name}-01234567").mkdir()
    (root / f".tmp-{name}-01234567" / "step.onnx").touch()
    said = []
    workshop.make(root, workshop.wanted(version="2"), model=workshop.facts(), progress=said.append)
    assert f"removing .tmp-{name}-01234567: its build was killed (out of memory?)" in said
    assert not (root / f".tmp-{name}-01234567").exists()


@pytest.mark.parametrize("label", ["Onnx-fp32", "onnx fp32", "../onnx", "", "modèle", "x" * 81])
def test_folders_are_named_in_lower_case_so_that_no_file_system_confuses_them_c22(workshop, label):
    assert publish.folder_name("onnx-fp32", workshop.wanted()).islower()
    with pytest.raises(ValueError, match="label"):
        publish.folder_name(label, workshop.wanted())
