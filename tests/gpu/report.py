"""The last step of `make report-gpu`: what the steps before left in a folder, as one file to send.

It says which GPU, driver and libraries there are, but no serial number, and no path of the home directory.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def gather(folder: Path) -> dict[str, Any]:
    """The findings of doctor, the outcome of each test and the table; what failed instead of a step that did."""
    doctor: Any = {"failed": "clipskip doctor gave no JSON"}
    with suppress(OSError, ValueError):
        doctor = json.loads((folder / "doctor.json").read_text())
    for card in doctor.get("gpus", ()):
        card.pop("uuid", None)
    table = lines(folder / "bench.txt")
    try:
        bench = json.loads(table[-1])
        for card in bench["gpus"]:
            card.pop("uuid", None)
    except (IndexError, ValueError, TypeError, KeyError):
        bench = {"failed": "\n".join(table[-40:])}
    report = {"doctor": doctor, "tests": outcomes(folder), "bench": bench, "table": table[:-1]}
    return json.loads(json.dumps(report).replace(as_json(ROOT), ".").replace(as_json(Path.home()), "~"))


def outcomes(folder: Path) -> dict[str, Any]:
    """How many passed, failed and were skipped; of those that did not pass, why; and the table that they printed."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    reasons: dict[str, str] = {}
    with suppress(OSError, ET.ParseError):
        for case in ET.parse(folder / "tests.xml").getroot().iter("testcase"):
            told = next((entry for entry in case if entry.tag in ("failure", "error", "skipped")), None)
            kind = "passed" if told is None else "skipped" if told.tag == "skipped" else "failed"
            counts[kind] += 1
            if told is not None:
                reasons[str(case.get("name"))] = f"{kind}: {told.get('message') or told.text}"[:1000]
    return {**counts, "reasons": reasons, "said": lines(folder / "tests.txt")[-80:]}


def lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def as_json(path: Path) -> str:
    return json.dumps(str(path))[1:-1]


def main() -> None:
    report = gather(Path(sys.argv[1]))
    cards = report["doctor"].get("gpus") or [{"name": "no GPU"}]
    name = re.sub(r"[^a-z0-9]+", "-", cards[0]["name"].lower()).strip("-")
    path = Path(f"report-gpu-{name}-{date.today()}.json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    tests = report["tests"]
    print(f"{path}: {tests['passed']} tests passed, {tests['failed']} failed, {tests['skipped']} were skipped")
    print("read it before you send it; docs/gpu.md says where to")


if __name__ == "__main__":
    main()
