"""Reading a store: nothing reaches a backend but the bytes that were published."""

from __future__ import annotations

import json
import os
import shutil
import threading

import pytest

from clipskip.engines import files, hints
from clipskip.engines.manifest import Role
from clipskip.engines.store import Store
from clipskip.errors import EngineCorrupt, EngineIncompatible, EngineMissing, ManifestError, StorageError


@pytest.fixture
def step(root):
    """The main file of one artefact."""
    store = Store(root)
    return store.verify(store.find(Role("step"), "onnx", "fp32"))


def look(root):
    """What a fresh reader gets."""
    store = Store(root)
    return store.verify(store.find(Role("step"), "onnx", "fp32"))


def flip(path, at=100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def link_to_a_copy(path):
    shutil.copy(path, path.parent / "copy")
    path.unlink()
    path.symlink_to("copy")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


def linked_folder(path):
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "is not what was published: its SHA-256 differs"),
        (lambda path: os.truncate(path, 10), r"has 10 bytes instead of \d+"),
        (lambda path: path.write_bytes(b""), "has 0 bytes instead of"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "SHA-256 differs"),
        (lambda path: os.truncate(path, 10_000), r"has \d+ bytes instead of"),
        (lambda path: path.unlink(), "is missing"),
        (link_to_a_copy, "is a symbolic link"),
        (pipe, "is not a regular file"),
        (folder, "is not a regular file"),
        (linked_folder, "is a symbolic link"),
        (lambda path: shutil.rmtree(path.parent), "is missing"),
        (lambda path: flip(path.with_name("weights.bin")), r"weights\.bin is not what was published"),
    ],
)
def test_a_damaged_artefact_is_refused_with_the_command_that_rebuilds_it_c1_c2_c3(root, step, damage, message):
    damage(step)
    with pytest.raises(EngineCorrupt, match=message) as caught:
        look(root)
    assert caught.value.exit_status == 4
    assert caught.value.hint == f"{hints.clipskip()} export CHECKPOINT --out {root} --precision fp32 --skips 4"


def test_a_damaged_tokenizer_is_refused_c13(root):
    assert Store(root).verify_tokenizer() == look(root).parent
    flip(look(root).with_name("vocab.json"))
    with pytest.raises(EngineCorrupt, match=r"vocab\.json"):
        Store(root).verify_tokenizer()


def test_hard_links_and_a_linked_store_are_fine_c23(root, step, tmp_path):
    os.link(step, tmp_path / "link")
    (tmp_path / "linked").symlink_to(root)
    assert look(tmp_path / "linked").read_bytes() == step.read_bytes()


def test_an_unchanged_file_is_read_once_in_a_process(root, monkeypatch):
    read = []
    digest = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda file: read.append(file.name) or digest(file))
    for _ in range(3):
        look(root)
    assert len(read) == 2  # the main file and the weights


def test_a_change_with_the_old_size_and_times_is_noticed(root, step):
    before = step.stat()
    flip(step)
    os.utime(step, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(EngineCorrupt):
        look(root)


def test_touching_and_copying_a_store_breaks_nothing(root, step, tmp_path):
    os.utime(step)
    look(root)
    shutil.copytree(root, tmp_path / "copy")
    look(tmp_path / "copy")


def test_sizes_are_looked_at_before_anything_is_hashed_c2(root, step, monkeypatch):
    os.truncate(step.with_name("weights.bin"), 1)
    monkeypatch.setattr(files, "sha256_of", lambda file: pytest.fail("hashed"))
    with pytest.raises(EngineCorrupt, match=r"weights\.bin has 1 bytes"):
        look(root)


@pytest.mark.parametrize("name", ["nowhere", "a file"])
def test_a_store_that_is_not_there_is_missing_c7(tmp_path, name):
    (tmp_path / "a file").touch()
    with pytest.raises(EngineMissing, match="no engine store in") as caught:
        Store(tmp_path / name).manifest()
    assert "clipskip export" in caught.value.hint


def test_an_artefact_that_was_not_built_is_missing_with_the_command_that_builds_it(root):
    with pytest.raises(EngineMissing, match="no step for tensorrt at fp16") as caught:
        Store(root).find(Role("step"), "tensorrt", "fp16")
    assert caught.value.hint == f"{hints.clipskip()} build {root} --target tensorrt"


@pytest.mark.parametrize(
    ("roles", "missing", "skips"),
    [
        (("text-02", "text-03"), "decode", " --skips 1,2"),
        (("text-02", "text-03"), "text-00", " --skips 1,2,4"),
        (("text-00", "text-01", "text-03"), "text-02", ""),
        (("step",), "decode", ""),
    ],
)
def test_the_command_that_exports_again_keeps_the_choice_of_clip_skips(tmp_path, workshop, roles, missing, skips):
    workshop.make(tmp_path, workshop.wanted((*roles, "encode")), model=workshop.facts())
    with pytest.raises(EngineMissing) as caught:
        Store(tmp_path).find(Role.parse(missing), "onnx", "fp16")
    assert caught.value.hint == f"{hints.clipskip()} export CHECKPOINT --out {tmp_path} --precision fp16{skips}"


def test_an_artefact_of_another_model_is_incompatible_c12(root, workshop):
    text = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(text.replace(f'"model": "{workshop.MODEL}"', f'"model": "{"f" * 64}"'))
    with pytest.raises(EngineIncompatible, match="made from another model than tiny"):
        Store(root).find(Role("step"), "onnx", "fp32")


def test_a_store_whose_name_contains_nul_is_missing_a25():
    with pytest.raises(EngineMissing, match="contains NUL"):
        Store("a\0b").manifest()


def test_a_bad_manifest_names_its_path_its_field_and_the_remedy(root):
    tree = json.loads((root / "manifest.json").read_text())
    tree["artefacts"][0]["files"][0]["path"] = "../../etc/passwd"
    (root / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(ManifestError, match=r"manifest\.json: manifest\.artefacts") as caught:
        Store(root).manifest()
    assert caught.value.field == "manifest.artefacts[0].files[0].path"
    assert caught.value.path == str(root / "manifest.json")
    assert f"rebuild it: {hints.clipskip()} export" in caught.value.hint


def test_a_manifest_of_a_newer_clipskip_asks_for_an_upgrade(root):
    (root / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(ManifestError, match="made by a newer clipskip") as caught:
        Store(root).manifest()
    assert caught.value.hint == "upgrade clipskip"


@pytest.mark.parametrize("damage", [link_to_a_copy, pipe, folder])
def test_a_manifest_that_is_no_regular_file_is_not_read_c10(root, damage):
    damage(root / "manifest.json")
    with pytest.raises(EngineMissing):
        Store(root).manifest()


def test_a_disk_error_names_the_file_c16(root, step, monkeypatch):
    def broken(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "sha256_of", broken)
    os.utime(step)
    with pytest.raises(StorageError, match=r"step\.onnx: Input/output error") as caught:
        look(root)
    assert caught.value.exit_status == 7


def test_a_reader_keeps_its_model_while_another_is_published_c14(root, workshop):
    store = Store(root)
    old = store.manifest()
    workshop.make(
        root, workshop.wanted(model=workshop.OTHER_MODEL), model=workshop.facts(model_sha256=workshop.OTHER_MODEL)
    )
    assert store.manifest() == old
    assert store.verify(store.find(Role("step"), "onnx", "fp32")).is_file()
    assert Store(root).manifest().model.model_sha256 == workshop.OTHER_MODEL


def test_many_threads_may_share_a_store(root):
    store, found = Store(root), []
    threads = [
        threading.Thread(target=lambda: found.append(store.verify(store.find(Role("step"), "onnx", "fp32"))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8


def test_a_forgotten_store_closes_what_it_held(root):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Store(root).manifest()
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_writes_nothing(root):
    before = {path: path.lstat().st_mtime_ns for path in [root, *root.rglob("*")]}
    look(root)
    assert {path: path.lstat().st_mtime_ns for path in [root, *root.rglob("*")]} == before
