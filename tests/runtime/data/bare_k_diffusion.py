"""`sampling` of k-diffusion 0.1.1, without what its package imports for training. For the recipes here."""

import importlib
import importlib.util
import sys
import types
from unittest import mock

_spec = importlib.util.find_spec("k_diffusion")
_absent = ["torchvision", "torchvision.transforms"] if importlib.util.find_spec("torchvision") is None else []
sys.modules["k_diffusion"] = types.ModuleType("k_diffusion")
sys.modules["k_diffusion"].__path__ = list(_spec.submodule_search_locations)
sys.modules |= {name: mock.MagicMock() for name in _absent}
sampling = importlib.import_module("k_diffusion.sampling")
for _name in _absent:
    del sys.modules[_name]
