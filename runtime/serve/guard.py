"""What stands before every route: who may ask, how much and how slowly, and the access log. Knows no route's work."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import re
import time
import traceback
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipskip.errors import ClipskipError

from .answers import BUG, Refusal, refused
from .models import LOG
from .service import Service, Settings

PUBLIC = ("/", "/healthz", "/readyz")  # without a token: nothing in them is a secret
READING = ("GET", "HEAD", "OPTIONS")
PATIENCE = 4  # times the largest body are listened to
CLOSED = 499  # in the log: the client was gone before the answer
_NOT_ADDRESS = re.compile(r"[^A-Za-z0-9.:%_-]", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class Guard:
    """ASGI middleware: authority, limits of bytes and of time, one line in the log for each request."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._settings = app, service, service.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, start = Headers(scope=scope), time.monotonic()
        given = headers.get("x-request-id", "")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex[:16]
        body = _Body(receive, headers, self._settings)
        answer = _Answer(send, name, self._settings.client_timeout, body)
        try:
            check_authority(scope, headers, self._settings)
            await self._app(scope, body.receive, answer.send)
        except ClipskipError as error:
            self._service.note(error)
            if not answer.status:
                await refused(error)(scope, receive, answer.send)
        except ClientDisconnect:
            answer.status = answer.status or CLOSED
        except Exception:
            LOG.error("%s a bug:\n%s", name, traceback.format_exc())
            if not answer.status:
                await JSONResponse(BUG, 500)(scope, receive, answer.send)
        finally:
            target = scope["raw_path"].decode("ascii", "replace")[:200]  # what follows "?" may be a secret
            seconds = time.monotonic() - start
            client = (
                _NOT_ADDRESS.sub("?", str(scope["client"][0])[:64]) if scope.get("client") else "-"
            )  # a proxy's word
            LOG.info("%s %s %s %s %d %.3f s", name, client, scope["method"], target, answer.status, seconds)


class _Body:
    """`receive` within bytes and seconds until the body is there, and as it is from then on."""

    def __init__(self, receive: Receive, headers: Headers, settings: Settings) -> None:
        self._receive, self._most, self._seconds = receive, settings.max_body, settings.client_timeout
        self._deadline, self._size, self._complete = time.monotonic() + settings.client_timeout, 0, False
        length = headers.get("content-length", "0")
        self._told = int(length) if length.isdecimal() else 0
        self._chunked = "transfer-encoding" in headers

    @property
    def unread(self) -> bool:
        """Whether there may be more of it: a server would go on taking it, whatever was answered."""
        return bool(self._told or self._chunked) and not self._complete

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        while True:  # of what is too large some is thrown away: who still sends does not hear why it is refused
            size = max(self._told, self._size)
            if size > PATIENCE * self._most or (size > self._most and self._complete):
                raise Refusal(413, f"the body has more than {self._most} bytes", hint="smaller pictures")
            message = await self._next()
            if max(self._told, self._size) <= self._most:
                return message

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), max(self._deadline - time.monotonic(), 0))
        except asyncio.TimeoutError:
            raise Refusal(408, f"the body did not come within {self._seconds:g} s") from None
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message


class _Answer:
    """`send` with the request's id, and an end for clients that take nothing, or of whose body more may come."""

    def __init__(self, send: Send, name: str, timeout: float, body: _Body) -> None:
        self._send, self._name, self._timeout, self._body, self.status = send, name, timeout, body, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(b"x-request-id", self._name.encode()), (b"x-content-type-options", b"nosniff")]
            extra += [(b"connection", b"close")] if self._body.unread else []
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        try:
            await asyncio.wait_for(self._send(message), self._timeout)
        except asyncio.TimeoutError:
            raise ClientDisconnect from None


def check_authority(scope: Scope, headers: Headers, settings: Settings) -> None:
    """Refusal for who has no token where one is asked for, and for pages of other sites that a browser shows."""
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        name, site = urlsplit(f"//{host}").hostname or "", urlsplit(origin or "").netloc
    except ValueError as error:
        raise Refusal(400, f"Host or Origin is no address: {error}") from error
    elsewhere = origin and site != host and not {origin, "*"}.intersection(settings.origins)
    if elsewhere and scope["method"] not in READING:
        raise Refusal(403, "pages of other sites may not ask here", hint="--cors ORIGIN allows one")
    if not settings.token and not settings.user:
        if settings.loopback and not is_loopback(name):
            message = "without a token, this server is asked by the names of this machine alone (Host)"
            raise Refusal(403, message, hint="ask 127.0.0.1, or start it with --token")
    elif scope["path"] not in PUBLIC and not _may(given := headers.get("authorization", ""), settings):
        there = {"its token": settings.token, "a name and its password": settings.user}
        kinds = {"Bearer TOKEN": settings.token, "Basic, and NAME:PASSWORD in base64": settings.user}
        asked, header = (" or ".join(name for name, secret in each.items() if secret) for each in (there, kinds))
        wrong = ", and what was sent is wrong" if given.partition(" ")[2].strip() else ""
        raise Refusal(401, f"this server asks for {asked}{wrong}", hint=f"send the header Authorization: {header}")


def is_loopback(name: str) -> bool:
    """Whether a host's name or address means this machine and nothing else."""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _may(authorization: str, settings: Settings) -> bool:
    """Whether the header has the token or the user's name and password; compared in a time that tells nothing."""
    kind, _, secret = authorization.partition(" ")
    if kind.lower() == "bearer" and settings.token:
        return hmac.compare_digest(secret.strip().encode("latin-1"), settings.token.encode())
    if kind.lower() != "basic" or not settings.user:
        return False
    try:
        return hmac.compare_digest(base64.b64decode(secret, validate=True), settings.user.encode())
    except (binascii.Error, ValueError):
        return False
