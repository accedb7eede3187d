"""The figures of the house: `python tests/figures.py` prints them, test_figures.py holds them to their limits.

Lines are those of files that people write: .py, .html, .js and .css outside tests/ and export/sample/. A function's
length is from its `def` to its last line. A private helper is a function or method named with one underscore; it is
used once if its name stands at most twice in all these files: where it is defined, and where it is used.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
SUFFIXES = (".py", ".html", ".js", ".css")
FOLDERS = ("runtime", "engines", "export", "bench")
FROZEN = ROOT / "export" / "sample"  # the trainer
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>")  # frames of their own in some versions of Python only


@dataclass(frozen=True)
class Function:
    """One function or method: where it stands, its name, and its lines."""

    path: Path
    name: str
    lines: int

    @property
    def private(self) -> bool:
        return self.name.startswith("_") and not self.name.startswith("__")


def sources() -> dict[Path, str]:
    """The text of every file that counts."""
    paths = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES)
    return {path: path.read_text() for path in sorted(paths) if FROZEN not in path.parents}


def lines_of(text: str) -> int:
    return len(text.splitlines())


def functions(texts: dict[Path, str]) -> list[Function]:
    """All functions of the Python files, those inside others included."""
    return [
        Function(path, node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for path, text in texts.items()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def used_once(texts: dict[Path, str]) -> list[Function]:
    """The private helpers that have one use, or none."""
    words = Counter(word for text in texts.values() for word in re.findall(r"\w+", text))
    return [function for function in functions(texts) if function.private and words[function.name] <= 2]


@dataclass
class Way:
    """What ran through our files while it was watched: which files, which functions, how deep."""

    files: Counter[str] = field(default_factory=Counter)
    functions: set[tuple[str, str]] = field(default_factory=set)
    deepest: tuple[str, ...] = ()

    def watch(self, work: Callable[[], object]) -> Way:
        """Run `work`, in this thread and in those that it starts."""
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            work()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]  # the stubs forget that it may
        return self

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not _ours(frame):
            return
        stack = tuple(f"{name}:{function}" for name, function in _stack(frame))
        name, function = stack[0].split(":")
        self.files[name] += 1
        self.functions.add((name, function))
        if len(stack) > len(self.deepest):
            self.deepest = stack


def _ours(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    return any(ROOT / folder in path.parents for folder in FOLDERS) and frame.f_code.co_name not in COMPREHENSIONS


def _stack(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    """Our frames, the innermost first, each as file and function."""
    while frame is not None:
        if _ours(frame):
            code = frame.f_code
            yield str(Path(code.co_filename).relative_to(ROOT)), getattr(code, "co_qualname", code.co_name)
        frame = frame.f_back


def one_picture(store: Path, folder: Path) -> Way:
    """The way of one small picture on the CPU, saved; the engines are open and another request has been served."""
    import clipskip

    request = clipskip.Request(prompt="a red circle", steps=4, width=64, height=64, seed=1)
    with clipskip.open(store) as pipe:
        pipe("a blue star", steps=4, width=64, height=64, seed=2).save(folder / "first.png")
        return Way().watch(lambda: pipe(request).save(folder / "second.png"))


def report() -> str:
    """All figures for people, those of a picture apart."""
    texts = sources()
    all_functions = functions(texts)
    lengths = sorted(function.lines for function in all_functions)
    once = used_once(texts)
    private = sum(function.private for function in all_functions)
    sizes = {path.relative_to(ROOT): lines_of(text) for path, text in texts.items()}
    folders: Counter[str] = Counter()
    for path, lines in sizes.items():
        folders[str(path.parent)] += lines
    longest = max(all_functions, key=lambda function: function.lines)
    return "\n".join(
        [
            *(f"{lines:6} lines in {folder}/" for folder, lines in sorted(folders.items())),
            f"{sum(sizes.values()):6} lines in {len(sizes)} files",
            "files under 40 lines: " + ", ".join(f"{path} {lines}" for path, lines in sizes.items() if lines < 40),
            "files over 300 lines: " + ", ".join(f"{path} {lines}" for path, lines in sizes.items() if lines > 300),
            f"{len(lengths)} functions: median {statistics.median(lengths):.0f} lines, "
            f"nine in ten at most {lengths[9 * len(lengths) // 10]}, "
            f"longest {longest.lines} ({longest.path.relative_to(ROOT)} {longest.name})",
            f"{private / len(lengths):.1%} private; {len(once) / len(lengths):.1%} private and used once:",
            *(f"    {function.path.relative_to(ROOT)} {function.name} ({function.lines})" for function in once),
        ]
    )


if __name__ == "__main__":
    print(report())
    if len(sys.argv) > 1:
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            way = one_picture(Path(sys.argv[1]), Path(scratch))
        print(f"one picture: {len(way.files)} files, {len(way.functions)} functions, {len(way.deepest)} frames deep")
        print(*(f"    {count:5} calls in {name}" for name, count in way.files.most_common()), sep="\n")
        print("the deepest:", *way.deepest, sep="\n    ")
