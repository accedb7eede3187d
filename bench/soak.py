"""A server under many clients for long: every picture is its serial twin, nothing is lost, and memory comes back.

`python -m clipskip.bench.soak STORE` starts `clipskip serve` and asks it over HTTP, as `make soak` does; ends with 1
where a limit is broken. Memory is the server's PSS, which Linux alone tells.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import clipskip
from clipskip.engines import report
from clipskip.request import FIELDS, Request

from . import machine
from .serving import mixed

MB = 1 << 20
GROWTH = 50.0  # MB that may stay, of many requests and of a large one
BODY = 32.0  # MB that a server takes of a body
WEIGHTS = {0: 0.5, 4: 1.0}  # of the LoRA, by a request's number modulo 8
SETTLED = 2.0  # seconds after which nothing is still being closed


@dataclass(frozen=True)
class Answer:
    """What came back: the status, whose answer it says that it is, and its body."""

    status: int
    name: str
    body: bytes


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    def ask(self, path: str, body: bytes | None = None, name: str = "soak") -> Answer:
        """The answer to one request, over a connection of its own."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=900)) as connection:
            headers = {"Content-Type": "application/json", "X-Request-Id": name}
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers["X-Request-Id"], answer.read())

    def figure(self, name: str) -> float:
        """The sum of one of its figures over their labels."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"clipskip_{name}"))

    def memory(self) -> float:
        """MB of its processes' own, and its share of what it shares."""
        return machine.memory(Path(f"/proc/{self.process.pid}/smaps_rollup").read_text())["pss"] / MB

    def peak(self, work: Callable[[], Any]) -> float:
        """The most that it has while something is done."""
        with ThreadPoolExecutor(1) as threads:
            done, most = threads.submit(work), self.memory()
            while not done.done():
                time.sleep(0.02)
                most = max(most, self.memory())
            done.result()
        return most


@contextmanager
def served(store: Path, lora: Path | None) -> Iterator[Server]:
    """A server of this store on a free port."""
    command = [sys.executable, "-m", "clipskip", "serve", str(store), "--port", "0"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *(["--loras", str(lora)] if lora else [])], stderr=log)
        try:
            said = b""
            while b"serving " not in said:
                if process.poll() is not None:
                    raise SystemExit(f"the server ended: {said.decode()}")
                time.sleep(0.1)
                log.seek(0)
                said = log.read()
            yield Server(process, int(said.rpartition(b":")[2]))
        finally:
            process.terminate()
            process.wait()


def requests(count: int, steps: tuple[int, int], seed: int, lora: str | None) -> list[Request]:
    """Of all kinds, a seed each; of eight, two with the LoRA."""
    asked = [replace(job.request, seed=number + 1000 * seed) for number, job in enumerate(mixed(count, steps, seed))]
    tag = {number: f" <lora:{lora}:{weight:g}>" for number, weight in WEIGHTS.items() if lora}
    return [replace(each, prompt=each.prompt + tag.get(number % 8, "")) for number, each in enumerate(asked)]


def answers(server: Server, asked: Sequence[Request], clients: int) -> list[Answer]:
    """What each of them gets, so many at once."""

    def one(request: Request) -> Answer:
        given = {name: value for name, value in asdict(request).items() if value != FIELDS[name].default}
        return server.ask("/v1/generate", json.dumps({**given, "id": name_of(request)}).encode(), name_of(request))

    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(one, asked))


def name_of(request: Request) -> str:
    return f"soak-{request.seed}"


def unlike_twins(store: Path, lora: Path | None, asked: Sequence[Request], got: Sequence[Answer]) -> int:
    """How many files are not, byte for byte, what a pipeline makes of the request alone."""
    with warnings.catch_warnings(), clipskip.open(store, loras=lora or ()) as pipe:
        warnings.simplefilter("ignore")
        return sum(pipe(request).png() != answer.body for request, answer in zip(asked, got, strict=True))


def malformed(count: int) -> Iterator[bytes]:
    """A request with some of its bytes changed, or cut off; some of them are still one."""
    draw, whole = random.Random(1), b'{"prompt": "a ring", "steps": 1, "width": 64, "height": 64, "timeout": 0.01}'
    for _ in range(count):
        broken = bytearray(whole[: draw.randint(0, len(whole)) if draw.random() < 0.2 else None])
        for place in draw.sample(range(len(broken)), min(len(broken), draw.randint(1, 4))):
            broken[place] = draw.randrange(256)
        yield bytes(broken)


def flood(server: Server) -> float:
    """MB that are taken of a body of a gigabyte whose length is not told."""
    sent, chunk = 0, b"100000\r\n" + b" " * MB + b"\r\n"
    head = b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client, suppress(ConnectionError):
        client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        while sent < 1024:
            client.sendall(chunk)
            sent += 1
    return float(sent)


def soak(args: argparse.Namespace) -> dict[str, tuple[float, float | None]]:
    """What was seen, and the most that it may be; None: it is told, and has no limit."""
    lora = args.lora and args.lora.stem
    with served(args.store, args.lora) as server:
        asked, began = requests(args.clients * args.each, (4, 16), 1, lora), time.perf_counter()
        got = answers(server, asked, args.clients)
        rate = len(got) / (time.perf_counter() - began)
        counted = server.figure('requests_total{how="done"'), server.figure("pictures_total")
        left = server.figure("running_requests") + server.figure("queued_requests")
        time.sleep(SETTLED)
        warm = server.memory()
        answers(server, requests(args.more, (2, 6), 2, lora), args.clients)
        time.sleep(SETTLED)
        long_after = server.memory()
        large = Request(prompt="a ring", width=args.large, height=args.large, batch=2, steps=2, seed=1)
        peak = server.peak(lambda: answers(server, [large], 1))
        time.sleep(SETTLED)
        after_large = server.memory()
        with ThreadPoolExecutor(16) as threads:
            sent = threads.map(lambda body: server.ask("/v1/generate", body).status, malformed(args.malformed))
            bugs = sum(status == 500 for status in sent)
        taken, quiet = list[float](), server.memory()
        beside = server.peak(lambda: taken.append(flood(server))) - quiet
    return {
        "pictures asked for": (len(asked), None),
        "pictures a second": (rate, None),
        "refused": (sum(answer.status != 200 for answer in got), 0),
        "another one's answer": (sum(a.name != name_of(r) for r, a in zip(asked, got, strict=True)), 0),
        "unlike their serial twins": (unlike_twins(args.store, args.lora, asked, got), 0),
        "requests and pictures that /metrics counts otherwise": (sum(abs(each - len(asked)) for each in counted), 0),
        "still on their way": (left, 0),
        "MB after them": (warm, None),
        f"MB more after {args.more} others": (long_after - warm, GROWTH),
        "MB at most during a large one": (peak, None),
        "MB more after it": (after_large - long_after, GROWTH),
        f"of {args.malformed} malformed bodies, 500": (bugs, 0),
        "MB taken of a body of 1 GB": (taken[0], 2 * BODY),
        "MB more beside it": (beside, 4 * BODY),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for people, and one line of JSON; SystemExit where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--lora", type=Path, help="a file that a quarter of the requests call")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--each", type=int, default=10, help="requests of a client (default: 10)")
    parser.add_argument(
        "--more", type=int, default=1000, help="requests that memory must not grow over (default: 1000)"
    )
    parser.add_argument("--large", type=int, default=1024, help="pixels of a side of the large request (default: 1024)")
    parser.add_argument("--malformed", type=int, default=10_000, help="bodies that are none (default: 10000)")
    seen = soak(parser.parse_args(arguments))
    lines = [(name, f"{value:.4g}", "" if most is None else f"{most:g}") for name, (value, most) in seen.items()]
    print(report.table([("", "seen", "at most"), *lines]))
    broken = [name for name, (value, most) in seen.items() if most is not None and value > most]
    rows = {name: round(value, 2) for name, (value, _) in seen.items()}
    print(json.dumps({"machine": machine.facts(), "soak": rows, "broken": broken}))
    if broken:
        raise SystemExit(f"beyond its limit: {', '.join(broken)}")


if __name__ == "__main__":
    main()
