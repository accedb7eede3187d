"""Who comes next: priorities, who may overtake, and that no kind of image waits for ever. Calls are counted."""

import itertools

import pytest
from driving import Engines, driver, limits, sized
from fake_step import image, row

from clipskip.driver import PATIENCE

LOOPS, STEPS = 2, 20


@pytest.mark.parametrize("in_front", [0, 3])
def test_no_kind_waits_longer_than_the_stated_bound_however_many_of_other_kinds_come(in_front):
    """PATIENCE calls of others, then LOOPS times the longest table for itself and for each kind in front of it."""
    shared, seeds = driver(Engines(), limits(max_batch=2), loops=LOOPS), itertools.count(1)

    def crowd():  # two kinds, of which new ones come with every call, and more than can be served
        return [image(seed=next(seeds), steps=STEPS), sized(8, 16, seed=next(seeds), steps=STEPS)]

    shared.add([each for _ in range(20) for each in crowd()])
    shared.advance(shared_images(shared), 0)
    others = [sized(8, 8 * (3 + place), seed=next(seeds), steps=STEPS) for place in range(in_front + 1)]
    shared.add(others)
    bound, calls = PATIENCE + STEPS * LOOPS * (1 + in_front), 0
    while not others[-1].call:
        shared.add(crowd())
        running = shared_images(shared)
        shared.advance(running, sum(each.call for each in running))
        shared.remove([each for each in running if each.done])
        calls += 1
        assert calls - 1 <= bound  # the last one is its own
    assert calls > in_front  # it did wait


def shared_images(shared):
    """Those that wait, and those in a batch."""
    return [*shared._waiting, *(each for batch in shared._batches for each in batch.images)]


def test_who_is_done_no_later_than_the_batch_that_he_joins_may_pass_one_that_waits_for_a_loop():
    shared = driver(Engines(), loops=1)
    running, other, short, long = image(steps=9), sized(8, 16, steps=2), image(seed=2, steps=8), image(seed=3, steps=9)
    shared.add([running])
    shared.advance([running], 0)
    shared.add([other, short, long])
    while not running.done:
        shared.advance([running], running.call)
    assert (short.done, long.call, other.call) == (True, 0, 0)
    shared.advance([other], 0)
    assert (other.call, long.call) == (1, 0)


def test_no_slot_is_empty_while_one_of_its_kind_waits():
    shared = driver(Engines(), limits(max_batch=2), loops=1)
    images = [image(seed=seed, steps=2 + seed % 4) for seed in range(12)]
    shared.add(images)
    while not all(each.done for each in images):
        shared.advance(images, sum(each.call for each in images))
    assert shared.tally.slots - shared.tally.images <= max(len(each.table) for each in images)
    assert shared.tally.joins == 12


def test_a_higher_priority_joins_first_and_equal_ones_as_they_came():
    shared = driver(Engines(), limits(max_batch=1), loops=1)
    first, low, high, same = (image(seed=seed, steps=2) for seed in range(4))
    shared.add([first])
    shared.advance([first], 0)
    shared.add([low], -1)
    shared.add([same])
    shared.add([high], 5)
    order, left = [], {"low": low, "high": high, "same": same}
    while left:
        shared.advance([first, *left.values()], sum(each.call for each in [first, *left.values()]))
        for name in [name for name, each in left.items() if each.done]:
            order.append(name)
            del left[name]
    assert order == ["high", "same", "low"]


def test_a_kind_that_waited_long_comes_before_higher_priorities():
    shared = driver(Engines(), limits(max_batch=1), loops=1)
    poor, rich = sized(8, 16, steps=2), [image(seed=seed, steps=10) for seed in range(20)]
    shared.add([poor], -100)
    shared.add(rich, 100)
    while not poor.done:
        shared.advance([poor, *rich], sum(each.call for each in [poor, *rich]))
    assert PATIENCE <= shared.tally.calls <= PATIENCE + 10 + 2


def test_images_with_more_rows_than_are_free_do_not_keep_slots_empty_for_their_kind():
    shared = driver(Engines(), limits(N=(1, 4)), loops=1)
    wide = tuple(row(1.0, value / 10) for value in range(3))
    images = [image(seed=1, rows=wide, steps=4), image(seed=2, rows=wide, steps=4), image(seed=3, steps=4)]
    shared.add(images)
    shared.advance(images, 0)
    assert [each.call for each in images] == [1, 0, 0]  # in line: the narrow one does not overtake its own kind
