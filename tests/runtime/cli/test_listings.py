"""The verbs that list what there is to choose from."""

from __future__ import annotations

import json

import pytest

from clipskip.__main__ import main
from clipskip.request import OWN
from clipskip.samplers import SAMPLERS, sampler_named, schedule_named
from clipskip.schedules import SCHEDULES, settings


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for verb in ("samplers", "schedules"):
        assert main([verb, "--json"]) == 0
        found |= json.loads(capsys.readouterr().out)
    return found


def test_all_samplers_and_schedules_are_listed_with_a_source(listed: dict[str, list[dict[str, object]]]) -> None:
    assert [row["name"] for row in listed["samplers"]] == [sampler.name for sampler in SAMPLERS]
    assert [row["name"] for row in listed["schedules"]] == [*SCHEDULES]
    for row in (*listed["samplers"], *listed["schedules"]):
        assert str(row["source"]).endswith(".")
        assert any(word in str(row["source"]) for word in ("20", "k-diffusion", "A1111", "ComfyUI", "sgm", "CompVis"))


def test_every_listed_alias_is_a_name_that_requests_take(listed: dict[str, list[dict[str, object]]]) -> None:
    for row in listed["samplers"]:
        for alias in row["aliases"]:  # type: ignore[attr-defined]
            assert sampler_named(alias).name == row["name"]
    for row in listed["schedules"]:
        for alias in row["aliases"]:  # type: ignore[attr-defined]
            assert schedule_named(alias) == row["name"]


def test_every_setting_of_a_formula_is_a_field_of_requests_and_each_such_field_is_someones() -> None:
    taken = {name for sampler in SAMPLERS for name in sampler.settings}
    assert taken | {name for formula in SCHEDULES.values() for name in settings(formula)} == set(OWN)


def test_for_people_each_has_its_name_and_what_it_takes_below(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("DPM++ SDE")
    assert lines[at + 1].strip() == (
        "aliases k_dpmpp_sde, DPMSolverSDEScheduler; calls per step 2; order 2; schedule karras; settings eta, s_noise"
    )
    assert main(["schedules"]) == 0
    assert "\nsimple\n    Every (steps / n)-th" in capsys.readouterr().out
