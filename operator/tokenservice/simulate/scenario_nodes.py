"""Puts scenario files together as YAML nodes: what they extend, TokenServices in files of their own, paths.

As nodes and not as values, so that an error in a field stands where the field was written, be it in the scenario, in
the one that it extends, or in the file of a TokenService.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tokenservice.errors import InputError, cause
from tokenservice.yaml_lines import Path as FieldPath
from tokenservice.yaml_lines import composed, constructed, twice

DATA = "${TAAS_DATA}"
"""Stands in paths for the folder with public data."""

_DEFAULT_DATA = Path("../shared/data")
_IDENTITIES: tuple[FieldPath, ...] = (("acceleratorClass",), ("service", "metadata", "name"))
"""By what items of a list are the same item in a scenario and the one it extends."""


def scenario_node(path: Path, above: tuple[Path, ...] = ()) -> yaml.MappingNode:
    """The file over what it extends, `file` fields as paths that can be opened. Raises InputError."""
    root = _read(path)
    for node in _service_files(root):
        _become(node, _read(_file_of(node, path)))
    for scalar in set(_file_names(root)):  # an anchor's value stands in several places
        scalar.value = str(_resolved(scalar, path))
    extends = _child(root, "extends")
    if extends is None:
        return root
    if not isinstance(extends, yaml.ScalarNode):
        raise InputError(f"{path}:{extends.start_mark.line + 1}: extends: must be the path of one scenario")
    base = _beside(path, extends.value)
    if base in (path, *above):
        raise InputError(f"{path}:{extends.start_mark.line + 1}: extends: {extends.value} extends this file in turn")
    root.value = [pair for pair in root.value if pair[0].value != "extends"]
    merged: yaml.MappingNode = _merged(scenario_node(base, (*above, path)), root)
    return merged


def data_folder() -> Path | None:
    """Where public data are: TAAS_DATA, or ../shared/data when it exists."""
    given = os.environ.get("TAAS_DATA")
    if given:
        return Path(given).absolute()
    return _DEFAULT_DATA.absolute() if _DEFAULT_DATA.is_dir() else None


def _read(path: Path) -> yaml.MappingNode:
    """The one mapping in a file. Raises InputError."""
    try:
        nodes = composed(path.read_text(encoding="utf-8"), str(path))
        for node in nodes:
            constructed(node)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {cause(error)}") from None
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
    name = node.value[0][1]
    if not isinstance(name, yaml.ScalarNode):
        raise InputError(f"{path}:{name.start_mark.line + 1}: file: must be the path of a TokenService")
    return _beside(path, name.value)


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
    if DATA not in scalar.value:
        return _beside(path, scalar.value)
    folder = data_folder()
    return Path(scalar.value.replace(DATA, str(folder))) if folder is not None else Path(scalar.value)


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
