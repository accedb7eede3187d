"""CLIP's own tokenizer, opened once; one command in this process; a pipeline that notes what its step is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recording import Recording
from vocabulary import read_merges, write_tokenizer

import clipskip
from clipskip.__main__ import main
from clipskip.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the vocab.json and merges.txt of CLIP's real vocabulary."""
    return write_tokenizer(tmp_path_factory.mktemp("clip"), read_merges())


@pytest.fixture(scope="session")
def clip_tokenizer(clip_vocabulary: Path) -> Tokenizer:
    return Tokenizer.open(clip_vocabulary)


@pytest.fixture(scope="module")
def seen() -> Recording:
    return Recording()


@pytest.fixture(scope="module")
def pipe(sample_store: Path, seen: Recording) -> Iterator[clipskip.Pipeline]:
    with clipskip.open(sample_store, backend=seen) as pipe:
        yield pipe


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one command in this process; gives its status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(each) for each in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have pictures of so many steps interrupted before their first call; others are made."""
    made = clipskip.Pipeline.steps

    def at(count: int) -> None:
        def steps(pipe: clipskip.Pipeline, *requests: clipskip.Request) -> object:
            if any(request.steps == count for request in requests):
                raise KeyboardInterrupt
            return made(pipe, *requests)

        monkeypatch.setattr(clipskip.Pipeline, "steps", steps)

    return at
