"""Fill a draft with graphs, each measured against torch. Knows nothing of what is stale and how it is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import onnx
from torch import Tensor, nn

from clipskip.engines import gates, gpu
from clipskip.engines.forms import COMMON, FORMS, norms
from clipskip.engines.forms.rewrite import rewrite
from clipskip.engines.gates import Case
from clipskip.engines.manifest import DECODE, ENCODE, ROLE, STEP, Artefact, ModelFacts, Role
from clipskip.engines.publish import Draft
from clipskip.engines.weights import SUFFIX
from clipskip.export import cases, graphs, lora, models, onnxfile, tokenizer
from clipskip.export.checkpoint import Checkpoint
from clipskip.export.graphs import Graph

_USED = ("torch", "transformers", "diffusers", "onnx", "onnx-ir", "onnxscript")


def build(draft: Draft, source: Checkpoint, facts: ModelFacts, say: Callable[[str], None]) -> None:
    """Everything that the draft wants, and the tokenizer. NumericalError where a graph disagrees with torch.

    Torch is asked for a network's cases before its norms are settled and it is traced, leaves it in the precision of
    the graphs, and forgets it before ONNX Runtime reads what was written: two copies do not fit into a small machine.
    """
    say("loading the networks")
    roles = {identity.role for identity in draft.wanted}
    precision = next(iter(draft.wanted)).precision
    half = precision == "fp16"
    networks = models.load(source)
    parameters = networks.parameters
    lora.merge(networks, source.loras, say)
    source.files.check_unchanged()
    if half:
        models.check_halves(networks)
    vocabulary = tokenizer.filled(source.vocabulary, facts.vocabulary)
    for name, content in {**source.tokenizer, "vocab.json": vocabulary}.items():
        (draft.folder / name).write_bytes(content)
    draft.tokenizer(list(source.tokenizer))

    settle: Callable[[nn.Module], object] = models.keep_norms_in_float if half else nn.Module.eval
    write = partial(trace, draft, facts, say, parameters)
    texts = sorted(role for role in roles if role.part == "text")
    if texts or STEP in roles:
        say("asking torch for the contexts")
        depths = cases.text(networks, facts, half)
    if texts:
        for text in networks.texts:
            settle(text)
        written = write(
            graphs.text_graph(networks, facts, precision), {role: depths[role.layers or 0] for role in texts}
        )
        models.forget(*networks.texts)
        measure(draft, say, written)
    if STEP in roles:
        step = graphs.step_graph(networks, facts, precision)
        trials = {STEP: cases.step(step, depths[facts.kept[0]][-1].exact["context"], half)}
        settle(networks.unet)
        written = write(step, trials)
        models.forget(networks.unet)
        measure(draft, say, written)
    if roles & {DECODE, ENCODE}:
        trials = {DECODE: cases.decode(networks.vae), ENCODE: cases.encode(networks.vae, half)}  # the latter halves it
        settle(networks.vae)
        for graph in (graphs.decode_graph(networks.vae), graphs.encode_graph(networks.vae)):
            if (role := Role(graph.role)) in roles:
                measure(draft, say, write(graph, {role: trials[role]}))


@dataclass(frozen=True)
class Written:
    """A graph in the draft, with what it is to be measured on and by."""

    artefact: Artefact
    path: Path
    cases: list[Case]


def trace(
    draft: Draft, facts: ModelFacts, say: Callable[[str], None], parameters: Mapping[Tensor, str], graph: Graph,
    trials: Mapping[Role, list[Case]],
) -> list[Written]:  # fmt: skip
    """Trace the graph and write it for each role: of the text encoder a graph per depth, on one file."""
    say(f"tracing {graph.role}")
    model, written = onnxfile.trace(graph, parameters), list[Written]()
    provenance = {library: version(library) for library in _USED} | {"onnxruntime": gpu.onnxruntime().__version__}
    with (draft.folder / f"{graph.role}.bin").open("wb") as file:
        weights = onnxfile.Weights(file, f"{graph.role}.bin")
        if next(iter(draft.wanted)).precision == "fp16":
            probe = draft.folder / "probe.onnx"
            weights.save(norms.probe(model), probe)
            norms.keep_spoiled(model, gates.run(probe, [case.feeds for case in next(iter(trials.values()))]))
        for role, expected in trials.items():
            piece, outputs = model, graph.outputs
            if role.layers is not None:
                names = {f"context-{role.layers:02}": "context"}
                names |= {port.name: port.name for port in outputs if not port.name.startswith("context-")}
                outputs = tuple(replace(port, name=names[port.name]) for port in outputs if port.name in names)
                piece = onnxfile.cut(model, names)
            piece.metadata_props[ROLE] = str(role)
            for identity in sorted(identity for identity in draft.wanted if identity.role == role):
                rewrite(piece, FORMS[identity.variant][role.part] if identity.variant else COMMON)
                path = draft.folder / f"{identity.stem}.onnx"
                weights.save(piece, path)
                onnx.checker.check_model(path)
                kept = f"norms in fp32, for fp16 would spoil them: {', '.join(norms.kept(piece))}"
                artefact = Artefact(
                    *identity[:3], graph.inputs, outputs, graphs.axes(graph.inputs + outputs, facts), {}, provenance,
                    (kept,) * bool(norms.kept(piece)), variant=identity.variant,
                )  # fmt: skip
                written.append(Written(artefact, path, expected))
    for value in model.graph.initializers.values():
        value.const_value = None  # rules of the exporter keep the last graph that they saw, and it all weights
    return written


def measure(draft: Draft, say: Callable[[str], None], written: Iterable[Written]) -> None:
    """Let ONNX Runtime show that the graphs agree with torch, and add them to the draft. NumericalError."""
    for each in written:
        role = each.artefact.role
        say(f"measuring {role}")
        parity = gates.measure(role, each.path, each.cases)
        files = [each.path.name, each.path.with_suffix(SUFFIX).name, f"{role.part}.bin"]
        draft.add(replace(each.artefact, parity=parity), files)
