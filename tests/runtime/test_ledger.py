"""What becomes of every setting in the text of another program: honoured, noted, or filled in; nothing is dropped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import facts
import numpy as np
import PIL.Image
import pytest

from clipskip import infotext, ledger
from clipskip.errors import CheckpointError, RequestError
from clipskip.inversions import Inversions
from clipskip.ledger import Ledger
from clipskip.metadata import read_ledger
from clipskip.request import Request

PICTURES = Path(__file__).parent / "data" / "pictures"
S = "Steps: 4, Sampler: Euler a, CFG scale: 5, Seed: 5, Size: 128x128"


def read(settings: str, prompt: str = "a green ring") -> Ledger:
    info = infotext.read(f"{prompt}\n{settings}")
    assert info is not None
    return ledger.of_text(info)


def embeddings(**digests: str) -> Inversions:
    spans = {name: range(i, i + 1) for i, name in enumerate(digests)}
    return Inversions(np.zeros((len(digests), 8), np.float32), spans, digests=digests)


@pytest.mark.parametrize(
    "setting",
    [
        "Refiner: other [abcdef0123]",
        "Refiner switch at: 0.8",
        "Hires CFG Scale: 3",
        "Hires prompt: x",
        "Denoising strength: 0.35",
        "Mask blur: 4",
        "VAE: x.safetensors",
        "ADetailer model: face.pt",
        "ControlNet 0: canny",
        "Tiling: True",
        "NGMS: 1",
        "Beta schedule alpha: 0.5",
        "UniPC order: 2",
        "Seed resize from: 192x128",
        "SGM noise multiplier: True",
        "Downcast alphas_cumprod: True",
        "Old prompt editing timelines: True",
        "Token merging ratio: 0.5",
        "Face restoration: CodeFormer",
        "Emphasis: Another",
        "First pass size: 0x0",
        "A setting of tomorrow: 3",
        'Civitai resources: [{"type": "checkpoint"}, {"type": "lora", "modelName": "x"}]',
    ],
)
def test_a_setting_that_is_not_honoured_is_noted(setting: str) -> None:
    found = read(f"{S}, {setting}")
    name = setting.partition(":")[0]
    assert list(found.ignored) == [name]
    (note,) = found.notes()
    assert note.startswith(f"not honoured from the picture: {name}: ")
    assert (found.request.steps, found.request.seed, found.request.width) == (4, 5, 128)


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("Eta: 0.67", "eta", 0.67),
        ("Eta DDIM: 0.5", "eta", 0.5),
        ("Sigma churn: 1", "s_churn", 1.0),
        ("Sigma tmin: 0.1", "s_tmin", 0.1),
        ("Sigma tmax: 9", "s_tmax", 9.0),
        ("Sigma noise: 1.003", "s_noise", 1.003),
        ("Schedule rho: 5", "rho", 5.0),
        ("Schedule min sigma: 0.1", "sigma_min", 0.1),
        ("Schedule max sigma: 12", "sigma_max", 12.0),
        ('Sigmas: "14.6,7,0.5"', "sigmas", (14.6, 7.0, 0.5)),
    ],
)
def test_settings_of_samplers_and_schedules_are_read_by_a1111s_names(setting: str, field: str, value: object) -> None:
    found = read(f"{S}, {setting}")
    assert getattr(found.request, field) == value
    assert (found.ignored, list(found.honoured)[-1]) == ({}, setting.split(":")[0])


def test_settings_of_one_kind_share_a_note_which_names_each() -> None:
    found = read(f"{S}, Hires prompt: x, Skip: 0.5, Hires sampler: y, Hires upscaler: {'Latent' * 20}")
    name = f"{('Latent' * 20)[:57]}... (Lanczos takes its place)"
    assert found.notes() == [
        f"not honoured from the picture: Hires prompt: x, Hires sampler: y, Hires upscaler: {name}",
        "not honoured from the picture: Skip: 0.5",
    ]


@pytest.mark.parametrize(
    "setting",
    [
        "Version: v1.10.1",
        "NGMS: 0",
        "Tiling: False",
        "Hypernet: None",
        "Token merging ratio: 0",
        "Batch size: 4, Batch pos: 2",
        "Clip skip: 2",
        "RNG: GPU",
        "Emphasis: No norm",
        "Variation seed: 3, Variation seed strength: 0.2",
        'Hashes: {"model": "0123456789"}',
        'Civitai resources: [{"type": "checkpoint", "modelVersionId": 5}], Civitai metadata: {}',
    ],
)
def test_what_changes_nothing_or_is_honoured_is_not_noted(setting: str) -> None:
    assert read(f"{S}, {setting}").notes() == []


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ("Steps: 4, Sampler: Euler a, Seed: 5, Size: 128x128", "cfg", "CFG scale: 7"),
        ("Steps: 4, Sampler: Euler a, CFG scale: 5, Size: 128x128", "seed", "Seed: a random one"),
        (S.replace("Seed: 5", "Seed: -1"), "seed", "Seed: a random one"),
        (S.replace("Seed: 5", "Seed: "), "seed", "Seed: a random one"),
        ("Steps: 4, CFG scale: 5, Seed: 5, Size: 128x128", "sampler", "sampler: DPM++ 2M"),
    ],
)
def test_what_the_text_lacks_is_filled_in_and_noted_unless_it_is_given(settings: str, name: str, value: str) -> None:
    found = read(settings)
    assert list(found.filled) == [name]
    assert found.notes() == [f"the picture's settings have no {value} is used"]
    typed = found.given({name: "Euler" if name == "sampler" else "3"})
    assert typed.notes() == []
    assert getattr(typed.request, name) in ("Euler", 3)


def test_a_missing_size_is_the_models() -> None:
    found = read("Steps: 4, Sampler: Euler a, CFG scale: 5, Seed: 5")
    assert (found.request.width, found.request.height) == (None, None)
    assert found.filled == {"width": "the model's", "height": "the model's"}


@pytest.mark.parametrize(
    ("sizes", "width", "height", "ignored"),
    [
        ("Size: 1024x1536, First pass size: 512x768", 512, 768, {"Size", "First pass size"}),
        ("Size: 1024x1024, First pass size: 0x0", 512, 512, {"Size", "First pass size"}),
        ("Size: 768x1152, First pass size: 0x0", 448, 640, {"Size", "First pass size"}),
        ("Size: 128x128, First pass size: 0x0", 128, 128, {"First pass size"}),
        ("Size: 512 X 768", 512, 768, set()),
        ("Width: 512, Height: 768", 512, 768, set()),
    ],
)
def test_the_size_is_that_of_the_first_pass(sizes: str, width: int, height: int, ignored: set[str]) -> None:
    found = read(f"Steps: 4, Sampler: Euler a, CFG scale: 5, Seed: 5, {sizes}")
    assert (found.request.width, found.request.height) == (width, height)
    assert set(found.ignored) == ignored


@pytest.mark.parametrize(
    ("settings", "prompt", "tags"),
    [
        ("Hypernet: soft(5f3b1c2d), Hypernet strength: 0.5", "a ring", " <hypernet:soft:0.5>"),
        ("Hypernet: soft", "a ring <hypernet:soft:0.2>", ""),
    ],
)
def test_a_hypernetwork_that_only_the_settings_name_counts_as_its_tag(settings: str, prompt: str, tags: str) -> None:
    assert read(f"{S}, {settings}", prompt).request.prompt == prompt + tags


@pytest.mark.parametrize(
    ("settings", "prompt", "loras"),
    [
        ('Lora hashes: "one: 0123456789ab, two: ba9876543210"', "a ring", ("one:1", "two:1")),
        ('Lora hashes: "one: 0123456789ab"', "a ring <lora:one:0.4>", None),
        ('Hashes: {"model": "0123456789", "lora:one": "0123456789"}', "a ring", ("one:1",)),
        ('Hashes: {"lora:one, two": "0123456789"}', "a ring", None),
    ],
)
def test_loras_that_only_the_settings_name_are_in_the_field(settings: str, prompt: str, loras: Any) -> None:
    request = read(f"{S}, {settings}", prompt).request
    assert (request.prompt, request.loras) == (prompt, loras)


def test_a_typed_weight_takes_the_place_of_one_that_was_filled_in() -> None:
    ledger = read(f'{S}, Lora hashes: "one: 0123456789ab"', "a ring")
    assert "Lora hashes" in ledger.checked()[0]
    typed = ledger.given({"lora": "one:0.6"})
    assert (typed.request.prompt, typed.request.loras, typed.notes()) == ("a ring", ("one:0.6",), [])
    other = ledger.over({"prompt": "a <lora:one:0.6>"})
    assert (other.request.loras, other.notes()) == (None, [])
    assert ledger.over({"steps": 5}).request.loras == ("one:1",)


ONE_FILE = replace(facts.MODEL, model_sha256="b" * 64, sources={"model.safetensors": "0123456789abcdef" * 4})


@pytest.mark.parametrize(
    ("settings", "noted"),
    [
        ("Model hash: 0123456789, Model: any name", False),
        (f"Model hash: {'0123456789abcdef' * 4}, Model: any", False),
        ("Model hash: bbbbbbbbbb, Model: sample", False),
        ("Model hash: 0123456788, Model: sample", True),
        ("Model: sample", False),
        ("Model: Sample, Model hash: 7460a6fa", False),  # A1111's old hash, of a part of the file
        ("Model: toon, Model hash: 7460a6fa", True),
        ("Model: toon", True),
        ("RNG: CPU", False),
    ],
)
def test_another_model_is_noted(settings: str, noted: bool) -> None:
    notes = read(f"{S}, {settings}").notes(ONE_FILE)
    assert len(notes) == noted
    assert all("was made with the model" in note and "sample [" in note for note in notes)


def test_the_vae_that_is_open_needs_no_note() -> None:
    found = read(f"{S}, VAE hash: 0123456789, VAE: x.safetensors")
    assert found.notes(ONE_FILE) == []
    assert found.notes(facts.MODEL) == ["not honoured from the picture: VAE hash: 0123456789, VAE: x.safetensors"]


def test_inversions_that_are_missing_others_or_new_are_noted() -> None:
    found = read(f'{S}, TI hashes: "easynegative: c74b4e810b03, bad: 0123456789ab"')
    assert found.inversions == {"easynegative": "c74b4e810b03", "bad": "0123456789ab"}
    assert found.notes(None, embeddings(easynegative="c74b4e810b03" + "0" * 52, bad="0123456789ab" + "1" * 52)) == []
    assert read(f'{S}, Hashes: {{"embed:bad": "0123456789"}}').inversions == {"bad": "0123456789"}
    missing, another, new = found.notes(None, embeddings(bad="f" * 64, ring="e" * 64), ["bad", "ring"])
    assert "'easynegative' is not open" in missing
    assert "another textual inversion 'bad' [ffffffffffff] is open than the picture's [0123456789ab]" in another
    assert "'ring' is a textual inversion here" in new
    assert read(S).notes(None, embeddings(ring="e" * 64), ["ring"]) == []  # an old text does not say
    assert found.given({"prompt": "another"}).notes(None, embeddings()) == []


@pytest.mark.parametrize(
    ("settings", "program"),
    [
        (S, "AUTOMATIC1111"),
        (f"{S}, Version: v1.10.1", "AUTOMATIC1111 v1.10.1"),
        (f"{S}, Version: f2.0.1v1.10.1-previous-1", "Forge f2.0.1v1.10.1-previous-1"),
        (f"{S}, App: SD.Next, Version: 0eb4a98", "SD.Next 0eb4a98"),
        (f"{S}, Version: Fooocus v2.5.5", "Fooocus v2.5.5"),
        (f"{S}, Version: clipskip", "clipskip"),
    ],
)
def test_the_program_is_named(settings: str, program: str) -> None:
    assert read(settings).program == program


def test_random_numbers_are_a_gpus_in_a1111_and_filled_in_for_other_programs() -> None:
    assert (read(S).request.rng, read(S).filled) == ("nv", {})
    other = read(f"{S}, Version: ComfyUI")
    assert (other.request.rng, other.notes()) == ("cpu", ["the picture's settings have no rng: cpu is used"])
    assert read(f"{S}, RNG: NV, Version: ComfyUI").notes() == []


def test_a_weight_at_the_end_counts_as_in_the_program_that_made_the_picture() -> None:
    assert read(f"{S}, Version: v1.10.1", "photo, 16:9").request.compat == "a1111"
    assert read(f"{S}, Version: clipskip", "photo, 16:9").request.compat is None
    assert read(f"{S}, Version: v1.10.1", "a cat AND a dog:2").request.compat is None


@pytest.mark.parametrize(("written", "skip"), [("2", 2), ("0", 1), ("-2", 2), ("-1", 1), ("2.0", 2)])
def test_clip_skips_in_the_numbering_of_others_are_understood(written: str, skip: int) -> None:
    assert read(f"{S}, Clip skip: {written}").request.clip_skip == skip


@pytest.mark.parametrize(
    ("written", "sampler", "schedule"),
    [
        ("k_euler", "k_euler", "automatic"),
        ("k_dpmpp_2m", "k_dpmpp_2m", "uniform"),
        ("dpmpp_2m_karras", "dpmpp 2m", "karras"),
        ("dpmpp_2m, Schedule type: karras", "dpmpp_2m", "karras"),
        ("dpmpp_2m, Scheduler: Karras", "dpmpp_2m", "karras"),
    ],
)
def test_samplers_and_schedules_of_others_are_taken_apart(written: str, sampler: str, schedule: str) -> None:
    found = read(f"Steps: 4, Sampler: {written}, Seed: 5, CFG scale: 5").request
    assert (found.sampler, found.schedule) == (sampler, schedule)


HEAD = "a cat\nNegative prompt: dog, bird\n"
LAYOUTS = {
    "another order": HEAD + "Seed: 5, Size: 64x64, Sampler: Euler a, Steps: 9, CFG scale: 3.5",
    "capitals": "a cat\nNegative Prompt: dog, bird\nsteps: 9, sampler: Euler a, CFG Scale: 3.5, SEED: 5, size: 64x64",
    "underscores": HEAD + "Steps: 9, Sampler: Euler a, cfg_scale: 3.5, seed: 5, Size: 64x64",
    "flattened": "a cat Negative prompt: dog, bird Steps: 9, Sampler: Euler a, CFG scale: 3.5, Seed: 5, Size: 64x64",
    "flattened, another order": "a cat Negative prompt: dog, bird Sampler: Euler a, Steps: 9, CFG scale: 3.5, Seed: 5, "
    "Size: 64x64",
    "half flattened": HEAD.rstrip() + " Steps: 9, Sampler: Euler a, CFG scale: 3.5, Seed: 5, Size: 64x64",
    "bars": f"Prompt: {HEAD}Steps: 9 | Sampler: Euler a | CFG scale: 3.5 | Seed: 5 | Size: 64x64",
    "no spaces": "a cat\nNegative prompt:dog, bird\nSteps:9,Sampler:Euler a,CFG scale:3.5,Seed:5,Size:64x64",
    "twice": HEAD + "Steps: 9, Sampler: Euler a, CFG scale: 3.5, Seed: 5, Size: 64x64, Seed: 6, steps: 7",
    "nested JSON": HEAD + "Steps: 9, Sampler: Euler a, "
    'Civitai resources: [{"type":"checkpoint","x":"a, Seed: 1, Steps: 3, CFG scale: 4"}], '
    'Hires prompt: "b, Seed: 2", CFG scale: 3.5, Seed: 5, Size: 64x64, Civitai metadata: {}',
    "a value with commas": HEAD + "Steps: 9, Sampler: Euler a, ADM Guidance: (1.5, 0.8, 0.3), "
    "CFG scale: 3.5, Seed: 5, Size: 64x64",
    "a mark and NULs": "\ufeff" + HEAD + "Steps: 9, Sampler: Euler a, CFG scale: 3.5, Seed: 5, Size: 64x64\0\0",
    "floats": HEAD + "Steps: 9.0, Sampler: Euler a, CFG scale: 3.50, Seed: 5.0, Size: 64x64",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_texts_in_the_layouts_of_other_programs_and_people_are_read(layout: str) -> None:
    info = infotext.read(LAYOUTS[layout])
    assert info is not None
    assert ledger.of_text(info).request == Request(
        prompt="a cat",
        negative_prompt="dog, bird",
        clip_skip=1,
        steps=9,
        sampler="Euler a",
        cfg=3.5,
        seed=5,
        width=64,
        height=64,
        rng="nv",
    )


def test_words_like_negative_prompt_inside_a_prompt_stay_there_d36() -> None:
    assert read(S, "the words negative prompt: here").request.prompt == "the words negative prompt: here"
    assert read(f"{S}, Hires negative prompt: bad").request.negative_prompt == ""


COMMENTS = {
    "latin": ("a night city, rain", "blurry"),
    "emoji": ("🌃 city", "blurry"),
    "": ("夜の街, 雨", "低画質, blurry"),
}


@pytest.mark.parametrize("path", [*PICTURES.glob("*.jpg"), *PICTURES.glob("*.webp")], ids=lambda path: path.name)
def test_a_comment_in_either_byte_order_is_read(path: Path) -> None:
    found = read_ledger(path).request
    prompts = next(prompts for part, prompts in COMMENTS.items() if part in path.stem)
    assert (found.prompt, found.negative_prompt, found.clip_skip) == (*prompts, 2)


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("comfyui", "ComfyUI"),
        ("drawthings", "Draw Things"),
        ("fooocus", "Fooocus"),
        ("invokeai", "InvokeAI"),
        ("novelai", "NovelAI"),
        ("swarmui", "SwarmUI"),
    ],
)
def test_a_picture_with_texts_of_another_kind_is_refused_by_its_programs_name(name: str, program: str) -> None:
    with PIL.Image.open(PICTURES / f"{name}.png") as image, pytest.raises(CheckpointError) as caught:
        read_ledger(image)
    assert f"this picture is {program}'s" in caught.value.message


def test_sd_nexts_old_text_with_bars_is_read() -> None:
    found = read_ledger(PICTURES / "sdnext-old.png")
    assert (found.request.prompt, found.request.seed, found.request.clip_skip) == ("a watermelon", 1879635471, 2)
    assert found.ignored == {"Parser": "Full parser"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_the_text_file_beside_a_picture_is_read_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = (PICTURES / "picture.txt").read_text().replace("a green", "ein grüner")
    (tmp_path / "x.txt").write_text(text, encoding=encoding, newline="\r\n")
    found = read_ledger(tmp_path / "x.txt").request
    assert (found.prompt, found.negative_prompt, found.seed, found.clip_skip) == ("ein grüner ring", "red", 5, 2)


@pytest.mark.parametrize(
    "changes",
    [{"inversions": {"a": 5}}, {"inversions": []}, {"model": {"name": 3}}, {"model": "sample"}],
)
def test_a_broken_account_in_our_own_text_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="is broken"):
        ledger.of_truth(json.dumps({"schema": 1, "request": {"prompt": ""}, **changes}))


def test_values_of_a_wrong_type_are_refused() -> None:
    with pytest.raises(RequestError, match="seed must be a whole number"):
        read(S.replace("Seed: 5", "Seed: five"))


def test_a_lora_that_only_the_hashes_name_is_repeated_at_weight_1_and_the_note_says_so() -> None:
    ledger = read(f'{S}, Lora hashes: "one: 0123456789ab"', "a ring")
    assert ledger.loras == {"one": "0123456789ab"}
    assert "the picture's settings have no weights of LoRAs: 1 is used" in ledger.notes()
    assert "loras" not in read(f'{S}, Lora hashes: "one: 0123456789ab"', "a ring <lora:one:0.4>").filled


def test_loras_of_another_content_and_those_without_a_weight_now_are_noted() -> None:
    ledger = read(f'{S}, Lora hashes: "one: 0123456789ab, two: ba9876543210"', "a <lora:one:1> <lora:two:1>")
    same = SimpleNamespace(sha256="0123456789ab" + "c" * 52, metadata={"sshs_model_hash": "d" * 64})
    other = SimpleNamespace(sha256="e" * 64, metadata={"sshs_model_hash": "f" * 64})

    def noted(ledger: Ledger, /, **loras: Any) -> list[str]:
        return [note for note in ledger.notes(loras=loras) if "LoRA" in note]

    assert noted(ledger, one=same, Two=other) == [
        "another LoRA 'two' [ffffffffffff] is open than the picture's [ba9876543210]"
    ]
    assert noted(ledger, one=same) == ["the picture was made with the LoRA 'two', which has no weight now"]
    assert noted(ledger.over({"prompt": "a"})) == []
