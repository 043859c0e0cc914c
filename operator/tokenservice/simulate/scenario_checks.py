"""What is wrong with a scenario beyond its shape: names of nothing, promises that no way can keep, missing data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tokenservice.catalogue import accelerator_classes
from tokenservice.core.model import ServiceKey
from tokenservice.errors import InputError
from tokenservice.simulate.scenario_nodes import DATA
from tokenservice.simulate.scenario_spec import Scenario, reference_ways, ways
from tokenservice.simulate.source_files import source_length_s, window_problem, workload_length_s
from tokenservice.simulate.workload_spec import WorkloadSpec
from tokenservice.yaml_lines import Path as FieldPath

Found = tuple[FieldPath | None, str]
"""A field and what is wrong with it; no field when the message itself says where."""

_VARIABLE = re.compile(r"\$\{\w+\}")
_ORIGINS = "docs/scenarios/README.md says where each file is published"


def wrong_meaning(scenario: Scenario) -> Iterator[Found]:
    """What only the catalogue, or the rest of the scenario, can tell."""
    classes = list(_wrong_classes(scenario))
    yield from classes
    yield from _wrong_names(scenario)
    if scenario.scrape_interval_seconds >= scenario.rate_window_seconds:
        window = f"must be below rateWindowSeconds ({scenario.rate_window_seconds:g}): a rate needs two scrapes"
        yield ("scrapeIntervalSeconds",), window
    for number, service in enumerate(scenario.services):
        at: FieldPath = ("services", number)
        names = [variant.name for variant in reference_ways(service.spec)[0]]
        if service.reference_variant not in names:
            yield (*at, "referenceVariant"), f"no way to run this model; there are {', '.join(names) or 'none'}"
        found, problems = ((), ()) if classes else ways(service.spec, scenario.accelerators)
        for problem in () if found else problems:
            yield (*at, "service", *problem.field.split(".")), problem.message


def _wrong_classes(scenario: Scenario) -> Iterator[Found]:
    known, seen = accelerator_classes(), set[str]()
    for number, pool in enumerate(scenario.fleet):
        name = pool.accelerator_class
        if name not in known:
            message = f"the catalogue has no {name!r}; it has {', '.join(sorted(known))}"
            yield ("fleet", number, "acceleratorClass"), message
        if name in seen:
            yield ("fleet", number, "acceleratorClass"), f"{name} is there twice"
        seen.add(name)


def _wrong_names(scenario: Scenario) -> Iterator[Found]:
    """Services that are there twice, and names of what is not there."""
    names, seen = {service.key.name for service in scenario.services}, set[ServiceKey]()
    for number, service in enumerate(scenario.services):
        if service.key in seen:
            yield ("services", number, "service", "metadata", "name"), f"{service.key} is there twice"
        seen.add(service.key)
    for path, name in _named_services(scenario):
        if name not in names:
            yield path, f"there is no service {name!r}; there are {', '.join(sorted(names))}"
    for number, failure in enumerate(scenario.failures):
        if failure.node is not None and failure.node not in {pool.accelerator_class for pool in scenario.fleet}:
            yield ("failures", number, "node"), f"the fleet has no nodes of class {failure.node!r}"


def _named_services(scenario: Scenario) -> Iterator[tuple[FieldPath, str]]:
    yield from ((("initialReplicas", name), name) for name in scenario.initial_replicas)
    for number, failure in enumerate(scenario.failures):
        if failure.service is not None:
            yield ("failures", number, "service"), failure.service


def wrong_data(scenario: Scenario) -> Iterator[Found]:
    """Files that are missing or wrong, windows beyond what they cover, and what would happen after the end."""
    wrong = list(_wrong_workloads(scenario))
    yield from wrong if wrong or not scenario.failures else _too_late(scenario)


def _too_late(scenario: Scenario) -> Iterator[Found]:
    """Failures after the end."""
    longest = max(workload_length_s(service.workload) for service in scenario.services)
    end = scenario.duration_seconds or longest
    for number, failure in enumerate(scenario.failures):
        if failure.at_seconds >= end:
            yield ("failures", number, "atSeconds"), f"the scenario ends at {end:g} s"


def _wrong_workloads(scenario: Scenario) -> Iterator[Found]:
    for number, service in enumerate(scenario.services):
        at: FieldPath = ("services", number, "workload")
        missing = [(path, file) for path, file in service.workload.files() if not file.is_file()]
        for path, file in missing:
            yield (*at, *path), _is_missing(file)
        if not missing:
            yield from _wrong_source(service.workload, at)


def _is_missing(file: Path) -> str:
    hint = "set TAAS_DATA to the folder with the public data; " if DATA in str(file) else ""
    others = [name for name in _VARIABLE.findall(str(file)) if name != DATA]
    if others:
        hint += f"of variables {DATA} alone is replaced, write the path in place of {', '.join(others)}; "
    return f"there is no file {file}: {hint}{_ORIGINS}"


def _wrong_source(spec: WorkloadSpec, at: FieldPath) -> Iterator[Found]:
    try:
        problem = window_problem(spec.window, source_length_s(spec))
    except InputError as error:
        yield None, str(error)
        return
    if problem is not None:
        yield (*at, "window"), problem
