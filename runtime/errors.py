"""Every error that clipskip raises on purpose: the tree stands in `clipskip.engines.errors`."""

from clipskip.engines.errors import *  # noqa: F403
from clipskip.engines.errors import __all__ as __all__
