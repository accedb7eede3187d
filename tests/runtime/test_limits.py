"""What the engines cannot take is refused with what they can, and the command that builds more."""

import pytest
from facts import MODEL, step_artefact

from clipskip.errors import RequestError
from clipskip.limits import Limits
from clipskip.request import Request
from clipskip.resolve import resolve

BUILT = step_artefact(h=(32, 64), w=(32, 96), B=(1, 4), N=(1, 8), T=(77, 231))
LIMITS = Limits.of(BUILT, 4 * 256 * 256, max_batch=3, build_command="clipskip build S")


def wanted(**size):
    return resolve(Request(prompt="", **{"width": 256, "height": 256, **size}), MODEL)


@pytest.mark.parametrize(("field", "size"), [("height", 192), ("height", 576), ("width", 832)])
def test_a_size_that_was_not_built_is_refused_with_the_range_and_the_command(field, size):
    with pytest.raises(RequestError, match=f"{field} {size} is outside 256") as caught:
        LIMITS.check_size(wanted(**{field: size}))
    assert caught.value.hint == "clipskip build S --sizes ..."


def test_an_engine_without_ranges_takes_any_size():
    limits = Limits.of(step_artefact(), 2**30, max_batch=4, build_command="")
    limits.check_size(wanted(height=2048))
    assert limits.batch == 4


def test_too_many_parts_or_chunks_are_refused():
    LIMITS.check_text(8, 3)
    with pytest.raises(RequestError, match="9 parts") as caught:
        LIMITS.check_text(9, 1)
    assert "--max-batch 5" in caught.value.hint
    with pytest.raises(RequestError, match="4 chunks of 75 tokens; the engines take 3") as caught:
        LIMITS.check_text(2, 4)
    assert "--max-chunks 4" in caught.value.hint
