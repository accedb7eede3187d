"""What there is to choose from: `clipskip samplers` and `clipskip schedules`."""

from __future__ import annotations

import argparse
from typing import Any

from . import Outcome, Verbs


def add_to(verbs: Verbs) -> None:
    """Let argparse know these verbs."""
    text = (
        "The samplers: names, calls of the network per step, order, schedule, the settings each takes, and the source."
    )
    verbs.add_parser("samplers", help="list the samplers", description=text).set_defaults(run=samplers)
    text = "The schedules: names, the settings each takes, and the source."
    verbs.add_parser("schedules", help="list the schedules", description=text).set_defaults(run=schedules)


def samplers(args: argparse.Namespace) -> Outcome:
    """Every sampler, in A1111's order."""
    from clipskip.samplers import SAMPLERS

    rows = [
        {
            "name": sampler.name,
            "aliases": list(sampler.aliases),
            "calls_per_step": sampler.calls_per_step,
            "order": sampler.order,
            "schedule": None if sampler.levels else sampler.automatic,
            "settings": list(sampler.settings),
            "source": _summary(sampler.solve),
        }
        for sampler in SAMPLERS
    ]
    return Outcome({"samplers": rows}, _blocks(rows))


def schedules(args: argparse.Namespace) -> Outcome:
    """Every schedule, in A1111's order."""
    from clipskip.samplers import SCHEDULE_ALIASES
    from clipskip.schedules import SCHEDULES, settings

    rows = [
        {
            "name": name,
            "aliases": [alias for alias, meant in SCHEDULE_ALIASES.items() if meant == name],
            "settings": list(settings(formula)),
            "source": _summary(formula),
        }
        for name, formula in SCHEDULES.items()
    ]
    return Outcome({"schedules": rows}, _blocks(rows))


def _summary(formula: object) -> str:
    """The first line of a formula's documentation, which names where it is from."""
    return (formula.__doc__ or "").partition("\n")[0]


def _blocks(rows: list[dict[str, Any]]) -> str:
    """Each row's name, and below it what else it says."""
    lines = []
    for row in rows:
        told = {name: ", ".join(value) if isinstance(value, list) else value for name, value in row.items() if value}
        facts = [f"{name.replace('_', ' ')} {value}" for name, value in told.items() if name not in ("name", "source")]
        lines += [told["name"], *(f"    {line}" for line in ("; ".join(facts), told["source"]) if line)]
    return "\n".join(lines)
