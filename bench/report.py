"""docs/performance.md, written from reports: `python -m clipskip.bench.report REPORT.json... --out FILE.md`.

Reports are those of `clipskip bench` and `clipskip.bench.peers`; every figure of the document is one of theirs. Beside
it lies one picture for each model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipskip.bench.baseline import AGREE, read
from clipskip.bench.machine import QUIET
from clipskip.engines import hints
from clipskip.engines.files import readable_size
from clipskip.errors import BackendUnavailable

Report = Mapping[str, Any]
Table = Sequence[Sequence[str]]
HEAD = """# Performance

Written by `python -m clipskip.bench.report`; no figure here was typed. `clipskip bench STORE --out FILE` measures one
store, `make bench-peers` compares with others, and both say what makes their figures doubtful. Times are medians, in
milliseconds unless a unit stands beside them, and the spread is the middle half of the runs over that; ratios are
between things that took turns in one run.
"""
# Of the makers' data sheets: dense operations a second in half precision with sums in float32, and bytes a second.
GPUS = {"H100 SXM": (989e12, 3.35e12), "A100 SXM 80 GB": (312e12, 2.04e12), "RTX 4090": (165e12, 1.01e12)}
SHOWN = 3  # rows that are named
SHORT = {
    "clipskip on OpenVINO with a bf16 step": "ours on OpenVINO, step bf16",
    "clipskip on OpenVINO": "ours on OpenVINO",
}


def document(reports: Sequence[Report]) -> str:
    """All of it: a chapter for each model."""
    shown = "Latency by depth, where a picture's time goes, memory by depths open, the host's time"
    busy = any((report["load"]["others"] or 0) > QUIET for report in reports)
    parts = [HEAD, "**Provisional: the machine was busy with other programs. Do not quote these figures.**\n" * busy]
    for model in dict.fromkeys(report["model"] for report in reports):
        of = {report["bench"]: report for report in reports if report["model"] == model}
        title, *rest = chapter(model, of.get("store"), of.get("peers"))
        parts += [title, f"![{shown}](performance-{model}.png)\n", *rest]
    return "\n".join(parts).rstrip() + "\n"


def chapter(model: str, store: Report | None, peers: Report | None) -> Iterator[str]:
    """What was measured of one model, for people: what the benchmarks print, too."""
    yield f"## {model}\n"
    for report in filter(None, (store, peers)):
        yield provenance(report)
    if store:
        yield f"### Stages, {store['size']}x{store['size']} pixels, {store['target']}\n"
        yield table(("", "median", "p90", "p99", "spread", "runs"), [stage(*row) for row in store["stages"].items()])
        yield costs(store)
    if peers:
        yield "### Beside others\n"
        yield "Their time over ours: above 1 clipskip is faster; in brackets how far their result is from ours (L2).\n"
        yield beside(peers)
        yield "".join(f"- left out: {name}: {why}\n" for name, why in peers["left_out"].items())
        yield f"{reproduction(peers)}\n"
        yield whole_processes(peers)
        yield "### Does clip skip make a picture faster?\n"
        yield faster(peers)
        yield "### What is possible\n"
        yield possible(peers)


def provenance(report: Report) -> str:
    """Where a report is from, and what makes it doubtful."""
    box, seen = report["machine"], report["load"]
    others = "an unknown share" if seen["others"] is None else f"{seen['others']:.0%}"
    doubts = [
        what + f": {', '.join(rows[:SHOWN])}" * bool(rows) + f" and {len(rows) - SHOWN} more rows" * (len(rows) > SHOWN)
        for what, rows in report["doubts"].items()
    ]
    what = "`clipskip bench`" if report["bench"] == "store" else "`make bench-peers`"
    cards = "".join(f", {card['name']}" for card in box["gpus"])
    said = f"**Doubtful:** {'; '.join(doubts)}." if doubts else "Nothing makes these figures doubtful."
    return (
        f"{what}, {box['date']}, commit {box['commit'] or 'unknown'}, {box['processor']}, {box['cores']} cores{cards}; "
        f"load {seen['load_before']} before, others had {others} of the processor time. {said}\n"
    )


def table(head: Sequence[str], rows: Table) -> str:
    """In Markdown, aligned."""
    lines = [head, ["-" * 3] * len(head), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned) + "\n"


def number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def stage(name: str, row: Mapping[str, float]) -> Sequence[str]:
    times = [number(row[key]) for key in ("median_ms", "p90_ms", "p99_ms")]
    return (name, *times, f"{row['spread']:.0%}", f"{row['runs']:.0f}")


def costs(store: Report) -> str:
    """Throughput, memory and disk."""
    rates, opened = store["image_steps_per_second"], store["memory"]["depths_open"]
    rows = [(f"steps a second, images in a call: {images}", number(rate)) for images, rate in rates.items()]
    rows += [
        (f"memory with one picture, {kind}", readable_size(b)) for kind, b in store["memory"]["first_picture"].items()
    ]
    if opened and "anonymous" in opened[0]:
        share = opened[-1]["anonymous"] / opened[0]["anonymous"]
        rows.append((f"{len(opened)} depths open, anonymous memory over that of one", f"{share:.3f}"))
    rows += [(f"disk, {part}", readable_size(size)) for part, size in store["disk"].items()]
    return table(("", ""), rows)


def beside(peers: Report) -> str:
    """A row per stage, ours in milliseconds, theirs as ratios."""
    names = [name for name in peers["peers"] if any(name in row for row in peers["ratios"].values())]
    rows = []
    for row, found in peers["ratios"].items():
        ours = peers["stages"][row][next(iter(peers["peers"]))]["median_ms"]
        cells = [
            f"{found[name]['ratio']:.2f} ({peers['apart'][row][name]:.1g})" if name in found else "-" for name in names
        ]
        rows.append((row, number(ours), *cells))
    return table(("", "clipskip, ms", *(SHORT.get(name, name) for name in names)), rows)


def reproduction(peers: Report) -> str:
    """Whether the two halves of the run agree."""
    bad, ratios = peers["not_reproduced"], [found for row in peers["ratios"].values() for found in row.values()]
    count = sum(bool(found["halves"]) for found in ratios)
    few = f" {len(ratios) - count} had too few rounds to tell." if len(ratios) > count else ""
    told = f": not so {'; '.join(bad)}" if bad else ""
    return f"{count - len(bad)} of {count} ratios are the same within {AGREE:.0%} in both halves of the run{told}.{few}"


def whole_processes(peers: Report) -> str:
    """Imports, first pictures, memory and what is installed."""
    rows = [
        (f"import, {name}" if row == "import" else f"{row}, {name}", f"{number(each['median_ms'])} ms")
        for row in ("import", "first picture of a process")
        for name, each in peers[row].items()
    ]
    rows += [(f"peak memory of that, {name}", readable_size(m["peak"])) for name, m in peers["memory"].items() if m]
    rows += [(f"installed, {name}", readable_size(size)) for name, size in peers["installed"].items()]
    return table(("a process of its own", ""), rows)


def faster(peers: Report) -> str:
    """Whole pictures at several clip skips, and whether the difference can be told."""
    rows = []
    for skip, row in peers["by_skip"].items():
        longer = f"{row['longer_ms']:+.2f} +- {row['error_ms']:.2f}" if "longer_ms" in row else "-"
        told = "-" if longer == "-" else "yes" if row["told"] else "**not distinguishable**"
        rows.append((skip, number(row["median_ms"]), longer, told, f"{row['runs']}"))
    head = ("clip skip", "picture, ms", "longer than at 1, ms, +- standard error", "told apart", "runs")
    said = f"{peers['steps']} steps of {peers['size']}x{peers['size']}, every picture of a new prompt, turn by turn; "
    said += "differences are of rounds, and told apart where they are above two standard errors."
    return f"{said}\n\n{table(head, rows)}"


def possible(peers: Report) -> str:
    """Operations and bytes by the graphs, the least time for them, and what clip skip can save of it."""
    counts, deepest = dict(peers["counts"]), f"text-{peers['layers']:02}"
    size, own = counts.pop("size"), (peers["rates"]["flops"], peers["rates"]["bytes"])
    machines = {"this processor": (*own, 1.0), **{name: (*rates, 0.5) for name, rates in GPUS.items()}}  # fp16: half

    def least(role: str, flops: float, bandwidth: float, share: float) -> float:
        return float(max(counts[role]["flops"] / flops, share * counts[role]["bytes"] / bandwidth))

    rows = []
    for role in (deepest, "text-00", "step", "decode"):
        times = [f"{number(1e6 * least(role, *rates))} µs" for rates in machines.values()]
        rows.append(
            (role, f"{number(counts[role]['flops'] / 1e9)} GFLOP", readable_size(counts[role]["bytes"]), *times)
        )
    saved = []
    for rates in machines.values():
        text, skipped = least(deepest, *rates), least("text-00", *rates)
        whole = text + 20 * least("step", *rates) + least("decode", *rates)
        saved.append(f"{(text - skipped) / whole:.2%}")
    rows.append(("saved at best by skipping all layers, of a picture of 20 steps", "", "", *saved))
    said = (
        f"One guided picture of {size}x{size}: products and convolutions counted from the graphs' nodes, weights read "
        "once. A time is the larger of both at this processor's measured peak in float32, or at a data sheet's dense "
        "rate and bandwidth in half precision: nothing ran on these GPUs. Norms, activations and launches come on top."
    )
    return f"{said}\n\n{table(('', 'arithmetic', 'weights, fp32', *machines), rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="clipskip.bench.report", description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", metavar="REPORT.json")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    args = parser.parse_args(arguments)
    reports = [read(path) for path in args.reports]
    try:
        from clipskip.bench import plots
    except ImportError as error:
        raise BackendUnavailable("drawing needs matplotlib", hint=hints.install(".[plots]")) from error
    args.out.write_text(document(reports))
    for model in {report["model"] for report in reports}:
        of = {report["bench"]: report for report in reports if report["model"] == model}
        plots.draw(of.get("store"), of.get("peers"), args.out.with_name(f"{args.out.stem}-{model}.png"))


if __name__ == "__main__":
    main()
