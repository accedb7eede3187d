"""What the routes in other servers' forms share: their errors, and pictures that come. Knows neither's fields."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from clipskip.errors import ClipskipError, RequestError
from clipskip.fields import TEXT

from .answers import as_refusal, refused

Handler: TypeAlias = "Callable[[HttpRequest], Awaitable[Response]]"
KEPT = ("retry-after", "www-authenticate")  # headers of a refusal


class AsciiResponse(JSONResponse):
    """JSON in ASCII: what is told back may be halves of characters, which UTF-8 cannot have."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def telling(form: Callable[[ClipskipError], tuple[int, Mapping[str, Any]]], handler: Handler) -> Handler:
    """A route whose errors are told in this form: a status, and an object."""

    @wraps(handler)
    async def answered(http: HttpRequest) -> Response:
        try:
            return await handler(http)
        except (ClipskipError, HTTPException) as error:
            refusal = error if isinstance(error, ClipskipError) else as_refusal(error)
            http.app.state.service.note(refusal)
            (status, told), headers = form(refusal), refused(refusal).headers
            return AsciiResponse(told, status, {name: headers[name] for name in KEPT if name in headers})

    return answered


def sentence(error: ClipskipError) -> str:
    """An error for clients that show one text."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def data_url(name: str, text: object) -> str:
    """A picture in base64, or in a data URL, as a data URL. RequestError for anything else, such as an address."""
    given = "".join(str(TEXT.check(name, text)).split())
    if given.startswith("data:"):
        return given
    if not given or ":" in given[:20]:
        raise RequestError(f"{name} must be a picture in base64; addresses and paths are not opened", field=name)
    return f"data:;base64,{given}"
