"""The lean install stays lean: what the runtime loads, and that it works with everything else blocked."""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnx", "onnxscript", "transformers", "diffusers", "safetensors", "scipy")
HEAVY += ("tokenizers", "huggingface_hub", "regex", "ftfy", "matplotlib")


def python(code, *arguments):
    """Run code in a fresh interpreter in which importing a heavy package fails."""
    block = f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\n"
    command = [sys.executable, "-c", block + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_runtime_module_loads_without_the_exporters_packages_e17():
    python(
        """
        import importlib.util, pkgutil, clipskip
        apart = {"clipskip.serve.ray"} if importlib.util.find_spec("ray") is None else {}  # an extra of its own
        for module in pkgutil.walk_packages(clipskip.__path__, "clipskip."):
            if module.name.split(".")[1] not in ("__main__", "export", "bench") and module.name not in apart:
                importlib.import_module(module.name)
        """
    )


def test_importing_clipskip_loads_no_library_at_all():
    loaded = python("import clipskip; print(*(n for n in ('numpy', 'PIL', 'onnxruntime') if n in sys.modules))")
    assert loaded.split() == []


def test_importing_clipskip_takes_less_than_importing_numpy():
    """In processor time, each in processes of its own."""
    code = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"
    ours, numpys = (min(float(python(code.format(name))) for _ in range(5)) for name in ("clipskip", "numpy"))
    assert ours < numpys


def test_a_whole_picture_is_made_without_the_exporters_packages(sample_store, tmp_path):
    out = python(
        """
        import clipskip
        with clipskip.open(sys.argv[1]) as pipe:
            pipe("a red circle", clip_skip=2, seed=1, steps=2).save(sys.argv[2])
        print(sorted(name for name in sys.modules if sys.modules[name] and name in ("onnxruntime", "numpy")))
        """,
        sample_store,
        tmp_path / "a.png",
    )
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert "onnxruntime" in out


def test_the_first_picture_of_a_process_takes_less_than_six_more(sample_store):
    """In processor time, starting and opening included; of a small model, which makes it hard."""
    code = """
        import time
        import clipskip
        with clipskip.open(sys.argv[1]) as pipe:
            pipe("a red circle", seed=1)
            first = time.process_time()
            pipe("a red circle", seed=2)
            print(first, time.process_time() - first)
        """
    first, second = min(tuple(map(float, python(code, sample_store).split())) for _ in range(3))
    assert first < 6 * second
