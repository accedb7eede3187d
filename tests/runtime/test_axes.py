"""What the axes of a sheet mean, and the request of every cell."""

import pytest

from clipskip.axes import MAX_CELLS, Axis, parse_axis, places, requests
from clipskip.errors import RequestError
from clipskip.request import Request


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("clip_skip=1-3", (1, 2, 3)),
        ("clip_skip=1-13(+4)", (1, 5, 9, 13)),
        ("cfg=1, 4,7.5", (1, 4, 7.5)),
        ("cfg=4-7(+0.5)", (4, 4.5, 5, 5.5, 6, 6.5, 7)),
        ("cfg=0.1-0.3 (+0.1)", (0.1, 0.2, 0.3)),
        ("eta=0-1[5]", (0, 0.25, 0.5, 0.75, 1)),
        ("steps=30-10(-10)", (30, 20, 10)),
        ("eta_noise_seed_delta=-2-1", (-2, -1, 0, 1)),
        ("seed=18446744073709551614-18446744073709551615", (2**64 - 2, 2**64 - 1)),
        ("seed=-1", (-1,)),
        ("pad_cond_uncond=true, false", (True, False)),
        ('prompt="a cat, sitting",a dog', ("a cat, sitting", "a dog")),
        ("sampler=Euler a,DDIM", ("Euler a", "DDIM")),
        ("clip_skip=2,[11:1:0.4]", (2, "[11:1:0.4]")),
        ('sigmas="14.6,7,2.5","14.6,3"', ((14.6, 7, 2.5), (14.6, 3))),
        ("prompt_sr=red,,blue", ("red", "", "blue")),
        ("lora:my-style=0-1(+0.5)", (0, 0.5, 1)),
        ("store=build/a,build/b", ("build/a", "build/b")),
        ("guidance=4", (4,)),
    ],
)
def test_an_axis_is_a_field_and_its_values(text, values):
    assert parse_axis(text).values == values


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clip_skip", "an axis is written FIELD=VALUES"),
        ("clip_skip=", "an axis is written FIELD=VALUES"),
        ("clip_skip=a", "clip_skip is a clip skip, not 'a'"),
        ("steps=1_0", "ranges are written 1-13"),
        ("steps=3-1", "downwards is written 3-1(-1)"),
        ("steps=1-2(+0.5)", "steps is a whole number, and the range '1-2(+0.5)' has others"),
        ("steps=1-2(+0)", "never gets from 1 to 2"),
        ("eta=0-1[1]", "the range '0-1[1]' has 1 of its ends"),
        ("eta=0.1-0.5", "name a step"),
        ("seed=1-9999", "more than the 1000 cells"),
        ("pad_cond_uncond=yes", "pad_cond_uncond is true or false, not 'yes'"),
        ("clipskpi=1", "clip_skip"),
        ("lora:=1", "unknown field 'lora:'"),
        ("batch=1,2", "vary the seed"),
    ],
)
def test_an_axis_that_means_nothing_is_refused(text, told):
    with pytest.raises(RequestError) as caught:
        parse_axis(text)
    assert told in str(caught.value)


def test_only_the_axes_differ_between_cells():
    cells = requests(Request(prompt="a cat"), Axis("clip_skip", (1, 2, 3)), Axis("cfg", (4, 7)))
    assert [(cell.clip_skip, cell.cfg) for cell in cells] == [(1, 4), (2, 4), (3, 4), (1, 7), (2, 7), (3, 7)]
    assert len({cell.seed for cell in cells}) == 1
    assert cells[0].seed is not None
    assert cells[0].subseed is None


def test_cells_of_three_axes_follow_x_first():
    axes = Axis("clip_skip", (1, 2)), Axis("cfg", (4, 7)), Axis("steps", (5, 6))
    assert places(axes)[:3] == [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
    assert [cell.steps for cell in requests(Request(prompt=""), *axes)] == [5] * 4 + [6] * 4


def test_the_first_value_is_searched_in_both_prompts():
    base = Request(prompt="a red cat", negative_prompt="red light")
    cells = requests(base, parse_axis("prompt_sr=red,blue,"))
    assert [cell.prompt for cell in cells] == ["a red cat", "a blue cat", "a  cat"]
    assert cells[1].negative_prompt == "blue light"


def test_words_that_no_prompt_has_are_refused_by_name():
    with pytest.raises(RequestError, match="searches for 'green', which is in neither prompt"):
        requests(Request(prompt="a red cat"), parse_axis("prompt_sr=green,blue"))


def test_words_are_replaced_in_the_prompts_of_another_axis():
    cells = requests(Request(prompt=""), parse_axis("prompt_sr=red,blue"), parse_axis("prompt=a red cat,a red dog"))
    assert [cell.prompt for cell in cells] == ["a red cat", "a blue cat", "a red dog", "a blue dog"]


def test_the_weight_of_a_lora_takes_the_place_of_the_old_one():
    base = Request(prompt="a cat", loras=("style:0.3", "other:1"))
    cells = requests(base, parse_axis("lora:style=0-1(+0.5)"))
    assert [cell.loras for cell in cells] == [("other:1", f"style:{weight}") for weight in ("0", "0.5", "1")]


def test_a_lora_that_the_prompt_weighs_is_refused():
    with pytest.raises(RequestError, match="<lora:style> already"):
        requests(Request(prompt="a cat <lora:style:0.5>"), parse_axis("lora:style=0,1"))


def test_an_axis_in_one_numbering_takes_the_place_of_the_other():
    (cell,) = requests(Request(prompt="", clip_skip_diffusers=3), Axis("clip_skip", (1,)))
    assert (cell.clip_skip, cell.clip_skip_diffusers) == (1, None)


def test_an_axis_leaves_the_clip_skip_of_the_negative_prompt_as_it_was_given():
    cells = requests(Request(prompt="", clip_skip=2, negative_clip_skip=2), Axis("clip_skip", (1, 5)))
    assert [cell.negative_clip_skip for cell in cells] == [2, 2]


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ([Axis("seed", tuple(range(50))), Axis("cfg", tuple(range(21)))], f"at most {MAX_CELLS} cells, not 1050"),
        ([Axis("seed", (1,)), Axis("seed", (2,))], "two axes vary seed"),
        ([], "one to three axes"),
        ([Axis("cfg", ())], "each of them has values"),
    ],
)
def test_a_sheet_that_cannot_be_drawn_is_refused(axes, told):
    with pytest.raises(RequestError, match=told):
        requests(Request(prompt=""), *axes)


def test_two_axes_may_search_for_different_words():
    axes = parse_axis("prompt_sr=red,blue"), parse_axis("prompt_sr=cat,dog")
    assert requests(Request(prompt="a red cat"), *axes)[3].prompt == "a blue dog"


def test_labels_and_texts_do_not_tell_where_files_lie():
    assert parse_axis("store=/home/me/build/anime/").label("/home/me/build/anime/") == "store anime"
    assert parse_axis("image=/home/me/cat.png").told("/home/me/cat.png") == "cat.png"
    assert Axis("image", ()).told("data:image/png;base64,AAAA") == "given"


def test_an_axis_of_sizes_is_both_sides_and_stands_beside_neither():
    base = Request(prompt="a cat", steps=3)
    assert [(cell.width, cell.height, cell.steps) for cell in requests(base, parse_axis("size=64x128, 128x64"))] == [
        (64, 128, 3), (128, 64, 3),
    ]  # fmt: skip
    for other in "size=64x64", "width=64", "height=64":
        with pytest.raises(RequestError, match="two axes vary"):
            requests(base, parse_axis("size=64x64"), parse_axis(other))
    with pytest.raises(RequestError, match="size must be width x height"):
        requests(base, parse_axis("size=64"))
