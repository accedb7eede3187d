"""What a client hears: one table from errors to HTTP statuses, their form in JSON, and pictures. Knows no route."""

from __future__ import annotations

import base64
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from clipskip import errors
from clipskip.errors import ClipskipError, RequestError
from clipskip.metadata import encode
from clipskip.result import Result

STATUS: dict[type[ClipskipError], int] = {  # the class itself, or the nearest one above it
    errors.RequestError: 422,
    errors.CheckpointError: 422,
    errors.DeadlineExceeded: 504,
    errors.Busy: 503,
    errors.DeviceOutOfMemory: 503,
    errors.BackendUnavailable: 503,
    errors.DeviceLost: 503,
    errors.StoreError: 503,
    errors.Closed: 503,
    errors.NumericalError: 500,
    errors.StorageError: 507,
    errors.ClipskipError: 500,
}
AGAIN = (errors.Busy, errors.DeviceOutOfMemory)  # the same request may pass later


class Refusal(RequestError):
    """A request that HTTP has a status of its own for."""

    def __init__(self, status: int, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, field=field, hint=hint)
        self.status, self.args = status, (status, message)  # with which it is made again where it is unpickled

    @property
    def code(self) -> str:  # type: ignore[override]
        """Such as "not_found", which is what HTTP calls it."""
        names = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method"}
        names |= {408: "timeout", 409: "conflict", 413: "too_large", 415: "media_type"}
        return names.get(self.status, "request")


def status_of(error: ClipskipError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Refusal):
        return error.status
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def facts(error: ClipskipError) -> dict[str, Any]:
    """An error for machines and people. No path of the server is among it, but those that its message names."""
    name = error.field and str(error.field).encode("utf-8", "backslashreplace").decode()  # a client's own, if unknown
    return {"code": error.code, "message": error.message, "field": name, "hint": error.hint}


def refused(error: ClipskipError) -> JSONResponse:
    """The answer for an error; with Retry-After where it may pass later."""
    headers = {"Retry-After": f"{math.ceil(getattr(error, 'retry_after', 1))}"} if isinstance(error, AGAIN) else {}
    if status_of(error) == 401:
        headers["WWW-Authenticate"] = 'Basic realm="clipskip"'
    return JSONResponse({"error": facts(error)}, status_of(error), headers)


def as_refusal(error: HTTPException) -> Refusal:
    """Starlette's own errors in our form."""
    return Refusal(error.status_code, f"HTTP {error.status_code}: {error.detail}", hint="the routes: GET /openapi.json")


def pictures(result: Result, format: str = "PNG", quality: int | None = None) -> list[str]:
    """The pictures of a result in base64, each with its request."""
    images = enumerate(result.images)
    return [base64.b64encode(encode(image, result.origin(i), format, quality)).decode() for i, image in images]


BUG = {"error": {"code": "bug", "message": "a bug in clipskip; its log has more", "field": None, "hint": None}}
