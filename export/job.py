"""Export a checkpoint into an engine store: what is stale is traced, measured against torch and only then published.

Everything slow to import is imported when it is needed: an export that has nothing to do answers at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from clipskip.engines import child, files, identify, publish, stale
from clipskip.engines.errors import EngineMissing, ManifestError, RequestError
from clipskip.engines.lora import Choice
from clipskip.engines.manifest import DECODE, DECODE_TINY, ENCODE, STEP, Identity, Manifest, ModelFacts, Role
from clipskip.engines.shapes import kept_layers
from clipskip.engines.store import read_manifest
from clipskip.export import families
from clipskip.export.checkpoint import Checkpoint, open_checkpoint
from clipskip.export.tinyfile import TinyDecoder, open_tiny

# What decides which graphs a checkpoint gives: a store made by another version of it is stale.
GRAPH_WRITERS = (
    "build.py", "checkpoint.py", "graphs.py", "lora.py", "models.py", "names.py", "onefile.py", "onnxfile.py",
    "parts.py", "tensors.py", "tokenizer.py", "../engines/lora.py",
    *(f"families/{name}.py" for name in ("__init__", "family", "sd1", "sd2", "sdxl")),
    *(f"../engines/forms/{name}.py" for name in ("__init__", "attention", "cpu", "norms", "origins", "rewrite")),
)  # fmt: skip
TINY_WRITERS = (*GRAPH_WRITERS, "tiny.py", "tinyfile.py")
TARGET = "onnx"
CPU_FORMS = ("step", "decode", "encode")  # the parts whose form for the CPU is written beside an fp32 graph
PRECISIONS = {"fp32": 4, "fp16": 2}  # bytes of a weight
_LIBRARIES = ("torch", "transformers", "diffusers", "onnx", "onnx-ir", "onnxscript")
Progress = Callable[[str], None]
Source = Checkpoint | TinyDecoder
Fill = Callable[[publish.Draft, Source, ModelFacts, Progress], None]


def fill(draft: publish.Draft, source: Source, facts: ModelFacts, progress: Progress) -> None:
    """Make what the draft wants in this process, which then holds torch."""
    with files.shortage_named(room=PRECISIONS["fp32"] * source.weights):
        from clipskip.export import build, tiny

        if isinstance(source, TinyDecoder):
            tiny.write(draft, source, facts, progress)
        else:
            build.build(draft, source, facts, progress)


def fill_in_child(draft: publish.Draft, source: Source, facts: ModelFacts, progress: Progress) -> None:
    """Make what the draft wants in a process of its own: where memory runs out, no other is killed or aborted."""
    work, task = "clipskip.export.job:filled", (draft, source, facts)
    vars(draft).update(vars(child.run(
        work, task, lambda stage: progress(stage) if stage else None, what="export", folder=draft.folder,
        hint="close other programs, or export on a machine with more memory: the store goes with you",
    )))  # fmt: skip


def filled(task: tuple[publish.Draft, Source, ModelFacts], report: Progress) -> publish.Draft:
    """The child's work."""
    fill(*task, report)
    return task[0]


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    precision: str = "fp32",
    skips: Sequence[int] | None = None,
    recommended_clip_skip: int | None = None,
    prediction: str | None = None,
    vae: str | Path | None = None,
    loras: Sequence[str | Path] = (),
    tiny_vae: str | Path | None = None,
    progress: Progress = lambda stage: None,
    fill: Fill = fill,
) -> Manifest:
    """Export the Stable Diffusion checkpoint `checkpoint` into the engine store `out`.

    `skips`: the clip skips to make text graphs for, 1 (all layers) to layers + 1 (embeddings only); None for all.
    `recommended_clip_skip`: what requests get that say nothing; `prediction`: "epsilon" or "v_prediction", whatever the
    checkpoint says; what is not said stays as the store has it. `vae`: a file or folder with another VAE.
    `loras`: files to merge, each as "FILE", "FILE:weight" or "FILE:weight:text weight"; they make another model.
    `tiny_vae`: a file or folder with TAESD, a second decoder that requests may choose; a later export may bring it.
    `progress` hears of each stage as it begins. What is there and unchanged, by content, is not made again.
    `fill`: how graphs are made, as by `fill_in_child`, which keeps torch and its hunger for memory out of this process.
    NumericalError where a new graph disagrees with torch, CheckpointError, UnsupportedModelError, ExportError,
    RequestError, StorageError, DeviceOutOfMemory; the store is then as it was.
    """
    if precision not in PRECISIONS:
        raise RequestError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}", field="precision")
    if prediction not in (None, "epsilon", "v_prediction"):
        raise RequestError(f"prediction must be epsilon or v_prediction, not {prediction!r}", field="prediction")
    progress("reading the checkpoint")
    source, out = open_checkpoint(Path(checkpoint), Path(vae) if vae else None), Path(out)
    source = source.with_loras(Choice.parse(str(each)) for each in loras)
    tiny = open_tiny(Path(tiny_vae)) if tiny_vae else None
    if source.holds(out.resolve()):
        raise RequestError(f"{out} is where the checkpoint is", field="out", hint="name a folder of its own")
    earlier = None
    with suppress(EngineMissing, ManifestError):
        earlier = read_manifest(out).model
    facts = families.facts(source, recommended_clip_skip, prediction, earlier)
    for note in source.notes:
        progress(note)
    suggested = identify.examine(source.unet.weights).suggested_clip_skip
    facts = replace(facts, suggested_clip_skip=suggested if suggested in range(1, len(facts.kept) + 1) else None)
    if earlier and recommended_clip_skip is None and earlier.model_sha256 == facts.model_sha256:
        facts = replace(facts, evidence=earlier.evidence)
    identities = _identities(facts, precision, skips, out)
    needs = PRECISIONS[precision] * source.weights
    with publish.build(out, f"{TARGET}-{precision}", identities, progress=progress, model=facts, needs=needs) as draft:
        if draft is not None:
            fill(draft, source, facts, progress)
    if tiny is not None:
        recipe = {**_recipe(facts, precision, TINY_WRITERS), "tiny VAE": tiny.key}
        wanted, needs = {Identity(DECODE_TINY, TARGET, precision): recipe}, PRECISIONS[precision] * tiny.weights
        with publish.build(out, f"{TARGET}-{precision}-tiny", wanted, progress=progress, needs=needs) as draft:
            if draft is not None:
                fill(draft, tiny, facts, progress)
    return read_manifest(out)


def _recipe(facts: ModelFacts, precision: str, writers: Sequence[str]) -> dict[str, str]:
    """The ingredients of graphs that these of our files write."""
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in writers)
    exporter = hashlib.sha256(sources).hexdigest()[:16]
    libraries = {library: version(library) for library in _LIBRARIES}
    return {"model": facts.model_sha256, "precision": precision, "exporter": exporter, **libraries}


def _identities(
    facts: ModelFacts, precision: str, skips: Sequence[int] | None, root: Path
) -> dict[Identity, dict[str, str]]:
    """What is to be there in the end, less what is there already; all of it where nothing has to be made.

    The text graphs share a weight file, so one that is missing brings back those that the store has; so do a graph and
    its form.
    """
    ingredients = _recipe(facts, precision, GRAPH_WRITERS)
    if skips is not None and not skips:
        raise RequestError("skips must name at least one clip skip", field="skips")
    depths = sorted({*facts.kept}) if skips is None else kept_layers(skips, facts.kept)
    roles = [*(Role("text", depth) for depth in depths), STEP, DECODE, ENCODE]
    forms = [Identity(Role(part), TARGET, precision, "cpu") for part in CPU_FORMS] if precision == "fp32" else []
    wanted = dict.fromkeys([*(Identity(role, TARGET, precision) for role in roles), *forms], ingredients)
    stored: set[Identity] = set()
    with suppress(EngineMissing, ManifestError):
        mine = [artefact for artefact in read_manifest(root).artefacts if artefact.model == facts.model_sha256]
        texts = (artefact.identity for artefact in mine if artefact.role.part == "text")
        stored = {identity for identity in texts if identity[1:3] == (TARGET, precision)}
    skip = facts.recommended_clip_skip
    if Role("text", facts.kept[skip - 1]) not in {identity.role for identity in wanted.keys() | stored}:
        message = f"skips leave out {skip}, the recommended_clip_skip: requests that name none would find no graph"
        hint = f"add {skip} to --skips, or give one of them with --recommended-clip-skip"
        raise RequestError(message, field="recommended_clip_skip", hint=hint)
    missing = set(stale.reasons(root, wanted, facts))
    missing = {identity for identity in wanted if identity.role.part in {each.role.part for each in missing}}
    if any(identity.role.part == "text" for identity in missing):
        missing.update(stored)
    return dict.fromkeys(sorted(missing), ingredients) if missing else wanted
