"""The verb `serve`: engine stores over HTTP."""

from __future__ import annotations

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import clipskip
from clipskip.engines import hints
from clipskip.errors import BackendUnavailable, RequestError
from clipskip.fields import at_least, whole

from . import Outcome, Verbs, path
from .output import say

if TYPE_CHECKING:
    from clipskip.pipeline import Pipeline
    from clipskip.serve.service import Settings

SECRETS = {"token": "CLIPSKIP_TOKEN", "user": "CLIPSKIP_USER"}  # by option, the variable that may have it


def add_to(verbs: Verbs) -> None:
    """Let argparse know this verb."""
    text = (
        "Serve engine stores over HTTP: docs/serving.md has the routes. Ctrl-C or SIGTERM: what was accepted is done."
    )
    verb = verbs.add_parser("serve", help="serve stores over HTTP", description=text)
    verb.add_argument("stores", type=path, nargs="+", metavar="STORE")
    verb.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine)")
    verb.add_argument("--port", default="7860", help="default 7860; 0: a free one")
    text = "what clients send as Authorization: Bearer; @FILE reads it; better than here: CLIPSKIP_TOKEN"
    verb.add_argument("--token", help=text)
    verb.add_argument("--user", metavar="NAME:PASSWORD", help="for Basic auth; @FILE reads it; or CLIPSKIP_USER")
    verb.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="a site whose pages may ask")
    verb.add_argument("--target", default="onnxruntime", help="the backend (default: onnxruntime, on the CPU)")
    verb.add_argument("--embeddings", type=path, action="append", default=[], help="a textual inversion, or a folder")
    verb.add_argument("--loras", type=path, action="append", default=[], help="a LoRA, or a folder")
    verb.add_argument(
        "--models-memory", metavar="MB", help="what the engines of all open stores may have (default: all)"
    )
    verb.add_argument("--max-queue", default="64", help="requests of a model that may wait (default: 64)")
    verb.add_argument("--max-pixels", default=str(16 << 20), help="of all pictures of a request (default: 4096 * 4096)")
    verb.add_argument("--max-calls", default="1000", help="of the network, for each picture (default: 1000)")
    verb.add_argument("--max-body", default="32", metavar="MB", help="of a request (default: 32)")
    verb.add_argument(
        "--timeout", default="600", metavar="SECONDS", help="for a request, waiting included (default: 600)"
    )
    text = "for a client to send its request, and to take each part of the answer (default: 30)"
    verb.add_argument("--client-timeout", default="30", metavar="SECONDS", help=text)
    verb.add_argument("--log-prompts", action="store_true", help="write prompts to the log")
    verb.set_defaults(run=serve)


def serve(args: argparse.Namespace) -> Outcome:
    """Serve until a signal comes."""
    try:
        from clipskip.serve import models, server
    except ImportError as error:
        hint = f"{hints.install('starlette')} {' '.join(OTHERS)}"
        raise BackendUnavailable(f"serving needs a package that is not installed: {error.name}", hint=hint) from error
    settings, opener, budget = parts(args)
    served = models.Models(args.stores, opener, budget)
    opener(args.stores[0]).close()  # what no request could pass is said now: the target, embeddings, LoRAs
    listening = server.listen(args.host, at_least("port", whole("port", args.port), 0))
    server.log_to(sys.stderr)
    if not settings.loopback and not settings.token and not settings.user:
        say("warning: everybody who reaches this address may use it: set CLIPSKIP_TOKEN or CLIPSKIP_USER")
    host = f"[{args.host}]" if ":" in args.host else args.host
    say(f"serving {', '.join(served.paths)} at http://{host}:{listening.getsockname()[1]}")
    server.serve(served, settings, listening)
    return Outcome({}, "")


def parts(args: argparse.Namespace) -> tuple[Settings, partial[Pipeline], int | None]:
    """What a server allows, how a store is opened, and what all open ones may have, in bytes. RequestError."""
    from clipskip.serve.guard import is_loopback
    from clipskip.serve.service import Settings

    numbers = {name: at_least(name, whole(name, getattr(args, name)), 1) for name in NUMBERS}
    queue, numbers["max_body"] = numbers.pop("max_queue"), numbers["max_body"] << 20
    settings = Settings(
        token=secret("token", args.token),
        user=secret("user", args.user),
        origins=tuple(map(origin, args.cors)),
        loopback=is_loopback(args.host),
        log_prompts=args.log_prompts,
        **numbers,
    )
    opener = partial(clipskip.open, backend=args.target, embeddings=args.embeddings, loras=args.loras, max_queue=queue)
    memory = args.models_memory
    budget = None if memory is None else at_least("models_memory", whole("models_memory", memory), 1) << 20
    return settings, opener, budget


OTHERS = ("uvicorn", "python-multipart", "prometheus-client")  # of the extra `serve`
NUMBERS = ("max_queue", "max_pixels", "max_calls", "max_body", "timeout", "client_timeout")


def secret(option: str, given: str | None) -> str:
    """A token, or a name with its password: as given, from the file after "@", or from the environment."""
    name, text = (f"--{option}", given) if given is not None else (SECRETS[option], os.environ.get(SECRETS[option]))
    if text is None:
        return ""
    if text.startswith("@"):
        name = f"the file for {name}"
        try:
            text = Path(text[1:]).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read {name}, {text[1:]}: {error}", field=option) from error
    if not text:  # meant as a secret that everybody knows, or forgotten: nobody is let in by it
        raise RequestError(f"{name} is empty", field=option, hint="leave it out, or give it a value")
    if option == "user" and ":" not in text:
        raise RequestError(f"{name} is written NAME:PASSWORD", field="user")
    return text


def origin(text: str) -> str:
    """A site as browsers name it. RequestError for what none would send."""
    if text in ("*", "null") or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\sA-Z]+", text):
        return text
    hint = "such as https://our.example: in lower case, and without a path"
    raise RequestError(f"--cors {text} is no site as browsers name it", field="cors", hint=hint)
