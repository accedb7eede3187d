"""Every default filled in, every wrong value refused in the same words."""

import dataclasses
from pathlib import Path

import pytest
import resolving
from facts import MODEL, step_artefact
from strategies import PICTURE_FIELDS

from clipskip import infotext, ledger, noise
from clipskip.errors import RequestError
from clipskip.request import FIELDS, OWN, Request
from clipskip.resolve import Limits, refusals
from clipskip.samplers import SAMPLERS


def resolved(**fields):
    return resolving.resolved(Request(**{"prompt": "a cat", "seed": 1, **fields}))


def test_a_bare_prompt_gets_every_default():
    found = resolving.resolved("a cat")
    assert (found.width, found.height, found.depths) == (128, 128, {12})
    assert (found.sampler.name, found.schedule) == ("DPM++ 2M", "karras")
    assert 0 <= found.seeds[0][0] < 2**32
    filled = dataclasses.asdict(found.request)
    left = {name for name, value in filled.items() if value is None}
    pictures = {*PICTURE_FIELDS, "strength", "hires_scale", "hires_size"}
    assert left == {"clip_skip_diffusers", "subseed", "compat", "sigmas", "loras", *OWN, *pictures}


def test_resolving_a_resolved_request_changes_nothing():
    once = resolved(clip_skip=3.7, sampler="euler a karras", seed=-1, rng="NV", emphasis="no norm").request
    assert resolving.resolved(once).request == once


def test_the_recommended_clip_skip_is_the_default():
    model = dataclasses.replace(MODEL, recommended_clip_skip=2)
    found = resolving.resolved("", model=model)
    assert (found.request.clip_skip, found.depths) == (2, {11})


@pytest.mark.parametrize(
    ("given", "sampler", "schedule"),
    [
        ({"sampler": "dpm2m"}, "DPM++ 2M", "karras"),
        ({"sampler": "dpm++ 2m karras"}, "DPM++ 2M", "karras"),
        ({"sampler": "DPM++ 2M SDE Exponential"}, "DPM++ 2M SDE", "exponential"),
        ({"sampler": "dpmpp_2m_sde"}, "DPM++ 2M SDE", "exponential"),
        ({"sampler": "EULER A"}, "Euler a", "uniform"),
        ({"sampler": "euler_ancestral"}, "Euler a", "uniform"),
        ({"sampler": "Euler a SGM Uniform"}, "Euler a", "sgm_uniform"),
        ({"sampler": "ddim"}, "DDIM", "uniform"),
        ({"sampler": "heun", "schedule": "Karras"}, "Heun", "karras"),
        ({"schedule": "SGM uniform"}, "DPM++ 2M", "sgm_uniform"),
        ({"sampler": "Euler Karras", "schedule": "karras"}, "Euler", "karras"),
    ],
)
def test_sampler_names_are_matched_without_case_spaces_or_punctuation(given, sampler, schedule):
    found = resolved(**given)
    assert (found.sampler.name, found.schedule) == (sampler, schedule)


REFUSED = [
    ("steps must be 1..10000, not 1234567", {"steps": 1234567}),
    ("steps must be 1..10000, not 1000000000000000000000000000000", {"steps": 10**30}),
    ("cfg must be 0..100, not 1234567", {"cfg": 1234567}),
    ("cfg must be 0..100, not 1e+300", {"cfg": 1e300}),
    ("steps must be a whole number, not True", {"steps": True}),
    ("cfg must be a finite number, not nan", {"cfg": float("nan")}),
    ("cfg must be a finite number, not inf", {"cfg": float("inf")}),
    ("height must be a multiple of 8 pixels, not -64; nearest: 8", {"height": -64}),
    ("128x1000000000 is above the limit of 4194304 pixels", {"width": 128, "height": 1000000000}),
    ("4096x4096 is above the limit of 4194304 pixels", {"width": 4096, "height": 4096}),
    ("compat must be one of a1111; not 'comfy'", {"compat": "comfy"}),
    (
        "the prompt asks for <hypernet:style:0.8>, and hypernetworks are not supported",
        {"prompt": "a <hypernet:style:0.8> cat"},
    ),
    ("prompt has NUL at character 1", {"prompt": "a\x00"}),
    ("negative_prompt has a lone surrogate (U+D800) at character 0", {"negative_prompt": "\ud800"}),
    ("prompt is longer than 64 KiB", {"prompt": "x" * 65537}),
    ("pad_cond_uncond must be true or false, not 1", {"pad_cond_uncond": 1}),
    ("prompt must be a string, not 5", {"prompt": 5}),
    (
        f"sampler must be one of {', '.join(sampler.name for sampler in SAMPLERS)}; not 'DPM adaptive'",
        {"sampler": "DPM adaptive"},
    ),
    ("eta must be 0..1, not 1.5", {"eta": 1.5}),
    ("s_tmax must be 0..1000, not -1", {"s_tmax": -1}),
    ("rho must be 0.1..100, not 0", {"rho": 0}),
    ("sigma_min must be 0.0001..10000, not 0", {"sigma_min": 0}),
    ("sigma_min 20 must be below sigma_max 14.6146", {"sigma_min": 20}),
    ("sigma_min 0.0291672 must be below sigma_max 0.01", {"sigma_max": 0.01}),
    ("sigmas must be 1 to 10000 falling numbers, 0.0001 to 10000, not (3.0, 3.0)", {"sigmas": [3, 3]}),
    ("sigmas must be 1 to 10000 falling numbers, 0.0001 to 10000, not (3.0, -1.0)", {"sigmas": [3, -1]}),
    ("sigmas must be 1 to 10000 falling numbers, 0.0001 to 10000, not (0.0,)", {"sigmas": [0]}),
    ("steps must be 2..1000 for PLMS, not 1", {"sampler": "PLMS", "steps": 1}),
    (
        "steps must be 1..1000 for UniPC, not 1001",
        {"steps": 1001, "sampler": "UniPC"},
    ),
    (
        "sampler 'Euler Karras' names the schedule karras, and schedule says exponential",
        {"sampler": "Euler Karras", "schedule": "exponential"},
    ),
]


@pytest.mark.parametrize(("message", "given"), REFUSED, ids=[message[:40] for message, _ in REFUSED])
def test_a_wrong_value_is_refused_by_name_with_what_would_be_right(message, given):
    """The other rows are in test_front_ends.py."""
    with pytest.raises(RequestError) as caught:
        resolved(**given)
    assert caught.value.message == message
    assert caught.value.field in given


def test_without_a_model_every_field_is_refused_that_will_be_and_nothing_else():
    request = Request(prompt="<lora:a:x>", negative_prompt="\0", clip_skip=99, sampler="DPM", schedule="a", seed=-5)
    assert [*refusals(request)] == ["negative_prompt", "prompt", "seed", "sampler", "schedule", "clip_skip"]
    assert [*refusals(Request(prompt="", sampler="Euler turbo"))] == ["schedule"]
    assert refusals(Request(prompt="a AND b :99", clip_skip=13, width=8, height=2048)) == {}


LIMIT_VALUES = [
    {"steps": 1},
    {"steps": 10_000},
    {"steps": 1000, "sampler": "DDIM"},
    {"eta_noise_seed_delta": 1 - 2**64},
    {"cfg": 0},
    {"cfg": 100},
    {"batch": 1},
    {"batch": 100},
    {"comma_backtrack": 0},
    {"comma_backtrack": 74},
    {"subseed_strength": 1, "subseed": 2**64 - 1},
    {"seed": 0},
    {"width": 2048, "height": 2048},
    {"width": 65536, "height": 64},
    {"width": 136, "height": 760},
]


@pytest.mark.parametrize("fields", LIMIT_VALUES, ids=str)
def test_the_ends_of_a_range_are_in_it(fields):
    found = resolved(**fields).request
    assert {name: getattr(found, name) for name in fields} == fields


def test_ddim_makes_no_more_steps_than_the_model_was_trained_on():
    model = dataclasses.replace(MODEL, train_steps=400)
    assert resolving.resolved("", steps=400, sampler="DDIM", model=model).request.steps == 400
    assert resolving.resolved("", steps=401, model=model).request.steps == 401
    with pytest.raises(RequestError, match=r"steps must be 2\.\.400 for DDIM, not 401"):
        resolving.resolved("", steps=401, sampler="DDIM", model=model)


UNUSED = [
    ({"sampler": "LMS", "eta": 0.5}, "eta is not used by LMS with schedule uniform"),
    ({"sampler": "Euler a", "s_noise": 0.9}, "s_noise is not used by Euler a with schedule uniform"),
    ({"sampler": "Restart", "s_churn": 3}, "s_churn is not used by Restart with schedule karras"),
    ({"sampler": "Euler", "rho": 3}, "rho is not used by Euler with schedule uniform"),
    ({"sampler": "Euler simple", "sigma_max": 3}, "sigma_max is not used by Euler with schedule simple"),
    ({"sampler": "DDIM", "sigmas": [3]}, "DDIM has timesteps of its own: sigmas is not used"),
    ({"sampler": "UniPC", "sigma_min": 3}, "sigma_min is not used by UniPC with schedule uniform"),
    ({"sampler": "Euler karras", "sigmas": [3]}, "sigmas has the noise levels of 1 steps: schedule karras is not used"),
    ({"sampler": "Euler", "sigmas": [3, 2], "steps": 5}, "sigmas has the noise levels of 2 steps: steps 5 is not used"),
]


@pytest.mark.parametrize(("given", "note"), UNUSED, ids=[note for _, note in UNUSED])
def test_what_a_sampler_or_schedule_does_not_take_is_left_out_with_a_note(given, note):
    found = resolved(**given, clip_skip=1)
    assert found.notes == (note,)
    kept = [name for name in (*OWN, "sigmas") if getattr(found.request, name) is not None]
    assert kept == (["sigmas"] if note.startswith("sigmas has") else [])


@pytest.mark.parametrize(
    ("sampler", "taken"),
    [
        ("Euler", {"s_churn", "s_tmin", "s_tmax", "s_noise"}),
        ("DPM2", {"s_churn", "s_tmin", "s_tmax", "s_noise"}),
        ("Euler a", {"eta"}),
        ("DDIM", {"eta"}),
        ("DPM fast", {"eta", "s_noise"}),
        ("DPM++ 3M SDE", {"eta", "s_noise"}),
        ("PLMS", set()),
        ("LCM", set()),
    ],
)
def test_every_sampler_takes_what_a1111_gives_it(sampler, taken):
    given = {"eta": 0.5, "s_churn": 1, "s_tmin": 1, "s_tmax": 9, "s_noise": 1.1}
    request = resolved(sampler=sampler, **given).request
    assert {name for name in given if getattr(request, name) is not None} == taken


def test_levels_that_are_listed_are_the_steps():
    request = resolved(sampler="Euler", sigmas=[14.5, 3, 0.5, 0]).request
    assert (request.sigmas, request.steps, request.schedule) == ((14.5, 3.0, 0.5), 3, "uniform")


def test_ddim_has_no_schedule_and_the_result_says_so():
    assert resolved(sampler="DDIM", clip_skip=1).notes == ()
    found = resolved(sampler="DDIM", schedule="karras", clip_skip=1)
    assert found.notes == ("DDIM has timesteps of its own: schedule karras is not used",)
    assert found.request.schedule == "uniform"


def test_a_subseed_is_kept_and_drawn_only_where_it_is_used():
    assert resolved(subseed=5).request.subseed == 5
    assert resolved().request.subseed is None
    assert 0 <= resolved(subseed_strength=0.5).request.subseed < 2**32


def weights(**fields):
    return [text.weight for text in resolved(**fields).texts]


def test_the_guidance_is_the_formula_at_every_cfg_and_what_weighs_nothing_is_not_run_d10():
    assert weights(cfg=0.25, negative_prompt="x") == [0.25, 0.75]
    assert weights(cfg=0, negative_prompt="x") == weights(cfg=1) == [1]
    assert weights(cfg=100) == [100, -99]
    assert weights(cfg=0.5, prompt="a AND b :0 AND c :2") == [0.5, 1, -0.5]
    assert weights(cfg=0, prompt="a AND b") == weights(cfg=3, prompt="a AND b :-1")[2:] == [1]


UNUSED = "the {} is not used at cfg {}: it weighs 0 in the guidance"
PARTS = [  # (fields, which prompt is not used)
    ({"cfg": 2}, ""),
    ({"cfg": 0.5}, ""),
    ({"cfg": 1}, "negative prompt"),
    ({"cfg": 0}, "prompt"),
    ({"cfg": 0, "prompt": ""}, ""),
    ({"cfg": 0, "prompt": "a AND b"}, "prompt"),
    ({"cfg": 1, "negative_prompt": ""}, ""),
    ({"cfg": 1, "prompt": "a AND b"}, ""),
    ({"cfg": 1, "prompt": "a AND b :-1"}, ""),
    ({"cfg": 0.5, "prompt": "a AND b"}, "negative prompt"),
    ({"cfg": 1, "prompt": "a :0.5"}, "negative prompt"),
    ({"cfg": 1, "prompt": "a :0.5", "compat": "a1111"}, ""),
    ({"cfg": 2, "prompt": "a :0.5", "compat": "a1111"}, "negative prompt"),
]


@pytest.mark.parametrize(("fields", "name"), PARTS, ids=str)
def test_a_prompt_that_is_given_and_not_used_is_noted_and_no_other_d10(fields, name):
    found = resolved(**{"negative_prompt": "x", "clip_skip": 1, **fields}).notes
    assert found == ((UNUSED.format(name, fields["cfg"]),) if name else ())


def test_an_unknown_sampler_is_refused_with_the_closest_one_d39():
    with pytest.raises(RequestError) as caught:
        resolved(sampler="Euler b")
    assert caught.value.hint == "did you mean 'Euler a'?" or caught.value.hint == "did you mean 'Euler'?"
    assert "DPM++ 2M SDE" in caught.value.message


DATA = Path(__file__).parent / "data"


def lines(name):
    return [tuple(line.split("\t")) for line in (DATA / name).read_text().splitlines()]


@pytest.mark.parametrize(("name", "sampler", "schedule"), lines("sampler_names.tsv"))
def test_samplers_have_the_names_of_other_programs(name, sampler, schedule):
    found = resolved(sampler=name)
    assert (found.sampler.name, found.schedule) == (sampler, schedule)


@pytest.mark.parametrize(("settings", "sampler", "schedule"), lines("sampler_infotexts.tsv"))
def test_the_names_in_pictures_of_other_programs_are_read(settings, sampler, schedule):
    text = f"a cup\nSteps: 5, {settings}, CFG scale: 5, Seed: 28,Size: 128x128, model: stable_diffusion"
    found = resolving.resolved(ledger.of_text(infotext.read(text)).request)
    assert (found.sampler.name, found.schedule) == (sampler, schedule)


@pytest.mark.parametrize(("field", "name", "hint"), lines("missing_names.tsv"))
def test_what_other_programs_have_and_is_missing_here_is_refused_with_the_closest_one_d39(field, name, hint):
    with pytest.raises(RequestError, match=f"{field} must be one of .*; not ") as caught:
        resolved(**{field: name})
    assert (caught.value.field, caught.value.hint) == (field, hint)


@pytest.mark.parametrize("seed", [None, -1])
def test_no_seed_is_one_that_is_drawn_and_said_d37(seed):
    first, second = (resolved(seed=seed) for _ in range(2))
    assert first.seeds != second.seeds
    assert first.seeds == ((first.request.seed, None),)
    assert 0 <= first.request.seed < 2**32


def test_a_batch_counts_seeds_up_and_wraps_around_d40():
    assert [seed for seed, _ in resolved(seed=2**64 - 1, batch=3).seeds] == [2**64 - 1, 0, 1]


BUILT = step_artefact(h=(32, 64), w=(32, 96), B=(1, 4), N=(1, 8), T=(77, 231))
LIMITS = Limits.of(BUILT, 4 * 256 * 256, max_batch=3, build_command="clipskip build S")


def built(prompt="", **fields):
    return resolving.resolved(prompt, limits=LIMITS, **{"width": 256, "height": 256, "seed": 1, **fields})


@pytest.mark.parametrize(("field", "size"), [("height", 192), ("height", 576), ("width", 832), ("width", 192)])
def test_a_size_that_was_not_built_is_refused_with_the_range_and_the_command(field, size):
    with pytest.raises(RequestError, match=f"{field} {size} is outside 256") as caught:
        built(**{field: size})
    assert (caught.value.field, caught.value.hint) == (field, "clipskip build S --sizes ...")


@pytest.mark.parametrize(("width", "height"), [(256, 256), (768, 512)])
def test_the_smallest_and_the_largest_size_built_are_taken(width, height):
    assert (built(width=width, height=height).width, built(width=width, height=height).height) == (width, height)


@pytest.mark.parametrize(
    ("size", "near"), [(9, "256"), (300, "296 or 304"), (512.5, ""), (767, "760 or 768"), (999, "768")]
)
def test_the_nearest_sizes_are_those_of_the_engines(size, near):
    with pytest.raises(RequestError, match=f"nearest: {near}$" if near else "whole number"):
        built(width=size)


def test_a_store_of_old_takes_multiples_of_its_own_step():
    old = dataclasses.replace(MODEL, size_step=64)
    assert resolving.resolved("", model=old, width=192).width == 192
    with pytest.raises(RequestError, match="width must be a multiple of 64 pixels, not 136; nearest: 128 or 192"):
        resolving.resolved("", model=old, width=136)


def test_an_engine_without_ranges_takes_any_size():
    limits = Limits.of(step_artefact(), 2**30, max_batch=4, build_command="")
    assert resolving.resolved("", height=2048, limits=limits).height == 2048
    assert limits.batch == 4


def test_too_many_parts_or_chunks_are_refused():
    assert len(built(" AND ".join("abcdefg")).texts) == 8
    assert built("a BREAK b BREAK c").chunks == 3
    with pytest.raises(RequestError, match="9 parts with its negative; the engines take 8") as caught:
        built(" AND ".join("abcdefgh"))
    assert caught.value.hint == "clipskip build S --max-batch 5"
    with pytest.raises(RequestError, match="4 chunks of 75 tokens; the engines take 3") as caught:
        built("a", negative_prompt="a BREAK b BREAK c BREAK d")
    assert caught.value.hint == "clipskip build S --max-chunks 4"
    with pytest.raises(RequestError, match="65 chunks of 75 tokens; the engines take 64") as caught:
        resolved(prompt="a BREAK " * 65)
    assert caught.value.hint == "shorten it"


def words(chunks):
    """A prompt of so many chunks."""
    return " BREAK ".join("a" * chunks)


def lengths(found):
    return [text.length for text in found.texts]


@pytest.mark.parametrize(("prompt", "negative", "chunks"), [(1, 1, 1), (1, 2, 2), (3, 1, 3), (2, 3, 6), (4, 6, 12)])
def test_texts_keep_their_lengths_and_meet_at_the_least_common_multiple(prompt, negative, chunks):
    found = resolved(prompt=words(prompt), negative_prompt=words(negative), clip_skip=1)
    assert (lengths(found), found.chunks, found.notes) == ([prompt, negative], chunks, ())


def test_parts_of_three_lengths_meet_as_well():
    found = resolved(prompt=f"{words(2)} AND {words(3)} AND {words(6)}", clip_skip=1)
    assert (lengths(found), found.chunks, found.notes) == ([2, 3, 6, 1], 6, ())


def test_lengths_that_meet_only_beyond_twice_the_longest_are_padded_and_the_result_says_so():
    found = resolved(prompt=words(3), negative_prompt=words(4), clip_skip=1)
    assert (lengths(found), found.chunks) == ([4, 4], 4)
    assert found.notes == (
        "texts of 3 and 4 chunks have no common multiple up to 8: the shorter ones are filled up with empty chunks, "
        "as pad_cond_uncond does",
    )
    assert found.texts[0].variants[0][3] == resolved(prompt="").texts[0].variants[0][0]


def test_lengths_that_meet_only_beyond_what_the_engines_take_are_padded_and_the_result_says_so():
    found = built(words(2), negative_prompt=words(3), clip_skip=1)
    assert (lengths(found), found.chunks) == ([3, 3], 3)
    assert found.notes[0].startswith("texts of 2 and 3 chunks have no common multiple up to 3: ")


@pytest.mark.parametrize(("prompt", "negative"), [(1, 2), (3, 2), (3, 4)])
def test_a_request_may_ask_for_the_padding_and_gets_no_note(prompt, negative):
    found = resolved(prompt=words(prompt), negative_prompt=words(negative), pad_cond_uncond=True, clip_skip=1)
    longest = max(prompt, negative)
    assert (lengths(found), found.chunks, found.notes) == ([longest, longest], longest, ())


def test_the_variants_of_one_text_are_as_long_as_its_longest():
    found = resolved(prompt=f"a[, {words(3)}:2]", negative_prompt=words(2), clip_skip=1)
    assert [len(variant) for variant in found.texts[0].variants] == [3, 3]
    assert (lengths(found), found.chunks) == ([3, 2], 6)


def test_an_edited_prompt_is_parsed_whole():
    found = resolved(prompt="[a circle:a star:5] AND b :0.5", negative_prompt="[x|y]", cfg=4, steps=10, sampler="Heun")
    assert [text.weight for text in found.texts] == [4, 2, -5]
    assert [text.ends for text in found.texts] == [(5, 20), (20,), tuple(range(1, 21))]
    assert found.texts[2].which == (0, 1) * 10
    assert len(found.texts[2].variants) == 2


def test_each_text_has_the_layers_of_its_own_clip_skip():
    found = resolved(prompt="a AND b", negative_prompt="c", clip_skip=2, negative_clip_skip=5)
    assert [text.layers for text in found.texts] == [(11,), (11,), (8,)]


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_weight_beyond_10_is_refused_before_anything_is_encoded(field):
    with pytest.raises(RequestError, match="a prompt weight of 11 is beyond 10") as caught:
        resolved(**{field: "a (b:11)"})
    assert caught.value.field == "prompt"


def test_a_negative_prompt_that_is_not_used_is_not_parsed():
    assert len(resolved(cfg=1, negative_prompt="(b:11)").texts) == 1


def test_a_prompt_that_was_parsed_before_is_taken_as_it_was():
    prompt = "a (red:1.2) circle on [a green:a blue:0.5] background, " * 12
    first, again = (resolved(prompt=prompt, seed=seed, cfg=seed).texts[0].variants for seed in (1, 2))
    assert all(one is other for one, other in zip(first, again, strict=True))


def test_a_prompt_whose_chunks_would_fill_the_memory_is_not_remembered():
    prompt = "[a|b]" * 1100
    assert resolved(prompt=prompt).texts[0].variants is not resolved(prompt=prompt).texts[0].variants


def test_the_table_names_what_there_is_to_choose_from():
    assert FIELDS["rng"].choices == tuple(noise.SOURCES)


def test_a_sampler_that_can_make_one_step_may_be_asked_for_one():
    assert resolved(sampler="UniPC", steps=1).request.steps == 1
