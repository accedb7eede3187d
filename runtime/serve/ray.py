"""The same application on Ray Serve: `serve run clipskip.serve.ray:build store=STORE`. Needs the extra `ray`.

One ingress has all routes; each replica of "Painter" is one process with one device, and its open batch. Knows Ray, and
nothing of requests.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import exceptions, serve
from ray.serve import exceptions as serve_exceptions
from starlette.applications import Starlette

from clipskip.__main__ import parse
from clipskip.backends import OPENVINO
from clipskip.backends.providers import BY_TARGET
from clipskip.cli.serve import parts
from clipskip.errors import RequestError
from clipskip.pipeline import Pipeline

from .app import create_app
from .models import Models
from .replicas import Replica, Replicas, Transport
from .server import CONNECTIONS, log_to, return_blocks
from .service import Settings

PAINTER = "Painter"
TOGETHER = 16  # requests in a replica at once: twice what a batch has, so that the next wait where they are made
HEALTHY = 2.0  # seconds between two looks; a lost device is out of service after three
GONE = (
    exceptions.RayActorError,  # killed, or lost with its node
    exceptions.ObjectLostError,  # the answer, with the node that it lay on
    exceptions.TaskCancelledError,  # by a replica that ends
    serve_exceptions.DeploymentUnavailableError,
    serve_exceptions.ReplicaUnavailableError,
)


class Painter(Replica):
    """A replica; the first store is open before it takes requests."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, stores: Sequence[Path], settings: Settings, opener: partial[Pipeline], budget: int | None
    ) -> None:
        log_to(sys.stderr)
        return_blocks()
        super().__init__(Models(stores, opener, budget), settings, serve.get_replica_context().replica_tag)
        async with self.service.models.use():
            pass


class Ingress:
    """All routes. One, for it knows the requests on their way, by id and by client, and A1111's settings for all."""

    def __init__(self, painter: Any, stores: Sequence[Path], settings: Settings, max_queue: int) -> None:
        context = serve.get_replica_context()
        if context.world_size != 1:
            message = f"num_replicas of Ingress must be 1, not {context.world_size}"
            hint = f"it makes no pictures: give {PAINTER} more replicas"
            raise RequestError(message, field="num_replicas", hint=hint)
        log_to(sys.stderr)
        transport = Transport(painter, GONE, serve_exceptions.BackPressureError, partial(running, context.app_name))
        self._settings, self._replicas = settings, Replicas(stores, transport, max_queue)

    def __serve_build_asgi_app__(self) -> Starlette:
        return create_app(self._replicas, self._settings)


def running(application: str) -> int:
    """How many replicas take requests."""
    painter = serve.status().applications[application].deployments[PAINTER]
    return int(painter.replica_states.get("RUNNING", 0))


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application, from `store` (one, several with commas, or a list) and the options of `clipskip serve`.

    Options have "_" or "-" between words; a list is an option given several times. Where Ray listens, and how many
    replicas there are, are its own settings. RequestError, StoreError.
    """
    options = {name.replace("_", "-"): value for name, value in args.items()}
    for name in {"host", "port"} & {*options}:
        raise RequestError(f"{name} is not clipskip's with Ray", field=name, hint=f"http_options: {{{name}: ...}}")
    given = options.pop("store", [])
    stores = given.split(",") if isinstance(given, str) else given
    parsed = parse(["serve", *map(str, stores), *(word for each in options.items() for word in words(*each))])
    parsed.embeddings, parsed.loras = ([path.absolute() for path in each] for each in (parsed.embeddings, parsed.loras))
    settings, opener, budget = parts(parsed)
    paths = [path.absolute() for path in parsed.stores]
    provider = BY_TARGET.get(parsed.target)
    on_cpu = provider.kind == "cpu" if provider else parsed.target in OPENVINO
    painter = serve.deployment(Painter, name=PAINTER).options(
        ray_actor_options={"num_cpus": 1, "num_gpus": 0 if on_cpu else 1},
        max_ongoing_requests=TOGETHER,
        health_check_period_s=HEALTHY,
    )
    ingress = serve.deployment(serve.ingress()(Ingress), name="Ingress").options(
        ray_actor_options={"num_cpus": 0}, max_ongoing_requests=CONNECTIONS
    )
    plain = replace(settings, token="", user="", log_prompts=False)  # the others are the ingress's alone
    return ingress.bind(painter.bind(paths, plain, opener, budget), paths, settings, opener.keywords["max_queue"])


def words(option: str, value: object) -> list[str]:
    """An option as on a command line."""
    values = value if isinstance(value, list) else [value]
    return [f"--{option}" if each in (True, "true") else f"--{option}={each}" for each in values]
