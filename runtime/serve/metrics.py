"""Figures of a running server in Prometheus' form, read when they are asked for. Knows what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from clipskip.errors import ClipskipError
from clipskip.pipeline import Pipeline

from .service import Service


class _Figures(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Of the open models; what a closed one counted is gone with it."""
        pipes = {name: loaded.pipe for name, loaded in list(self._service.models.loaded.items())}
        yield from _queues(pipes)
        yield from _calls(pipes)
        yield from _ended(pipes)
        yield device_memory(pipes.values())
        refused = CounterMetricFamily(
            "clipskip_refused", "requests refused, by code and field", labels=["code", "field"]
        )
        for (code, field), count in list(self._service.refused.items()):
            refused.add_metric([code, field], count)
        yield refused


def _queues(pipes: dict[str, Pipeline]) -> Iterator[Metric]:
    queued = GaugeMetricFamily("clipskip_queued_requests", "requests before their first call", labels=["model"])
    running = GaugeMetricFamily("clipskip_running_requests", "requests beyond it", labels=["model"])
    waiting = GaugeMetricFamily("clipskip_waiting_pictures", "pictures that wait for a slot", labels=["model"])
    for name, pipe in pipes.items():
        queued.add_metric([name], pipe.scheduler.queued)
        running.add_metric([name], pipe.scheduler.running)
        waiting.add_metric([name], pipe.driver.waiting)
    yield from (queued, running, waiting)


def _calls(pipes: dict[str, Pipeline]) -> Iterator[Metric]:
    """Occupancy is picture calls over slot calls."""
    step = SummaryMetricFamily("clipskip_step_seconds", "calls of the network", labels=["model"])
    stage = SummaryMetricFamily("clipskip_stage_seconds", "work of a thread", labels=["model", "stage"])
    counters = {
        "images": CounterMetricFamily("clipskip_picture_calls", "calls times pictures in them", labels=["model"]),
        "slots": CounterMetricFamily("clipskip_slot_calls", "calls times slots of their batch", labels=["model"]),
        "joins": CounterMetricFamily("clipskip_joins", "pictures that joined a batch", labels=["model"]),
    }
    for name, pipe in pipes.items():
        tally, done = pipe.driver.tally, pipe.scheduler.done
        step.add_metric([name], count_value=tally.calls, sum_value=tally.seconds)
        for each in ("text", "decode"):
            stage.add_metric([name, each], count_value=done.runs[each], sum_value=done.seconds[each])
        for attribute, counter in counters.items():
            counter.add_metric([name], getattr(tally, attribute))
    yield from (step, stage, *counters.values())


def _ended(pipes: dict[str, Pipeline]) -> Iterator[Metric]:
    labels = ["model", "clip_skip"]
    pictures = CounterMetricFamily("clipskip_pictures", "pictures made, by clip skip", labels=labels)
    ended = CounterMetricFamily("clipskip_requests", "requests by how they ended", labels=["model", "how"])
    for name, pipe in pipes.items():
        for skip, count in list(pipe.scheduler.done.pictures.items()):
            pictures.add_metric([name, skip], count)
        for how, count in list(pipe.scheduler.done.ended.items()):
            ended.add_metric([name, how], count)
    yield from (pictures, ended)


def device_memory(pipes: Iterable[Pipeline]) -> Metric:
    """Of each GPU that a model is on, as its driver counts it, whoever uses it; none where it does not answer."""
    memory = GaugeMetricFamily(
        "clipskip_device_memory_bytes", "of a GPU, all programs together", labels=["device", "state"]
    )
    cards = {each.index: each for pipe in pipes if (each := getattr(pipe.backend, "cuda", None))}
    for index, cuda in cards.items():
        with suppress(ClipskipError):  # a lost device is for /healthz to tell
            free = cuda.free_memory()
            memory.add_metric([f"cuda:{index}", "free"], free)
            memory.add_metric([f"cuda:{index}", "used"], cuda.gpu.memory - free)
    return memory


def text(service: Service) -> bytes:
    """The figures as they are now; of the process what Linux tells of it, its resident memory among that."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Figures(service))
    return generate_latest(registry)
