"""What /metrics tells of memory: of GPUs that answer, on doubles, and of this process."""

import os
import sys
from types import SimpleNamespace

import pytest
from doubles.cuda import SimulatedCuda
from doubles.device import GIGABYTE
from doubles.onnxruntime import SimulatedOnnxRuntime

from clipskip.backends.cuda import Cuda
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.providers import CUDA
from clipskip.serve import metrics
from clipskip.serve.service import Settings


def rows(*backends):
    told = metrics.device_memory([SimpleNamespace(backend=each) for each in backends])
    return {(each.labels["device"], each.labels["state"]): each.value for each in told.samples}


def test_a_gpus_memory_is_told_once_however_many_models_are_on_it(monkeypatch):
    machine = SimulatedOnnxRuntime(devices=2).installed(monkeypatch)
    first, again, other = (OnnxRuntime([CUDA], device=index) for index in (0, 0, 1))
    first.cuda.allocate(GIGABYTE)
    total = machine.cuda.devices[0].memory
    assert rows(first, again, other, OnnxRuntime(threads=1)) == {
        ("cuda:0", "free"): total - GIGABYTE,
        ("cuda:0", "used"): GIGABYTE,
        ("cuda:1", "free"): total,
        ("cuda:1", "used"): 0,
    }


def test_a_lost_gpu_is_left_out_and_a_backend_that_has_none_is_no_row():
    machine = SimulatedCuda()
    lost = SimpleNamespace(cuda=Cuda(machine))
    machine.devices[0].failed = True
    assert rows(lost, SimpleNamespace()) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the client library reads Linux's /proc")
def test_the_resident_memory_of_the_process_is_told():
    service = SimpleNamespace(models=SimpleNamespace(loaded={}), refused={}, settings=Settings())
    lines = metrics.text(service).decode().splitlines()
    (told,) = [float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes ")]
    with open("/proc/self/statm") as file:
        assert told == pytest.approx(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"), rel=0.2)
