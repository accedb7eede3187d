"""A server under many clients for long: every picture is its serial twin, nothing is lost, and memory comes back.

`python -m clipskip.bench.soak STORE`, or `make soak`, asks `clipskip serve` over HTTP; it ends with 1 where a limit is
broken. Memory is the server's PSS, as Linux tells it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import clipskip
from clipskip.engines import report
from clipskip.request import FIELDS, Request

from . import machine
from .serving import mixed

GROWTH = 50.0  # MB that may stay, of many requests and of a large one
SETTLED = 2.0  # seconds after which nothing is still being closed


class Answer(NamedTuple):
    """What came back: the status, the id that it is the answer of, and its body."""

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

    def make(self, asked: Sequence[Request], clients: int) -> list[Answer]:
        """What each of the requests gets, so many at once."""

        def one(request: Request) -> Answer:
            given = {name: value for name, value in asdict(request).items() if value != FIELDS[name].default}
            return self.ask("/v1/generate", json.dumps({**given, "id": str(request.seed)}).encode(), str(request.seed))

        with ThreadPoolExecutor(clients) as threads:
            return list(threads.map(one, asked))

    def figure(self, name: str) -> float:
        """The sum of one of its figures over their labels."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"clipskip_{name}"))

    def memory(self, kind: str = "pss") -> float:
        """MB of this kind, once it is quiet; "peak" is the most so far."""
        time.sleep(SETTLED)
        folder = Path("/proc", str(self.process.pid))
        return machine.memory((folder / "smaps_rollup").read_text() + (folder / "status").read_text())[kind] / 2**20


@contextmanager
def served(store: Path, lora: Path | None) -> Iterator[Server]:
    """A server of this store on a free port."""
    command = [sys.executable, "-m", "clipskip", "serve", str(store), "--port", "0"]
    with tempfile.TemporaryFile() as log:
        process, said = subprocess.Popen([*command, *(["--loras", str(lora)] if lora else [])], stderr=log), b""
        try:
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


def requests(count: int, steps: tuple[int, int], seed: int, lora: Path | None) -> list[Request]:
    """Of all kinds, a seed each; of eight, two with the LoRA, at different weights."""
    asked = [replace(job.request, seed=number + 10_000 * seed) for number, job in enumerate(mixed(count, steps, seed))]
    tags = {0: f" <lora:{lora.stem}:0.5>", 4: f" <lora:{lora.stem}:1>"} if lora else {}
    return [replace(each, prompt=each.prompt + tags.get(number % 8, "")) for number, each in enumerate(asked)]


def unlike_twins(store: Path, lora: Path | None, asked: Sequence[Request], got: Sequence[Answer]) -> int:
    """How many files are not, byte for byte, what a pipeline makes of the request alone."""
    with warnings.catch_warnings(), clipskip.open(store, loras=lora or ()) as pipe:
        warnings.simplefilter("ignore")
        pairs = sorted(zip(asked, got, strict=True), key=lambda each: each[0].prompt.partition("<")[2])
        return sum(pipe(request).png() != answer.body for request, answer in pairs)  # each mix is opened once


def soak(args: argparse.Namespace) -> dict[str, tuple[float, float | None]]:
    """What was seen, and the most that it may be; None: it is told, and has no limit."""
    with served(args.store, args.lora) as server:
        asked, began = requests(args.clients * args.each, (4, 16), 1, args.lora), time.perf_counter()
        got = server.make(asked, args.clients)
        rate = len(got) / (time.perf_counter() - began)
        counted = server.figure('requests_total{how="done"'), server.figure("pictures_total")
        left = server.figure("running_requests") + server.figure("queued_requests")
        warm = server.memory()
        more = server.make(requests(args.more, (2, 6), 2, args.lora), args.clients)
        later = server.memory()
        more += server.make([Request(prompt="a", width=args.large, height=args.large, batch=2, steps=2, seed=1)], 1)
        after = server.memory()
        peak = server.memory("peak")
    return {
        "pictures asked for": (len(asked), None),
        "pictures a second": (rate, None),
        "refused": (sum(answer.status != 200 for answer in (*got, *more)), 0),
        "another one's answer": (sum(each.name != str(own.seed) for own, each in zip(asked, got, strict=True)), 0),
        "unlike their serial twins": (unlike_twins(args.store, args.lora, asked, got), 0),
        "counted otherwise by /metrics": (sum(abs(each - len(asked)) for each in counted), 0),
        "still on their way": (left, 0),
        "MB after them": (warm, None),
        f"MB more after {args.more} others": (later - warm, GROWTH),
        "MB at most, of a large one": (peak, None),
        "MB more after it": (after - later, GROWTH),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for people, and one line of JSON. SystemExit where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--lora", type=Path, help="a file that a quarter of the requests call")
    numbers = {"clients": 64, "each": 10, "more": 1000, "large": 768}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
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
