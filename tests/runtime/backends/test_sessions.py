"""What is left of a foreign library's complaint in the error that users read."""

from __future__ import annotations

import pytest

from clipskip.backends.sessions import translated
from clipskip.errors import BackendUnavailable


@pytest.mark.parametrize("said", ["short", "first line\nand a second one", "a" * 800])
def test_what_is_short_is_passed_on_whole(said: str) -> None:
    with pytest.raises(BackendUnavailable) as caught, translated(BackendUnavailable):
        raise RuntimeError(said)
    assert caught.value.message == said


def test_of_pages_both_ends_of_the_first_line_are_left() -> None:
    signature, pages = "std::conditional_t<THRW, void> " * 60, '{"nodes": []}\n' * 500
    with pytest.raises(BackendUnavailable) as caught, translated(BackendUnavailable):
        raise RuntimeError(f"running Conv node_conv2d: {signature}CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED\n{pages}")
    message = caught.value.message
    assert message.startswith("running Conv node_conv2d: ")
    assert message.endswith("HEURISTIC_QUERY_FAILED")
    assert len(message) < 1000
