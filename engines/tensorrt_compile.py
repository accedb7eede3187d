"""Compiles one ONNX graph into one TensorRT engine. TensorRT or TensorRT-RTX is an argument: `trt` is the package.

Run as a child process (see tensorrt_child: a job as one line of JSON on stdin, events as JSON lines on stdout), so that
the weights of one engine are gone before the next is built and a crash takes no store along.
Knows nothing of stores, keys or models.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from select import select
from threading import Thread
from typing import Any

from clipskip.engines.errors import BackendUnavailable
from clipskip.engines.gpu import cuda_runtime
from clipskip.engines.tensorrt_child import PULSE, Job, load_package

Report = Callable[[dict[str, Any]], None]
LINES = 20  # of the library's own words in an error message


def build(trt: Any, job: Job, report: Report) -> dict[str, Any]:
    """Build `job.engine` and tell what the manifest should say of it. Raises BuildError."""
    log = Log()
    hooks = (*capture(trt, log), monitor(trt, report))  # held here: they must outlive every object that calls them
    return {"event": "built", "decomposed": _build(trt, job, log, hooks)}


def _build(trt: Any, job: Job, log: Log, hooks: tuple[Any, Any, Any]) -> list[str]:
    logger, recorder, progress = hooks
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.name = Path(job.engine).stem  # the role
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.onnx):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        lines = [f"node {e.node_name() or e.node()} ({e.node_operator() or 'graph'}): {e.desc()}" for e in errors]
        raise BuildError("parse", lines or log.lines())
    decomposed = decompose(trt, network, job)
    config = configure(trt, builder, job)
    config.progress_monitor = progress
    builder.error_recorder = recorder  # not before: a network that inherits it crashes when it is freed (1.7.1)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("memory" if out_of_memory(trt, log) else "build", log.lines())
    Path(job.engine).write_bytes(plan)
    if job.timing_cache is not None:
        draft = Path(f"{job.timing_cache}.{os.getpid()}.tmp")
        draft.write_bytes(config.get_timing_cache().serialize())
        draft.replace(job.timing_cache)
    return decomposed


def decompose(trt: Any, network: Any, job: Job) -> list[str]:
    """Mark the attentions that have no kernel of their own as decomposable, and name them ("node: 512 wide, HALF").

    Whether there is a kernel depends on package, type and head size, and no list of them is offered: a network of
    just one such attention, which takes a tenth of a second to build, tells.
    """
    kernels: dict[tuple[Any, int, bool], bool] = {}
    marked = []
    for layer in [network.get_layer(index) for index in range(network.num_layers)]:
        if layer.type != trt.LayerType.ATTENTION_INPUT:
            continue
        layer.__class__ = trt.IAttentionInputLayer  # the binding's own way to downcast
        query = layer.attention.get_input(0)
        kind = (query.dtype, query.shape[-1], layer.attention.causal)
        if kind not in kernels:
            hooks = capture(trt, Log())  # held here, as above
            kernels[kind] = has_kernel(trt, kind, job, hooks)
        if not kernels[kind]:
            layer.attention.decomposable = True
            marked.append(f"{layer.name}: {kind[1]} wide, {kind[0].name}")
    return marked


def has_kernel(trt: Any, kind: tuple[Any, int, bool], job: Job, hooks: tuple[Any, Any]) -> bool:
    """Whether a network of one attention of this type, head size and causality builds without decomposition."""
    dtype, width, causal = kind
    builder = trt.Builder(hooks[0])
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    query, key, value = (network.add_input(name, dtype, (-1, 8, -1, width)) for name in "qkv")
    attention = network.add_attention(query, key, value, trt.AttentionNormalizationOp.SOFTMAX, causal)
    network.mark_output(attention.get_output(0))
    profile = ((1, 8, 1, width), (2, 8, 256, width), (8, 8, 4096, width))
    config = configure(trt, builder, replace(job, profiles=dict.fromkeys("qkv", profile), timing_cache=None))
    builder.error_recorder = hooks[1]
    return builder.build_serialized_network(network, config) is not None


class BuildError(Exception):
    """`kind` is "option", "parse", "memory" or "build"; `lines` are the library's own words."""

    def __init__(self, kind: str, lines: list[str]) -> None:
        super().__init__(kind)
        self.kind = kind
        self.lines = lines[-LINES:]


@dataclass
class Log:
    """What the library said: errors with their codes, and warnings."""

    errors: list[tuple[Any, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [text for _, text in self.errors] or self.warnings


def capture(trt: Any, log: Log) -> tuple[Any, Any]:
    """A logger and an error recorder of `trt` that write into `log`; with a recorder, errors come with their codes."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                log.errors.append((None, message))
            elif severity == trt.ILogger.Severity.WARNING:
                log.warnings.append(message)

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def report_error(self, code: Any, text: str) -> bool:
            log.errors.append((code, text))
            return True

        def num_errors(self) -> int:
            return len(log.errors)

        def get_error_code(self, index: int) -> Any:
            return log.errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return log.errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            log.errors.clear()

    return Logger(), Recorder()


def monitor(trt: Any, report: Report) -> Any:
    """TensorRT's progress monitor: one event for each outermost phase and for each of its steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.outer: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.outer[phase] = steps
                report({"event": "progress", "phase": phase, "step": 0, "steps": steps})

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.outer:
                report({"event": "progress", "phase": phase, "step": step + 1, "steps": self.outer[phase]})
            return True

        def phase_finish(self, phase: str) -> None:
            self.outer.pop(phase, None)

    return Monitor()


def out_of_memory(trt: Any, log: Log) -> bool:
    """Whether one of the recorded error codes says so; the words are not looked at."""
    return any(code == trt.ErrorCodeTRT.FAILED_ALLOCATION for code, _ in log.errors)


def configure(trt: Any, builder: Any, job: Job) -> Any:
    """The job's options as a builder configuration with one optimisation profile."""
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; the solver's sums are to be those of the other backends
    profile = builder.create_optimization_profile()
    for name, shapes in job.profiles.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.compute_capabilities:
        config.num_compute_capabilities = len(job.compute_capabilities)
    for index, capability in enumerate(job.compute_capabilities):
        member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if member is None or not config.set_compute_capability(member, index):
            known = ", ".join(sorted(name for name in dir(trt.ComputeCapability) if name.startswith("SM")))
            raise BuildError("option", [f"compute capability {capability} is none of this package's: {known}"])
    if job.timing_cache is not None:
        set_timing_cache(config, Path(job.timing_cache))
    return config


def set_timing_cache(config: Any, path: Path) -> None:
    """Start from the timings of earlier builds; a cache that is unreadable or another device's is never needed."""
    data = path.read_bytes() if path.is_file() else b""
    if not data or not config.set_timing_cache(config.create_timing_cache(data), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def peak_bytes() -> int:
    """The most memory that this program has held. (getrusage would count what the parent held when it forked.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> int:
    """Build the job on stdin. Only events go to the real stdout; what the library prints goes to stderr."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = Job(**json.loads(sys.stdin.buffer.readline()))

    def report(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")  # in one piece: two threads report

    def live_with_parent() -> None:
        while not select([0], [], [], PULSE)[0]:
            with suppress(BrokenPipeError):
                report({})
        os._exit(1)  # stdin has ended, for whoever held its other end is gone: nobody waits for this engine any more

    Thread(target=live_with_parent, daemon=True).start()
    try:
        if job.device:  # 0 is CUDA's own choice
            cuda_runtime().cudaSetDevice(job.device)
        end = build(load_package(job.target), job, report)
    except BuildError as error:
        end = {"event": "failed", "kind": error.kind, "lines": error.lines}
    except BackendUnavailable as error:
        end = {"event": "failed", "kind": "package", "lines": [error.message]}
    report({**end, "peak_bytes": peak_bytes()})
    return int(end["event"] == "failed")
