"""Where a prompt that begins as a `/render` line is read as one, and what is said where it is not."""

import pytest
import resolving

import clipskip
from clipskip import render
from clipskip.cli.lists import read_list
from clipskip.errors import RequestError
from clipskip.request import Request


def test_what_the_line_says_comes_before_the_requests_fields():
    base = Request(prompt=" /RENDER /clipskip:2 /size:64x128 a cat", clip_skip_diffusers=4, width=512, steps=9)
    assert render.read(base) == Request(prompt="a cat", clip_skip=2, width=64, height=128, steps=9)
    words = Request(prompt="a cat /render /clipskip:2")
    assert render.read(words) is words


def test_in_a_list_a_line_of_json_may_have_one_in_it(tmp_path):
    (tmp_path / "list").write_text('{"prompt": "/render /steps:2 a cat", "steps": 5, "seed": 7}\n')
    requests, refused = read_list(tmp_path / "list", {"cfg": "3"})
    assert (requests, refused) == ({1: Request(prompt="a cat", steps=2, seed=7, cfg=3.0)}, {})


@pytest.mark.parametrize("prompt", ["/render /clipskip:2 a cat", "\n/Render a cat"])
def test_python_takes_it_as_words_and_says_what_reads_it(prompt):
    (note,) = [each for each in resolving.resolved(prompt).notes if "/render" in each]
    assert "taken as words" in note
    assert "clipskip.parse_render" in note
    assert clipskip.parse_render(prompt).prompt == "a cat"
    assert not any("/render" in each for each in resolving.resolved("a cat /render").notes)


def test_a_line_that_is_none_is_refused():
    with pytest.raises(RequestError, match="clipskpi"):
        render.read(Request(prompt="/render /clipskpi:2 a cat"))
