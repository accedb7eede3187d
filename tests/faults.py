"""What must be survived, and the tests that show it: `python tests/faults.py` prints the table, row by row.

A row of faults.tsv is shown by every test whose name ends in it, such as `test_an_empty_file_is_named_a1`, or in
several (`..._d7_d8`), and by every case of a table of tests whose id begins with it (`"d16-height": (...)`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
WAITING = {  # rows whose feature does not exist yet
    "A26": "no ONNX file of a user's own is read",
    "C18": "no engine is stripped of its weights",
    "C19": "no engine is refitted",
    "D30": "there is no LoRA",
    "D41": "no latents or embeddings of a user's own are taken",
    "D43": "no picture is taken as a start",
}
_NAME = re.compile(r"^ *(?:async )?def (test_\w+?)((?:_[a-e]\d{1,2})+)\(", re.MULTILINE)
_CASE = re.compile(r"""(?:id=|^ *)["']([a-e]\d{1,2})\b[^"']*["'](?:: \(|[,)])""", re.MULTILINE)


def rows() -> dict[str, str]:
    """Each row and its fault."""
    lines = (TESTS / "faults.tsv").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


def shown() -> dict[str, list[str]]:
    """For each row that has any, its tests as file::name."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        file, text = str(path.relative_to(TESTS)), path.read_text()
        named = [(match[2], match[1] + match[2]) for match in _NAME.finditer(text)]
        for suffixes, name in [*named, *((match[1], f"a case of {match[1]}") for match in _CASE.finditer(text))]:
            for row in re.findall(r"[a-e]\d{1,2}", suffixes):
                found[f"{row[0].upper()}{int(row[1:])}"].append(f"{file}::{name}")
    return found


if __name__ == "__main__":
    tests = shown()
    for row, fault in rows().items():
        print(f"{row:<4} {fault}")
        for line in tests.get(row, [f"waits: {WAITING[row]}" if row in WAITING else "NO TEST"]):
            print(f"     {line}")
