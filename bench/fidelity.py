"""What of a prompt is left at which clip skip: coarse facts against fine ones, tags against sentences, and guidance.

`python -m clipskip.bench.fidelity STORE`, of the sample model alone: its prompts name facts, and a checker reads them
back from the pictures. All depths draw the same scenes with the same noise. Writes fidelity.json and fidelity.png,
prints a table for people and ends with one JSON line for machines.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import clipskip
from clipskip import fields
from clipskip.bench import recipe
from clipskip.cli import output
from clipskip.cli.recommend import empty_figure
from clipskip.engines import report
from clipskip.errors import RequestError

facts, checker, scenes = map(recipe.module, ("named_facts", "checker", "scenes"))
Facts = Mapping[str, str]
Asked = Mapping[str, Sequence[Any]]  # captions by form
Figures = dict[str, dict[str, float]]  # group of facts -> its share, the interval of that, and what chance gives
DEEP = 12  # where guidance is varied beside the recommended clip skip
CFGS = (1.0, 2.0, 5.0, 9.0, 15.0)
SETTINGS: dict[str, Any] = {"sampler": "DDIM", "schedule": "uniform", "steps": 20, "cfg": 5.0}  # as the sample's check
SURE = 1.96  # normal deviations: 95 %


def interval(scores: Sequence[float]) -> tuple[float, float, float]:
    """Their mean and its 95 % interval: Wilson 1927, for as many yes and no as would scatter like these shares."""
    count, share, scatter = len(scores), float(np.mean(scores)), float(np.var(scores, ddof=1))
    effective = count * max(1.0, share * (1 - share) / scatter) if scatter else count
    centre = share + SURE**2 / (2 * effective)
    spread = SURE * math.sqrt(share * (1 - share) / effective + SURE**2 / (4 * effective**2))
    low, high = ((centre + side * spread) / (1 + SURE**2 / effective) for side in (-1, 1))
    return share, low, high


def figures(seen: Mapping[str, Sequence[Facts]], asked: Asked) -> Figures:
    """Shares over scenes, those of the forms averaged; chance: the same pictures held against the other scenes."""
    pairs = {form: [[facts.shares(each, other.named) for other in asked[form]] for each in seen[form]] for form in seen}
    found: Figures = {}
    for group in facts.GROUPS:
        tables = np.array([[[pair[group] for pair in row] for row in pairs[form]] for form in seen])
        share, low, high = interval(np.diagonal(tables, axis1=1, axis2=2).mean(0).tolist())
        others = tables[:, ~np.eye(tables.shape[1], dtype=bool)]
        found[group] = {"share": share, "low": low, "high": high, "chance": float(others.mean())}
    return found


def drawn(pipe: clipskip.Pipeline, asked: Asked, **settings: Any) -> dict[str, list[Facts]]:
    """What the checker reads from a picture of each prompt. A scene has its own noise, whatever the settings."""
    seen = dict[str, list[Facts]]()
    for form, written in asked.items():
        requests = [clipskip.Request(prompt=each.text, seed=n, **SETTINGS | settings) for n, each in enumerate(written)]
        bar = output.Bar(len(requests))
        for state in pipe.steps(*requests):
            bar.show(state.call, state.calls)
        bar.clear()
        seen[form] = [checker.look(np.asarray(result.images[0])) for result in state.results]
    return seen


def measure(store: Path, count: int, skips: Sequence[int] | None = None) -> dict[str, Any]:
    """All figures by clip skip, and by guidance at the recommended one and at DEEP. RequestError for another model."""
    asked = facts.prompts(fields.at_least("prompts", count, 2))
    with clipskip.open(store) as pipe, output.stages() as say:
        if pipe.model.default_size != scenes.SIZE:
            message = f"{pipe.model.name} draws no scenes that can be checked: fidelity is measured on the sample model"
            raise RequestError(message, field="store", hint="clipskip export export/sample --out build/sample")
        by_skip, by_cfg = dict[int, dict[str, Figures]](), dict[int, dict[float, Figures]]()
        for skip in skips or pipe.clip_skips:
            say(f"clip skip {skip}: {2 * count} pictures")
            seen = drawn(pipe, asked, clip_skip=skip)
            by_skip[skip] = {form: figures({form: seen[form]}, asked) for form in facts.FORMS}
            by_skip[skip]["both"] = figures(seen, asked)
        for skip in (pipe.model.recommended_clip_skip, DEEP):
            say(f"{len(CFGS)} guidances at clip skip {skip}: {2 * len(CFGS) * count} pictures")
            by_cfg[skip] = {cfg: figures(drawn(pipe, asked, clip_skip=skip, cfg=cfg), asked) for cfg in CFGS}
        model = {"model": pipe.model.name, "model_sha256": pipe.model.model_sha256}
    return {
        "bench": "fidelity", **model, "version": clipskip.__version__, "scenes": count, "settings": SETTINGS,
        "by_clip_skip": by_skip, "by_cfg": by_cfg,
    }  # fmt: skip


def kept(figure: Mapping[str, float], name: str = "share") -> float:
    """What is left of a fact beyond what chance gives: 1 is all of it, 0 none."""
    return (figure[name] - figure["chance"]) / max(1 - figure["chance"], 1e-9)


def table(measured: Mapping[str, Any]) -> str:
    """One line per clip skip and per guidance, for people."""
    rows = [("", "a shape", "the kind", *facts.FINE, "kind kept", "fine kept", "everything", "tags", "sentences")]
    settings = {f"clip skip {skip}": forms for skip, forms in measured["by_clip_skip"].items()}
    for skip, by_cfg in measured["by_cfg"].items():
        settings |= {f"cfg {cfg:g} at {skip}": {"both": found} for cfg, found in by_cfg.items()}
    for name, forms in settings.items():
        found = forms["both"]
        cells = [f"{found[group]['share']:.2f}" for group in ("a shape", "the kind", *facts.FINE)]
        cells += [f"{kept(found[group]):.2f}" for group in ("the kind", "fine")]
        every = [forms[form]["everything"] for form in ("both", *facts.FORMS) if form in forms]
        cells += [f"{each['share']:.2f} ({each['low']:.2f}-{each['high']:.2f})" for each in every]
        cells += [""] * (len(rows[0]) - 1 - len(cells))
        rows.append((name, *cells))
    return "\n".join([report.table(rows), "", f"{measured['scenes']} scenes in two forms; 95 % intervals"])


def plot(found: Mapping[str, Any], file: Path) -> None:
    """Three drawings side by side: coarse and fine by clip skip, the two forms, coarse and fine by guidance."""
    figure = empty_figure()
    figure.set_size_inches(13, 4)
    by_skip, by_form, by_cfg = figure.subplots(1, 3, sharey=True)
    both = {skip: forms["both"] for skip, forms in found["by_clip_skip"].items()}
    for colour, group in zip(("tab:gray", "tab:blue", "tab:red"), ("a shape", "the kind", "fine"), strict=True):
        line(by_skip, {skip: row[group] for skip, row in both.items()}, colour, group, chance=group != "a shape")
    for (skip, rows), style in zip(found["by_cfg"].items(), ("o-", "x:"), strict=True):
        for colour, group in (("tab:blue", "the kind"), ("tab:red", "fine")):
            line(by_cfg, {cfg: row[group] for cfg, row in rows.items()}, colour, f"{group}, at {skip}", style)
    for colour, form in zip(("tab:green", "tab:purple"), facts.FORMS, strict=True):
        everything = {skip: forms[form]["everything"] for skip, forms in found["by_clip_skip"].items()}
        line(by_form, everything, colour, form)
    by_skip.set(title="what is right, by clip skip (dashed: by chance)", xlabel="clip skip", ylabel="share, 95 %")
    by_form.set(title="everything right", xlabel="clip skip")
    by_cfg.set(title="by guidance, at two clip skips", xlabel="cfg", ylim=(0, 1.02))
    for axes, places in ((by_skip, both), (by_form, both), (by_cfg, rows)):
        axes.set_xticks(list(places))
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(file)


def line(
    axes: Any, row: Mapping[Any, Mapping[str, float]], colour: str, label: str, style: str = "o-", chance: bool = False
) -> None:
    """A share over an axis with its interval, and what chance gives."""
    places = list(row)
    low, high, share = ([each[name] for each in row.values()] for name in ("low", "high", "share"))
    axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(places, share, style, color=colour, label=label, markersize=4)
    if chance:
        axes.plot(places, [each["chance"] for each in row.values()], "--", color=colour, linewidth=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="clipskip.bench.fidelity", description="What is left of a prompt, by depth.")
    parser.add_argument("store", type=Path, help="of the sample model")
    parser.add_argument("--prompts", type=int, default=48, help="scenes, each described in two forms")
    parser.add_argument("--out", type=Path, default=Path("build/fidelity"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    found = measure(args.store, args.prompts)
    (args.out / "fidelity.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, args.out / "fidelity.png")
    print(table(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
