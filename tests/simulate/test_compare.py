"""Policies side by side: which setting stands for a peer, and what is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType

import pytest
import yaml
from typer.testing import CliRunner

from tokenservice.cli.main import app
from tokenservice.core.model import ServiceKey
from tokenservice.simulate.assemble import Setting, fleet, setting
from tokenservice.simulate.compare import Row, Task, best, with_cold_start
from tokenservice.simulate.oracle import search
from tokenservice.simulate.policies.static import Static
from tokenservice.simulate.result import Result, ServiceResult, Waterfall
from tokenservice.simulate.run import carried_out, decider
from tokenservice.simulate.run import run as simulated
from tokenservice.simulate.scenario import load
from tokenservice.simulate.scenario_spec import BySource, ColdStart

QUICK = Path(__file__).parents[2] / "docs" / "scenarios" / "quick.yaml"
NOTHING = Waterfall(
    utilization=0.5,
    slo_misses=0.0,
    headroom=0.5,
    cold_start=0.0,
    draining=0.0,
    fragmentation=0.0,
    idle_nodes=0.0,
)


def result(attainment: float, dollars: float, *, seed: int = 0) -> Result:
    service = ServiceResult(
        tier="Guaranteed",
        requests=100,
        attainment=attainment,
        ttft_attainment=1.0,
        tpot_attainment=1.0,
        deferrable=1.0,
        output_tokens=1,
        tokens_owed=0,
        worth=1.0,
    )
    return Result(
        scenario="s",
        policy="p",
        seed=seed,
        utilization=0.5,
        waterfall=NOTHING,
        services=MappingProxyType({"chat": service}),
        accelerator_hours=dollars / 3,
        dollars=dollars,
        dollars_per_million_tokens=1.0,
        joules_per_token=1.0,
        goodput_per_accelerator_hour=1.0,
        changes=0,
        replicas_started=0,
        moves=0,
        nodes_started=0,
        tokens_owed=0,
    )


@pytest.mark.parametrize(
    ("outcomes", "chosen"),
    [
        ([(0.995, 30.0), (0.991, 20.0), (0.98, 10.0)], 1),
        ([(0.995, 20.0), (0.991, 20.0)], 0),
        ([(0.97, 30.0), (0.98, 40.0), (0.90, 10.0)], 1),
    ],
    ids=["cheapest that keeps", "published one of equals", "nearest where none keeps"],
)
def test_a_peer_is_shown_at_the_cheapest_setting_that_keeps_the_objectives(
    outcomes: list[tuple[float, float]], chosen: int
) -> None:
    found = {Task(QUICK, 0, "p", choice): result(*outcome) for choice, outcome in enumerate(outcomes)}
    assert best(found).choice == chosen


def test_an_interval_is_students_over_seeds() -> None:
    row = Row(policy="p", results=tuple(result(0.99, dollars) for dollars in (9.0, 10.0, 11.0)))
    assert row.mean(lambda one: one.dollars) == 10.0
    assert row.half_width(lambda one: one.dollars) == pytest.approx(4.303 * 1.0 / 3**0.5)
    assert replace(row, results=row.results[:1]).half_width(lambda one: one.dollars) == 0.0


def test_static_sizes_and_load_tests_know_of_prefixes_that_are_found_and_the_yardstick_of_none(
    tmp_path: Path,
) -> None:
    line = '{{"timestamp": {}, "input_length": 4096, "output_length": 20, "hash_ids": [1, 2, 3, 4, 5, 6, {}, {}]}}\n'
    (tmp_path / "trace.jsonl").write_text("".join(line.format(50 * n, 2 * n + 7, 2 * n + 8) for n in range(2000)))

    def made(cache_tokens: float) -> Setting:
        requests = {"file": "trace.jsonl", "prefixCacheTokens": cache_tokens}
        workload = {"requests": requests, "rate": None, "lengths": None}
        service = {"service": {"metadata": {"name": "chat"}}, "workload": workload}
        file = tmp_path / f"{cache_tokens:g}.yaml"
        file.write_text(yaml.safe_dump({"extends": str(QUICK), "name": "prefix", "services": [service]}))
        return setting(load(file), seed=0)

    key = ServiceKey("default", "chat")
    plain, found = made(0), made(1e6)
    assert found.offers[key].usual.hit_rate == pytest.approx(0.75, abs=0.01)
    assert found.offers[key].lambda_star > 1.5 * plain.offers[key].lambda_star
    assert found.static[key] < plain.static[key]
    assert found.offers[key].yardstick == plain.offers[key].yardstick
    assert plain.offers[key].lambda_star == plain.offers[key].yardstick.requests_per_second


def test_a_pooled_static_fleet_has_its_own_sizes_soon() -> None:
    read = setting(load(QUICK).model_copy(update={"initial_replicas": {"chat": 6}}), seed=0)
    sizes = decider(read, "static-pooled")
    assert isinstance(sizes, Static)
    wanted = {key.name: count for key, count in sizes.sizes.items()}
    assert wanted["chat"] < 6
    first, _, *later = (moment.asked for moment in simulated(read, "static-pooled").timeline)
    assert first["chat"] == 6
    assert later == [wanted] * len(later)


def test_the_smallest_static_fleet_keeps_99_percent_and_one_replica_less_does_not() -> None:
    read = setting(load(QUICK), seed=0)
    sizes = decider(read, "static-smallest")
    assert isinstance(sizes, Static)
    assert all(one.attainment >= 0.99 for one in simulated(read, "static-smallest").services.values())
    code = next(key for key in sizes.sizes if key.name == "code")
    fewer = Static("fewer", {**sizes.sizes, code: sizes.sizes[code] - 1}, period_seconds=10.0)
    assert carried_out(read, fewer, fewer.name).services["code"].attainment < 0.99


def test_a_cold_start_for_all_is_for_all() -> None:
    scenario = load(QUICK)
    slow = scenario.model_copy(update={"cold_start": ColdStart(by_source=BySource(hf=300.0))})
    made = setting(with_cold_start(slow, 10.0))
    assert {one.cold_start.of(one.spec, one.variant) for one in made.offers.values()} == {10.0}
    assert with_cold_start(slow, None) is slow


def test_compare_prints_intervals_over_seeds(tmp_path: Path) -> None:
    arguments = ["compare", str(QUICK), "--policies", "static-p99", "--seeds", "3", "--jobs", "1"]
    ran = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "c.json")], env={"COLUMNS": "150"})
    assert ran.exit_code == 0, ran.output
    runs = json.loads((tmp_path / "c.json").read_text())["policies"]["static-p99"]
    figures = [one["utilization"] for one in runs]
    half = 4.303 * stdev(figures) / 3**0.5
    assert f"{mean(figures):.3f} ± {half:.3f}" in ran.output
    assert "3 seeds" in ran.output


def test_compare_shows_static_first_and_writes_what_it_shows(tmp_path: Path) -> None:
    picture, written = tmp_path / "c.png", tmp_path / "c.json"
    arguments = ["compare", str(QUICK), "--policies", "operator", "--jobs", "1", "--oracle"]
    ran = CliRunner().invoke(app, [*arguments, "--picture", str(picture), "--json", str(written)])
    assert ran.exit_code == 0, ran.output
    found = json.loads(written.read_text())
    assert list(found["policies"]) == ["static-p99", "operator"]
    assert "oracle" in ran.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    static, operator = (runs[0] for runs in found["policies"].values())
    for run in (static, operator):
        assert sum(run["waterfall"].values()) == pytest.approx(1, abs=1e-6)
    assert all(0.99 <= one["attainment"] < 0.995 for one in found["oracle"].values())
    oracle = sum(one["accelerator_hours"] for one in found["oracle"].values())
    assert oracle <= min(static["accelerator_hours"], operator["accelerator_hours"])


def test_an_unknown_policy_is_named_before_anything_runs() -> None:
    ran = CliRunner().invoke(app, ["compare", str(QUICK), "--policies", "operator,hap"])
    assert ran.exit_code == 2
    assert "no policy hap" in ran.output


def test_nobody_is_told_of_requests_after_a_services_last_while_others_go_on(tmp_path: Path) -> None:
    shorter = {"rate": {"requestsPerMinute": [[0, 600], [120, 600]]}}
    service = {"service": {"metadata": {"name": "code"}}, "workload": shorter | {"deferrable": None}}
    file = tmp_path / "shorter.yaml"
    file.write_text(yaml.safe_dump({"extends": str(QUICK), "name": "shorter", "services": [service]}))
    made = setting(load(file), seed=0)
    key = ServiceKey("default", "code")
    expected = fleet(made, Static("static", made.static)).view().expected
    assert expected(key, 0.0, 120.0) == pytest.approx(10.0)
    assert expected(key, 60.0, 180.0) == pytest.approx(5.0)
    assert expected(key, 300.0, 360.0) == 0.0
    chat = ServiceKey("default", "chat")  # lasts as long as the scenario: what is beyond is as its end
    assert expected(chat, 590.0, 650.0) == pytest.approx(expected(chat, 540.0, 600.0))


def test_the_oracle_is_billed_to_the_end_of_the_scenario_and_no_further(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump({"extends": str(QUICK), "name": "short", "durationSeconds": 7}))
    made = setting(load(file), seed=0)  # control periods are of 5 s, and chat is served by one replica of one GPU
    assert search(made, made.offers[ServiceKey("default", "chat")]).accelerator_hours == pytest.approx(7 / 3600)
    code = search(made, made.offers[ServiceKey("default", "code")])
    assert code.accelerator_hours < 0.02  # 13 periods, as many as demand is smoothed over, are twice that and more


@pytest.mark.parametrize(("bounds", "replicas"), [({"minReplicas": 9}, 9), ({"maxReplicas": 2}, 2)])
def test_a_static_fleet_is_warm_at_the_size_that_its_bounds_leave_it(
    bounds: dict[str, int], replicas: int, tmp_path: Path
) -> None:
    service = {"service": {"metadata": {"name": "chat"}, "spec": {"scaling": bounds}}}
    file = tmp_path / "bounded.yaml"
    file.write_text(
        yaml.safe_dump({"extends": str(QUICK), "name": "bounded", "durationSeconds": 60, "services": [service]})
    )
    made = setting(load(file), seed=0)
    assert made.static[ServiceKey("default", "chat")] == replicas
    assert {moment.ready["chat"] for moment in simulated(made, "static-p99").timeline} == {replicas}
