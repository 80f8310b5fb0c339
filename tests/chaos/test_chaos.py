"""A few schedules of faults in CI; `make chaos` runs as many as you like."""

from __future__ import annotations

import json

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.oracle import Findings
from tests.chaos.run import Result, run
from tests.chaos.schedule import make_schedule
from tests.chaos.table import as_json, line, table

#: One of each set-up, plan and ending; nothing may be lost on the way, so that every count is exact.
SEEDS = (24, 27)


@pytest.mark.fleet
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_schedule_of_faults_loses_nothing_and_doubles_nothing(seed: int) -> None:
    result = run(seed, slowness=3, say=print)
    assert result.ok, line(result)
    assert result.faults, "no fault was done"


def test_a_seed_is_a_schedule() -> None:
    assert [str(make_schedule(seed)) for seed in range(50)] == [
        str(make_schedule(seed)) for seed in range(50)
    ]
    assert len({str(make_schedule(seed)) for seed in range(50)}) == 50


def test_all_faults_come_up() -> None:
    made = [make_schedule(seed) for seed in range(200)]
    seen = {one.fault for schedule in made for phase in schedule.injections for one in phase}
    # Each is one of them, and none is forgotten by the schedules.

    assert seen == set(FAULTS)


def test_the_figures_are_sums_and_a_bad_run_says_how_to_replay_it() -> None:
    good = Result(1, "s", {"kill": 2, "cut": 1}, chunks=10, attempts=12, needed=10, seconds=2.0)
    bad = Result(2, "s", {"kill": 1}, chunks=5, findings=Findings(lost=["x"]), attempts=10, needed=10)
    found = json.loads(json.dumps(as_json([good, bad])))
    assert (found["runs"], found["failed"], found["lost"]) == (2, [2], 1)
    assert (found["faults"], found["chunks"], found["extra_work"]) == ({"cut": 1, "kill": 3}, 15, 0.1)
    assert found["results"][0]["faults"] == good.faults
    assert "10.0%" in table([good, bad])
    assert line(good).startswith("seed 1: ok")
    assert "make chaos SEED=2" in line(bad)
