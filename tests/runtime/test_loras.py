"""LoRAs by name: what tags and the field say, which files there are, what is refused, and what results note."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import facts
import lora_files
import pytest
from resolving import resolved

from clipskip.engines import lora
from clipskip.engines.variants import Active
from clipskip.errors import CheckpointError, RequestError, UnsafeFileError
from clipskip.loras import Loras, a1111_hash, called, notes
from clipskip.request import Request

LAYERS = range(12)
PARAMETERS = {f"text.encoder.layers.{layer}.mlp.fc1.weight": (8, 4) for layer in LAYERS}
PARAMETERS |= {"unet.mid_block.resnets.0.conv1.weight": (4, 4, 3, 3)}


def said(prompt: str, **fields: object) -> list[tuple[str, float, float]]:
    return [(each.name, each.text, each.unet) for each in called(Request(prompt=prompt, **fields))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tag", "name", "text", "unet"),
    [
        ("<lora:style>", "style", 1, 1),
        ("<lora:style:0.8>", "style", 0.8, 0.8),
        ("<lora:style:0.8:0.5>", "style", 0.8, 0.5),
        ("<lora:style:te=0.5>", "style", 0.5, 0.5),
        ("<lora:style:unet=0.5>", "style", 1, 0.5),
        ("<lora:style:0.7:te=0.5:unet=-1>", "style", 0.5, -1),
        ("<lora:unet=.5:style:.25>", "style", 0.25, 0.5),
        ("<lyco:style:1>", "style", 1, 1),
        ("<LORA:my style v1.2:0>", "my style v1.2", 0, 0),
    ],
)
def test_a_tag_means_what_it_means_in_a1111(tag: str, name: str, text: float, unet: float) -> None:
    assert said(f"a {tag} cat") == [(name, text, unet)]


def test_the_field_says_the_same_as_tags() -> None:
    for typed in (["style:0.8", "other:1:0.5"], "style:0.8, other:1:0.5"):
        request = Request.from_json({"prompt": "<lora:third>", "loras": typed})
        assert request.loras == ("style:0.8", "other:1:0.5")
        assert said(request.prompt, loras=request.loras) == [("third", 1, 1), ("style", 0.8, 0.8), ("other", 1, 0.5)]
        assert Request.from_json(request.to_json()) == request
    assert Request.from_text({"prompt": "", "lora": "style:0.8,b"}).loras == ("style:0.8", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("style:dyn=3", "dyn, a LoRA of fewer ranks"),
        ("style:1:1:3", "dyn, a LoRA of fewer ranks"),
        ("style:lbw=OUTALL", "lbw= is not known"),
        ("te=1", "there is no name"),
        (":1", "there is no name"),
        ("style:heavy", "must be a number from -10 to 10, not 'heavy'"),
        ("style:10.5", "must be a number from -10 to 10, not '10.5'"),
        ("style:nan", "must be a number from -10 to 10, not 'nan'"),
    ],
)
def test_what_a_tag_cannot_mean_is_refused_by_name(arguments: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        resolved(f"a cat <lora:{arguments}>")
    assert (caught.value.field, bool(caught.value.hint)) == ("prompt", True)
    with pytest.raises(RequestError, match=message) as caught:
        resolved("a cat", loras=[arguments])
    assert caught.value.field == "loras"


def test_tags_are_kept_in_the_request_and_are_no_words() -> None:
    tagged, plain = resolved("a <lora:x:1>cat", cfg=1), resolved("a cat", cfg=1)
    assert tagged.texts == plain.texts
    assert tagged.request.prompt == "a <lora:x:1>cat"
    assert tagged.notes == plain.notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lora_files.write(tmp_path / "Style.safetensors", PARAMETERS, metadata={"ss_clip_skip": "2"})
    lora_files.write(tmp_path / "below" / "detail.safetensors", PARAMETERS, lambda name: name[:4] == "unet", seed=1)
    (tmp_path / "old.pt").write_bytes(b"\x80\x02")
    (tmp_path / "readme.txt").write_text("none")
    return tmp_path


def active(loras: Loras, prompt: str) -> list[tuple[str, float, float]]:
    found = loras.active(Request(prompt=prompt), PARAMETERS)
    return [(each.lora.name, each.text, each.unet) for each in found]


def test_names_are_stems_of_files_in_any_case_also_below_a_folder(folder: Path) -> None:
    loras = Loras([str(folder)])
    assert active(loras, "<lora:Style:0.5><lora:DETAIL:1:2>") == [("Style", 0.5, 0.5), ("detail", 1, 2)]
    assert active(Loras([str(folder / "Style.safetensors")]), "<lora:style>") == [("Style", 1, 1)]
    (note,) = loras.notes
    assert "old.pt is not used: it is a pickle" in note


def test_the_exact_name_comes_first_and_two_that_are_alike_are_told_apart(folder: Path) -> None:
    lora_files.write(folder / "style.safetensors", PARAMETERS, seed=5)
    loras = Loras([str(folder)])
    assert active(loras, "<lora:style:1>") == [("style", 1, 1)]
    assert active(loras, "<lora:Style:1>") == [("Style", 1, 1)]
    with pytest.raises(RequestError, match="is one of 'Style', 'style'"):
        active(loras, "<lora:STYLE:1>")


def test_a_second_file_of_one_name_is_noted_and_refused_where_it_was_named(folder: Path) -> None:
    second = lora_files.write(folder / "z" / "Style.safetensors", PARAMETERS, seed=6)
    assert any("has the same name" in note for note in Loras([str(folder)]).notes)
    with pytest.raises(CheckpointError, match="has the same name"):
        Loras([str(folder / "Style.safetensors"), str(second)])


def test_what_is_named_and_is_no_lora_is_refused(folder: Path) -> None:
    with pytest.raises(UnsafeFileError, match="pickle"):
        Loras([str(folder / "old.pt")])
    for name in ("readme.txt", "missing.safetensors"):
        with pytest.raises(CheckpointError, match="no LoRA"):
            Loras([str(folder / name)])


def test_an_unknown_name_names_the_folder_and_the_closest_one_d29_d31(folder: Path) -> None:
    loras = Loras([str(folder)])
    with pytest.raises(RequestError, match="there is no LoRA 'Stile' in") as caught:
        active(loras, "<lora:Stile:1>")
    assert str(folder) in caught.value.message
    assert caught.value.hint == "did you mean 'Style'?"
    with pytest.raises(RequestError, match=r"there is no LoRA '\.\./x'"):
        active(loras, "<lora:../x:0>")
    with pytest.raises(RequestError, match="none are open") as caught:
        active(Loras([]), "<lora:Style:1>")
    assert "--loras FOLDER" in str(caught.value.hint)


def test_a_file_that_came_later_is_found_and_one_that_changed_is_read_again(folder: Path) -> None:
    loras = Loras([str(folder)])
    path = lora_files.write(folder / "late.safetensors", PARAMETERS, seed=2)
    (first,) = loras.active(Request(prompt="<lora:late:1>"), PARAMETERS)
    assert loras.active(Request(prompt="<lora:late:1>"), PARAMETERS)[0].lora is first.lora
    lora_files.write(path, PARAMETERS, seed=3)
    (second,) = loras.active(Request(prompt="<lora:late:1>"), PARAMETERS)
    assert second.lora.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != first.lora.sha256


def test_one_that_is_named_twice_counts_twice_and_one_of_weight_nothing_is_none(folder: Path) -> None:
    loras = Loras([str(folder)])
    assert active(loras, "<lora:Style:0.5><lora:style:0.25:1>") == [("Style", 0.75, 1.5)]
    assert active(loras, "<lora:Style:0>") == []


def test_a1111s_hash_is_of_the_tensors_or_what_the_file_says(folder: Path) -> None:
    path = folder / "Style.safetensors"
    data = path.read_bytes()
    behind = data[8 + int.from_bytes(data[:8], "little") :]
    assert a1111_hash(lora.read(path, PARAMETERS)) == hashlib.sha256(behind).hexdigest()
    lora_files.write(path, PARAMETERS, metadata={"sshs_model_hash": "ab" * 32})
    assert a1111_hash(lora.read(path, PARAMETERS)) == "ab" * 32


def test_a_note_counts_what_lies_beyond_the_cut_and_says_what_a_lora_was_trained_at(folder: Path) -> None:
    one = Active(lora.read(folder / "Style.safetensors", PARAMETERS), folder, 1.0, 1.0)
    kept = facts.MODEL.kept

    def noted(clip_skip: int, each: Active = one) -> list[str]:
        return notes([each], resolved("a cat", clip_skip=clip_skip), kept)

    assert noted(2) == ["1 of 12 text-encoder tensors of Style lie beyond clip skip 2"]
    assert noted(9) == [
        "8 of 12 text-encoder tensors of Style lie beyond clip skip 9",
        "the LoRA Style was trained at clip skip 2; this picture has 9",
    ]
    assert noted(9, replace(one, text=0.0)) == ["the LoRA Style was trained at clip skip 2; this picture has 9"]
    assert noted(1) == ["the LoRA Style was trained at clip skip 2; this picture has 1"]


def test_a_note_lists_tensors_that_are_unknown(tmp_path: Path) -> None:
    more = {**PARAMETERS, "unet.nothing.of.ours.weight": (4, 4)}
    path = lora_files.write(tmp_path / "more.safetensors", more)
    one = Active(lora.read(path, PARAMETERS), path, 0.0, 1.0)
    (note,) = notes([one], resolved("a cat"), facts.MODEL.kept)
    assert note.startswith("3 tensors of the LoRA more are unknown here and not used: 'lora_unet_no")


@pytest.mark.parametrize(
    ("said", "trained"), [("9" * 5000, None), ("٢", None), ("0020", None), ("99", None), ("02", 2), ("None", 1)]
)
def test_the_clip_skip_that_a_lora_was_trained_at_is_read_by_its_value(
    said: str, trained: int | None, tmp_path: Path
) -> None:
    path = lora_files.write(tmp_path / "s.safetensors", PARAMETERS, metadata={"ss_clip_skip": said})
    one = Active(lora.read(path, PARAMETERS), path, 0.0, 1.0)
    given = notes([one], resolved("a cat", clip_skip=3), facts.MODEL.kept)
    assert given == ([f"the LoRA s was trained at clip skip {trained}; this picture has 3"] if trained else [])


def test_layers_above_the_deepest_graph_lie_beyond_the_clip_skip_and_are_not_unknown(tmp_path: Path) -> None:
    few = {name: shape for name, shape in PARAMETERS.items() if not re.search(r"layers\.([6-9]|1\d)\.", name)}
    texts = [sum(name.startswith("text.") for name in each) for each in (few, PARAMETERS)]
    assert 0 < texts[0] < texts[1]
    path = lora_files.write(tmp_path / "s.safetensors", PARAMETERS)
    kept = facts.MODEL.kept
    for there in few, {name: shape for name, shape in few.items() if not name.startswith("text.")}:
        one = Active(lora.read(path, there), path, 1.0, 1.0)
        said = f"{texts[1] - texts[0]} of {texts[1]} text-encoder tensors of s lie beyond clip skip 7"
        assert notes([one], resolved("a cat", clip_skip=7), kept) == [said]
