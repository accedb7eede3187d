"""The verbs that fill an engine store: `export` and `build`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict

from clipskip import fields
from clipskip.engines import hints
from clipskip.errors import BackendUnavailable, RequestError

from . import Outcome, Parser, Verbs, extra, output, path, store_verb

OPTIONS = (  # of TensorRT's
    "skips", "lora", "sizes", "max_batch", "max_chunks", "compute_capability", "workspace", "device",
)  # fmt: skip


def add_to(verbs: Verbs) -> None:
    """Let argparse know these verbs."""
    verb = verbs.add_parser("export", help="checkpoint -> graphs", description="Export a checkpoint into a store.")
    verb.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a diffusers folder, or one file")
    verb.add_argument("--out", type=path, required=True, metavar="STORE", help="the folder of the engine store")
    verb.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="fp32 for the CPU, fp16 for GPUs")
    verb.add_argument("--skips", default="all", help='clip skips to export, such as "1,2" or "1-4" (default: all)')
    verb.add_argument("--recommended-clip-skip", metavar="N", help="what requests get that say nothing (default: 1)")
    text = "what the U-Net predicts (default: what the checkpoint says, else epsilon)"
    verb.add_argument("--prediction", choices=("epsilon", "v_prediction"), help=text)
    verb.add_argument("--vae", type=path, metavar="FILE", help="another VAE: a file, or a diffusers folder")
    text = "a LoRA to merge, with its weight and that of its text half; may be repeated"
    verb.add_argument("--lora", action="append", default=[], metavar="FILE[:W[:TEXT W]]", help=text)
    text = "TAESD as a second decoder, for decoder=tiny and previews: a file, or a diffusers folder"
    verb.add_argument("--tiny-vae", type=path, metavar="FILE", help=text)
    verb.set_defaults(run=export)
    text = "Build what a target runs from the graphs of a store. Only tensorrt needs a GPU for it."
    verb = store_verb(verbs, build, "graphs -> what a target runs", text)
    targets = ("onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
    verb.add_argument("--target", required=True, choices=targets)
    verb.add_argument("--skips", help='clip skips to build, such as "1,2" (default: all that were exported)')
    verb.add_argument("--sizes", metavar="LOW-BEST-HIGH", help="heights and widths in pixels, such as 256-512-768")
    verb.add_argument("--max-batch", metavar="N", help="images in one call of the network (default: 4)")
    verb.add_argument("--max-chunks", metavar="N", help="prompt length in chunks of 75 (default: 3)")
    verb.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="X.Y",
        help="tensorrt-rtx only, may be repeated (default: 8.6, 8.9 and 12.0)",
    )
    verb.add_argument("--workspace", metavar="MIB", help="memory that the builder may use on the GPU")
    verb.add_argument("--device", metavar="N", help="tensorrt only: the number of the GPU to build on (default: 0)")
    text = "engines with this LoRA in their weights, for requests that ask for exactly these; may be repeated"
    verb.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT[:TEXT WEIGHT]]", help=text)
    add_budget(verb)


def add_budget(verb: Parser) -> None:
    """What engines with LoRAs may take of the disk."""
    text = "disk space for engines with LoRAs (default: 20); beyond it the oldest go that nobody uses"
    verb.add_argument("--lora-budget", metavar="GIB", default="20", help=text)


def budget(args: argparse.Namespace) -> int:
    """That, in bytes."""
    return fields.at_least("lora_budget", fields.parse(args.lora_budget), 0) << 30


def export(args: argparse.Namespace) -> Outcome:
    """Trace, cut, gate and publish the graphs of a checkpoint."""
    recommended = args.recommended_clip_skip
    settings = {
        "precision": args.precision,
        "skips": _skips(args.skips),
        "recommended_clip_skip": recommended and fields.whole("recommended_clip_skip", recommended),
        "prediction": args.prediction,
        "vae": args.vae,
        "loras": args.lora,
        "tiny_vae": args.tiny_vae,
    }
    with extra("export", "exporting"), output.stages() as say:
        from clipskip.engines import report
        from clipskip.export.job import export as run
        from clipskip.export.job import fill_in_child

        manifest = run(args.checkpoint, args.out, progress=say, fill=fill_in_child, **settings)
    seal = report.seal(args.out)
    facts = {"store": str(args.out), "model": manifest.model.name, "manifest_sha256": seal}
    return Outcome(facts, f"{args.out}: {manifest.model.name}\nmanifest SHA-256: {seal}")


def _skips(text: str | None) -> list[int] | None:
    return None if text in (None, "all") else fields.ranges("skips", text)


def build(args: argparse.Namespace) -> Outcome:
    """Build what is missing or stale; what was built before a failure stays."""
    from clipskip.engines import publish, report, shapes, tensorrt, variants
    from clipskip.engines.files import readable_size
    from clipskip.engines.gpu import Device
    from clipskip.engines.store import Store

    store = Store(args.store)
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name)}
    if args.target.startswith("onnxruntime"):
        return _forms(args, given)
    if args.device and args.target == "tensorrt-rtx":
        raise RequestError("device is for tensorrt: TensorRT-RTX builds without a GPU", field="device")
    skips = _skips(args.skips)
    numbers = {name: fields.whole(name, given[name]) for name in ("max_batch", "max_chunks") if name in given}
    options = shapes.BuildOptions(
        sizes=shapes.parse_sizes(args.sizes) if args.sizes else None,
        layers=None if skips is None else shapes.kept_layers(skips, store.manifest().model.kept),
        compute_capabilities=tuple(args.compute_capability),
        workspace=fields.whole("workspace", args.workspace) << 20 if args.workspace else None,
        **numbers,
    )
    device = Device("cuda", fields.whole("device", args.device or "0"))
    loras = variants.opened(store, tensorrt.PRECISION, args.lora)
    with output.stages() as say:
        how = {"target": args.target, "options": options, "progress": say, "device": device}
        built = tensorrt.build(store, **how, loras=loras)
        del store  # which keeps engines from going
        needed = {engine.role for engine in built}
        removed = publish.gc(args.store, lora_budget=budget(args), needed=needed) if loras else {}
        for name, size in removed.items():
            say(f"removed {name}, {readable_size(size)}")
    rows = [(engine.role, f"built in {engine.seconds:.1f} s" if engine.rebuilt else "up to date") for engine in built]
    seal, engines = report.seal(args.store), [asdict(engine) for engine in built]
    fit = f"for compute capability {built[0].compute_capability}" if built else "nothing that is exported changes"
    text = f"{report.table(rows)}\n{fit}\nmanifest SHA-256: {seal}"
    return Outcome({"store": str(args.store), "engines": engines, "manifest_sha256": seal}, text)


def _forms(args: argparse.Namespace, given: Mapping[str, object]) -> Outcome:
    """Forms of the exported graphs, for one of ONNX Runtime's providers."""
    taken = {"onnxruntime": set[str](), "onnxruntime-cuda": {"skips"}}[args.target]
    if strange := [name for name in given if name not in taken]:
        message = f"--target {args.target} takes no {', '.join(strange)}: it runs the exported graphs, of any size"
        raise RequestError(message, field=strange[0], hint="what to export is up to clipskip export")
    try:
        from clipskip.engines import report, shapes
        from clipskip.engines.forms.build import build as run
        from clipskip.engines.gpu import onnxruntime
        from clipskip.engines.store import Store

        onnxruntime()
    except ImportError as error:
        package = str(error.name).replace("_", "-")
        raise BackendUnavailable(f"building forms needs {package}", hint=hints.install(package)) from error
    skips, variant = _skips(args.skips), "cpu" if args.target == "onnxruntime" else "cuda"
    store = Store(args.store)
    layers = None if skips is None else shapes.kept_layers(skips, store.manifest().model.kept)
    with output.stages() as say:
        built = run(store, variant, progress=say, layers=layers)
    engines = [{"role": name, "rebuilt": took is not None, "seconds": took or 0.0} for name, took in built.items()]
    rows = [(name, "up to date" if took is None else f"built in {took:.1f} s") for name, took in built.items()]
    seal = report.seal(args.store)
    text = f"{report.table(rows)}\nmanifest SHA-256: {seal}"
    return Outcome({"store": str(args.store), "engines": engines, "manifest_sha256": seal}, text)
