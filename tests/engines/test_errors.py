"""Every error of ours ends the command line with a status of its own kind, never with 0 or a bug's 1."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clipskip.errors import ClipskipError


def kinds(base: type[ClipskipError]) -> Iterator[type[ClipskipError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("kind", sorted({*kinds(ClipskipError)}, key=lambda kind: kind.__name__))
def test_no_failure_ends_with_the_status_of_success_b18(kind: type[ClipskipError]) -> None:
    assert kind.exit_status in range(2, 8)
    assert kind.code != ClipskipError.code
