"""Graphs as ONNX Runtime optimises and packs them for this very processor, kept in the user's cache.

What is opened from there is mapped, not read: in a quarter of the time, without a copy of the weights in memory, and
it computes the same bits. Knows nothing of engines.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipskip.engines import kept
from clipskip.engines.manifest import Artefact, key_of
from clipskip.engines.stamps import LEAST
from clipskip.engines.store import problem_of, stamped
from clipskip.errors import EngineCorrupt, EngineIncompatible, StorageError

from .sessions import Sessions

GRAPH, WEIGHTS = "graph.onnx", "weights.bin"
GROWS = 2  # at most, by the packed copies that lie beside the weights
INLINE = 1024  # bytes: smaller constants stay in the graph
CPUINFO = Path("/proc/cpuinfo")
TELLING = ("vendor", "cpu family", "model", "stepping", "flags", "features", "cpu impl", "cpu var", "cpu part", "isa")


def opened(sessions: Sessions, artefact: Artefact, root: Path, pack: Callable[[Any], object]) -> Any | None:
    """A session of a graph of the store `root` as it is kept, or None where it cannot be.

    `pack` opens the graph itself with options. EngineCorrupt: what is kept is made of nothing that was not published.
    """
    size = sum(file.size for file in artefact.files)
    if size < LEAST:
        return None
    facts = {
        "files": " ".join(file.sha256 for file in artefact.files),
        "onnxruntime": f"{sessions.ort.__version__} {sessions.ort.get_build_info()}",
        "processor": processor(),
    }
    name = f"{artefact.identity.stem}-{key_of(facts)[:16]}"

    def save(folder: Path) -> None:
        for record in artefact.files:  # else damage that is repaired in the store would live on here
            if problem := problem_of(root, record, stamped):
                raise EngineCorrupt(problem, path=root / record.path)
        try:
            pack(_saving(sessions, folder))
        except EngineIncompatible as error:
            raise StorageError(f"ONNX Runtime cannot write into {folder.parent}", path=folder.parent) from error

    place = kept.folder(name, GROWS * size, save)
    if place is None:
        return None
    session_options = sessions.options()
    session_options.graph_optimization_level = sessions.ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it was, before
    try:
        return sessions.open(artefact, place / GRAPH, session_options, {})
    except EngineIncompatible:
        shutil.rmtree(place, ignore_errors=True)
        return None


def processor() -> str:
    """What decides how weights are packed: the instructions that this processor has."""
    with suppress(OSError):
        first, _, _ = CPUINFO.read_text().partition("\n\n")
        if lines := [line for line in first.splitlines() if line.lower().startswith(TELLING)]:
            return "\n".join(lines)
    return f"{platform.machine()} {platform.processor()} {platform.node()}"  # homes can be shared, names cannot


def _saving(sessions: Sessions, folder: Path) -> Any:
    """SessionOptions with which a graph is written into the folder when it is opened."""
    session_options = sessions.options()
    session_options.optimized_model_filepath = str(folder / GRAPH)
    for name, value in {
        "save_external_prepacked_constant_initializers": "1",
        "optimized_model_external_initializers_file_name": WEIGHTS,
        "optimized_model_external_initializers_min_size_in_bytes": str(INLINE),
    }.items():
        session_options.add_session_config_entry(f"session.{name}", value)
    return session_options
