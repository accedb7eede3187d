"""The application on a port, by uvicorn: clients that are slow to ask are cut off, and a signal lets all work end."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import socket
import sys
from contextlib import suppress
from typing import TextIO

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipskip.errors import StorageError

from .app import create_app
from .models import LOG, Models
from .service import Settings

IDLE = 30  # seconds that a connection may be kept without a request
CONNECTIONS = 1000
MOST_HEADERS = 64 << 10  # bytes
BLOCK = 4 << 20  # bytes; with 8 MB memory still grew, and the smaller it is, the more pages come anew
M_MMAP_THRESHOLD = -3  # mallopt(3)


class Impatient(H11Protocol):
    """Closes a connection whose request does not come: uvicorn itself waits for its head as long as it takes."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # of an answer that nobody takes
            self.transport.abort()

    def _watch(self) -> None:
        """A clock runs while a head is expected, or a body that nobody reads, and is not set back by more of it."""
        unread = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY  # it was answered
        if self.conn.their_state is not h11.IDLE and not unread:
            self._unwatch()
        elif self._clock is None:
            seconds = self.config.app.state.service.settings.client_timeout  # type: ignore[union-attr]
            self._clock = self.loop.call_later(seconds, self.transport.abort)

    def _unwatch(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. StorageError where the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        message = f"cannot listen on {host} port {port}: {error}"
        raise StorageError(message, hint="--port 0 takes a free one") from error


def log_to(stream: TextIO) -> None:
    """One line for each request and event, and Python's warnings with them."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


def return_blocks() -> None:
    """Have glibc, in this process, return large blocks to the system whenever they are freed.

    By itself it keeps all that are no larger than the largest one that was freed, up to 32 MB, and what outlives them
    comes to lie between them: memory grew by 140 MB over 2,300 small requests.
    """
    with suppress(OSError, AttributeError):  # another C library
        if sys.platform == "linux":
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, BLOCK)


def serve(models: Models, settings: Settings, listening: socket.socket) -> None:
    """Serve until a signal comes; then nothing new is accepted, and what was accepted is done."""
    return_blocks()
    config = uvicorn.Config(
        create_app(models, settings),
        http=Impatient,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEADERS,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    running = uvicorn.Server(config)
    try:
        running.run(sockets=[listening])
    finally:
        LOG.info("ended without waiting" if running.force_exit else "every accepted request was answered")
