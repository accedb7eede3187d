"""The application: all routes behind the guard. Runs under any ASGI server; `server` has ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clipskip.errors import ClipskipError

from . import a1111, generate, metrics, openai, openapi, page, sheets
from .answers import as_refusal, refused
from .guard import Guard
from .models import Stores
from .service import Service, Settings


def create_app(models: Stores, settings: Settings) -> Starlette:
    """The application for these models; it closes them when it ends. Its state's `service` is for its routes."""
    service = Service(models, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        models.close()

    async def answer(http: HttpRequest, error: Exception) -> Response:
        refusal = error if isinstance(error, ClipskipError) else as_refusal(error)  # type: ignore[arg-type]
        service.note(refusal)
        return refused(refusal)

    methods, headers = ["GET", "POST", "DELETE"], ["Authorization", "Content-Type", "X-Request-Id"]
    told, origins = ["Retry-After", "X-Request-Id", "X-Clipskip-Seed", "X-Clipskip-Notes"], list(settings.origins)
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers, expose_headers=told
    )
    app = Starlette(
        routes=[
            *OPERATIONS,
            *generate.ROUTES,
            *sheets.ROUTES,
            *page.ROUTES,
            *openai.ROUTES,
            *a1111.routes(service),
        ],
        middleware=[*([cors] if origins else []), Middleware(Guard, service=service)],
        exception_handlers={ClipskipError: answer, HTTPException: answer},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def healthz(http: HttpRequest) -> Response:
    """GET /healthz: 503 where the device is lost, and the process has to be started again."""
    lost = http.app.state.service.models.lost
    return JSONResponse({"ok": lost is None, "lost": lost}, 503 if lost else 200)


async def readyz(http: HttpRequest) -> Response:
    """GET /readyz: 503, and why, where it should get no requests."""
    trouble = await asyncio.to_thread(http.app.state.service.models.trouble)
    return JSONResponse({"ready": trouble is None, "trouble": trouble}, 503 if trouble else 200)


async def figures(http: HttpRequest) -> Response:
    """GET /metrics: figures, in Prometheus' form."""
    service: Service = http.app.state.service
    own = await asyncio.to_thread(metrics.text, service)  # a GPU may take long to answer
    return Response(await service.models.figures(own), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def described(http: HttpRequest) -> Response:
    """GET /openapi.json: all of it for machines."""
    return JSONResponse(openapi.document(http.app.routes))


OPERATIONS = [
    Route("/healthz", healthz),
    Route("/readyz", readyz),
    Route("/metrics", figures),
    Route("/openapi.json", described),
]
