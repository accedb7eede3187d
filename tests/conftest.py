"""What several tests need: the independent references on the path, and an exported store of the sample model."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


@pytest.fixture(scope="session", autouse=True)
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where caches and locks go instead of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["XDG_CACHE_HOME"], "clipskip")


@pytest.fixture(scope="session")
def sample_checkpoint() -> Path:
    """The project's own model, or the one that CLIPSKIP_TEST_CHECKPOINT names."""
    return Path(os.environ.get("CLIPSKIP_TEST_CHECKPOINT", ROOT / "export" / "sample"))


@pytest.fixture(scope="session")
def sample_store(sample_checkpoint: Path) -> Path:
    """All its engines for the CPU in fp32, kept between runs: nothing is exported while they are up to date."""
    from clipskip.export import export

    store = ROOT / "build" / f"test-store-{sample_checkpoint.name}"
    export(sample_checkpoint, store)
    return store


@pytest.fixture(scope="session")
def sample_fp16_store(sample_checkpoint: Path) -> Path:
    """All its graphs in fp16, as TensorRT's engines are built from; kept between runs as well."""
    from clipskip.export import export

    store = ROOT / "build" / f"test-store-fp16-{sample_checkpoint.name}"
    export(sample_checkpoint, store, precision="fp16")
    return store
