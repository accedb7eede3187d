"""The `/render` line: what is a command, what is prompt, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pace import pace
from strategies import FLAG_FIELDS, PICTURE_FIELDS, requests

from clipskip.errors import RequestError
from clipskip.render import options, parse_render, render_line
from clipskip.request import ALIASES, FIELDS, Request


def test_the_documented_line_is_one_request() -> None:
    line = "/render /clipskip:2 /parser:new /seed:7 /guidance:7.5 /steps:30 /size:512x768 /sampler:dpm2m a prompt"
    assert parse_render(line) == Request(
        prompt="a prompt", clip_skip=2, seed=7, cfg=7.5, steps=30, width=512, height=768, sampler="dpm2m"
    )


@pytest.mark.parametrize(
    "line",
    [
        "/render /seed:7 /clipskip:2 a cat",
        "/render /clipskip:2 /seed:7 a cat",
        "/RENDER /ClipSkip:2\n/SEED:7\n a cat \n",
        "/clip-skip:2 /seed:7 a cat",
        '/render /clip_skip:2 /seed:7 /prompt:"a cat"',
        "/render /clipskip:2 /seed:7 /parser:new a cat",
        "/render /clipskip:2 /seed:7 /parser:NEW a cat",
    ],
)
def test_order_case_dashes_and_line_breaks_do_not_matter(line: str) -> None:
    assert parse_render(line) == Request(prompt="a cat", clip_skip=2, seed=7)


@pytest.mark.parametrize(
    "prompt",
    [
        "a and/or b",
        "a /seed:8 cat",
        "cat /render",
        "a: b/c",
        "(a:1.2) [b:c:0.5] AND d :0.3",
        "1/2",
        "https://x.y/z",
        "",
    ],
)
def test_a_slash_inside_the_prompt_is_text(prompt: str) -> None:
    assert parse_render(f"/render /seed:7 {prompt}") == Request(prompt=prompt, seed=7)


@pytest.mark.parametrize("line", [3, None, b"/render a"])
def test_what_is_no_text_is_refused(line: Any) -> None:
    with pytest.raises(RequestError, match="line must be a string, not"):
        parse_render(line)


def test_without_commands_everything_is_prompt() -> None:
    assert parse_render("/render a cat") == parse_render("  a cat ") == Request(prompt="a cat")
    assert parse_render("/render") == parse_render("") == Request(prompt="")


def test_a_value_with_spaces_is_quoted_as_in_json() -> None:
    line = r'/render /negative:"blurry, \"low\" quality: 1/2\\3" /sampler:"DPM++ 2M" /schedule:"sgm uniform" a cat'
    expected = Request(
        prompt="a cat", negative_prompt='blurry, "low" quality: 1/2\\3', sampler="DPM++ 2M", schedule="sgm uniform"
    )
    assert parse_render(line) == expected


@pytest.mark.parametrize("value", ['"open', '"a"b', '"a\\q"', '"', '"\\"', '"a\\'])
def test_a_quoted_value_that_does_not_end_is_refused(value: str) -> None:
    with pytest.raises(RequestError, match="no proper closing quote") as caught:
        parse_render(f"/render /negative:{value} a cat")
    assert caught.value.field == "negative"


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "prompt"])
def test_every_field_of_a_request_is_a_command(name: str) -> None:
    value = "true" if name in FLAG_FIELDS else "data:3" if name in PICTURE_FIELDS else "3"
    parsed = parse_render(f"/render /{name}:{value} a cat")
    assert str(getattr(parsed, name)) in ("3", "3.0", "True", "(3.0,)", "data:3", "('3',)")


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("/negclipskip:1 x", "negative_clip_skip", 1),
        ("/guidance:7.5 x", "cfg", 7.5),
        ("/negative:dog x", "negative_prompt", "dog"),
        ("/scheduler:karras x", "schedule", "karras"),
        ("/variationseed:3 x", "subseed", 3),
        ("/variationstrength:0.5 x", "subseed_strength", 0.5),
        ("/seed:-1 x", "seed", -1),
        ("/seed:18446744073709551615 x", "seed", 2**64 - 1),
        ("/clipskip:1.9 x", "clip_skip", 1.9),
        ("/size:512X768 x", "height", 768),
    ],
)
def test_commands_set_the_field_they_name(line: str, field: str, value: object) -> None:
    assert getattr(parse_render(line), field) == value


@pytest.mark.parametrize(
    ("word", "closest"),
    [
        ("clipskp:2", "clipskip"),
        ("guidence:7", "guidance"),
        ("sede:7", "seed"),
        ("Samplr:euler", "sampler"),
        ("wdith:64", "width"),
    ],
)
def test_an_unknown_command_is_refused_with_the_closest_name(word: str, closest: str) -> None:
    with pytest.raises(RequestError, match="unknown command") as caught:
        parse_render(f"/render /{word} a cat")
    assert f"did you mean '/{closest}:'?" in str(caught.value)


def test_an_unknown_command_that_is_like_no_other_is_answered_with_all_that_there_are() -> None:
    with pytest.raises(RequestError, match="unknown command") as caught:
        parse_render("/xyzzy:1 a cat")
    told = str(caught.value.hint).partition("known: ")[2].split(", ")
    assert {f"/{name.replace('_', '')}:" for name in (*FIELDS, *ALIASES)} < set(told)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("w:4", "width"), ("h:4", "height"), ("ar:3:2", "size"), ("no:x", "negative"), ("smapler:x", "sampler")],
)
def test_a_name_of_another_program_is_answered_with_ours(word: str, meant: str) -> None:
    with pytest.raises(RequestError, match="unknown command") as caught:
        parse_render(f"/{word} a cat")
    assert caught.value.hint == f"did you mean '/{meant}:'?"


@pytest.mark.parametrize("word", ["styles:x", "style:x", "hires:2"])
def test_what_clipskip_has_not_is_no_near_miss_of_something_else(word: str) -> None:
    with pytest.raises(RequestError, match="unknown command") as caught:
        parse_render(f"/{word} a cat")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["negative", "negative_prompt", "neg", "NegativePrompt"])
def test_the_negative_prompt_has_all_its_names(name: str) -> None:
    assert parse_render(f"/{name}:dog a cat") == Request(prompt="a cat", negative_prompt="dog")


@pytest.mark.parametrize(
    "line",
    [
        "/negative:blurry, dark a cat",
        "/negative:(bad hands:1.2) a cat",
        "/negative: blurry",
        "/seed:1 /sampler: Euler a",
    ],
)
def test_a_value_that_goes_on_after_a_space_is_not_split_in_silence(line: str) -> None:
    with pytest.raises(RequestError, match="ends at the first space") as caught:
        parse_render(line)
    assert "quote" in str(caught.value.hint)


def test_a_line_of_options_is_read_as_a1111_reads_it() -> None:
    line = (
        '--prompt "a photo" of a cat --negative_prompt "blurry, dark" --seed 7 --subseed 3 --subseed_strength 0.5 '
        '--sampler_name "Euler a" --batch_size 2 --steps 20 --cfg_scale 7.5 --width 512 --height 768 '
        '--restore_faces false --tiling false --do_not_save_samples false --do_not_save_grid true --styles ""'
    )
    assert Request.from_text(options(line)) == Request(
        prompt="a photo of a cat",
        negative_prompt="blurry, dark",
        seed=7,
        subseed=3,
        subseed_strength=0.5,
        sampler="Euler a",
        batch=2,
        steps=20,
        cfg=7.5,
        width=512,
        height=768,
    )


@pytest.mark.parametrize(
    ("options_of_batches", "batch"),
    [
        ("--batch_size 2 --n_iter 3", 6),
        ("--n_iter=3 --batch_size=2", 6),
        ("--batch_count 4", 4),
        ("--n_iter 101", 101),
        ("--batch 5", 5),
    ],
)
def test_a_line_of_options_makes_batches_of_a_size_a_number_of_times(options_of_batches: str, batch: int) -> None:
    assert Request.from_text(options(f"--prompt=a cat --seed=5 {options_of_batches}")) == Request(
        prompt="a cat", seed=5, batch=batch
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--prompt a --n_iter 0 --batch_size -1", "batch must be at least 1, not 0"),
        ("--prompt a --n_iter 2 --batch_count 2", "n_iter is given twice"),
        ("--prompt a --batch_size 2 --batch 2", "batch is given twice"),
        ("--prompt a --tiling true", "clipskip has no such setting"),
        ("--prompt a --styles photo", "clipskip has no such setting"),
        ("--prompt a --sd_model x", "unknown option"),
        ("--prompt a --steps", "takes one value, not 0"),
        ("--prompt a --steps 1 2", "takes one value, not 2"),
        ("--prompt", "takes one value"),
        ("--prompt a --cfg 1 --cfg_scale 2", "cfg is given twice"),
        ('--prompt "a --steps 2', "quotes do not end"),
        ("--size 64x64", "'prompt' is missing"),
    ],
)
def test_a_line_of_options_that_cannot_be_honoured_is_refused(line: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request.from_text(options(line))


@pytest.mark.parametrize("word", ["/clipskip", "/clip skip:2", "/:2", "/", "//", "/imagine", "/клип:2"])
def test_a_word_with_a_slash_before_the_prompt_is_never_taken_for_prompt(word: str) -> None:
    with pytest.raises(RequestError, match="unknown command") as caught:
        parse_render(f"/render {word} a cat")
    assert "/name:value" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("/seed:1 /seed:1 x", "seed"),
        ("/cfg:7 /guidance:7 x", "cfg"),
        ("/size:64x64 /width:64 x", "width"),
        ("/prompt:x y", "prompt"),
    ],
)
def test_a_field_given_twice_is_refused(line: str, field: str) -> None:
    with pytest.raises(RequestError, match=f"{field} is given twice"):
        parse_render(f"/render {line}")


@pytest.mark.parametrize(
    ("command", "field"),
    [
        ("/clipskip:２", "clip_skip"),
        ("/clipskip:1_0", "clip_skip"),
        ("/steps:2.5", "steps"),
        ("/steps:", "steps"),
        ("/steps:twenty", "steps"),
        ("/seed:1e3", "seed"),
        ("/guidance:nan", "cfg"),
        ("/guidance:1,5", "cfg"),
        ("/padconduncond:1", "pad_cond_uncond"),
        ("/size:512", "size"),
        ("/size:512x", "size"),
        ("/size:5１2x512", "size"),
        ("/size:-64x64", "size"),
        ("/parser:old", "parser"),
    ],
)
def test_values_of_the_wrong_type_are_refused_naming_the_field(command: str, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_render(f"/render {command} a cat")
    assert caught.value.field == field


@given(requests())
def test_a_line_brings_every_request_back(request: Request) -> None:
    assert parse_render(render_line(request)) == request


def test_a_line_is_as_short_as_a_person_would_write_it() -> None:
    request = Request(prompt="a (cat:1.2)", clip_skip=2, cfg=7.5, sampler="Euler a", width=64, height=64)
    assert render_line(request) == '/render /clipskip:2 /cfg:7.5 /sampler:"Euler a" /width:64 /height:64 a (cat:1.2)'
    assert render_line(Request(prompt="")) == "/render"


@example("/")
@given(st.text() | st.from_regex(r"/render( /[a-z]{1,12}:\S{0,9}){0,4} .{0,20}", fullmatch=True))
def test_no_line_gives_anything_but_a_request_or_a_refusal(line: str) -> None:
    with suppress(RequestError):
        assert isinstance(parse_render(line), Request)


HOSTILE = ["/", "/negative:" + '"\\' * 10**6, "/a:", "/negative:x ", "/seed:" + "9" * 10**6, "/" + "a" * 10**6]


@pytest.mark.parametrize("line", [line * max(1, 10**6 // len(line)) for line in HOSTILE], ids=range(len(HOSTILE)))
def test_hostile_lines_are_read_in_linear_time_and_answered_briefly(line: str) -> None:
    def refused() -> None:
        with pytest.raises(RequestError) as caught:
            parse_render(line)
        assert len(str(caught.value)) < 1500  # all commands are named

    assert pace(refused) < 50
