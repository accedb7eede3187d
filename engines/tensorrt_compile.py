"""Compiles one ONNX graph into one TensorRT engine. TensorRT or TensorRT-RTX is an argument: `trt` is the package.

Run as a child process (`python -m clipskip.engines.tensorrt_compile`, a job as JSON on stdin, events as JSON lines on
stdout), so that the weights of one engine are gone before the next is built and a crash takes no store along.
Knows nothing of stores, keys or models.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipskip.engines.errors import BackendUnavailable
from clipskip.engines.gpu import cuda_runtime
from clipskip.engines.tensorrt_config import (
    BuildError,
    Job,
    Log,
    Report,
    capture,
    configure,
    load_package,
    monitor,
    out_of_memory,
)


def build(trt: Any, job: Job, report: Report) -> dict[str, Any]:
    """Build `job.engine` and tell what the manifest should say of it. Raises BuildError."""
    log = Log()
    hooks = (*capture(trt, log), monitor(trt, report))  # held here: they must outlive every object that calls them
    decomposed = _build(trt, job, log, hooks)
    return {"event": "built", "decomposed": decomposed, "peak_bytes": peak_bytes()}


def _build(trt: Any, job: Job, log: Log, hooks: tuple[Any, Any, Any]) -> list[str]:
    logger, recorder, progress = hooks
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.onnx):
        raise BuildError("parse", _parse_errors(parser) or log.lines())
    decomposed = decompose(trt, network, job)
    config = configure(trt, builder, job)
    config.progress_monitor = progress
    builder.error_recorder = recorder  # not before: a network that inherits it crashes when it is freed (1.7.1)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("memory" if out_of_memory(trt, log) else "build", log.lines())
    Path(job.engine).write_bytes(plan)
    if job.timing_cache is not None:
        _publish(Path(job.timing_cache), config.get_timing_cache().serialize())
    return decomposed


def _parse_errors(parser: Any) -> list[str]:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return [f"node {e.node_name() or e.node()} ({e.node_operator() or 'graph'}): {e.desc()}" for e in errors]


def decompose(trt: Any, network: Any, job: Job) -> list[str]:
    """Mark the attentions that have no kernel of their own as decomposable, and name them ("node: 512 wide, HALF").

    Whether there is a kernel depends on package, type and head size, and no list of them is offered: a network of
    just one such attention, which takes a tenth of a second to build, tells.
    """
    kernels: dict[tuple[Any, int, bool], bool] = {}
    marked = []
    for layer in attentions(trt, network):
        query = layer.attention.get_input(0)
        kind = (query.dtype, query.shape[-1], layer.attention.causal)
        if kind not in kernels:
            kernels[kind] = has_kernel(trt, kind, job)
        if not kernels[kind]:
            layer.attention.decomposable = True
            marked.append(f"{layer.name}: {kind[1]} wide, {kind[0].name}")
    return marked


def attentions(trt: Any, network: Any) -> list[Any]:
    """The network's attention layers as their own class."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    found = [layer for layer in layers if layer.type == trt.LayerType.ATTENTION_INPUT]
    for layer in found:
        layer.__class__ = trt.IAttentionInputLayer  # the binding's own way to downcast
    return found


def has_kernel(trt: Any, kind: tuple[Any, int, bool], job: Job) -> bool:
    """Whether a network of one attention of this type, head size and causality builds without decomposition."""
    hooks = capture(trt, Log())
    return _builds(trt, kind, job, hooks)


def _builds(trt: Any, kind: tuple[Any, int, bool], job: Job, hooks: tuple[Any, Any]) -> bool:
    dtype, width, causal = kind
    builder = trt.Builder(hooks[0])
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    query, key, value = (network.add_input(name, dtype, (-1, 8, -1, width)) for name in "qkv")
    attention = network.add_attention(query, key, value, trt.AttentionNormalizationOp.SOFTMAX, causal)
    network.mark_output(attention.get_output(0))
    profile = ((1, 8, 1, width), (2, 8, 256, width), (8, 8, 4096, width))
    trial = replace(job, profiles=dict.fromkeys("qkv", profile), timing_cache=None)
    config = configure(trt, builder, trial)
    builder.error_recorder = hooks[1]
    return builder.build_serialized_network(network, config) is not None


def peak_bytes() -> int:
    """The most memory that this program has held. (getrusage would count what the parent held when it forked.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _publish(path: Path, data: Any) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_bytes(data)
    os.replace(draft, path)


def main() -> int:
    """Build the job on stdin. Only events go to the real stdout; what the library prints goes to stderr."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = Job(**json.loads(sys.stdin.read()))
    started = time.monotonic()

    def report(event: dict[str, Any]) -> None:
        print(json.dumps({**event, "seconds": round(time.monotonic() - started, 2)}), file=events)

    try:
        if job.device:  # 0 is CUDA's own choice
            cuda_runtime().cudaSetDevice(job.device)
        report(build(load_package(job.target), job, report))
    except BuildError as error:
        report({"event": "failed", "kind": error.kind, "lines": error.lines, "peak_bytes": peak_bytes()})
        return 1
    except BackendUnavailable as error:
        report({"event": "failed", "kind": "package", "lines": [error.message], "peak_bytes": peak_bytes()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
