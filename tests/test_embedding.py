"""What README.md and docs/embedding.md show in Python runs as it stands, and passes a user's `mypy --strict`."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/embedding.md")
TYPED = """
import clipskip

pipe: clipskip.Pipeline = clipskip.open("store", backend="onnxruntime", device=0)
request: clipskip.Request = clipskip.parse_render("/clipskip:2 a cat")
result: clipskip.Result = pipe(request)
names: list[str] = [error.code for error in (clipskip.EngineMissing, clipskip.Closed, clipskip.NumericalError)]
texts: list[tuple[int, str]] = clipskip.prompt.editing("[a|b]", 3)
seed: str = result.seeds  # a user's mistake, which the types have to show
"""
NOT_THERE = (
    "torch",
    "transformers",
    "diffusers",
    "onnx",
    "onnx_ir",
    "onnxscript",
)  # an exporter's, whose types take long


def python_of(page: str) -> str:
    """All blocks of Python in a page, for the store that a test has."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    return 'STORE = "build/sample"\n' + "\n".join(blocks)


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_python_runs(page: str, sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = python_of(page).replace('"build/sample"', repr(str(sample_store)))
    exec(compile(code, page, "exec", dont_inherit=True), {"__name__": page})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install .` makes, built without an index."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD.format("wheel"), folder], cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


BUILD = "import sys, setuptools.build_meta as backend; backend.build_{}(sys.argv[1])"


def test_a_wheel_holds_the_package_alone_and_leaves_nothing_behind(wheel: Path) -> None:
    homes = {"clipskip": "runtime", "engines": "engines", "export": "export", "bench": "bench"}
    sources = {
        "/".join(["clipskip", *([] if home == "runtime" else [home]), *path.relative_to(ROOT / home).parts])
        for home in homes.values()
        for path in (ROOT / home).rglob("*")
        if path.suffix in (".py", ".typed", ".gz", ".html") or path.name.endswith("LICENSE.txt")
        if "sample" not in path.parts and "__pycache__" not in path.parts
    }
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == sources
    assert not (ROOT / "build" / "lib").exists()


def test_a_source_distribution_holds_everything_that_the_readme_needs(tmp_path: Path) -> None:
    import tarfile

    subprocess.run([sys.executable, "-c", BUILD.format("sdist"), tmp_path], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a checkout: there is no list of files to compare with")
    kept = {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()} - {".gitignore"}
    assert kept <= names
    assert not [name for name in names if name.startswith(("build/", ".venv")) or name.endswith(".pyc")]


def test_a_users_program_is_typed(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for page in PAGES:
        (tmp_path / f"{Path(page).stem.lower()}.py").write_text(python_of(page))
    (tmp_path / "typed.py").write_text(TYPED)
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\n[mypy-{','.join(f'{name}.*' for name in NOT_THERE)}]\nfollow_imports = skip\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "mypy.ini", "."]
    environment = {**os.environ, "MYPYPATH": "site"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line and not line.startswith("site/")]
    assert len(errors) == 1, errors
    assert re.match(
        r'typed.py:\d+: error: .*expression has type "tuple\[int, ...\]", variable has type "str"', errors[0]
    )
