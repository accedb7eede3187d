"""The cache bounded by bytes."""

import threading

import pytest

from clipskip.lru import Closed, Lru


def test_what_was_not_used_longest_goes_first():
    dropped = []
    cache = Lru(30, dispose=dropped.append)
    for name in "abc":
        cache.put(name, name, 10)
    cache.get("a")
    cache.put("d", "d", 10)
    assert dropped == ["b"]
    assert cache.keys() == ["c", "a", "d"]


def test_the_newest_value_stays_even_when_it_is_larger_than_the_budget():
    cache = Lru(5)
    cache.put("a", 1, 100)
    assert cache.get("a") == 1


def test_a_leased_value_is_not_disposed_of_until_it_is_given_back():
    dropped = []
    cache = Lru(10, dispose=dropped.append)
    with cache.lease("a", lambda: ("a", 10)):
        cache.put("b", "b", 10)
        cache.put("c", "c", 10)
        assert dropped == ["b"]
        cache.close()
        assert dropped == ["b", "c"]
    assert dropped == ["b", "c", "a"]


def test_a_closed_cache_makes_nothing_new():
    cache = Lru(10)
    cache.close()
    with pytest.raises(Closed), cache.lease("a", lambda: ("a", 1)):
        pass


def test_a_value_is_made_once_for_all_threads():
    made, cache, start = [], Lru(10), threading.Barrier(8)

    def use():
        start.wait()
        with cache.lease("a", lambda: (made.append(1), 1)):
            pass

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_failed_making_leaves_nothing_behind():
    cache = Lru(10)

    def fail():
        raise OSError("no")

    with pytest.raises(OSError, match="no"), cache.lease("a", fail):
        pass
    assert cache.keys() == []
