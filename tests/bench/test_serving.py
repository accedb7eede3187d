"""The scheduler on a double: the curve's throughput, no slot empty while something fits, nobody held up by others."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest

import clipskip
from clipskip.bench import serving
from clipskip.bench.double import Double
from clipskip.bench.serving import CURVES, LOAD, MOST, Job, figures, mixed, open_batch, paced, static
from clipskip.request import Request


def full_seconds(curve, jobs):
    """What each job takes of a call that is always full."""
    return [len(job.table) * Double(*curve).seconds(2 * MOST, job.latents) / MOST for job in jobs]


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_mixed_traffic_gets_what_the_curve_allows_and_no_slot_is_empty_while_something_fits(curve):
    jobs = mixed(500, (3, 15))
    burst = open_batch(Double(*curve), [replace(job, at=0.0) for job in jobs])
    assert sum(full_seconds(curve, jobs)) / max(burst.ends) >= 0.95
    assert burst.idle == 0


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_at_nine_tenths_of_what_the_curve_allows_mixed_requests_are_done_as_fast_as_they_come(curve):
    jobs = mixed(800, (3, 15))
    jobs = paced(jobs, float(np.mean(full_seconds(curve, jobs))) / LOAD)
    loaded = open_batch(Double(*curve), jobs)
    assert figures(jobs, loaded.ends, np.ones(len(jobs)))["kept_up"] >= 0.95
    assert loaded.idle == 0


def test_one_by_one_the_same_traffic_takes_longer_where_a_call_costs_the_same_for_all():
    jobs = [replace(job, at=0.0) for job in mixed(60, (10, 50))]
    curve = CURVES["flat"]
    ours, one = max(open_batch(Double(*curve), jobs).ends), max(static(Double(*curve), jobs, 1))
    assert one > 4 * ours
    assert one == pytest.approx(sum(len(job.table) * Double(*curve).seconds(2, job.latents) for job in jobs))
    assert ours <= max(static(Double(*curve), jobs, MOST)) < one


@pytest.mark.parametrize(("name", "most"), [("flat", 1.5), ("between", 1.5), ("steep", None)])
def test_a_short_request_is_not_held_up_by_a_long_one(name, most):
    curve, asked = CURVES[name], {"prompt": "a ring", "sampler": "Euler", "width": 64, "height": 64}
    jobs = [Job(0.0, Request(steps=50, **asked)), Job(10.5 * Double(*curve).seconds(2, 4), Request(steps=20, **asked))]
    alone, shared = (Double(*curve).seconds(rows, 4) for rows in (2, 4))
    took = open_batch(Double(*curve), jobs).ends[1] - jobs[1].at
    # where time grows with the rows, a call for two is longer than 1.5 of one's: then that ratio, and one call
    assert took / (20 * alone) <= (most or (20 * shared + alone) / (20 * alone))


def test_a_static_batch_has_equal_requests_alone_and_starts_with_the_oldest():
    asked = {"prompt": "a ring", "sampler": "Euler", "width": 64, "height": 64}
    jobs = [Job(0.0, Request(steps=steps, clip_skip=skip, **asked)) for steps, skip in ((2, 1), (3, 1), (2, 9))]
    assert static(Double(1.0, 0.0), jobs, MOST) == [2.0, 5.0, 2.0]


def test_all_three_policies_make_every_picture_of_the_store(sample_store):
    jobs = paced(mixed(4, (1, 3)), 0.01)
    with clipskip.open(sample_store, max_batch=MOST) as pipe:
        for policy in serving.POLICIES.values():
            pictures = pipe.scheduler.done.pictures.total()
            ends = asyncio.run(policy(pipe, jobs))
            assert all(end > job.at for end, job in zip(ends, jobs, strict=True))
            assert pipe.scheduler.done.pictures.total() - pictures in (4, 0)


def test_the_report_ends_with_json_and_says_what_is_simulated(capsys, monkeypatch):
    monkeypatch.setattr(serving, "CURVES", {"flat": CURVES["flat"]})
    serving.main(["--simulate", "--requests", "1"])
    *text, last = capsys.readouterr().out.splitlines()
    assert text[1].startswith("simulated: flat, a call takes 20 ms + 0.5 ms a row")
    (rows,) = json.loads(last)["tables"].values()
    assert rows.keys() == {"open batch", "static batches", "one at a time"}
    assert rows["open batch"]["idle"] == 0
