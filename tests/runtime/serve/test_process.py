"""A real server in a process of its own: clients that vanish, dawdle or send too much, and signals under load."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

SLOW = {"prompt": "a ring", "width": 64, "height": 64, "steps": 900, "sampler": "Euler"}


class Server:
    """A server on a free port; `log` has its lines."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "clipskip", "serve", *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log, ready = [], threading.Event()

        def read():
            for line in self.process.stderr:
                self.log.append(line)
                if line.startswith("serving "):
                    ready.set()

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        assert ready.wait(240), self.log
        self.port = int(self.log[-1].rpartition(":")[2])

    def ask(self, path, asked=None, method=None, **headers):
        """Status and body."""
        data = None if asked is None else json.dumps(asked).encode()
        head = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def figure(self, name):
        """The sum of one figure over its labels."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"clipskip_{name}"))

    def until(self, true):
        deadline = time.monotonic() + 240
        while not true():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def raw(self, data):
        """A connection that sent these bytes."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=240)
        client.sendall(data)
        return client

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        status = self.process.wait(300)
        self._reader.join(240)
        self.process.stderr.close()
        return status


@pytest.fixture(scope="module")
def server(sample_store):
    server = Server(sample_store, "--client-timeout", "1")
    yield server
    assert server.end(signal.SIGINT) == 130
    assert not any("bug" in line for line in server.log)


def head(length):
    lines = ["POST /v1/generate HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return ("\r\n".join([*lines, f"Content-Length: {length}", "", ""])).encode()


@pytest.mark.parametrize("accept", ["image/png", "text/event-stream"])
def test_the_work_of_a_client_that_hangs_up_stops_within_a_step(server, accept):
    body = json.dumps(SLOW).encode()
    before = server.figure('requests_total{how="cancelled"')
    client = server.raw(head(len(body)).replace(b"Host", f"Accept: {accept}\r\nHost".encode()) + body)
    server.until(lambda: server.figure("running_requests") == 1)
    client.close()
    server.until(lambda: server.figure('requests_total{how="cancelled"') == before + 1)
    server.until(lambda: server.figure("running_requests") == 0)
    calls = server.figure("step_seconds_count")
    time.sleep(0.3)
    assert server.figure("step_seconds_count") - calls <= 1


def test_a_request_is_cancelled_by_its_id_and_its_client_is_told(server):
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(server.ask, "/v1/generate", {**SLOW, "id": "mine"})
        server.until(lambda: server.figure("running_requests") == 1)
        assert server.ask("/v1/generate", {**SLOW, "id": "mine"})[0] == 409
        assert server.ask("/v1/generate/mine", method="DELETE") == (204, b"")
        status, body = waiting.result()
    assert (status, json.loads(body)["error"]["message"]) == (409, "this request was cancelled")
    assert server.ask("/v1/generate/mine", method="DELETE")[0] == 404


def test_a_stream_of_a_cancelled_request_ends_with_an_error(server):
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(server.ask, "/v1/generate", {**SLOW, "id": "told"}, Accept="text/event-stream")
        server.until(lambda: server.figure("running_requests") == 1)
        assert server.ask("/v1/generate/told", method="DELETE")[0] == 204
        status, body = waiting.result()
    last = body.decode().strip().split("\n\n")[-1]
    assert (status, last.split("\n")[0], "was cancelled" in last) == (200, "event: error", True)


def is_cut_off(client, times, pause):
    """Of bytes that are sent one by one some is not taken any more."""
    for _ in range(times):
        try:
            client.sendall(b"a")
        except (BrokenPipeError, ConnectionResetError):
            return
        time.sleep(pause)
    pytest.fail("it is still listened to")


def test_a_head_that_comes_byte_by_byte_is_cut_off(server):
    with server.raw(b"POST /v1/gen") as client:
        is_cut_off(client, 500, 0.2)


def test_a_connection_that_never_asks_is_closed(server):
    client = server.raw(b"")
    try:
        assert client.recv(10) == b""
    except ConnectionResetError:
        pass
    finally:
        client.close()


def test_a_body_that_does_not_come_is_a_408_and_one_of_a_gigabyte_a_413_at_once(server):
    for length, status in ((1000, b"408"), (1 << 30, b"413")):
        with server.raw(head(length) + b"{") as client:
            assert client.recv(4096).split(b" ")[1] == status


def test_whose_body_never_ends_is_told_and_hung_up_on(server):
    with server.raw(head(1000) + b"{") as client:
        said = b""
        while part := client.recv(4096):
            said += part
    assert said.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in said.lower()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process's memory")
def test_a_body_without_a_length_is_cut_off_at_the_limit_and_little_of_it_is_kept(server):
    folder, sent, chunk = Path("/proc", str(server.process.pid)), 0, b"100000\r\n" + b" " * (1 << 20) + b"\r\n"

    def megabytes(name):
        lines = (folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) >> 10

    before = megabytes("VmRSS")
    (folder / "clear_refs").write_text("5")  # the peak is counted from here on
    with server.raw(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")) as client:
        with suppress(ConnectionError):
            while sent < 1024:
                client.sendall(chunk)
                sent += 1
        assert sent < 5 * 32
        assert client.recv(4096).split(b" ")[1] in (b"413", b"408")  # the latter where they came too slowly
    assert megabytes("VmHWM") - before < 3 * 32


@pytest.mark.parametrize(("line", "status"), [(b"POST /v1/generate", b"408"), (b"GET /healthz", b"200")])
def test_a_body_that_goes_on_by_the_byte_after_the_answer_is_cut_off(server, line, status):
    with server.raw(head(1000).replace(b"POST /v1/generate", line)) as client:
        assert client.recv(4096).split(b" ")[1] == status
        is_cut_off(client, 100, 0.1)


def test_a_signal_lets_every_accepted_request_end_and_no_new_one_begin(sample_store):
    server = Server(sample_store)
    with ThreadPoolExecutor(6) as threads:
        asked = [{**SLOW, "steps": 40, "seed": seed, "clip_skip": 1 + seed} for seed in range(6)]
        answers = [threads.submit(server.ask, "/v1/generate", each) for each in asked]
        server.until(lambda: server.figure("running_requests") + server.figure("queued_requests") == 6)
        assert server.end() == 143
        assert [each.result()[0] for each in answers] == [200] * 6
    with pytest.raises(urllib.error.URLError, match="refused"):
        server.ask("/healthz")
