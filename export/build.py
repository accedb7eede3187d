"""Fill a draft with graphs: load the networks, trace them, measure each graph against torch.

Knows nothing of what is stale and how a draft is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import onnx_ir as ir
from torch import nn

from clipskip.engines import gpu
from clipskip.engines.manifest import Artefact, ModelFacts, Port, Role
from clipskip.engines.publish import Draft
from clipskip.engines.shapes import LATENT
from clipskip.export import cases, gates, graphs, models, onnxfile
from clipskip.export.gates import Case
from clipskip.export.graphs import Graph
from clipskip.export.parts import Checkpoint

Say = Callable[[str], None]
Trials = Mapping[Role, list[Case]]
Maker = Callable[[Any], Graph]
_USED = ("torch", "transformers", "diffusers", "onnx", "onnx-ir", "onnxscript")


def build(draft: Draft, source: Checkpoint, facts: ModelFacts, say: Say) -> None:
    """Everything that the draft wants, and the tokenizer. NumericalError where a graph disagrees with torch."""
    say("loading the networks")
    precision = next(iter(draft.wanted)).precision
    networks = models.load(source)
    if precision == "fp16":
        models.check_halves(networks)
    for name, content in source.tokenizer.items():
        (draft.folder / name).write_bytes(content)
    draft.tokenizer(list(source.tokenizer))
    work = _Work(draft, facts, precision, say)
    about: dict[str, Any] = {"facts": facts, "precision": precision}

    @cache
    def depths() -> list[list[Case]]:
        """Wanted for the text graphs and, as the context, for the step; while the encoder is as it was loaded."""
        say("asking torch for the contexts")
        return cases.text(networks.text, facts, source.vocabulary, work.half)

    work.make(
        networks.text,
        {"text": partial(graphs.text_graph, **about)},
        lambda: {Role("text", depth): each for depth, each in enumerate(depths())},
    )
    work.make(
        networks.unet,
        {"step": partial(graphs.step_graph, **about)},
        lambda: {Role("step"): cases.step(networks.unet, depths()[-1][-1].exact["context"], facts, work.half)},
    )
    work.make(
        networks.vae,
        {"decode": graphs.decode_graph, "encode": graphs.encode_graph},
        # In this order: the second leaves the autoencoder in the precision of the graphs.
        lambda: {
            Role("decode"): cases.decode(networks.vae),
            Role("encode"): cases.encode(networks.vae, work.half),
        },
    )


@dataclass(frozen=True)
class _Work:
    """What every graph of one build has in common."""

    draft: Draft
    facts: ModelFacts
    precision: str
    say: Say

    @property
    def half(self) -> bool:
        return self.precision == "fp16"

    def make(self, network: nn.Module, makers: Mapping[str, Maker], ask: Callable[[], Trials]) -> None:
        """The parts that are made from one network, as far as the draft wants them.

        `ask` gives what torch makes of each part's cases. It leaves the network in the precision of the graphs; nobody
        copies a network, for two of them do not fit into the memory of a small machine.
        """
        wanted = {part: self._roles(part) for part in makers}
        if not any(wanted.values()):
            return
        trials = ask()
        if self.half:
            models.keep_norms_in_float(network)
        for part, roles in wanted.items():
            if roles:
                self._part(makers[part](network), roles, trials)

    def _roles(self, part: str) -> list[Role]:
        return sorted(identity.role for identity in self.draft.wanted if identity.role.part == part)

    def _part(self, graph: Graph, roles: Sequence[Role], trials: Trials) -> None:
        """Trace one part, then write and measure the graphs that it falls into."""
        self.say(f"tracing {graph.part}")
        model = onnxfile.trace(graph, self.facts.size_step // LATENT)
        self.say(f"measuring {graph.part}")
        name = f"{graph.part}.bin"
        with (self.draft.folder / name).open("wb") as file:
            weights = onnxfile.Weights(file, name)
            for role, piece, outputs in _pieces(graph, model, roles):
                path = self.draft.folder / f"{role}.onnx"
                weights.save(piece, path)
                parity = gates.measure(role, path, trials[role])
                self.draft.add(self._artefact(role, replace(graph, outputs=outputs), parity), [path.name, name])

    def _artefact(self, role: Role, graph: Graph, parity: dict[str, float]) -> Artefact:
        return Artefact(
            role, "onnx", self.precision, graph.inputs, graph.outputs,
            axes=graphs.axes(graph.inputs + graph.outputs, self.facts), parity=parity,
            provenance={name: version(name) for name in _USED} | {"onnxruntime": gpu.onnxruntime().__version__},
        )  # fmt: skip


def _pieces(graph: Graph, model: ir.Model, roles: Sequence[Role]) -> Iterator[tuple[Role, ir.Model, tuple[Port, ...]]]:
    """The graphs that a traced model falls into: itself, or a text encoder of each depth."""
    if graph.part != "text":
        yield Role(graph.part), model, graph.outputs
        return
    for role in roles:
        port = graph.outputs[role.layers or 0]
        yield role, onnxfile.cut(model, port.name, "context"), (replace(port, name="context"),)
