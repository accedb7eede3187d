"""What lives how long: users' errors between two steps, the end of the process, TensorRT's objects, the clock."""

import gc
import re
import subprocess
import sys
import weakref

import figures
import pytest
from doubles import tensorrt
from doubles.store import TARGET, publish_plans, simulated
from step_feeds import FEEDBACK, feeds
from tiny_graphs import publish_graphs

import clipskip
from clipskip.engines.manifest import STEP, AxisRange
from clipskip.engines.shapes import BuildOptions

FAST = {"steps": 3, "width": 64, "height": 64, "seed": 1}


def test_an_error_of_the_user_s_own_between_two_steps_leaves_the_next_request_as_it_is_e4(sample_store):
    with clipskip.open(sample_store) as pipe:
        alone = pipe("a ring", **FAST).images[0].tobytes()
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            for progress in pipe.steps(clipskip.Request(prompt="a ring", **FAST)):
                progress.preview()
                raise ZeroDivisionError
        assert pipe("a ring", **FAST).images[0].tobytes() == alone


@pytest.mark.parametrize("end", ["", "steps = pipe.steps(request); next(steps)", "import sys; sys.exit()", "del pipe"])
def test_a_process_that_ends_with_an_open_pipeline_ends_quietly_e12(sample_store, end):
    code = f"""
import clipskip
pipe = clipskip.open({str(sample_store)!r})
request = clipskip.Request(prompt="a ring", **{FAST})
pipe(request)
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_tensorrt_made_dies_before_what_made_it_e13(tmp_path, monkeypatch):
    store = publish_plans(publish_graphs(tmp_path), BuildOptions(sizes=AxisRange(32, 64, 128)))
    died = []
    for kind in (tensorrt.ICudaEngine, tensorrt.IRuntimeCache, tensorrt.IExecutionContext):

        def made(self, *arguments, first=kind.__init__, name=kind.__name__):
            first(self, *arguments)
            weakref.finalize(self, died.append, name)

        monkeypatch.setattr(kind, "__init__", made)
    backend, _ = simulated()
    artefact = store.find(STEP, TARGET, "fp16")
    engine = backend.open(artefact, store.verify(artefact))
    loop = engine.loop(inputs := feeds(), FEEDBACK)
    engine.close()
    del engine
    gc.collect()
    assert died == []  # what is in use keeps what it needs
    loop.run(inputs)
    loop.close()
    del loop
    gc.collect()
    assert died == ["IExecutionContext", "IRuntimeCache", "ICudaEngine"]


def test_no_time_is_taken_from_a_clock_that_can_be_set_e16():
    clocks = re.compile(r"^(?!.*\"created).*(\btime\.time\(|\bdatetime\b)", re.MULTILINE)  # OpenAI's answers say when
    assert [path for path, text in figures.sources().items() if clocks.search(text)] == []
