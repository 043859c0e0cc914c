"""Reads scenario files: `extends`, paths, and errors that name file, line and field.

Files are put together as YAML nodes, not as values, so that an error in a field stands where the field was written,
be it in the scenario, in the one that it extends, or in the file of a TokenService.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tokenservice.api import API_VERSION
from tokenservice.api.validation import kind_of, violations
from tokenservice.catalogue import accelerator_classes
from tokenservice.errors import InputError
from tokenservice.simulate.scenario_spec import Json, Scenario, reference_ways, ways
from tokenservice.yaml_lines import Path as FieldPath
from tokenservice.yaml_lines import composed, constructed, mark_of, twice

__all__ = ["Scenario", "data_folder", "load"]

_DATA = "${TAAS_DATA}"
_DEFAULT_DATA = Path("../shared/data")
_ORIGINS = "docs/scenarios/README.md says where each file is published"
_STR = "tag:yaml.org,2002:str"
_IDENTITIES: tuple[FieldPath, ...] = (("acceleratorClass",), ("service", "metadata", "name"))
"""By what items of a list are the same item in a scenario and the one it extends."""

_Found = tuple[FieldPath, str]


def load(path: Path, *, needs_data: bool = True) -> Scenario:
    """The scenario in a file. Raises InputError with every error found, one `file:line: field: message` a line.

    `needs_data` also asks that the files it names exist.
    """
    root = _composed(path, ())
    body: Json = constructed(root)
    found = list(_wrong_shape(body))
    scenario = None if found else Scenario.model_validate(body)
    if scenario is not None:
        found = [*_wrong_meaning(scenario), *(_missing_files(scenario) if needs_data else ())]
    if found or scenario is None:
        raise InputError("\n".join(_told(root, *each) for each in found))
    return scenario


def data_folder() -> Path | None:
    """Where public data are: TAAS_DATA, or ../shared/data when it exists."""
    given = os.environ.get("TAAS_DATA")
    if given:
        return Path(given).absolute()
    return _DEFAULT_DATA.absolute() if _DEFAULT_DATA.is_dir() else None


def _told(root: yaml.Node, path: FieldPath, message: str) -> str:
    mark = mark_of(root, path)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return f"{mark.name}:{mark.line + 1}: {name}: {message}" if name else f"{mark.name}:{mark.line + 1}: {message}"


# --- Files ---------------------------------------------------------------------------------------------------------


def _composed(path: Path, above: tuple[Path, ...]) -> yaml.MappingNode:
    """The file over what it extends. Raises InputError."""
    root = _read(path)
    for node in _service_files(root):
        _become(node, _read(_file_of(node, path)))
    for scalar in _file_names(root):
        scalar.value = str(_resolved(scalar, path))
    extends = _child(root, "extends")
    if extends is None:
        return root
    base = _beside(path, extends.value)
    if base in (path, *above):
        raise InputError(f"{path}:{extends.start_mark.line + 1}: extends: {extends.value} extends this file in turn")
    root.value = [pair for pair in root.value if pair[0].value != "extends"]
    merged: yaml.MappingNode = _merged(_composed(base, (*above, path)), root)
    return merged


def _read(path: Path) -> yaml.MappingNode:
    """The one mapping in a file. Raises InputError."""
    try:
        nodes = composed(path.read_text(encoding="utf-8"), str(path))
        for node in nodes:
            constructed(node)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise InputError(f"{path}:{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if len(nodes) != 1 or not isinstance(nodes[0], yaml.MappingNode):
        raise InputError(f"{path}:1: must hold one mapping, not {len(nodes)} documents or another kind of value")
    for key, line in twice(nodes[0]):
        raise InputError(f"{path}:{line}: {key}: is there twice, only the last would count")
    return nodes[0]


def _service_files(root: yaml.Node) -> Iterator[yaml.MappingNode]:
    """`service: {file: PATH}` nodes."""
    for item in getattr(_child(root, "services"), "value", ()):
        service = _child(item, "service") if isinstance(item, yaml.Node) else None
        if isinstance(service, yaml.MappingNode) and [key.value for key, _ in service.value] == ["file"]:
            yield service


def _file_of(node: yaml.MappingNode, path: Path) -> Path:
    return _beside(path, str(node.value[0][1].value))


def _become(node: yaml.MappingNode, other: yaml.MappingNode) -> None:
    node.value, node.start_mark = other.value, other.start_mark


def _file_names(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Values of every `file`."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "file" and isinstance(value, yaml.ScalarNode):
                yield value
            yield from _file_names(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _file_names(item)


def _resolved(scalar: yaml.ScalarNode, path: Path) -> Path:
    if _DATA not in scalar.value:
        return _beside(path, scalar.value)
    folder = data_folder()
    return Path(scalar.value.replace(_DATA, str(folder))) if folder is not None else Path(scalar.value)


def _beside(path: Path, name: str) -> Path:
    return Path(os.path.normpath(path.parent / name))


def _child(node: yaml.Node | None, name: str) -> Any:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for key, value in pairs if key.value == name), None)


# --- Extending -----------------------------------------------------------------------------------------------------


def _merged(base: yaml.Node, over: yaml.Node) -> Any:
    """`over` upon `base`: mappings by key, fleet and services by name, all else replaced; null takes a field away."""
    if isinstance(base, yaml.MappingNode) and isinstance(over, yaml.MappingNode):
        return _with(over, _merged_pairs(base, over))
    if isinstance(base, yaml.SequenceNode) and isinstance(over, yaml.SequenceNode):
        identity = next((it for it in _IDENTITIES if _identified(base, it) and _identified(over, it)), None)
        if identity is not None:
            return _with(over, _merged_items(base, over, identity))
    return over


def _with(node: Any, value: list[Any]) -> Any:
    return type(node)(node.tag, value, node.start_mark, node.end_mark)


def _merged_pairs(base: yaml.MappingNode, over: yaml.MappingNode) -> list[Any]:
    mine = {key.value: (key, value) for key, value in over.value}
    kept = [
        (mine[key.value][0], _merged(value, mine.pop(key.value)[1])) if key.value in mine else (key, value)
        for key, value in base.value
    ]
    return [(key, value) for key, value in (*kept, *mine.values()) if value.tag != "tag:yaml.org,2002:null"]


def _merged_items(base: yaml.SequenceNode, over: yaml.SequenceNode, identity: FieldPath) -> list[Any]:
    mine = {_at(item, identity): item for item in over.value}
    kept = [_merged(item, mine.pop(_at(item, identity), _with(item, []))) for item in base.value]
    return [*kept, *mine.values()]


def _identified(node: yaml.SequenceNode, identity: FieldPath) -> bool:
    return all(_at(item, identity) for item in node.value)


def _at(node: yaml.Node, path: FieldPath) -> str:
    for part in path:
        node = _child(node, str(part))
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


# --- Judging -------------------------------------------------------------------------------------------------------


def _wrong_shape(body: Json) -> Iterator[_Found]:
    """The schema of the scenario, then of each TokenService."""
    try:
        Scenario.model_validate(body)
    except ValidationError as errors:
        for error in errors.errors():
            yield _found(dict(error))
    services = body.get("services")
    for number, item in enumerate(services if isinstance(services, list) else ()):
        service = item.get("service") if isinstance(item, dict) else None
        if isinstance(service, dict):
            yield from _wrong_service(service, ("services", number, "service"))


def _wrong_service(service: Json, path: FieldPath) -> Iterator[_Found]:
    kind = kind_of(service)
    if kind is None or kind.kind != "TokenService":
        yield path, f"must be a TokenService: give apiVersion: {API_VERSION} and kind: TokenService"
        return
    for violation in violations(service):
        yield (*path, *violation.path), violation.message


def _found(error: Json) -> _Found:
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


def _wrong_meaning(scenario: Scenario) -> Iterator[_Found]:
    unknown = False
    for number, pool in enumerate(scenario.fleet):
        if pool.accelerator_class not in accelerator_classes():
            unknown = True
            known = ", ".join(sorted(accelerator_classes()))
            yield (
                ("fleet", number, "acceleratorClass"),
                f"the catalogue has no {pool.accelerator_class!r}; it has {known}",
            )
    seen: set[object] = set()
    for number, service in enumerate(scenario.services):
        at = ("services", number)
        if service.key in seen:
            yield (*at, "service", "metadata", "name"), f"{service.key} is there twice"
        seen.add(service.key)
        names = [variant.name for variant in reference_ways(service.spec)[0]]
        if service.reference_variant not in names:
            yield (*at, "referenceVariant"), f"no way to run this model; there are {', '.join(names) or 'none'}"
        if not unknown:
            found, problems = ways(service.spec, scenario.accelerators)
            for problem in () if found else problems:
                yield (*at, "service", *problem.field.split(".")), problem.message


def _missing_files(scenario: Scenario) -> Iterator[_Found]:
    for number, service in enumerate(scenario.services):
        for path, file in service.workload.files():
            if not file.is_file():
                set_it = "set TAAS_DATA to the folder with the public data; " if _DATA in str(file) else ""
                yield ("services", number, "workload", *path), f"there is no file {file}: {set_it}{_ORIGINS}"
