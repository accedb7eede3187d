"""The verbs that look at an engine store: `inspect`, `verify`, `diagnose`, `recommend`, `gc`, `bench`; and `doctor`."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from clipskip.engines import hints
from clipskip.errors import EngineCorrupt, NumericalError, RequestError

from . import Outcome, Verbs, builds, extra, output, path, store_verb


def add_to(verbs: Verbs) -> None:
    """Let argparse know these verbs."""
    text = "Show what a store holds, what a model file is, or what a picture's settings (or a .txt's) become here."
    verb = store_verb(verbs, inspect, "show what a store, a model file or a picture holds", text)
    verb.add_argument("--hashes", action="store_true", help="of a model file, as model sites show them (reads it all)")
    text = "Check every byte of a store against its manifest."
    verb = store_verb(verbs, verify, "check every byte of a store", text)
    verb.add_argument("--manifest-sha256", metavar="HEX", help="and the manifest against this, which export printed")
    text = (
        "Name the first tensor that a form of a graph, or the engine that a target makes of it, computes otherwise\n"
        "than the exported graph on the CPU. TensorRT builds the engine anew for this, and like onnxruntime-cuda\n"
        "needs its GPU. The exit status is 6 where there is such a tensor. docs/gpu.md says more."
    )
    verb = store_verb(verbs, diagnose, "the first tensor that an engine has wrong", text)
    text = "step, decode, decode-tiny, encode, or a text encoder's depth such as text-11"
    verb.add_argument("role", metavar="ROLE", help=text)
    targets = ("onnxruntime", "onnxruntime-cuda", "tensorrt-rtx", "tensorrt")
    verb.add_argument("--target", choices=targets, default="onnxruntime", help="what runs it (default: onnxruntime)")
    verb.add_argument("--variant", default="", help="the form: cpu or cuda (default: the exported graph)")
    verb.add_argument("--against", type=path, metavar="STORE", help="whose exported graph is right (default: its own)")
    text = (
        "Measure which clip skip a model wants: how well it tells noise from captioned pictures, by depth.\n"
        "The answer comes when every other depth is surely worse; where depths are alike, it says so."
    )
    verb = store_verb(verbs, recommend, "which clip skip a model wants", text)
    verb.add_argument("--pictures", type=path, required=True, metavar="DIR", help="name.png (.jpg, .webp) and name.txt")
    verb.add_argument("--skips", help='clip skips to compare, such as "1-4" (default: all in the store)')
    verb.add_argument("--most", metavar="N", help="pictures to look at (default: all, while the answer is not clear)")
    verb.add_argument("--write", action="store_true", help="make it what requests get that name none")
    verb.add_argument("--plot", type=path, metavar="FILE", help="draw the losses by depth (.png; needs matplotlib)")
    verb.add_argument("--overwrite", action="store_true", help="of --plot, a file that is there")
    verb.add_argument("--target", default="onnxruntime", help="the backend (default: onnxruntime, on the CPU)")
    text = (
        "Remove the folders of a store that its manifest no longer names and no process uses; with --cache what is\n"
        "in the user's own folder: prepacked weights, proofs, what GPU libraries made. All is made again when needed."
    )
    verb = verbs.add_parser("gc", help="remove what a store, or this user, no longer needs", description=text)
    verb.add_argument("store", type=path, metavar="STORE", nargs="?")
    verb.add_argument("--cache", action="store_true", help="what is kept in the user's own folder")
    verb.add_argument("--dry-run", action="store_true", help="only say what would go")
    verb.set_defaults(run=gc)
    builds.add_budget(verb)
    text = "Say what is installed here, what each target needs and lacks, and how to get it."
    verb = verbs.add_parser("doctor", help="what this machine has and lacks", description=text)
    verb.set_defaults(run=doctor)
    text = (
        "Measure a store: opening, text at every depth, a step, decoding, first and whole pictures, memory and disk.\n"
        "The last line is JSON. With --baseline, the status is 1 where a row of 3 runs is slower, middle halves apart."
    )
    verb = store_verb(verbs, bench, "how long each stage takes, and what it costs", text)
    verb.add_argument("--target", help="the backend (default: onnxruntime, on the CPU)")
    verb.add_argument("--size", metavar="N", help="pixels a side (default: the model's own)")
    verb.add_argument("--steps", metavar="N", help="of a whole picture (default: 20)")
    verb.add_argument("--batch", metavar="N,N", help="images in one step, such as 1,2,4 (default: what pictures share)")
    verb.add_argument("--rounds", metavar="N", help="runs of a row, where time allows (default: 5)")
    verb.add_argument("--minutes", metavar="N", help="about how long; each row has a run (default: 10)")
    verb.add_argument("--out", type=path, metavar="FILE", help="write the report there, as JSON; its folder is made")
    verb.add_argument("--baseline", type=path, metavar="OLD.json", help="an earlier report, to compare with")
    verb.add_argument("--threshold", metavar="PERCENT", help="slower by more is a failure (default: 10)")
    verb.add_argument("--fidelity", action="store_true", help="of the sample model: what is left of a prompt, by depth")


def inspect(args: argparse.Namespace) -> Outcome:
    """What a store holds, with sizes and the figures of the gates; what a file of weights is; a picture's ledger."""
    from clipskip.engines import report

    from . import inspection

    if os.path.isfile(args.store):
        return inspection.of_file(args.store, args.hashes)
    facts = report.inspect(args.store)
    if args.hashes:
        raise RequestError("hashes are those of a file, and this is a store: verify checks it", field="hashes")
    return Outcome(facts, report.inspection_text(facts))


def verify(args: argparse.Namespace) -> Outcome:
    """Every artefact with what is wrong with it; the exit status is that of a corrupt store when anything is."""
    from clipskip.engines import report
    from clipskip.engines.store import Store

    found, exposed = report.verify(args.store, args.manifest_sha256), Store(args.store).exposed()
    status = EngineCorrupt.exit_status if any(problem for _, problem in found) else 0
    text = "\n".join([report.verification_text(found), *(f"warning: {line}" for line in exposed)])
    return Outcome({"store": str(args.store), "artefacts": dict(found), "warnings": exposed}, text, status)


def diagnose(args: argparse.Namespace) -> Outcome:
    """Compare tensor by tensor; the exit status is that of a failed gate where one is apart."""
    from clipskip.engines import diagnose as diagnosis
    from clipskip.engines.manifest import Role
    from clipskip.engines.store import Store

    try:
        role = Role.parse(args.role)
    except ValueError as error:
        hint = "step, decode, decode-tiny, encode, or text-00 to text-12"
        raise RequestError(f"{args.role!r:.40} is no role", field="role", hint=hint) from error
    settings = {"target": args.target, "variant": args.variant, "against": args.against and Store(args.against)}
    with extra("diagnose", "a diagnosis"), output.stages() as say:
        found = diagnosis.diagnose(Store(args.store), role, say, **settings)
    return Outcome(asdict(found), diagnosis.text(found), NumericalError.exit_status if found.tensor else 0)


def recommend(args: argparse.Namespace) -> Outcome:
    """Which clip skip a model wants, measured."""
    from . import recommend as measured

    return measured.run(args)


def gc(args: argparse.Namespace) -> Outcome:
    """Free what no manifest names, and what is cached."""
    from clipskip.engines import files, kept, publish

    if args.store is None and not args.cache:
        raise RequestError("gc takes a STORE, or --cache", field="store", hint=f"{hints.clipskip()} gc --help")
    budget, removed, cached = builds.budget(args), dict[str, int](), dict[str, int]()
    if args.store is not None:
        removed = publish.gc(args.store, dry_run=args.dry_run, lora_budget=budget)
    if args.cache:
        cached = kept.clear(dry_run=args.dry_run)
    lines = [f"{name}  {files.readable_size(size)}" for name, size in (removed | cached).items()]
    if args.cache:
        total, most = files.readable_size(sum(cached.values())), kept.limit() / 2**30
        where = files.own_folder() or "no folder"
        lines.append(f"{total} {'in' if args.dry_run else 'from'} {where}; prepacked weights take at most {most:g} GiB")
    text = "\n".join(lines or ["nothing to remove"])
    return Outcome({"removed": removed, "cache": cached, "dry_run": args.dry_run}, text)


def doctor(args: argparse.Namespace) -> Outcome:
    """Versions, GPUs, and what each target lacks."""
    from . import doctor as examination

    facts = examination.examine()
    return Outcome(facts, examination.text(facts))


def bench(args: argparse.Namespace) -> Outcome:
    """Medians of repeated runs per stage; the exit status is 1 where one is slower than the baseline."""
    from . import bench as measured

    return measured.run(args)
