"""How a network becomes a graph: traced once, whole where ONNX lacks an operator, and forgotten when it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_families
import torch
from torch import Tensor, nn

from clipskip.engines.errors import ExportError
from clipskip.engines.manifest import Dim, Port
from clipskip.export import families, graphs, models, onnxfile
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.graphs import Graph

SHAPE = (Dim("B"), 4)


class Known(nn.Module):
    """What `_plain` writes differently: a cast, a number less a tensor, a reshape that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return 1 - self.layer(x.reshape(x.shape)).to(torch.float16).to(torch.float32)


class Unknown(nn.Module):
    """An operator without a counterpart in ONNX, and one that changes its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.xlog1py(x, x).add_(1)


def traced(module: nn.Module) -> ir.Model:
    ports = (Port("x", "float32", SHAPE),), (Port("y", "float32", SHAPE),)
    names = {tensor: name for name, tensor in module.named_parameters()}
    return onnxfile.trace(Graph("small", module, *ports), names)


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Each program that is traced a second time."""
    again: list[object] = []
    own = torch.export.ExportedProgram.run_decompositions

    def run_decompositions(program: torch.export.ExportedProgram, table: object) -> object:
        again.append(program)
        return own(program, table)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", run_decompositions)
    return again


def result(model: ir.Model, x: Tensor) -> Tensor:
    from onnx.reference import ReferenceEvaluator

    (given,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x.numpy()})
    return torch.from_numpy(np.asarray(given))


def test_a_network_is_traced_once(decompositions: list[object]) -> None:
    module, x = Known().eval(), torch.randn(3, 4)
    model = traced(module)
    kinds = [node.op_type for node in model.graph]
    assert not decompositions
    assert "Reshape" not in kinds
    assert kinds.count("Cast") == 2
    torch.testing.assert_close(result(model, x), module(x).detach(), rtol=2e-3, atol=2e-3)


def test_what_onnx_has_no_operator_for_is_traced_again_and_right(decompositions: list[object]) -> None:
    x = torch.rand(3, 4)
    assert torch.allclose(result(traced(Unknown()), x), Unknown()(x), atol=1e-6)
    assert len(decompositions) == 1


def test_no_network_of_a_family_is_traced_twice(decompositions: list[object], tmp_path: Path) -> None:
    source = open_checkpoint(tiny_families.sdxl(tmp_path / "sdxl"))
    facts, networks = families.facts(source, None, None, None), models.load(source)
    for make in (graphs.text_graph, graphs.step_graph):
        onnxfile.trace(make(networks, facts, "fp32"), networks.parameters)
    assert not decompositions


def test_a_network_that_cannot_be_traced_is_an_export_error() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="torch could not export small"):
        traced(Branches())
