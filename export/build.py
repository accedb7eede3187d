"""Fill a draft with graphs, each measured against torch. Knows nothing of what is stale and how it is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version

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

    Torch is asked for a network's cases before its norms are settled and it is traced, and leaves it in the precision
    of the graphs: two copies of a network do not fit into the memory of a small machine.
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
    write = partial(trace_and_measure, draft, facts, say, parameters)
    texts = sorted(role for role in roles if role.part == "text")
    if texts or STEP in roles:
        say("asking torch for the contexts")
        depths = cases.text(networks, facts, half)
    if texts:
        for text in networks.texts:
            settle(text)
        trials = {role: depths[role.layers or 0] for role in texts}
        write(graphs.text_graph(networks, facts, precision), trials)
    if STEP in roles:
        step = graphs.step_graph(networks, facts, precision)
        trials = {STEP: cases.step(step, depths[facts.kept[0]][-1].exact["context"], half)}
        settle(networks.unet)
        write(step, trials)
    if roles & {DECODE, ENCODE}:
        trials = {DECODE: cases.decode(networks.vae), ENCODE: cases.encode(networks.vae, half)}  # the latter halves it
        settle(networks.vae)
        for graph in (graphs.decode_graph(networks.vae), graphs.encode_graph(networks.vae)):
            if (role := Role(graph.role)) in roles:
                write(graph, {role: trials[role]})


def trace_and_measure(
    draft: Draft, facts: ModelFacts, say: Callable[[str], None], parameters: Mapping[Tensor, str], graph: Graph,
    trials: Mapping[Role, list[Case]],
) -> None:  # fmt: skip
    """Trace the graph, write it for each role (of the text encoder a graph per depth, on one file) and measure it."""
    say(f"tracing {graph.role}")
    model = onnxfile.trace(graph, parameters)
    say(f"measuring {graph.role}")
    name = f"{graph.role}.bin"
    provenance = {library: version(library) for library in _USED} | {"onnxruntime": gpu.onnxruntime().__version__}
    with (draft.folder / name).open("wb") as file:
        weights = onnxfile.Weights(file, name)
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
                    *identity[:3], graph.inputs, outputs, graphs.axes(graph.inputs + outputs, facts),
                    gates.measure(role, path, expected), provenance, (kept,) * bool(norms.kept(piece)),
                    variant=identity.variant,
                )  # fmt: skip
                draft.add(artefact, [path.name, f"{identity.stem}{SUFFIX}", name])
