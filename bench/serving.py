"""Many users at once: the open batch beside one request at a time and static batches of equal requests, in one run.

Poisson arrivals of requests of many prompts, clip skips, samplers, steps and sizes. `python -m clipskip.bench.serving
STORE` measures the store on this machine; `--simulate` lets the scheduler run on a double instead (`double.py`), of
which nothing follows for the speed of anything but the scheduler.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
import warnings
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

import clipskip
from clipskip.batch import Image
from clipskip.conditioning import NetworkRow
from clipskip.driver import Driver
from clipskip.engine_cache import EngineCache
from clipskip.engines import report
from clipskip.engines.shapes import TOKENS
from clipskip.noise import initial
from clipskip.pipeline import Pipeline
from clipskip.request import Request
from clipskip.resolve import UNBOUNDED, Limits
from clipskip.samplers import Row, plan, sampler_named
from clipskip.schedules import NoiseModel

from . import machine
from .double import SMALLEST, Double

MOST = 8  # pictures in a call
LOAD = 0.9  # of what can be done at all
SAMPLERS = ("Euler", "DPM++ 2M", "Heun", "UniPC", "DDIM")
CURVES = {"flat": (0.020, 0.0005), "between": (0.008, 0.002), "steep": (0.001, 0.004)}  # seconds: of a call, of a row


@dataclass(frozen=True)
class Job:
    """A request and when it comes, in seconds."""

    at: float
    request: Request

    @property
    def kind(self) -> tuple[object, ...]:
        """What static batches have in common: everything but words, depth and seed."""
        asked = self.request
        return asked.sampler, asked.steps, asked.width, asked.height

    @property
    def table(self) -> Sequence[Row]:
        return plan(sampler_named(self.request.sampler), "karras", self.request.steps, NoiseModel()).rows

    @property
    def latents(self) -> int:
        """How many its picture has on the double: sizes in the proportions of the requested ones."""
        return SMALLEST * (self.request.width or 64) * (self.request.height or 64) // 64**2


def mixed(requests: int, steps: tuple[int, int], seed: int = 1) -> list[Job]:
    """Requests of all kinds, a second apart on average."""
    draw, at, jobs = random.Random(seed), 0.0, []
    for number in range(requests):
        at += draw.expovariate(1)
        words = f"a {draw.choice(('red', 'green', 'blue'))} {draw.choice(('circle', 'ring', 'star'))}"
        skip, sampler, count = draw.randint(1, 13), draw.choice(SAMPLERS), draw.randint(*steps)
        asked = Request(prompt=words, clip_skip=skip, sampler=sampler, steps=count, seed=number, width=64)
        jobs.append(Job(at, replace(asked, height=draw.choice((64, 64, 64, 128)))))
    return jobs


def paced(jobs: Sequence[Job], seconds: float) -> list[Job]:
    """The same jobs, so many seconds apart on average."""
    return [replace(job, at=job.at * seconds) for job in jobs]


def figures(jobs: Sequence[Job], ends: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    """What users met. Fairness: how many times longer than alone it took, at worst for 95 of 100 of a fifth of all, by
    length. `kept_up`: pictures done of those that came, from a fifth of the time until the last one came."""
    took = np.subtract(ends, [job.at for job in jobs])
    begin, end = jobs[len(jobs) // 5].at, jobs[-1].at
    done = sum(begin < each <= end for each in ends)
    came = sum(begin < job.at <= end for job in jobs)
    fifths = np.array_split(np.argsort(alone), 5)
    slowest = max(float(np.quantile((took / alone)[part], 0.95)) for part in fifths)
    p50, p95, p99 = (round(float(each), 3) for each in np.quantile(took, (0.5, 0.95, 0.99)))
    rate = len(jobs) / (max(ends) - jobs[0].at)
    return {"pictures_s": round(rate, 3), "p50_s": p50, "p95_s": p95, "p99_s": p99, "times_alone": round(slowest, 2),
            "kept_up": round(done / max(came, 1), 3)}  # fmt: skip


@dataclass
class Simulated:
    """How the open batch did on a double. `idle`: calls with an empty slot while a picture waited that fits it."""

    ends: list[float]
    occupancy: float
    idle: int


def open_batch(double: Double, jobs: Sequence[Job]) -> Simulated:
    """Our driver, on the double's clock."""
    limits = Limits(UNBOUNDED, UNBOUNDED, MOST, 2**31, 2 * MOST, 9, None)
    driver = Driver(cast(EngineCache, double), limits, loops=2, exact_rows=True, share_lengths=False)
    live, ends, coming, idle = dict[Image, int](), [0.0] * len(jobs), 0, 0
    while coming < len(jobs) or live:
        if not live:
            double.clock = max(double.clock, jobs[coming].at)
        while coming < len(jobs) and jobs[coming].at <= double.clock:
            image = image_of(jobs[coming])
            live[image] = coming
            driver.add([image])
            coming += 1
        before = {image: image.call for image in live}
        driver.advance(list(live), sum(before.values()))
        ran = [image for image in live if image.call > before[image]]
        fits = [image for image in live if not image.call and image.latents.shape == ran[0].latents.shape]
        idle += bool(fits) and len(ran) < MOST
        for image in [image for image in live if image.done]:
            ends[live.pop(image)] = double.clock
            driver.remove([image])
    return Simulated(ends, driver.tally.images / (driver.tally.calls * MOST), idle)


def image_of(job: Job) -> Image:
    """A picture for the double: a prompt and a negative one, and as many calls as the request's sampler makes."""
    context = np.full((TOKENS, 1), job.request.clip_skip, np.float32)
    rows = [NetworkRow(weight, (1000,), (0,), ({"context": context},)) for weight in (7.0, -6.0)]
    start, noise = initial(job.request.seed or 0, (4, 2, job.latents // 2), "cpu", None, 0)
    return Image(job.table, rows, start, noise)


def static(double: Double, jobs: Sequence[Job], most: int) -> list[float]:
    """When each job ends where up to `most` equal ones run together, from the first call to the last; 1: one by one."""
    ends, left = [0.0] * len(jobs), list(range(len(jobs)))
    while left:
        double.clock = max(double.clock, jobs[left[0]].at)
        equal = [i for i in left if jobs[i].at <= double.clock and jobs[i].kind == jobs[left[0]].kind][:most]
        first = jobs[equal[0]]
        double.clock += len(first.table) * double.seconds(2 * len(equal), first.latents)
        for i in equal:
            ends[i] = double.clock
            left.remove(i)
    return ends


def simulate(curve: tuple[float, float], count: int) -> dict[str, dict[str, float]]:
    """All three at LOAD of what the curve allows when every call is full, and how long each request takes alone."""
    jobs, double = mixed(count, (10, 50)), Double(*curve)
    full = [len(job.table) * double.seconds(2 * MOST, job.latents) / MOST for job in jobs]
    alone = [len(job.table) * double.seconds(2, job.latents) for job in jobs]
    jobs = paced(jobs, float(np.mean(full)) / LOAD)
    ours = open_batch(double, jobs)
    rows = {"open batch": figures(jobs, ours.ends, alone) | {"occupancy": round(ours.occupancy, 3), "idle": ours.idle}}
    for name, most in (("static batches", MOST), ("one at a time", 1)):
        rows[name] = figures(jobs, static(Double(*curve), jobs, most), alone)
    burst = [replace(job, at=0.0) for job in jobs]
    rows["open batch"]["of_curve"] = round(sum(full) / max(open_batch(Double(*curve), burst).ends), 3)
    return rows


async def each_as_it_comes(pipe: Pipeline, jobs: Sequence[Job], together: int = 2**31) -> list[float]:
    """Seconds at which each ends; at most `together` are on their way."""
    start, room = time.perf_counter(), asyncio.Semaphore(together)

    async def one(job: Job) -> float:
        await asyncio.sleep(job.at - (time.perf_counter() - start))
        async with room:
            await pipe.generate(job.request)
        return time.perf_counter() - start

    return list(await asyncio.gather(*map(one, jobs)))


async def static_batches(pipe: Pipeline, jobs: Sequence[Job]) -> list[float]:
    """Of those that wait, the first and up to MOST equal ones run together to their end."""
    start, ends, left = time.perf_counter(), [0.0] * len(jobs), list(range(len(jobs)))
    while left:
        await asyncio.sleep(jobs[left[0]].at - (time.perf_counter() - start))
        now = time.perf_counter() - start
        equal = [i for i in left if jobs[i].at <= now and jobs[i].kind == jobs[left[0]].kind][:MOST]
        await asyncio.to_thread(pipe.run, [jobs[i].request for i in equal or left[:1]])
        for i in equal or left[:1]:
            ends[i] = time.perf_counter() - start
            left.remove(i)
    return ends


POLICIES: dict[str, Callable[[Pipeline, Sequence[Job]], Coroutine[None, None, list[float]]]] = {
    "open batch": each_as_it_comes, "static batches": static_batches,
    "one at a time": partial(each_as_it_comes, together=1),
}  # fmt: skip


def measure(store: Path, count: int) -> dict[str, dict[str, float]]:
    """All three on this machine, at LOAD of what one at a time can do."""
    rows = {}
    with warnings.catch_warnings(), clipskip.open(store, max_batch=MOST, max_queue=count) as pipe:
        warnings.simplefilter("ignore")
        jobs, alone = mixed(count, (4, 16)), []
        for job in jobs:
            pipe(job.request)
            began = time.perf_counter()
            pipe(job.request)
            alone.append(time.perf_counter() - began)
        jobs = paced(jobs, float(np.mean(alone)) / LOAD)
        for name, policy in POLICIES.items():
            tally = replace(pipe.driver.tally)
            rows[name] = figures(jobs, asyncio.run(policy(pipe, jobs)), alone)
            calls, images = pipe.driver.tally.calls - tally.calls, pipe.driver.tally.images - tally.images
            rows[name]["occupancy"] = round(images / calls / MOST, 3)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for people, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, nargs="?", help="an engine store; without it, --simulate")
    parser.add_argument("--simulate", action="store_true", help="the scheduler on a double, of three curves")
    parser.add_argument("--requests", type=int, default=60, help="how many come (default: 60; simulated, 20 times)")
    args = parser.parse_args(arguments)
    if args.store is None and not args.simulate:
        parser.error("name a store, or --simulate")
    tables = {}
    for name, (fixed, per_row) in CURVES.items() if args.simulate else ():
        title = f"simulated: {name}, a call takes {1000 * fixed:g} ms + {1000 * per_row:g} ms a row"
        tables[title] = simulate((fixed, per_row), 20 * args.requests)
    if args.store is not None:
        tables[f"measured: {args.store}"] = measure(args.store, args.requests)
    for title, rows in tables.items():
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        print(f"\n{title}")
        lines = [("", *names), *((name, *(f"{row.get(each, '')}" for each in names)) for name, row in rows.items())]
        print(report.table(lines))
    print(json.dumps({"machine": machine.facts(), "load": LOAD, "most": MOST, "tables": tables}))


if __name__ == "__main__":
    main()
