"""Fill a draft with graphs: load the networks, trace them, measure each graph against torch.

Knows nothing of what is stale and how a draft is published.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import onnx_ir as ir

from clipskip.engines.manifest import Artefact, ModelFacts, Port
from clipskip.engines.publish import Draft
from clipskip.engines.shapes import LATENT
from clipskip.export import cases, gates, graphs, models, onnxfile
from clipskip.export.gates import Case
from clipskip.export.graphs import Graph
from clipskip.export.models import Networks
from clipskip.export.parts import Checkpoint

Say = Callable[[str], None]
_USED = ("torch", "transformers", "diffusers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def build(draft: Draft, source: Checkpoint, facts: ModelFacts, say: Say) -> None:
    """Everything that the draft wants, and the tokenizer. NumericalError where a graph disagrees with torch."""
    say("loading the networks")
    precision = next(iter(draft.wanted))[2]
    networks = models.load(source)
    if precision == "fp16":
        models.check_halves(networks)
    for name, content in source.tokenizer.items():
        (draft.folder / name).write_bytes(content)
    draft.tokenizer(list(source.tokenizer))
    work = _Work(draft, networks, facts, source.vocabulary, precision, say)
    for part in ("text", "step", "decode", "encode"):
        if roles := sorted(role for role, _, _ in draft.wanted if role.partition("-")[0] == part):
            work.make(part, roles)


@dataclass(frozen=True)
class _Work:
    """What every graph of one build has in common."""

    draft: Draft
    networks: Networks
    facts: ModelFacts
    vocabulary: Mapping[str, int]
    precision: str
    say: Say

    def make(self, part: str, roles: Sequence[str]) -> None:
        """Trace one part, then write and measure the graphs that it falls into."""
        self.say(f"tracing {part}")
        graph = self._graph(part)
        model = onnxfile.trace(graph, self.facts.size_step // LATENT)
        self.say(f"measuring {part}")
        trials = self._cases(part)
        name = f"{part}.bin"
        with (self.draft.folder / name).open("wb") as file:
            weights = onnxfile.Weights(file, name)
            for role, piece, outputs in _pieces(graph, model, roles):
                path = self.draft.folder / f"{role}.onnx"
                weights.save(piece, path)
                parity = gates.measure(role, path, trials[role])
                self.draft.add(self._artefact(role, replace(graph, outputs=outputs), parity), [path.name, name])

    def _graph(self, part: str) -> Graph:
        if part == "text":
            return graphs.text_graph(self._network(self.networks.text), self.facts, self.precision)
        if part == "step":
            return graphs.step_graph(self._network(self.networks.unet), self.facts, self.precision)
        vae = self._network(self.networks.vae)
        return graphs.decode_graph(vae) if part == "decode" else graphs.encode_graph(vae)

    def _network(self, module: models.Network) -> models.Network:
        return models.half_with_float_norms(copy.deepcopy(module)) if self.precision == "fp16" else module

    def _cases(self, part: str) -> dict[str, list[Case]]:
        half = self.precision == "fp16"
        if part in ("decode", "encode"):
            return {part: getattr(cases, part)(self.networks.vae, half)}
        depths = cases.text(self.networks.text, self.facts, self.vocabulary, half)
        if part == "text":
            return {f"text-{depth:02}": each for depth, each in enumerate(depths)}
        return {"step": cases.step(self.networks.unet, depths[-1][-1].exact["context"], self.facts, half)}

    def _artefact(self, role: str, graph: Graph, parity: dict[str, float]) -> Artefact:
        return Artefact(
            role, "onnx", self.precision, graph.inputs, graph.outputs,
            axes=graphs.axes(graph.inputs + graph.outputs, self.facts), parity=parity,
            provenance={name: version(name) for name in _USED},
        )  # fmt: skip


def _pieces(graph: Graph, model: ir.Model, roles: Sequence[str]) -> Iterator[tuple[str, ir.Model, tuple[Port, ...]]]:
    """The graphs that a traced model falls into: itself, or a text encoder of each depth."""
    if graph.role != "text":
        yield graph.role, model, graph.outputs
        return
    for role in roles:
        port = graph.outputs[int(role.partition("-")[2])]
        yield role, onnxfile.cut(model, port.name, "context"), (replace(port, name="context"),)
