"""Export a checkpoint into an engine store: what is stale is traced, measured against torch and only then published.

Everything slow to import is imported when it is needed: an export that has nothing to do answers at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from clipskip.engines import gpu, publish, shapes, stale
from clipskip.engines.errors import EngineMissing, ManifestError, RequestError
from clipskip.engines.manifest import Identity, Manifest, ModelFacts, Role
from clipskip.engines.store import read_manifest
from clipskip.export import family
from clipskip.export.checkpoint import Checkpoint, open_checkpoint

# What decides which graphs a checkpoint gives.
GRAPH_WRITERS = ("build.py", "family.py", "graphs.py", "models.py", "names.py", "onnxfile.py", "single_file.py")
TARGET = "onnx"
PRECISIONS = {"fp32": 4, "fp16": 2}  # bytes of a weight
_LIBRARIES = ("torch", "transformers", "diffusers", "onnx", "onnx-ir", "onnxscript")


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    precision: str = "fp32",
    skips: Sequence[int] | None = None,
    recommended_clip_skip: int = 1,
    progress: Callable[[str], None] = lambda stage: None,
) -> Manifest:
    """Export the Stable Diffusion 1.x checkpoint in the folder `checkpoint` into the engine store `out`.

    `skips`: the clip skips to make text graphs for, 1 (all layers) to layers + 1 (embeddings only); None for all.
    `progress` hears of each stage as it begins. What is there and unchanged, by content, is not made again. Nothing is
    published unless every new graph agrees with torch: NumericalError.
    CheckpointError, UnsupportedModelError, ExportError, RequestError, StorageError; the store is then as it was.
    """
    if precision not in PRECISIONS:
        raise RequestError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}", field="precision")
    progress("reading the checkpoint")
    source = open_checkpoint(Path(checkpoint))
    facts = family.facts(source, recommended_clip_skip)
    wanted = _wanted(facts, precision, _depths(skips, facts), Path(out))
    needs = _size(source) * PRECISIONS[precision]
    with publish.build(out, f"{TARGET}-{precision}", wanted, progress=progress, model=facts, needs=needs) as draft:
        if draft is not None:
            gpu.offline()
            from clipskip.export import build

            build.build(draft, source, facts, progress)
    return read_manifest(Path(out))


def _size(source: Checkpoint) -> int:
    """The number of weights."""
    parts = (source.text, source.unet, source.vae)
    return sum(math.prod(tensor.shape) for part in parts for tensor in part.tensors.values())


def _exporter() -> str:
    """A hash of our own source, so that a store made by another version of it is stale without anybody's doing."""
    sources = b"".join(Path(__file__).with_name(name).read_bytes() for name in GRAPH_WRITERS)
    return hashlib.sha256(sources).hexdigest()[:16]


def _depths(skips: Sequence[int] | None, facts: ModelFacts) -> list[int]:
    """How many layers each text graph keeps."""
    if skips is None:
        return list(range(facts.layers + 1))
    if not skips:
        raise RequestError("skips must name at least one clip skip", field="skips")
    return shapes.depths(skips, facts.layers)


def _wanted(facts: ModelFacts, precision: str, depths: Iterable[int], root: Path) -> dict[Identity, dict[str, str]]:
    """What is to be there in the end, less what is there already; all of it where nothing has to be made.

    The text graphs share a weight file, so one that is missing brings back those that the store has.
    """
    ingredients = {"model": facts.model_sha256, "precision": precision, "exporter": _exporter()}
    ingredients |= {library: version(library) for library in _LIBRARIES}
    roles = [*(Role("text", depth) for depth in depths), Role("step"), Role("decode"), Role("encode")]
    wanted = {Identity(role, TARGET, precision): ingredients for role in roles}
    missing = set(stale.reasons(root, wanted, facts))
    if any(identity.role.part == "text" for identity in missing):
        missing.update(identity for identity in wanted if identity.role.part == "text")
        missing.update(_texts(root, facts, precision))
    return dict.fromkeys(sorted(missing), ingredients) if missing else wanted


def _texts(root: Path, facts: ModelFacts, precision: str) -> Iterator[Identity]:
    """The text graphs of this model that the store has."""
    try:
        manifest = read_manifest(root)
    except (EngineMissing, ManifestError):
        return
    for each in manifest.artefacts:
        of_this_model = each.model == facts.model_sha256 and each.identity == Identity(each.role, TARGET, precision)
        if of_this_model and each.role.part == "text":
            yield each.identity
