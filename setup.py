"""Everything is in pyproject.toml; this only lets setuptools work in a folder that it finds empty, and leaves none.

Otherwise `pip wheel .` puts a copy of the package into build/, among the engine stores, and packs whatever lies there.
"""

from tempfile import TemporaryDirectory

from setuptools import setup

with TemporaryDirectory() as folder:
    setup(options={"build": {"build_base": folder}, "egg_info": {"egg_base": folder}})
