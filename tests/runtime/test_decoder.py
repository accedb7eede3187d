"""The field `decoder`: what it is called elsewhere, and how it comes back from a picture's text."""

from __future__ import annotations

import pytest
from facts import MODEL
from resolving import resolved

from clipskip import infotext, ledger, metadata
from clipskip.errors import RequestError
from clipskip.render import parse_render
from clipskip.request import Request

LINE = "a cat\nSteps: 5, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, VAE Decoder: {}, Version: v1.10.1"


def read(decoder: str) -> ledger.Ledger:
    info = infotext.read(LINE.format(decoder))
    assert info is not None
    return ledger.of_text(info)


@pytest.mark.parametrize(("theirs", "ours"), [("TAESD", "tiny"), ("taesd", "tiny"), ("Full", "vae")])
def test_automatic1111s_words_for_it_are_honoured(theirs: str, ours: str) -> None:
    found = read(theirs)
    assert found.request.decoder == ours
    assert found.honoured["VAE Decoder"] == theirs
    assert "VAE Decoder" not in found.ignored


def test_another_decoder_is_named_as_not_honoured_and_refuses_nothing() -> None:
    found = read("Approx NN")
    assert found.request.decoder == "vae"
    assert found.ignored == {"VAE Decoder": "Approx NN"}


def test_it_is_written_in_automatic1111s_words_and_only_where_it_is_not_the_models_own() -> None:
    for decoder, written in (("vae", False), ("tiny", True)):
        text = metadata.parameters(metadata.Origin(resolved("a cat", seed=1, decoder=decoder).request, MODEL, {}))
        assert ("VAE Decoder: TAESD" in text) == written
        assert "Full" not in text
        info = infotext.read(text)
        assert info is not None
        assert ledger.of_text(info).request.decoder == decoder


def test_every_front_end_takes_it_and_another_name_is_refused_with_the_closest() -> None:
    request = Request(prompt="a cat", decoder="tiny")
    assert parse_render("/render /decoder:tiny a cat") == Request.from_json(request.to_json()) == request
    with pytest.raises(RequestError, match="decoder must be one of vae, tiny; not 'taesd'") as caught:
        resolved("a cat", decoder="taesd")
    assert (caught.value.field, caught.value.hint) == ("decoder", "'tiny' is the closest one")
