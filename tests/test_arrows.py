"""Who may import whom: export -> engines <- runtime; the command line and nothing else reaches exporter and bench."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"engines": "engines", "export": "export", "runtime": ""}


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules of ours that are imported in a part of a file of `package`, in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """The folder of the source tree that a module of ours stands in; "" for one of somebody else."""
    top, _, rest = module.partition(".")
    if top != "clipskip":
        return ""
    first = rest.partition(".")[0]
    return first if first in ("engines", "export", "bench") else "runtime"


def rooms(folder: str, toplevel: bool = False) -> dict[str, set[str]]:
    """The rooms that each file of a folder imports from; of statements outside of functions only, if asked."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if "sample" not in path.parts:
            inside = path.relative_to(ROOT / folder).parent.parts
            package = ".".join(["clipskip", *([FOLDERS[folder]] if FOLDERS[folder] else []), *inside])
            tree = ast.parse(path.read_text())
            if toplevel:
                for node in ast.walk(tree):
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        node.body = []
            found[str(path.relative_to(ROOT))] = {room(module) for module in imports(tree, package)} - {""}
    return found


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [("engines", {"engines"}), ("export", {"engines", "export"})],
)
def test_nothing_points_back_to_the_runtime(folder: str, allowed: set[str]) -> None:
    assert {file: found - allowed for file, found in rooms(folder).items() if found - allowed} == {}


def test_the_runtime_reaches_exporter_and_bench_in_functions_of_the_command_line_only() -> None:
    allowed = {"runtime", "engines"}
    assert {file: found - allowed for file, found in rooms("runtime", toplevel=True).items() if found - allowed} == {}
    command_line = ("runtime/cli/", "runtime/__main__.py")
    elsewhere = {file: found for file, found in rooms("runtime").items() if not file.startswith(command_line)}
    assert {file: found - allowed for file, found in elsewhere.items() if found - allowed} == {}


@pytest.mark.parametrize("text", ["from clipskip.runtime import x", "import clipskip.errors", "from .. import errors"])
def test_an_arrow_back_would_be_seen(text: str) -> None:
    assert {room(module) for module in imports(ast.parse(text), "clipskip.engines")} == {"runtime"}
