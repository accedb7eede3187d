"""Several stores: opened on demand, closed for room, opened anew when they were built anew, never under a request."""

import asyncio
import os
import shutil

import pytest

import clipskip
from clipskip.errors import Busy, EngineCorrupt, EngineMissing, RequestError
from clipskip.serve.answers import Refusal
from clipskip.serve.models import Models, size_of, stamp_of


class Pipe:
    """What is opened, and whether it is closed."""

    def __init__(self, path):
        self.path, self.closed = path, False

    def close(self):
        self.closed = True


@pytest.fixture
def stores(sample_store, tmp_path):
    """Three stores that have a manifest, and no engines."""
    for name in "abc":
        (tmp_path / name).mkdir()
        shutil.copy(sample_store / "manifest.json", tmp_path / name)
    return [tmp_path / name for name in "abc"]


async def idle():
    """Until what is closed beside is closed."""
    for _ in range(100):
        await asyncio.sleep(0.01)


def size(stores):
    return size_of(clipskip.engines.store.read_manifest(stores[0]))


def test_stores_are_opened_when_they_are_asked_for_once_each_and_the_first_is_the_default(stores):
    async def main():
        models = Models(stores, Pipe)
        assert models.loaded == {}
        async with models.use() as first, models.use("a") as again, models.use("c") as other:
            assert first is again
            assert (first.path.name, other.path.name) == ("a", "c")
        models.close()
        assert first.closed
        assert other.closed

    asyncio.run(main())


def test_the_one_used_least_recently_makes_room_but_none_that_is_in_use(stores):
    async def main():
        models = Models(stores, Pipe, budget=2 * size(stores))
        async with models.use("a") as a, models.use("b") as b:
            with pytest.raises(Busy, match="in use"):
                async with models.use("c"):
                    pass
        async with models.use("a"):
            pass
        async with models.use("c"):
            await idle()
            assert (a.closed, b.closed) == (False, True)
            assert set(models.loaded) == {"a", "c"}

    asyncio.run(main())


def test_a_store_built_anew_is_opened_for_new_requests_and_the_old_one_lives_as_long_as_its_own(stores):
    async def main():
        models = Models(stores, Pipe)
        async with models.use("a") as old:
            os.utime(stores[0] / "manifest.json", ns=(1, 1))
            async with models.use("a") as new:
                assert new is not old
            await idle()
            assert (old.closed, new.closed) == (False, False)
        await idle()
        assert (old.closed, new.closed) == (True, False)

    asyncio.run(main())


def test_a_store_that_was_broken_or_removed_meanwhile_goes_on_as_it_was(stores, caplog):
    opened = []

    def opener(path):
        opened.append(path)
        if len(opened) > 1:
            raise EngineCorrupt("half a store")
        return Pipe(path)

    async def main():
        models = Models(stores[:1], opener)
        async with models.use() as old:
            pass
        os.utime(stores[0] / "manifest.json", ns=(1, 1))
        for _ in range(2):
            async with models.use() as again:
                assert again is old
        assert len(opened) == 2, "it is tried once"
        (stores[0] / "manifest.json").unlink()
        async with models.use() as again:
            assert again is old
        assert not old.closed

    asyncio.run(main())
    assert "half a store" in caplog.text


def test_what_cannot_be_served_is_refused_before_the_port_is_opened(stores, tmp_path):
    with pytest.raises(RequestError, match="two stores are named a"):
        Models([stores[0], tmp_path / "b" / ".." / "a"], Pipe)
    with pytest.raises(RequestError, match="MB of engines"):
        Models(stores, Pipe, budget=1000)
    with pytest.raises(EngineMissing):
        Models([tmp_path / "none"], Pipe)
    with pytest.raises(Refusal, match="unknown model"):
        Models(stores, Pipe).name("d")
    assert stamp_of(tmp_path) is None
