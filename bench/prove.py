"""One report of a checkpoint: `make prove MODEL=...`, or `python -m clipskip.bench.prove CHECKPOINT STORE`.

How exactly its graphs agree with PyTorch, by depth; a sheet by clip skip; the clip skip that it wants, where captioned
pictures are given; how long things take; and whether fp16 holds when activations have outliers. Most is what commands
of clipskip say, run as a user runs them: one that fails is reported as what it said. Writes report.md, report.json and
the drawings into a folder that can be sent.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import clipskip
from clipskip.bench import outliers
from clipskip.bench.measure import OWN_PATH
from clipskip.bench.store import PROMPT
from clipskip.cli import output
from clipskip.engines.manifest import Manifest
from clipskip.engines.store import Store

FACTORS, MINUTES = (1, 10, 100), 4
COMMAND = f"{OWN_PATH}from clipskip.__main__ import main; raise SystemExit(main())"
Found = dict[str, Any]


def said(*arguments: object) -> Found:
    """What a command of clipskip answers; an object with `error` where it fails."""
    output.say(f"clipskip {' '.join(map(str, arguments))}")
    command = [sys.executable, "-c", COMMAND, *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout.strip():
        return {"error": {"message": f"ended with status {done.returncode} and no answer", "hint": None}}
    answer: Found = json.loads(done.stdout.splitlines()[-1])
    return answer


def parity(manifest: Manifest) -> Found:
    """The figures of the gates of every exported graph and form: by precision, then role (and form)."""
    found: Found = {}
    for artefact in manifest.artefacts:
        if artefact.target == "onnx":
            found.setdefault(artefact.precision, {})[artefact.identity.stem] = dict(artefact.parity)
    return found


def skips(manifest: Manifest) -> dict[int, int]:
    """The clip skips with graphs in the store, and the layers that each keeps; of those that are alike the least."""
    stored = {artefact.role.layers for artefact in manifest.artefacts if artefact.role.part == "text"}
    layers = {kept: skip for skip, kept in reversed([*enumerate(manifest.model.kept, 1)]) if kept in stored}
    return dict(sorted((skip, kept) for kept, skip in layers.items()))


def exaggerated(checkpoint: Path, folder: Path, prediction: str) -> Found:
    """By factor: the activations of a copy with outliers, and its parity in fp16, or why it was refused."""
    found: Found = {}
    for factor in FACTORS:
        copy, store = folder / f"times-{factor}", folder / f"store-{factor}"
        output.say(f"outliers {factor} times as large")
        found[str(factor)] = {"activations": outliers.copy(checkpoint, copy, factor)}
        settings = "--precision", "fp16", "--skips", "1,2", "--prediction", prediction
        answer = said("export", copy, "--out", store, *settings)
        found[str(factor)] |= answer if "error" in answer else parity(Store(store).manifest())
        for each in (copy, store):
            shutil.rmtree(each, ignore_errors=True)
    return found


def examine(args: argparse.Namespace) -> Found:
    """Everything that goes into the report."""
    manifest = Store(args.store).manifest()
    model, chosen = manifest.model, skips(manifest)
    request = ["--steps", args.steps, "--seed", 1, *(["--size", args.size] if args.size else [])]
    axis, where = f"clip_skip={','.join(map(str, chosen))}", ["--overwrite", "--target", args.target]
    sheet = said("grid", args.store, args.prompt, "--x", axis, *request, "--out", args.out / "sheet.png", *where)
    sheet.pop("cells", None)  # thirteen times the same request
    found = {
        "bench": "prove", "model": model.name, "family": model.family, "model_sha256": model.model_sha256,
        "prediction": model.prediction, "date": time.strftime("%Y-%m-%d"), "version": clipskip.__version__,
        "machine": platform.platform(), "python": platform.python_version(), "target": args.target,
        "clip_skips": chosen, "recommended_clip_skip": model.recommended_clip_skip, "parity": parity(manifest),
        "prompt": args.prompt, "sheet": sheet,
    }  # fmt: skip
    if args.pictures:
        plot = args.out / "recommend.png"
        found["recommend"] = said("recommend", args.store, "--pictures", args.pictures, "--plot", plot, *where)
    found["times"] = said("bench", args.store, "--target", args.target, "--minutes", MINUTES)
    found["outliers"] = exaggerated(args.checkpoint, args.out / "copies", model.prediction)
    return found


def markdown(found: Mapping[str, Any]) -> Iterator[str]:
    """The report for people, line by line."""
    yield f"# {found['model']}\n"
    yield f"clipskip {found['version']}, {found['date']}, {found['machine']}, {found['target']}."
    yield f"{found['family']}, {found['prediction']}, clip skip {found['recommended_clip_skip']} by default;"
    yield f"model SHA-256 {found['model_sha256']}.\n\n## Agreement with PyTorch\n"
    for precision, graphs in found["parity"].items():
        yield f"{precision}, as measured when it was exported, on inputs of the gates:\n"
        yield "| graph | clip skip | figures |\n|---|---|---|"
        named = {f"text-{layers:02}": str(skip) for skip, layers in found["clip_skips"].items()}
        yield from (f"| {name} | {named.get(name, '')} | {figures(each)} |" for name, each in graphs.items())
    yield f"\n## By clip skip\n\n`{found['prompt']}`\n"
    yield problem(found["sheet"]) or "![everything but clip skip locked](sheet.png)"
    yield "\n## The clip skip that it wants\n"
    wants = found.get("recommend")
    yield "no captioned pictures were given" if wants is None else problem(wants) or wants["evidence"]
    if wants and "error" not in wants:
        yield "\n![loss by depth](recommend.png)"
    yield "\n## Times\n"
    yield problem(found["times"]) or "| stage | median, ms | runs |\n|---|---|---|"
    for name, stage in found["times"].get("stages", {}).items():
        yield f"| {name} | {stage['median_ms']:.2f} | {stage['runs']} |"
    yield from (f"\nDoubtful: {doubt}." for doubt in found["times"].get("doubts", {}))
    yield "\n## fp16 with outliers\n"
    yield f"Of copies in whose residual streams {outliers.CHANNELS} channels are so many times as large."
    yield "Activations are the largest, and the largest relative to the root mean square of its tensor.\n"
    yield "| times | text | U-Net | gates of fp16 |\n|---|---|---|---|"
    for factor, copy in found["outliers"].items():
        cells = [
            f"{each['largest']:.3g} ({each['times_rms']:.0f})" if (each := copy["activations"].get(name)) else "-"
            for name in ("text", "unet")
        ]
        held = "; ".join(f"{name}: {figures(each)}" for name, each in copy.get("fp16", {}).items())
        yield f"| {factor} | {' | '.join(cells)} | {problem(copy) or held} |"


def figures(parity: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2g}" for name, value in parity.items())


def problem(answer: Mapping[str, Any]) -> str:
    """What a command said that failed, for a cell of a table; nothing where it did not."""
    error = answer.get("error")
    return f"**failed**: {error['message']}".replace("\n", " ").replace("|", "/") if error else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status is 1 where a part failed that has nothing to do with outliers."""
    parser = argparse.ArgumentParser(prog="clipskip.bench.prove", description="One report of a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("store", type=Path, help="what was exported from it")
    parser.add_argument("--out", type=Path, help="the folder of the report (default: build/prove/NAME)")
    parser.add_argument("--pictures", type=Path, help="captioned pictures, as `recommend` takes them")
    parser.add_argument("--prompt", default=PROMPT, help="of the sheet")
    parser.add_argument("--size", help="of the sheet's pictures (default: the model's own)")
    parser.add_argument("--steps", type=int, default=12, help="of the sheet's pictures")
    parser.add_argument("--target", default="onnxruntime", help="the backend")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("build/prove", args.store.name)
    args.out.mkdir(parents=True, exist_ok=True)
    found = examine(args)
    (args.out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "report.md").write_text(text := "\n".join(markdown(found)) + "\n")
    shutil.rmtree(args.out / "copies", ignore_errors=True)
    print(text)
    print(json.dumps(found))
    return int(any("error" in found.get(part, {}) for part in ("sheet", "recommend", "times")))


if __name__ == "__main__":
    sys.exit(main())
