"""A real server on a free port, in a thread of this process; and one application, asked without a network."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import httpx2 as httpx
import uvicorn

from clipskip.serve.app import create_app
from clipskip.serve.models import Models
from clipskip.serve.service import Settings


@contextmanager
def serving(store, pipe, settings=None):
    """A client of a server of this store; its `port` is among its attributes."""
    app = create_app(Models([store], lambda path: pipe), settings or Settings())
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    port = listening.getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        client.port = port
        client.service = app.state.service
        try:
            yield client
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def asked(app, method, path, **parts):
    """The answer of an application to one request."""

    async def send():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **parts)

    return asyncio.run(send())


def until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
