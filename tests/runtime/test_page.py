"""The page of a sheet: well formed, closed to the network, its pictures whole, and no text in it means HTML."""

import base64
import json
from html.parser import HTMLParser

import pytest

import clipskip
from clipskip import page
from clipskip.request import Request
from clipskip.sheet import Sheet

STRANGE = "</script><script>alert(1)</script> \"'&lt;"
VOID = {"meta", "img", "br"}


class Parsed(HTMLParser):
    """Elements in order; every one that is opened must be closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def sheet(pipe):
    base = Request(prompt=STRANGE, steps=1, width=64, height=64, seed=3)
    return pipe.grid(base, "clip_skip=1,2", "cfg=1,7", "prompt_sr=script,<b>")


@pytest.fixture(scope="module")
def parsed(sheet):
    return Parsed(page.of_sheet(sheet))


def test_every_cell_is_a_button_with_its_settings_and_its_whole_picture(parsed, sheet):
    buttons = [each for each in parsed.all("button") if "data-told" in each]
    images = [each for each in parsed.all("img") if each["alt"]]
    assert [each["data-place"] for each in buttons][:3] == ["1,1,1", "2,1,1", "1,2,1"]
    for button, image, result in zip(buttons, images, sheet.results, strict=True):
        told = json.loads(button["data-told"])
        assert (told["prompt"], told["cfg"]) == (result.request.prompt, str(int(result.request.cfg)))
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert clipskip.read_ledger(data).request == result.request


def test_no_text_of_a_request_becomes_html(parsed):
    assert len(parsed.all("script")) == 1
    assert not parsed.all("b")
    assert STRANGE in parsed.text


def test_the_page_asks_for_nothing_from_elsewhere(parsed):
    (policy,) = [each["content"] for each in parsed.all("meta") if "http-equiv" in each]
    assert policy.startswith("default-src 'none'")
    sources = [each.get("src") or each.get("href") or "" for _, each in parsed.elements]
    assert all(source.startswith("data:") for source in sources if source)


def test_a_cell_that_was_not_made_has_no_button(sheet):
    part = Sheet(sheet.base, sheet.axes, (None, *sheet.results[1:]))
    parsed = Parsed(page.of_sheet(part))
    assert "not made" in parsed.text
    assert len([each for each in parsed.all("button") if "data-told" in each]) == 7
