"""Figures of a running server in Prometheus' form, read when they are asked for. Knows what they are called."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

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


def text(service: Service) -> bytes:
    """The figures as they are now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(service))
    return generate_latest(registry)
