"""X/Y sheets: what the axes mean and what is drawn."""

import PIL.ImageFont
import pytest

from clipskip.errors import RequestError
from clipskip.request import Request
from clipskip.sheet import Axis, parse_axis, requests, wrap


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("clip_skip=1-3", (1, 2, 3)),
        ("clip_skip=1-13(+4)", (1, 5, 9, 13)),
        ("cfg=1, 4,7.5", (1, 4, 7.5)),
        ("seed=-1", (-1,)),
        ("pad_cond_uncond=true, false", (True, False)),
        ('prompt="a cat, sitting",a dog', ("a cat, sitting", "a dog")),
        ("sampler=Euler a,DDIM", ("Euler a", "DDIM")),
    ],
)
def test_an_axis_is_a_field_and_its_values(text, values):
    assert parse_axis(text).values == values


@pytest.mark.parametrize("text", ["clip_skip", "clip_skip=", "clip_skip=a", "steps=3-1", "steps=1-9999", "steps=1_0"])
def test_an_axis_that_means_nothing_is_refused(text):
    with pytest.raises(RequestError):
        parse_axis(text)


def test_an_unknown_field_is_refused_with_the_closest_one():
    with pytest.raises(RequestError) as caught:
        parse_axis("clipskpi=1")
    assert "clip_skip" in caught.value.hint


def test_only_the_axes_differ_between_cells():
    cells = requests(Request(prompt="a cat"), Axis("clip_skip", (1, 2, 3)), Axis("cfg", (4, 7)))
    assert [(cell.clip_skip, cell.cfg) for cell in cells] == [(1, 4), (2, 4), (3, 4), (1, 7), (2, 7), (3, 7)]
    assert len({cell.seed for cell in cells}) == 1
    assert cells[0].seed is not None


def test_a_sheet_has_a_limit():
    with pytest.raises(RequestError, match="400"):
        requests(Request(prompt=""), Axis("seed", tuple(range(50))), Axis("cfg", tuple(range(9))))


def test_labels_are_wrapped_at_words():
    font = PIL.ImageFont.load_default(size=12)
    lines = wrap("a large red circle on a green background", 100, font).split("\n")
    assert len(lines) > 1
    assert all(font.getlength(line) <= 100 for line in lines)
