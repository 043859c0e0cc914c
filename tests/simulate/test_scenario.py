"""Scenario files: every error with its file, line and field; what extends what; and the ready ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import BaseModel

from tests.support.data import DATA, needs_data
from tokenservice.api.token_service import Tier
from tokenservice.core.model import ServiceKey
from tokenservice.errors import InputError
from tokenservice.simulate.scenario import Scenario, data_folder, load
from tokenservice.simulate.scenario_spec import Billing
from tokenservice.simulate.workload_spec import ScenarioModel

READY = Path(__file__).parents[2] / "docs" / "scenarios"

SERVICE = """\
    apiVersion: taas.dev/v1alpha1
    kind: TokenService
    metadata: {name: chat}
    spec:
      model: {uri: 'hf://Qwen/Qwen3-32B'}
      tier: Elastic
"""
WORKLOAD = """\
  referenceVariant: h100-vllm-tp2-bf16
  workload:
    rate: {requestsPerMinute: [[0, 60], [600, 60]]}
    lengths:
      input: {quantiles: [[0, 10], [100, 2000]]}
      output: {quantiles: [[0, 1], [100, 300]]}
"""
TOP = "name: test\nfleet:\n- acceleratorClass: h100\n"
SOUND = TOP + "services:\n- service:\n" + SERVICE + WORKLOAD


def written(folder: Path, text: str, name: str = "scenario.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def told(path: Path, **options: bool) -> list[str]:
    """Errors, with the folder cut off."""
    with pytest.raises(InputError) as error:
        load(path, **options)
    return [line.replace(f"{path.parent}/", "") for line in str(error.value).splitlines()]


# --- Errors --------------------------------------------------------------------------------------------------------

WRONG = {
    "a typo at the top": ("name: test", "nam: test", "scenario.yaml:1: nam: unknown field; did you mean name?"),
    "what a typo leaves out": ("name: test", "nam: test", "scenario.yaml:1: name: is required"),
    "a typo in a workload": (
        "    rate:",
        "    burstCV: 2\n    rate:",
        "scenario.yaml:14: services[0].workload.burstCV: unknown field; did you mean burstCv?",
    ),
    "a typo in the contract": (
        "tier: Elastic",
        "tier: Elastik",
        "scenario.yaml:11: services[0].service.spec.tier: unsupported value 'Elastik'",
    ),
    "a field the contract lacks": (
        "      tier: Elastic",
        "      replica: 3",
        "scenario.yaml:11: services[0].service.spec.replica: unknown field",
    ),
    "an empty model": (
        "{uri: 'hf://Qwen/Qwen3-32B'}",
        "{}",
        "scenario.yaml:10: services[0].service.spec.model.uri: is",
    ),
    "another kind": ("kind: TokenService", "kind: Service", "services[0].service: must be a TokenService"),
    "no such class": ("h100\n", "h1000\n", "scenario.yaml:3: fleet[0].acceleratorClass: the catalogue has no 'h1000'"),
    "no such variant": (
        "h100-vllm-tp2-bf16",
        "h100-vllm-tp2-fp4",
        "scenario.yaml:12: services[0].referenceVariant: no way to run this model; there are ",
    ),
    "a model the fleet cannot run": ("h100\n", "l4\n  acceleratorsPerNode: 1\n", "services[0].service.spec"),
    "a rate that falls below nothing": (
        "[600, 60]",
        "[600, -60]",
        "scenario.yaml:14: services[0].workload.rate.requestsPerMinute[1][1]: input should be greater than or equal",
    ),
    "time that goes back": ("[600, 60]", "[600, 60], [500, 60]", "rate.requestsPerMinute: needs two points or more"),
    "a rate that begins late": ("[[0, 60]", "[[5, 60]", "requestsPerMinute: the first point must be at 0 seconds"),
    "half the quantiles": ("[100, 300]", "[90, 300]", ":17: services[0].workload.lengths.output.quantiles: must run"),
    "more tokens than any model takes": (
        "[100, 2000]",
        "[100, 3.0e9]",
        ":16: services[0].workload.lengths.input.quantiles: tokens must be at most 1e+09",
    ),
    "a rate in another unit of time": (
        "[600, 60]",
        "[6.0e9, 60]",
        ":14: services[0].workload.rate.requestsPerMinute: the last point must be at 1e+08 seconds or before",
    ),
    "a time without end": ("fleet:", "durationSeconds: 1.0e12\nfleet:", ":2: durationSeconds: input should be less"),
    "more replicas than are to be had": (
        "fleet:",
        "initialReplicas: {chat: 1000000000}\nfleet:",
        ":2: initialReplicas.chat: input should be less than or equal to 100000",
    ),
    "a TokenFleet of nothing": ("fleet:", "tokenFleet:\nfleet:", ":2: tokenFleet: must be a mapping, not None"),
    "a service in a list of files": (
        "- service:\n" + SERVICE,
        "- service: {file: [a]}\n",
        "scenario.yaml:5: file: must be the path of a TokenService",
    ),
    "a window that holds one scrape": (
        "fleet:",
        "scrapeIntervalSeconds: 15\nfleet:",
        ":2: scrapeIntervalSeconds: must be below rateWindowSeconds (15): a rate needs two scrapes",
    ),
    "a failure after the end": (
        "fleet:",
        "failures:\n- {atSeconds: 600, service: chat}\nfleet:",
        ":3: failures[0].atSeconds: the scenario ends at 600 s",
    ),
    "a failure after an end that is given": (
        "fleet:",
        "durationSeconds: 60\nfailures:\n- {atSeconds: 70, service: chat}\nfleet:",
        ":4: failures[0].atSeconds: the scenario ends at 60 s",
    ),
    "two sources": (
        "    rate:",
        "    requests: {file: a.csv}\n    rate:",
        "services[0].workload: give exactly one of requests, rate",
    ),
    "no source": ("    rate: {requestsPerMinute: [[0, 60], [600, 60]]}\n", "", "give exactly one of requests, rate"),
    "copies of a rate": (
        "    rate:",
        "    copies: {count: 3}\n    rate:",
        ":14: services[0].workload.copies.count: copies are of a request file",
    ),
    "a window that ends too early": (
        "    rate:",
        "    window: {startSeconds: 9, endSeconds: 3}\n    rate:",
        ":14: services[0].workload.window.endSeconds: must be after startSeconds (9)",
    ),
    "a window beyond the source": (
        "    rate:",
        "    window: {endSeconds: 900}\n    rate:",
        ":14: services[0].workload.window: 0 s to 900 s is not within the 600 s",
    ),
    "all work deferrable": (
        "    rate:",
        "    deferrable: {shareOfAllWork: 1, deadlineSeconds: 60}\n    rate:",
        ":14: services[0].workload.deferrable.shareOfAllWork: input should be less than 1",
    ),
    "a failure of nothing": (
        "fleet:",
        "failures:\n- atSeconds: 3\nfleet:",
        ":3: failures[0]: give exactly one of",
    ),
    "a failure of a stranger": (
        "fleet:",
        "failures:\n- {atSeconds: 3, service: chart}\nfleet:",
        ":3: failures[0].service: there is no service 'chart'; there are chat",
    ),
    "a failure of a class that is not there": (
        "fleet:",
        "failures:\n- {atSeconds: 3, node: l4}\nfleet:",
        ":3: failures[0].node: the fleet has no nodes of class 'l4'",
    ),
    "replicas of a stranger": (
        "fleet:",
        "initialReplicas: {chart: 3}\nfleet:",
        ":2: initialReplicas.chart: there is no service 'chart'",
    ),
    "another word for Static": (
        "fleet:",
        "initialReplicas: Warm\nfleet:",
        ":2: initialReplicas: must be Static or replicas by service, not 'Warm'",
    ),
    "a typo in the TokenFleet": (
        "fleet:",
        "tokenFleet: {targetUtilisation: 0.8}\nfleet:",
        ":2: tokenFleet.targetUtilisation: unknown field, it would be dropped; did you mean targetUtilization?",
    ),
    "a TokenFleet beyond its bounds": (
        "fleet:",
        "tokenFleet: {targetUtilization: 1.8}\nfleet:",
        ":2: tokenFleet.targetUtilization: ",
    ),
    "an unknown source of models": (
        "fleet:",
        "coldStart: {bySource: {ftp: 3}}\nfleet:",
        ":2: coldStart.bySource.ftp: unknown field; known are hf, oci, s3, pvc",
    ),
    "a cold start by its parts and as a whole": (
        "fleet:",
        "coldStart: {seconds: 60, stages: {compileSeconds: 10}}\nfleet:",
        ":2: coldStart.stages: says it all: leave out seconds and bySource",
    ),
    "a class twice": (
        "h100\n",
        "h100\n- acceleratorClass: h100\n",
        "scenario.yaml:4: fleet[1].acceleratorClass: h100 is there twice",
    ),
    "a field twice": ("name: test", "name: test\nname: test", "scenario.yaml:2: name: is there twice"),
    "text that is not YAML": ("name: test", "name: [", "scenario.yaml:"),
    "two documents": ("name: test", "name: test\n---\nname: test", "scenario.yaml:1: must hold one mapping"),
    "a file that is not there": (
        "{requestsPerMinute: [[0, 60], [600, 60]]}",
        "{file: rates.csv}",
        "scenario.yaml:14: services[0].workload.rate.file: there is no file rates.csv: docs/scenarios/README.md says",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_file_line_and_field(case: str, tmp_path: Path) -> None:
    old, new, says = WRONG[case]
    assert SOUND.count(old) >= 1
    found = told(written(tmp_path, SOUND.replace(old, new, 1)))
    assert any(says in line for line in found), found


def test_a_wrong_item_is_told_once_and_its_list_is_not_called_empty(tmp_path: Path) -> None:
    found = told(written(tmp_path, SOUND.replace("    rate:", "    burstCV: 2\n    rate:")))
    assert found == ["scenario.yaml:14: services[0].workload.burstCV: unknown field; did you mean burstCv?"]
    assert told(written(tmp_path, TOP + "services: []\n")) == [
        "scenario.yaml:4: services: tuple should have at least 1 item after validation, not 0, not []"
    ]


def test_a_sound_scenario_has_the_documented_defaults(tmp_path: Path) -> None:
    scenario = load(written(tmp_path, SOUND))
    (service,) = scenario.services
    assert (scenario.control_period_seconds, scenario.node_start_seconds) == (5, 90)
    assert scenario.fleet[0].billing == Billing.WHOLE_NODE
    assert scenario.accelerators[0].spec.accelerators_per_node == 8
    assert scenario.token_fleet.target_utilization == 0.7
    assert service.key == ServiceKey("default", "chat")
    assert service.spec.tier == Tier.ELASTIC
    assert service.spec.objectives.time_to_first_token.seconds == 2
    assert scenario.reference(service).name == "h100-vllm-tp2-bf16"
    assert scenario.duration_s(scenario.workloads()) == 600


def test_nodes_may_be_smaller_than_the_class_says(tmp_path: Path) -> None:
    text = SOUND.replace("h100\n", "h100\n  acceleratorsPerNode: 2\n", 1)
    scenario = load(written(tmp_path, text))
    assert {it.tensor_parallel_size for it in scenario.variants(scenario.services[0])} == {2}


def test_cold_starts_come_from_the_variant_unless_the_scenario_says_otherwise(tmp_path: Path) -> None:
    for given, seconds in (("", None), ("coldStart: 40\n", 40), ("coldStart: {seconds: 40, bySource: {hf: 90}}\n", 90)):
        scenario = load(written(tmp_path, given + SOUND))
        variant = scenario.reference(scenario.services[0])
        wanted = variant.cold_start_seconds if seconds is None else seconds
        assert scenario.cold_start.of(scenario.services[0].spec, variant) == wanted


STAGES = "coldStart: {stages: {bootstrapSeconds: 10, compileSeconds: 20, bytesPerSecond: {hf: 1.0e9, cached: 4.0e9}}}\n"


def test_a_cold_start_by_its_parts_follows_the_bytes_and_where_they_are(tmp_path: Path) -> None:
    scenario = load(written(tmp_path, STAGES + SOUND))
    spec, variant = scenario.services[0].spec, scenario.reference(scenario.services[0])
    assert scenario.cold_start.of(spec, variant) == pytest.approx(30 + variant.weight_bytes / 1e9)
    assert scenario.cold_start.of(spec, variant, cached=True) == pytest.approx(30 + variant.weight_bytes / 4e9)


def test_static_is_the_same_as_no_numbers(tmp_path: Path) -> None:
    assert load(written(tmp_path, "initialReplicas: Static\n" + SOUND)).initial_replicas == {}
    assert load(written(tmp_path, "initialReplicas: {chat: 3}\n" + SOUND)).initial_replicas == {"chat": 3}


# --- Other files ---------------------------------------------------------------------------------------------------

VARIANT = """\
extends: base.yaml
name: other
services:
- service:
    metadata: {name: chat}
    spec: {tier: Spot}
  workload: {scale: 3}
"""


def test_what_a_scenario_extends_is_changed_where_it_says_so_and_nowhere_else(tmp_path: Path) -> None:
    base = load(written(tmp_path, SOUND, "base.yaml"))
    other = load(written(tmp_path, VARIANT))
    assert (other.name, other.services[0].spec.tier, other.services[0].workload.scale) == ("other", Tier.SPOT, 3)
    assert other.services[0].workload.lengths == base.services[0].workload.lengths
    assert other.services[0].spec.model == base.services[0].spec.model


def test_a_service_of_a_new_name_is_added_and_null_takes_a_field_away(tmp_path: Path) -> None:
    written(tmp_path, SOUND, "base.yaml")
    more = SERVICE.replace("chat", "more") + WORKLOAD
    text = "extends: base.yaml\ndescription: null\nservices:\n- service:\n" + more
    assert [it.key.name for it in load(written(tmp_path, text)).services] == ["chat", "more"]
    without = VARIANT.replace("{scale: 3}", "{rate: null, scale: 1, lengths: null}")
    assert any("exactly one of requests, rate" in line for line in told(written(tmp_path, without)))


def test_an_error_stands_in_the_file_that_made_it(tmp_path: Path) -> None:
    written(tmp_path, SOUND.replace("tier: Elastic", "tiers: Elastic"), "base.yaml")
    found = told(written(tmp_path, VARIANT.replace("scale: 3", "scales: 3")))
    assert any(line.startswith("base.yaml:11: services[0].service.spec.tiers: unknown field") for line in found)
    assert any(line.startswith("scenario.yaml:7: services[0].workload.scales: unknown field") for line in found)


def test_a_scenario_that_extends_itself_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "extends: scenario.yaml\n", "base.yaml")
    assert told(written(tmp_path, VARIANT)) == ["base.yaml:1: extends: scenario.yaml extends this file in turn"]


def test_a_service_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    document = "\n".join(line[4:] for line in SERVICE.splitlines())
    written(tmp_path, document, "chat.yaml")
    text = TOP + "services:\n- service: {file: chat.yaml}\n" + WORKLOAD
    assert load(written(tmp_path, text)).services[0].key.name == "chat"
    written(tmp_path, document.replace("Elastic", "Gold"), "chat.yaml")
    (line,) = told(written(tmp_path, text))
    assert line.startswith("chat.yaml:6: services[0].service.spec.tier: unsupported value 'Gold'")


def test_paths_are_relative_to_the_file_that_has_them(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    written(below, "t_s,rpm\n0,60\n60,60\n", "rates.csv")
    written(below, SOUND.replace("{requestsPerMinute: [[0, 60], [600, 60]]}", "{file: rates.csv}"), "base.yaml")
    scenario = load(written(tmp_path, VARIANT.replace("base.yaml", "below/base.yaml")))
    assert scenario.workloads()[ServiceKey("default", "chat")].duration_s == 60


def test_a_wrong_line_of_data_is_told_before_anything_runs(tmp_path: Path) -> None:
    written(tmp_path, "t_s,rpm\n0,60\n60,sixty\n", "rates.csv")
    text = SOUND.replace("{requestsPerMinute: [[0, 60], [600, 60]]}", "{file: rates.csv}")
    assert told(written(tmp_path, text)) == ["rates.csv:3: rate: must be a number from 0 on, not 'sixty'"]


def test_data_that_nobody_has_fetched_are_named_with_a_way_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAAS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert data_folder() is None
    text = SOUND.replace("{requestsPerMinute: [[0, 60], [600, 60]]}", "{file: '${TAAS_DATA}/azure2024/rates.csv'}")
    (line,) = told(written(tmp_path, text))
    assert "there is no file ${TAAS_DATA}/azure2024/rates.csv: set TAAS_DATA" in line
    assert "README.md" in line
    monkeypatch.setenv("TAAS_DATA", str(tmp_path))
    (line,) = told(written(tmp_path, text))
    assert f"there is no file {tmp_path}/azure2024/rates.csv".replace(f"{tmp_path}/", "") in line


def test_variables_that_nothing_replaces_are_named(tmp_path: Path) -> None:
    text = SOUND.replace("{requestsPerMinute: [[0, 60], [600, 60]]}", "{file: '${MINE}/rates.csv'}")
    (line,) = told(written(tmp_path, text))
    assert "of variables ${TAAS_DATA} alone is replaced, write the path in place of ${MINE}" in line


# --- The ready ones ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(READY.glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_scenarios_are_sound_even_without_their_data(path: Path) -> None:
    scenario = load(path, needs_data=False)
    assert scenario.name == path.stem
    assert scenario.description
    assert f"`{path.name}`" in (READY / "README.md").read_text()


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and those below it, the API's left out."""
    yield model
    for known in model.model_fields.values():
        for part in (known.annotation, *get_args(known.annotation)):
            if isinstance(part, type) and issubclass(part, ScenarioModel):
                yield from models(part)


def test_every_field_is_documented() -> None:
    text = (READY / "README.md").read_text()
    names = {known.alias for model in models(Scenario) for known in model.model_fields.values()}
    assert {"jitterSeconds", "nodeIdleSeconds", "burstCv"} <= names
    assert {name for name in names if name not in text} == set()


def seen(scenario: Scenario, name: str) -> list[float]:
    """Expected rates hour by hour."""
    work = scenario.workloads()[ServiceKey("default", name)]
    return [work.expected_rate(t, t + 3600) for t in range(0, int(work.duration_s), 3600)]


def test_the_quick_one_needs_no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAAS_DATA", str(tmp_path))
    scenario = load(READY / "quick.yaml")
    assert scenario.duration_s(scenario.workloads()) == 600


@needs_data
def test_the_weekends_of_both_services_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAAS_DATA", str(DATA))
    scenario = load(READY / "azure-2024-week.yaml")
    for name in ("conv", "code"):
        days = [sum(seen(scenario, name)[day * 24 : day * 24 + 24]) for day in range(7)]
        assert sorted(sorted(range(7), key=days.__getitem__)[:2]) == [0, 6]


@needs_data
def test_a_day_is_the_same_tuesday_of_the_week(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAAS_DATA", str(DATA))
    week, day = load(READY / "azure-2024-week.yaml"), load(READY / "azure-2024-day.yaml")
    for name in ("conv", "code"):
        assert seen(day, name) == pytest.approx(seen(week, name)[48:72])


@needs_data
def test_services_come_and_go_as_the_scenarios_rule_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAAS_DATA", str(DATA))
    works = load(READY / "mixed-fleet.yaml").workloads().values()
    days = [np.array([work.expected_rate(t, t + 60) for t in range(0, 86400, 60)]) for work in works]
    used = [np.mean(day.reshape(-1, 10).max(axis=1) > 0) for day in days]
    large = [day for day, share in zip(days, used, strict=True) if share == 1]
    on_off = [day for day, share in zip(days, used, strict=True) if 0.2 <= share <= 0.8]
    rare = [day for day, share in zip(days, used, strict=True) if 0.02 <= share <= 0.10]
    assert (len(large), len(on_off), len(rare)) == (2, 4, 6)
    unit = np.mean([np.percentile(day, 99) for day in large])
    assert [day.max() / unit for day in on_off] == pytest.approx([0.57] * 4, rel=0.02)
    assert [day.max() / unit for day in rare] == pytest.approx([0.285] * 6, rel=0.02)
    assert [day.mean() / day.max() for day in on_off] == pytest.approx([0.2] * 4, rel=0.1)
