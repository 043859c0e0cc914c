"""The results page: what is run, once and in order; what stands on the page; and the whole of it on a small list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.simulate.results_rig import QUICK, foresight, minute, result, seeded, written
from tokenservice.cli.main import app
from tokenservice.errors import InputError
from tokenservice.simulate.compare import Row, students_t
from tokenservice.simulate.policies import POLICIES
from tokenservice.simulate.result import Result
from tokenservice.simulate.results.page import Page
from tokenservice.simulate.results.runner import Known, Plan, Progress, in_order, recall, run_all
from tokenservice.simulate.results.store import Kept, Store
from tokenservice.simulate.results.study import read
from tokenservice.simulate.results.unit import Search, Task, Unit

ROOT = Path(__file__).parents[2]
LIST = ROOT / "docs" / "results.yaml"


# --- Intervals -----------------------------------------------------------------------------------------------------

INTERVALS: dict[str, tuple[tuple[float, ...], float]] = {
    "one seed has none": ((9.0,), 0.0),
    "two": ((9.0, 11.0), 12.706 * 2**0.5 / 2**0.5),
    "three": ((9.0, 10.0, 11.0), 4.303 / 3**0.5),
    "five": ((8.0, 9.0, 10.0, 11.0, 12.0), 2.776 * 2.5**0.5 / 5**0.5),
    "all the same": ((9.0, 9.0, 9.0), 0.0),
}


@pytest.mark.parametrize(("hours", "half"), INTERVALS.values(), ids=INTERVALS)
def test_an_interval_is_students_t_times_the_standard_error(hours: tuple[float, ...], half: float) -> None:
    row = Row(policy="p", results=seeded(*hours))
    assert row.half_width(lambda one: one.accelerator_hours) == pytest.approx(half)


@pytest.mark.parametrize(("degrees", "factor"), [(1, 12.706), (10, 2.228), (11, 2.201), (30, 2.042), (120, 1.980)])
def test_students_t_is_the_tables(degrees: int, factor: float) -> None:
    assert students_t(degrees) == pytest.approx(factor, abs=0.003)


# --- What is run ---------------------------------------------------------------------------------------------------


def plan(folder: Path, *studies: dict[str, object]) -> Plan:
    return Plan(read(written(folder, *studies)))


def known(outcomes: Mapping[Unit, Result]) -> Known:
    return Known({unit: Kept(outcome, 1.0) for unit, outcome in outcomes.items()})


def sweep(policy: str, *figures: tuple[float, float], scenario: Path = QUICK) -> dict[Unit, Result]:
    """Results of a policy's settings on seed 0, (hours, attainment) each; those not told attain nothing."""
    told = [*figures, *[(99.0, 0.0)] * (len(POLICIES[policy].sweep) - len(figures))]
    return {
        Task(scenario, 0, policy, choice): result(hours=hours, attainment=attained, policy=policy)
        for choice, (hours, attained) in enumerate(told)
    }


def test_a_peer_gets_all_its_settings_first_and_other_seeds_for_the_chosen_one(tmp_path: Path) -> None:
    one = plan(tmp_path, {"peers": ["melange"], "seeds": 3})
    settings = len(POLICIES["melange"].sweep)
    first = [unit for unit in one.wanted(Known()) if unit.policy == "melange"]
    assert first == [Task(QUICK, 0, "melange", choice) for choice in range(settings)]
    then = one.wanted(known(sweep("melange", (30.0, 0.999), (20.0, 0.991), (10.0, 0.98))))
    assert [unit for unit in then if unit.policy == "melange" and unit not in first] == [
        Task(QUICK, seed, "melange", 1) for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("again", "settings"), [(False, [1]), (True, list(range(len(POLICIES["melange"].sweep))))], ids=["chosen", "swept"]
)
def test_the_best_of_another_study_are_run_as_chosen_there_or_swept_again(
    again: bool, settings: list[int], tmp_path: Path
) -> None:
    other = minute(tmp_path)
    one = plan(
        tmp_path,
        {"peers": ["melange", "kubeai"]},
        {"scenario": str(other), "peers": {"scenario": "quick", "count": 1, "sweep": again}},
    )
    there = [unit for unit in one.wanted(Known()) if unit.scenario == other]
    assert {unit.policy for unit in there} == {"static-p99", "operator"}, "nobody is best yet"
    found = known(sweep("melange", (30.0, 0.999), (20.0, 0.991)) | sweep("kubeai", (5.0, 0.98), (25.0, 0.995)))
    peers = [unit for unit in one.wanted(found) if unit.scenario == other and unit.policy in POLICIES]
    assert peers == [Task(other, 0, "melange", choice) for choice in settings]


def test_the_oracle_begins_where_another_studys_ended(tmp_path: Path) -> None:
    other = minute(tmp_path)
    one = plan(tmp_path, {"oracle": True}, {"scenario": str(other), "oracle": "quick"})
    searches = [unit for unit in one.wanted(Known()) if isinstance(unit, Search)]
    assert searches == [Search(QUICK, "chat"), Search(QUICK, "code")]
    found = Known({unit: Kept(foresight(), 1.0) for unit in searches})
    there = [unit for unit in one.wanted(found) if unit.scenario == other and isinstance(unit, Search)]
    assert there == [Search(other, "chat", (1.1, 30.0)), Search(other, "code", (1.1, 30.0))]


def test_ours_are_run_last_and_the_runs_of_a_seed_together() -> None:
    week = Path("week.yaml")
    units: list[Unit] = [
        Task(QUICK, 1, "operator"),
        Task(QUICK, 1, "melange"),
        Search(QUICK, "chat"),
        Task(week, 0, "operator"),
        Task(week, 0, "melange"),
        Task(QUICK, 0, "kubeai"),
        Task(QUICK, 1, "kubeai"),
    ]
    told = [units.index(unit) for unit in in_order(units, {"quick": 1.0, "week": 100.0})]
    assert told == [5, 1, 6, 2, 4, 3, 0], "ours begin with the longest"


class _Stopped(Exception):  # noqa: N818 - says what happened
    pass


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    one = plan(tmp_path, {"scenario": str(minute(tmp_path)), "peers": ["melange"], "seeds": 2, "oracle": True})
    store, said = Store(tmp_path / "kept"), list[Progress]()

    def stop(at: Progress) -> None:
        if at.done == 3:
            raise _Stopped

    with pytest.raises(_Stopped):
        run_all(one, store, jobs=1, told=stop)
    assert len(recall(one, store)[0].kept) == 3
    found, missing = run_all(one, store, jobs=1, told=said.append)
    assert missing == []
    assert said[-1].done == said[-1].total == len(found.kept) - 3
    again = list[Progress]()
    run_all(one, store, jobs=1, told=again.append)
    assert again == []


def test_what_is_not_among_the_named_scenarios_is_left_for_later(tmp_path: Path) -> None:
    one = plan(tmp_path, {"scenario": str(minute(tmp_path, "a"))}, {"scenario": str(minute(tmp_path, "b"))})
    found, missing = run_all(one, Store(tmp_path / "kept"), jobs=1, told=lambda _: None, only=("b",))
    assert {unit.scenario.stem for unit in found.kept} == {"b"}
    assert {unit.scenario.stem for unit in missing} == {"a"}


# --- The page ------------------------------------------------------------------------------------------------------


def text(one: Plan, outcomes: Mapping[Unit, Result], *, oracle: float = 0.0, missing: Sequence[Unit] = ()) -> str:
    found = known(outcomes)
    if oracle:
        searches = (Search(QUICK, name) for name in ("chat", "code"))
        found.kept.update({unit: Kept(foresight(oracle / 2), 1.0) for unit in searches})
    return Page(plan=one, known=found, missing=missing, pictures="results").text()


STATIC, OPERATOR = Task(QUICK, 0, "static-p99"), Task(QUICK, 0, "operator")
CANNED: dict[Unit, Result] = {
    STATIC: result(hours=20.0, utilization=0.3, policy="static-p99"),
    OPERATOR: result(hours=10.0, utilization=0.6, attainment=0.992, policy="operator"),
    **sweep("melange", (30.0, 0.999), (12.5, 0.991)),
    **sweep("kubeai", (5.0, 0.98)),
}


def test_a_study_on_the_page_is_a_table_and_what_it_says(tmp_path: Path) -> None:
    one = plan(tmp_path, {"title": "Quick", "note": "A note.", "peers": ["melange", "kubeai"], "oracle": True})
    section = text(one, CANNED, oracle=8.0).partition("## Quick ‡\n")[2].partition("\n## ")[0]
    assert (
        section.strip()
        == """\
A chat service whose demand doubles and falls again, and a small one that comes in bursts. A note. One seed. Replicas \
take their variant's time to load.

| policy | U | attained | hours | of static | $/Mtok | J/token | missed | headroom | loading | draining | free on used \
nodes | empty nodes |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| operator | 0.600 | 99.20 % | 10.0 | 0.500 | 2.50 | 1.25 | 0.000 | 0.300 | 0.100 | 0.000 | 0.000 | 0.000 |
| static-p99 | 0.300 | 99.50 % | 20.0 | 1.000 | 2.50 | 1.25 | 0.000 | 0.600 | 0.100 | 0.000 | 0.000 | 0.000 |
| melange (headroom=0.15) § | 0.500 | 99.10 % | 12.5 | 0.625 | 2.50 | 1.25 | 0.000 | 0.400 | 0.100 | 0.000 | 0.000 | \
0.000 |
| kubeai † | 0.500 | 98.00 % | 5.0 | 0.250 | 2.50 | 1.25 | 0.000 | 0.400 | 0.100 | 0.000 | 0.000 | 0.000 |
| oracle (foresight) | 0.800 | 99.10 % | 8.0 | 0.400 |  |  |  |  |  |  |  |  |

The operator keeps 99 %. Its accelerator-hours: 0.500 of static's; 0.800 of those of the best peer that keeps 99 %, \
melange (headroom=0.15) §; 1.250 of the oracle's. Its U is 0.750 of the oracle's.

Requests within both objectives under the operator: chat (Guaranteed) 99.20 %.

![Quick: accelerators and demand over time, waterfalls, cost against attainment](results/quick.png)

‡ Scaled or carried over, not fitted to measurements of the engine: h100 for chat."""
    )


def test_a_glance_has_a_line_a_scenario_that_was_run(tmp_path: Path) -> None:
    one = plan(tmp_path, {"peers": ["melange"], "oracle": True}, {"scenario": str(minute(tmp_path))})
    glance = text(one, CANNED, oracle=8.0).partition("## The operator at a glance")[2].partition("\n## ")[0]
    assert glance.strip().splitlines()[2:] == [
        "| quick ‡ | 0.600 | 99.20 % | 0.500 | 0.800 | melange (headroom=0.15) § | 1.250 |"
    ]


def targets(folder: Path, outcomes: Mapping[Unit, Result], *asked: dict[str, object]) -> list[str]:
    """The rows of the targets' table, without their first two cells."""
    one = plan(folder, {"peers": ["melange", "kubeai"], "oracle": True, "targets": list(asked)})
    table = text(one, outcomes, oracle=8.0).partition("## What was asked for")[2].partition("Where it goes")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| quick")]
    return [" | ".join(cells[2:]).rstrip(" |") for cells in rows]


TARGETS: dict[str, tuple[dict[str, object], str]] = {
    "met": ({"figure": "utilization", "atLeast": 0.6}, "U | ≥ 0.600 | 0.600 | met | 0.800"),
    "missed": (
        {"figure": "utilization", "atLeast": 0.65},
        "U | ≥ 0.650 | 0.600 | missed by 0.050 | 0.800 | headroom 0.300, loading 0.100",
    ),
    "hours of static": (
        {"figure": "hoursOfStatic", "atMost": 0.5},
        "hours of static's | ≤ 0.500 | 0.500 | met | 0.400",
    ),
    "hours of the best peer": (
        {"figure": "hoursOfBestPeer", "atMost": 0.75},
        "hours of the best peer's | ≤ 0.750 | 0.800 | missed by 0.050 | 0.640 | headroom 0.300, loading 0.100",
    ),
    "U of the oracle": (
        {"figure": "utilizationOfOracle", "atLeast": 0.74},
        "U of the oracle's | ≥ 0.740 | 0.750 | met",
    ),
    "attained": (
        {"figure": "attainment", "atLeast": 0.995},
        "attained | ≥ 99.50 % | 99.20 % | missed by 0.30 points |  | chat: TTFT 99.20 %, TPOT 100.00 %",
    ),
}


@pytest.mark.parametrize(("asked", "row"), TARGETS.values(), ids=TARGETS)
def test_a_target_stands_beside_what_was_reached(asked: dict[str, object], row: str, tmp_path: Path) -> None:
    assert targets(tmp_path, CANNED, asked) == [row]


def beside(folder: Path, outcomes: dict[Unit, Result], *peers: str) -> tuple[str, str]:
    """The row below the target of the best peer's hours, and what the study says of hours."""
    asked = {"figure": "hoursOfBestPeer", "atMost": 0.9}
    shown = text(plan(folder, {"peers": list(peers), "targets": [asked]}), CANNED | outcomes)
    lines = shown.splitlines()
    row = next(number for number, line in enumerate(lines) if "| hours of the best peer's | ≤" in line)
    hours = shown.partition("Its accelerator-hours: ")[2].partition("\n")[0]
    return lines[row + 1], hours


def test_beside_a_best_peer_that_knows_the_future_stands_the_best_that_does_not(tmp_path: Path) -> None:
    seeing = "0.800 of those of the best peer that keeps 99 %, melange (headroom=0.15) §"
    row, hours = beside(tmp_path, sweep("kubeai", (16.0, 0.995)), "melange", "kubeai")
    assert row == "|  |  | … without foresight |  | 0.625 |  |  | kubeai |"
    assert hours == f"0.500 of static's; {seeing}; 0.625 of those of the best without foresight that does, kubeai."
    row, hours = beside(tmp_path, {}, "melange", "kubeai")
    assert row == "|  |  | … without foresight |  | none keeps 99 % |  |  |  |"
    assert hours == f"0.500 of static's; {seeing}."
    assert beside(tmp_path, {}, "melange")[0] == "|  |  | … without foresight |  | none was run |  |  |  |"


def test_a_best_peer_without_foresight_stands_alone(tmp_path: Path) -> None:
    row, hours = beside(tmp_path, sweep("kubeai", (11.0, 0.995)), "melange", "kubeai")
    assert "foresight" not in row
    assert hours == "0.500 of static's; 0.909 of those of the best peer that keeps 99 %, kubeai."


def test_dynamo_on_its_last_rate_knows_nothing_of_the_future(tmp_path: Path) -> None:
    one = plan(tmp_path, {"peers": ["dynamo-sla"]})
    last, perfect = sweep("dynamo-sla", *[(9.0, 0.9)] * 5, (9.0, 0.995)), sweep("dynamo-sla", (9.0, 0.995))
    assert "| dynamo-sla (margin=0.6, perfect=False) |" in text(one, CANNED | last)
    assert "| dynamo-sla § |" in text(one, CANNED | perfect)


def test_a_target_against_peers_none_of_which_keeps_99_percent_was_run_all_the_same(tmp_path: Path) -> None:
    asked = {"figure": "hoursOfBestPeer", "atMost": 0.9}
    shown = text(plan(tmp_path, {"peers": ["kubeai"], "targets": [asked]}), CANNED)
    assert "Of 1 targets 0 are met, 0 missed, 0 not run, 1 without a peer that keeps 99 %." in shown
    assert "| hours of the best peer's | ≤ 0.900 | no peer keeps 99 % |" in shown
    assert "| hours of the best peer's | ≤ 0.900 | not run |" in text(
        plan(tmp_path, {"peers": ["kubeai"], "targets": [asked]}), {STATIC: CANNED[STATIC], OPERATOR: CANNED[OPERATOR]}
    )


def test_a_bound_may_come_from_another_study(tmp_path: Path) -> None:
    other = minute(tmp_path)
    one = plan(
        tmp_path,
        {},
        {
            "scenario": str(other),
            "targets": [{"figure": "utilization", "atLeast": {"scenario": "quick", "divided": 0.8, "less": 0.05}}],
        },
    )
    found = CANNED | {replace(OPERATOR, scenario=other): result(utilization=0.69)}
    assert "| U | ≥ 0.700 | 0.690 | missed by 0.010 |  | headroom 0.210, loading 0.100 |" in text(one, found)


def test_what_was_not_run_is_said_and_not_guessed(tmp_path: Path) -> None:
    asked = {"figure": "utilization", "atLeast": 0.6}
    one = plan(tmp_path, {"peers": ["melange"], "targets": [asked]})
    without = {unit: it for unit, it in CANNED.items() if unit != OPERATOR}
    shown = text(one, without, missing=[OPERATOR])
    assert "1 runs were not made" in shown
    assert "1 of `quick`" in shown
    assert "`make bench-policies` makes them" in shown
    assert "Of 1 targets 0 are met, 0 missed, 1 not run." in shown
    assert "| U | ≥ 0.600 | not run |" in shown
    assert "The operator was not run" in shown
    assert "## Not run" not in text(one, CANNED)


def test_a_peer_with_a_setting_that_was_not_run_is_left_out(tmp_path: Path) -> None:
    one = plan(tmp_path, {"peers": ["melange"]})
    some = {unit: it for unit, it in CANNED.items() if unit != Task(QUICK, 0, "melange", 2)}
    assert "| melange" in text(one, CANNED)
    assert "| melange" not in text(one, some)


def test_several_seeds_have_an_interval(tmp_path: Path) -> None:
    one = plan(tmp_path, {"seeds": 3})
    more = {replace(OPERATOR, seed=seed): it for seed, it in enumerate(seeded(9.0, 10.0, 11.0))}
    shown = text(one, CANNED | {replace(STATIC, seed=seed): result(hours=20.0, seed=seed) for seed in range(3)} | more)
    assert "| operator | 0.500 | 99.50 % | 10.0 ± 2.5 | 0.500 |" in shown
    assert "3 seeds." in shown


def test_ratios_are_of_the_same_seeds(tmp_path: Path) -> None:
    one = plan(tmp_path, {"seeds": 3, "oracle": True})
    static = {replace(STATIC, seed=seed): it for seed, it in enumerate(seeded(20.0, 10.0, 10.0))}
    shown = text(one, CANNED | static, oracle=8.0)
    assert "| operator | 0.600 | 99.20 % | 10.0 | 0.500 |" in shown, "the operator was run on seed 0 alone"
    assert "| oracle (foresight) | 0.800 | 99.10 % | 8.0 | 0.400 |" in shown
    assert "Its accelerator-hours: 0.500 of static's; 1.250 of the oracle's." in shown


# --- The list ------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, object], str]] = {
    "a policy that is none": ({"peers": ["hap"]}, "studies.0.peers: there is no policy hap; there are operator"),
    "a study that is none": ({"oracle": "other"}, "studies.0.oracle: no study before this one has the scenario"),
    "an unknown field": ({"seed": 3}, "studies.0.seed: Extra inputs are not permitted"),
    "two bounds": (
        {"targets": [{"figure": "utilization", "atLeast": 1, "atMost": 1}]},
        "give exactly one of atLeast, atMost",
    ),
    "a cold start that is none": (
        {"targets": [{"figure": "utilization", "atLeast": 1, "coldStartSeconds": 7}]},
        "targets.0.coldStartSeconds: is none of the study's coldStarts",
    ),
}


@pytest.mark.parametrize(("study", "message"), WRONG.values(), ids=WRONG)
def test_wrong_lists_are_told_by_field(study: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read(written(tmp_path, study))


def test_the_list_of_the_repository_is_sound_and_its_quick_part_needs_no_data() -> None:
    studies = read(LIST).studies
    assert all(study.scenario.is_file() for study in studies)
    quick = read(LIST, quick=True).studies
    assert [study.name for study in quick] == ["quick"]
    assert "TAAS_DATA" not in QUICK.read_text()


def test_every_ready_scenario_is_on_the_list() -> None:
    assert {study.name for study in read(LIST).studies} == {path.stem for path in QUICK.parent.glob("*.yaml")}


def test_the_page_of_the_repository_has_all_its_pictures() -> None:
    page = ROOT / "docs" / "results.md"
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert pictures
    assert [picture for picture in pictures if not (page.parent / picture).is_file()] == []


# --- The whole -----------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> str:
    ran = CliRunner().invoke(app, ["bench", "policies", *map(str, arguments)])
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_the_quick_part_writes_a_page_with_its_figures(tmp_path: Path) -> None:
    page, kept = tmp_path / "page.md", tmp_path / "kept"
    said = run("--list", LIST, "--quick", "--page", page, "--kept", kept)
    shown = page.read_text()
    assert f"wrote {page} from" in said
    assert "about" in said, "progress is told"
    assert all(re.search(rf"^\| {policy}\b", shown, re.MULTILINE) for policy in ("operator", "static-p99", *POLICIES))
    assert "| oracle (foresight) |" in shown
    assert "## Not run" not in shown
    assert (tmp_path / "page" / "quick.png").read_bytes().startswith(b"\x89PNG")
    before = {file: file.stat().st_mtime_ns for file in kept.rglob("*.json")}
    run("--list", LIST, "--quick", "--page", page, "--kept", kept)
    assert page.read_text() == shown
    assert {file: file.stat().st_mtime_ns for file in kept.rglob("*.json")} == before


def test_without_running_the_page_says_what_is_missing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    said = run("--list", LIST, "--quick", "--no-run", "--page", page, "--kept", tmp_path / "kept")
    assert "were not made" in said
    assert "of `quick`" in page.read_text()


def test_an_unknown_scenario_is_named() -> None:
    ran = CliRunner().invoke(app, ["bench", "policies", "--list", str(LIST), "--only", "wuick"])
    assert ran.exit_code == 2
    assert "--only: there is no study of wuick; there are quick" in ran.output
