"""A request's types, its JSON, and what is refused before any model is looked at."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pace import pace
from strategies import (
    DEPTH_FIELDS,
    FLAG_FIELDS,
    FRACTION_FIELDS,
    LIST_FIELDS,
    NAME_FIELDS,
    PICTURE_FIELDS,
    TEXT_FIELDS,
    WHOLE_FIELDS,
    requests,
)

from clipskip.errors import RequestError
from clipskip.fields import parse, ranges
from clipskip.request import ALIASES, FIELDS, Request, check_types

HUGE = pytest.param(10**5000, id="huge")
NO_NUMBERS = [True, "7", "7.5", b"7", float("nan"), float("inf"), [], {}, np.bool_(True), HUGE]


def test_every_field_is_in_one_of_the_lists_of_these_tests() -> None:
    lists = [WHOLE_FIELDS, FRACTION_FIELDS, DEPTH_FIELDS, TEXT_FIELDS, FLAG_FIELDS, LIST_FIELDS]
    lists += [PICTURE_FIELDS, NAME_FIELDS]
    assert sorted(chain(*lists)) == sorted(field.name for field in fields(Request))


@given(requests())
def test_json_brings_every_request_back(request: Request) -> None:
    text = request.to_json()
    assert text.isascii()
    assert Request.from_json(text) == Request.from_json(text.encode()) == Request.from_json(json.loads(text)) == request


def test_json_takes_a_photo_and_says_where_it_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Request(prompt="", image="data:image/png;base64," + "A" * (5 << 20))
    assert Request.from_json(photo.to_json()) == check_types(photo)
    monkeypatch.setattr("clipskip.request.LARGEST", 1 << 20)
    with pytest.raises(RequestError, match="bytes with its pictures; JSON takes 1048576") as caught:
        photo.to_json()
    assert caught.value.field == "image"
    with pytest.raises(RequestError, match="larger than 1048576 bytes"):
        Request.from_json(json.dumps(asdict(photo)))


@pytest.mark.parametrize("inside", ["A", r"\n", "[", r"\"[", r"\\"])
def test_json_with_a_long_string_takes_little_memory(inside: str) -> None:
    text = json.dumps({"prompt": "", "image": "data:"})[:-2] + inside * (1 << 20) + '"}'
    tracemalloc.start()
    try:
        assert Request.from_json(text).image == "data:" + json.loads(f'"{inside}"') * (1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 12 * len(text)
    finally:
        tracemalloc.stop()


def test_json_with_much_outside_of_strings_is_refused() -> None:
    with pytest.raises(RequestError, match="more than 1048576 characters outside of strings"):
        Request.from_json('{"prompt": "", "sigmas": [' + "1," * (1 << 19) + "1]}")


def test_only_the_prompt_must_be_given() -> None:
    assert Request.from_json('{"prompt": ""}') == Request(prompt="")
    with pytest.raises(RequestError, match="'prompt' is missing"):
        Request.from_json("{}")


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "prompt"])
def test_null_means_the_default(name: str) -> None:
    given_null = Request(**{"prompt": "a cat", name: None})  # type: ignore[arg-type]
    assert check_types(given_null) == Request.from_json({"prompt": "a cat", name: None}) == Request(prompt="a cat")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("guidence", "cfg"),
        ("clip_skp", "clip_skip"),
        ("Steps", "steps"),
        ("negativ", "negative_prompt"),
        ("heigth", "height"),
    ],
)
def test_an_unknown_field_is_refused_with_the_closest_name_d42(name: str, meant: str) -> None:
    with pytest.raises(RequestError, match=f"unknown field '{name}'") as caught:
        Request.from_json({"prompt": "", name: 1})
    assert caught.value.hint == f"did you mean {meant!r}?"


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_json_takes_every_name_of_a_field_but_one_of_them_at_a_time(alias: str, name: str) -> None:
    value = {**dict.fromkeys(FLAG_FIELDS, True), **dict.fromkeys(PICTURE_FIELDS, "data:")}.get(name, 3)
    value = "x" if isinstance(FIELDS[name].default, str) or name in NAME_FIELDS else value
    assert Request.from_json({"prompt": "", alias: value}) == Request.from_json({"prompt": "", name: value})
    with pytest.raises(RequestError, match=f"{name} is given twice"):
        Request.from_json({"prompt": "", alias: None, name: None})


def test_an_unknown_field_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(RequestError) as caught:
        Request.from_json({"prompt": "", "zzzz": 1})
    assert all(name in str(caught.value.hint) for name in FIELDS)


def test_every_alias_is_the_name_of_a_field_and_none_hides_one() -> None:
    assert set(ALIASES.values()) <= set(FIELDS)
    assert not set(ALIASES) & set(FIELDS)


@pytest.mark.parametrize("name", WHOLE_FIELDS + FRACTION_FIELDS)
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_refused_the_same_from_python_and_json(name: str, value: Any) -> None:
    messages = set()
    for attempt in (check_types, lambda request: Request.from_json(asdict(request))):
        with pytest.raises(RequestError) as caught:
            attempt(replace(Request(prompt="a cat"), **{name: value}))
        assert caught.value.field == name
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert messages.pop().startswith(f"{name} must be a ")


@pytest.mark.parametrize("name", WHOLE_FIELDS)
def test_whole_numbers_are_not_taken_from_fractions(name: str) -> None:
    for value in (2.5, 2.0, np.float64(2)):
        with pytest.raises(RequestError, match=f"{name} must be a whole number"):
            check_types(replace(Request(prompt=""), **{name: value}))


@pytest.mark.parametrize("name", TEXT_FIELDS)
@pytest.mark.parametrize("value", [123, b"x", [], ["a", None], 1.5, True])
def test_what_is_no_text_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} must be a string, not ") as caught:
        check_types(replace(Request(prompt=""), **{name: value}))
    assert caught.value.field == name


@pytest.mark.parametrize("name", FLAG_FIELDS)
@pytest.mark.parametrize("value", [0, 1, "true", "", [], 1.0, np.int64(1)])
def test_what_is_no_flag_is_refused_the_same_from_python_and_json(name: str, value: Any) -> None:
    messages = set()
    for attempt in (check_types, lambda request: Request.from_json(asdict(request))):
        with pytest.raises(RequestError, match=f"{name} must be true or false, not ") as caught:
            attempt(replace(Request(prompt=""), **{name: value}))
        assert caught.value.field == name
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize("value", ["9,3", 3.0, {}, [], [9, "3"], [True], [float("nan")], [[9]], np.ones((2, 2))])
def test_what_is_no_list_of_noise_levels_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match="sigmas must be a list of numbers, not ") as caught:
        check_types(replace(Request(prompt=""), sigmas=value))
    assert caught.value.field == "sigmas"


@pytest.mark.parametrize("value", [[9, 3.5], (9, 3.5), np.array([9, 3.5], np.float32), "9,3.5", " 9 , 3.5"])
def test_a_list_of_numbers_comes_from_python_numpy_or_with_commas(value: Any) -> None:
    if isinstance(value, str):
        assert Request.from_text({"prompt": "", "sigmas": value}).sigmas == (9.0, 3.5)
    else:
        assert check_types(replace(Request(prompt=""), sigmas=value)).sigmas == (9.0, 3.5)


def test_numpys_flags_become_pythons() -> None:
    assert check_types(Request(prompt="", pad_cond_uncond=np.True_)).pad_cond_uncond is True  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("false", False), ("FALSE", False)])
def test_a_flag_is_typed_as_true_or_false(text: str, value: bool) -> None:
    assert Request.from_text({"prompt": "", "pad_cond_uncond": text}).pad_cond_uncond is value


@pytest.mark.parametrize("text", ["1", "0", "yes", "on", "", " true"])
def test_a_flag_that_is_typed_in_another_way_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=f"pad_cond_uncond must be true or false, not '{text}'"):
        Request.from_text({"prompt": "", "pad_cond_uncond": text})


def test_every_field_but_the_prompt_has_an_option_of_the_command_line_and_says_what_it_is() -> None:
    options = [field.option for field in FIELDS.values()]
    assert len(set(options)) == len(FIELDS)
    assert [name for name, field in FIELDS.items() if not field.option] == ["prompt"]
    assert {"--negative", "--clip-skip", "--pad-cond-uncond"} < set(options)
    assert all(field.help for field in FIELDS.values() if field.option)


def test_a_prompt_of_none_is_refused() -> None:
    with pytest.raises(RequestError, match="prompt must be a string, not None"):
        check_types(Request(prompt=None))  # type: ignore[arg-type]


def test_numpys_numbers_become_pythons() -> None:
    given_numpys = {
        "steps": np.int64(5),
        "cfg": np.float32(7.5),
        "clip_skip": np.int32(2),
        "seed": np.uint64(2**64 - 1),
    }
    asked = replace(Request(prompt=""), **given_numpys)  # type: ignore[arg-type]
    checked = check_types(asked)
    assert [type(getattr(checked, name)) for name in given_numpys] == [int, float, int, int]
    assert (checked.seed, checked.cfg) == (2**64 - 1, 7.5)
    assert Request.from_json(asked.to_json()) == checked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "null",
        '"a cat"',
        '{"prompt": "a", "prompt": "b"}',
        '{"prompt": "a", "cfg": NaN}',
        '{"prompt": "a", "cfg": -Infinity}',
        '{"prompt": "a", "cfg": 1e999}',
        '{"prompt": "a", "steps": 1' + "0" * 5000 + "}",
        '{"prompt": "a"} {}',
        '{"prompt": "a\ud800"}',
        '{"prompt": ' + "[" * 100_000,
        '{"prompt": "' + '\\"' * 400_000,
        b"\xff\xfe{",
        b"\xef\xbb\xbf{}",
        b'{"prompt": ' + b" " * 2**20 + b'"a"}',
        17,
        None,
    ],
)
def test_what_is_no_strict_json_object_is_refused_at_once(text: Any) -> None:
    def refused() -> None:
        with pytest.raises(RequestError) as caught:
            Request.from_json(text)
        assert len(str(caught.value)) < 300

    assert pace(refused) < 100


@given(st.dictionaries(st.sampled_from([*FIELDS]) | st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_no_object_gives_anything_but_a_request_or_a_refusal(values: dict[str, Any]) -> None:
    try:
        found = Request.from_json(values)
    except RequestError:
        return
    assert found == Request.from_json(found.to_json())


@pytest.mark.parametrize(
    ("text", "number"),
    [("2", 2), ("-1", -1), ("007", 7), ("1.9", 1.9), ("0.50", 0.5), ("18446744073709551615", 2**64 - 1)],
)
def test_plain_decimals_are_numbers(text: str, number: float) -> None:
    parsed = parse(text)
    assert parsed == number
    assert type(parsed) is type(number)


@pytest.mark.parametrize(
    "text",
    ["", " 2", "2 ", "+2", "２", "٢", "1_0", "1e3", ".5", "5.", "nan", "inf", "0x10", "1,5", "--1", "9" * 401, "2\n"],
)
def test_anything_else_stays_text(text: str) -> None:
    assert parse(text) == text


def test_a_list_of_numbers_may_have_ranges_and_repeats() -> None:
    assert ranges("skips", "5-8, 1,2,6,999") == [1, 2, 5, 6, 7, 8, 999]


@pytest.mark.parametrize("text", ["", "1,", "2-1", "1-1000", "1000", "-1", "a", "1.5", "1-", "٢"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        ranges("skips", text)
    assert caught.value.field == "skips"


def test_typed_fields_become_numbers_only_where_the_field_takes_numbers() -> None:
    asked = Request.from_text({"prompt": "7", "negative_prompt": "2.5", "seed": "7", "cfg": "8", "clip_skip": "1.9"})
    assert asked == Request(prompt="7", negative_prompt="2.5", seed=7, cfg=8.0, clip_skip=1.9)


def test_typed_fields_change_a_base_and_keep_the_rest() -> None:
    base = Request(prompt="a cat", seed=7, steps=5)
    assert Request.from_text({"steps": "6"}, base) == replace(base, steps=6)


@pytest.mark.parametrize(("base", "negative"), [((2, None), None), ((2, 2), None), ((2, 1), 1)])
def test_a_new_depth_replaces_the_bases_and_takes_along_a_negative_that_followed_it(
    base: tuple[int, int | None], negative: int | None
) -> None:
    old = Request(prompt="a cat", clip_skip=base[0], negative_clip_skip=base[1])
    new = replace(old, clip_skip=3, negative_clip_skip=negative)
    assert Request.from_text({"clip_skip": "3"}, old) == new
    assert Request.from_text({"clip_skip_diffusers": "2"}, old) == replace(new, clip_skip=None, clip_skip_diffusers=2)
