"""Forms for a store: what to make of its graphs, and the proof on the CPU that a form computes what its graph does.

Needs neither torch nor the device that a form is for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from clipskip.engines import gates, gpu, publish, trials, weights
from clipskip.engines.forms import FORMS, origins
from clipskip.engines.forms.expand import expand
from clipskip.engines.forms.rewrite import rewrite, stored_apart
from clipskip.engines.locks import Progress
from clipskip.engines.manifest import DECODE_TINY, Artefact, Identity, Role, key_of
from clipskip.engines.publish import Draft
from clipskip.engines.store import FORM_TARGETS, Store

PRECISIONS = {"cpu": "fp32", "cuda": "fp16"}  # of the graphs that a variant is made of


def build(
    store: Store, variant: str, *, progress: Progress, layers: Sequence[int] | None = None
) -> dict[str, float | None]:
    """Make and publish the forms that are missing or stale; the seconds that each took, None where it was up to date.

    `layers`: of which text graphs, by default of all. Each part of the model is a publication of its own, so what was
    made before a failure stays. EngineMissing without the graphs, NumericalError where a form fails its gate.
    """
    precision, seconds = PRECISIONS[variant], dict[str, float | None]()
    exported = {graph.role for graph in store.manifest().artefacts if graph.identity[1:] == ("onnx", precision, "")}
    texts = {role for role in exported if role.part == "text"} if layers is None else {Role("text", n) for n in layers}
    for part in FORMS[variant]:
        roles = sorted(texts) if part == "text" else [Role(part)]
        roles = [role for role in roles if role != DECODE_TINY or role in exported]
        if graphs := [store.find(role, "onnx", precision) for role in roles]:
            seconds |= _build(store, variant, graphs, progress)
    return seconds


def _build(store: Store, variant: str, graphs: Sequence[Artefact], progress: Progress) -> dict[str, float | None]:
    """The forms of the graphs of one part, as one publication."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    forms = {graph.identity._replace(variant=variant): graph for graph in graphs}
    wanted = {}
    for identity, graph in forms.items():
        there = store.manifest().find(identity)
        wanted[identity] = {
            "model": graph.model,
            "graph": key_of({record.path.partition("/")[2]: record.sha256 for record in graph.files}),
            "forms": hashlib.sha256(sources).hexdigest(),
            "onnx-ir": version("onnx-ir"),
        }
        if there is not None and "exporter" in there.ingredients:  # export made it, with the graph
            wanted[identity] = dict(there.ingredients)
    label = f"{FORM_TARGETS[variant]}-{graphs[0].role.part}"
    needs = sum(record.size for record in {record for graph in graphs for record in graph.files})
    with publish.build(store.root, label, wanted, progress=progress, needs=needs) as draft:
        if draft is None:
            return dict.fromkeys(identity.stem for identity in forms)
        seconds = dict[str, float | None]()
        for identity, graph in forms.items():
            began = time.monotonic()
            _write(draft, store, graph, identity)
            seconds[identity.stem] = time.monotonic() - began
    return seconds


def _write(draft: Draft, store: Store, graph: Artefact, identity: Identity) -> None:
    """Write one form, and for runtimes, which do not read graphs, the table of its weights; and prove it."""
    exported, path = store.verify(graph), draft.folder / f"{identity.stem}.onnx"
    table, own = path.with_suffix(weights.SUFFIX), path.with_suffix(".bin")
    form, read_along = ir.load(exported), graph.files[1:]
    if (known := weights.table_path(graph, store.root)) is not None:
        origins.mark_all(form, weights.loads(known.read_bytes()))
        read_along = graph.files[2:]
    rewrite(form, FORMS[identity.variant][graph.role.part])
    files = [path, table, own] if stored_apart(form, own) else [path, table]
    ir.save(form, path)
    table.write_text(weights.dumps(origins.table(form)))
    expand(form)
    feeds = trials.of(graph.role, store.manifest().model, graph.precision == "fp16", graph.inputs)
    along = [store.root / record.path for record in read_along]
    given = gates.run(ir.to_proto(form).SerializeToString(), feeds, [*along, *files[2:]])
    pairs = list(zip(given, gates.run(exported, feeds), strict=True))
    parity = gates.judge(graph.role, pairs, graph.parity, identity.stem)
    provenance = {"onnx-ir": version("onnx-ir"), "onnxruntime": gpu.onnxruntime().__version__}
    made = replace(graph, variant=identity.variant, parity=parity, provenance=provenance, files=read_along)
    draft.add(made, [file.name for file in files])
