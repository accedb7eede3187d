"""What several tests need: the independent references on the path, and an exported store of the sample model."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of all files those that take longest, so that parallel workers end together; the first two make what others wait for.
FIRST = (
    "bench/test_gpu.py", "export/test_job.py", "export/test_survival.py", "test_pictures.py", "export/test_sdxl.py",
    "export/test_every_verb.py", "runtime/test_command_line.py", "export/test_lora.py", "export/test_sd2.py",
    "export/test_inpainting_models.py", "engines/test_sample_engines.py", "engines/test_tensorrt.py",
    "runtime/test_pipeline_sharing.py", "test_pictures_of_samplers.py", "gpu/test_without_a_gpu.py",
)  # fmt: skip
try:
    from hypothesis import settings
except ImportError:  # the tests for a GPU do without it, on a machine that was prepared for them
    pass
else:
    settings.register_profile("suite", max_examples=150, deadline=None)
    settings.register_profile("fuzz", max_examples=20_000, deadline=None)  # of `make fuzz`
    settings.load_profile("fuzz" if "FUZZ" in os.environ else "suite")
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # workers that each compute on all cores wait for each other: every one gets cores of its own, its children too
    worker, workers = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[worker::workers] or os.sched_getaffinity(0))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would children
sys.path.insert(0, str(Path(__file__).parent))  # for reference*.py


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {(Path(__file__).parent / name).resolve(strict=True): place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where caches and locks go instead of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["XDG_CACHE_HOME"], "clipskip")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """The folder (or file) of this name, made by the worker that asks first and read by all: not to be changed."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, made = root / "once" / name, root / "once" / f"{name}.made"
        path.parent.mkdir(exist_ok=True)
        with path.with_name(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(path, ignore_errors=True)  # of a worker that failed half-way
                make(path)
                made.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def sample_checkpoint() -> Path:
    """The project's own model, or the one that CLIPSKIP_TEST_CHECKPOINT names."""
    return Path(os.environ.get("CLIPSKIP_TEST_CHECKPOINT", ROOT / "export" / "sample"))


def trained_at(checkpoint: Path) -> int | None:
    """The clip skip of the project's own model; of another one nothing is known here."""
    return 2 if checkpoint == ROOT / "export" / "sample" else None


@pytest.fixture(scope="session")
def sample_store(sample_checkpoint: Path) -> Path:
    """All its engines for the CPU in fp32, kept between runs: nothing is exported while they are up to date."""
    from clipskip.export import export

    store = ROOT / "build" / f"test-store-{sample_checkpoint.name}"
    export(sample_checkpoint, store, recommended_clip_skip=trained_at(sample_checkpoint))
    return store


@pytest.fixture(scope="session")
def sample_fp16_store(sample_checkpoint: Path) -> Path:
    """All its graphs in fp16, as TensorRT's engines are built from; kept between runs as well."""
    from clipskip.export import export

    store = ROOT / "build" / f"test-store-fp16-{sample_checkpoint.name}"
    export(sample_checkpoint, store, precision="fp16", recommended_clip_skip=trained_at(sample_checkpoint))
    return store
