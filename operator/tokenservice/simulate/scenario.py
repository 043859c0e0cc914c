"""Reads a scenario file and says everything that is wrong with it, each with file, line and field."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tokenservice.api import API_VERSION
from tokenservice.api.validation import kind_of, violations
from tokenservice.errors import InputError
from tokenservice.simulate.scenario_checks import Found, wrong_data, wrong_meaning
from tokenservice.simulate.scenario_nodes import data_folder, scenario_node
from tokenservice.simulate.scenario_spec import Json, Scenario
from tokenservice.yaml_lines import Path as FieldPath
from tokenservice.yaml_lines import constructed, mark_of

__all__ = ["Scenario", "data_folder", "load"]


def load(path: Path, *, needs_data: bool = True) -> Scenario:
    """The scenario in a file. Raises InputError with every error found, one `file:line: field: message` a line.

    `needs_data` also reads the files it names.
    """
    root = scenario_node(path)
    body: Json = constructed(root)
    found = list(_wrong_shape(body))
    scenario = None if found else Scenario.model_validate(body)
    if scenario is not None:
        found = [*wrong_meaning(scenario), *(wrong_data(scenario) if needs_data else ())]
    if found or scenario is None:
        raise InputError("\n".join(_told(root, *each) for each in found))
    return scenario


def _told(root: yaml.Node, path: FieldPath | None, message: str) -> str:
    if path is None:
        return message
    mark = mark_of(root, path)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return f"{mark.name}:{mark.line + 1}: {name}: {message}" if name else f"{mark.name}:{mark.line + 1}: {message}"


def _wrong_shape(body: Json) -> Iterator[Found]:
    """The schema of the scenario, then of the API's objects in it."""
    try:
        Scenario.model_validate(body)
    except ValidationError as errors:
        yield from (_found(error) for error in _own(errors) if error["loc"][:1] != ("tokenFleet",))
    services = body.get("services")
    for number, item in enumerate(services if isinstance(services, list) else ()):
        service = item.get("service") if isinstance(item, dict) else None
        if isinstance(service, dict):
            yield from _wrong_service(service, ("services", number, "service"))
    if "tokenFleet" in body:
        yield from _wrong_fleet(body["tokenFleet"])


def _own(errors: ValidationError) -> Iterator[Json]:
    """Without those of a list that is too short only since an item of it is wrong."""
    found: list[Json] = [dict(error) for error in errors.errors()]
    wrong = {error["loc"][:count] for error in found for count in range(1, len(error["loc"]))}
    return (error for error in found if error["type"] != "too_short" or error["loc"] not in wrong)


def _wrong_service(service: Json, path: FieldPath) -> Iterator[Found]:
    kind = kind_of(service)
    if kind is None or kind.kind != "TokenService":
        yield path, f"must be a TokenService: give apiVersion: {API_VERSION} and kind: TokenService"
        return
    for violation in violations(service):
        yield (*path, *violation.path), violation.message


def _wrong_fleet(spec: Any) -> Iterator[Found]:
    if not isinstance(spec, dict):
        yield ("tokenFleet",), f"must be a mapping, not {spec!r}"
        return
    resource = {"apiVersion": API_VERSION, "kind": "TokenFleet", "metadata": {"name": "default"}, "spec": spec}
    for violation in violations(resource):
        yield ("tokenFleet", *violation.path[1:]), violation.message


def _found(error: Json) -> Found:
    """pydantic's error in our words."""
    path: FieldPath = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        return path, "unknown field" + _suggestion(path)
    if error["type"] == "missing":
        return path, "is required"
    if error["type"] == "scenario":
        below = [part for part in error["ctx"]["field"].split(".") if part]
        return (*path, *(int(part) if part.isdigit() else part for part in below)), error["ctx"]["message"]
    return path, f"{error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"


def _suggestion(path: FieldPath) -> str:
    """A field of a similar name in the same place."""
    model: Any = Scenario
    for part in path[:-1]:
        if isinstance(part, str):
            model = next((_model(it.annotation) for it in model.model_fields.values() if it.alias == part), None)
        if model is None:
            return ""
    known = [it.alias for it in model.model_fields.values() if it.alias]
    close = get_close_matches(str(path[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _model(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `tuple[Pool, ...]` or `Rate | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for it in get_args(annotation) if (found := _model(it)) is not None), None)
