"""What the API server would say of an object of ours, without an API server.

Speaks the dialect of the generated schemas and no more: types, bounds, enumerations, required and unknown fields,
duplicate keys of lists, then defaults and the rules. Unknown fields are errors here, where a server only drops them:
a misspelt field that is dropped is a promise that nobody keeps. Rules about changes are the server's alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from math import isfinite
from typing import Any

from tokenservice.api import API_VERSION
from tokenservice.api.base import CHECKS, is_text
from tokenservice.api.resources import KINDS, Kind, resource_schema

Json = dict[str, Any]
Path = tuple[str | int, ...]

_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "object": (lambda value: isinstance(value, dict), "a mapping"),
    "array": (lambda value: isinstance(value, list), "a list"),
    "string": (lambda value: isinstance(value, str), "text"),
    "boolean": (lambda value: isinstance(value, bool), "true or false"),
    "integer": (lambda value: _is_number(value) and value == int(value), "a whole number"),
    "number": (lambda value: _is_number(value), "a number"),
    "int-or-string": (
        lambda value: isinstance(value, int | str) and not isinstance(value, bool),
        "text or a whole number",
    ),
}
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_Holds = Callable[[float, float], bool]
_BOUNDS: dict[str, tuple[Callable[[Any], float], _Holds, str]] = {
    "minLength": (len, lambda size, bound: size >= bound, "must have at least {} characters"),
    "maxLength": (len, lambda size, bound: size <= bound, "must have at most {} characters"),
    "minItems": (len, lambda size, bound: size >= bound, "must have at least {} items"),
    "maxItems": (len, lambda size, bound: size <= bound, "must have at most {} items"),
    "minProperties": (len, lambda size, bound: size >= bound, "must have at least {} entries"),
    "maxProperties": (len, lambda size, bound: size <= bound, "must have at most {} entries"),
    "minimum": (float, lambda size, bound: size >= bound, "must be at least {}"),
    "maximum": (float, lambda size, bound: size <= bound, "must be at most {}"),
}
_STRICT: dict[str, tuple[str, _Holds, str]] = {
    "exclusiveMinimum": ("minimum", lambda size, bound: size > bound, "must be greater than {}"),
    "exclusiveMaximum": ("maximum", lambda size, bound: size < bound, "must be less than {}"),
}


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong, and where."""

    path: Path
    message: str

    @property
    def field(self) -> str:
        """`spec.model.adapters[3].uri`."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.path else self.message


def kind_of(resource: Json) -> Kind | None:
    """The kind of ours that `resource` is, or None."""
    if resource.get("apiVersion") != API_VERSION:
        return None
    return next((kind for kind in KINDS if kind.kind == resource.get("kind")), None)


def violations(resource: Json) -> tuple[Violation, ...]:
    """Everything that is wrong with an object of ours. Raises ValueError for another kind."""
    kind = kind_of(resource)
    if kind is None:
        raise ValueError(f"not a kind of {API_VERSION}: {resource.get('kind')}")
    schema = _schema(kind.kind)
    judged = _named({key: value for key, value in resource.items() if key != "status"})
    found = (*_structure(judged, schema, ()), *_wrong_name(judged))
    return found or tuple(_broken_rules(with_defaults(judged, schema), schema, ()))


def stored(resource: Json) -> Json:
    """A sound object of ours as the server would store it. Raises ValueError for another kind."""
    kind = kind_of(resource)
    if kind is None:
        raise ValueError(f"not a kind of {API_VERSION}: {resource.get('kind')}")
    filled: Json = with_defaults(resource, _schema(kind.kind))
    return filled


def with_defaults(value: Any, schema: Json) -> Any:
    """`value` as the server would store it."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        filled = {key: copy.deepcopy(node["default"]) for key, node in properties.items() if "default" in node}
        merged = filled | {key: item for key, item in value.items() if item is not None or key not in filled}
        return {key: with_defaults(item, _child(schema, key)) for key, item in merged.items()}
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    return value


def _named(resource: Json) -> Json:
    """With a name such as the server would make of generateName."""
    metadata = resource.get("metadata")
    if not isinstance(metadata, dict) or "name" in metadata or not metadata.get("generateName"):
        return resource
    return resource | {"metadata": metadata | {"name": f"{metadata['generateName']}x7k2p"}}


def _wrong_name(resource: Json) -> Iterator[Violation]:
    metadata = resource.get("metadata") or {}
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not name:
        yield Violation(("metadata", "name"), "is required")
    elif not is_text(name, _SUBDOMAIN) or len(name) > 253:
        text = "must be lower-case letters, digits, - and ., beginning and ending with a letter or digit"
        yield Violation(("metadata", "name"), f"{text}, not {name!r}")


@cache
def _schema(kind: str) -> Json:
    return resource_schema(next(it for it in KINDS if it.kind == kind))


def _child(schema: Json, key: str) -> Json:
    child: Json = schema.get("properties", {}).get(key) or schema.get("additionalProperties") or {}
    return child


def _structure(value: Any, schema: Json, path: Path) -> Iterator[Violation]:
    if value is None and "default" in schema:
        return
    wrong_type = _wrong_type(value, schema)
    if wrong_type:
        yield Violation(path, wrong_type)
        return
    yield from (Violation(path, message) for message in _wrong_value(value, schema))
    if isinstance(value, dict):
        yield from _fields(value, schema, path)
    elif isinstance(value, list):
        yield from _duplicates(value, schema, path)
        for index, item in enumerate(value):
            yield from _structure(item, schema.get("items", {}), (*path, index))


def _wrong_type(value: Any, schema: Json) -> str | None:
    name = "int-or-string" if schema.get("x-kubernetes-int-or-string") else schema.get("type")
    if name is None:
        return None
    accepts, wanted = _TYPES[name]
    if accepts(value):
        return None
    return f"is empty: give {wanted} or leave the field out" if value is None else f"must be {wanted}, not {value!r}"


def _wrong_value(value: Any, schema: Json) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"unsupported value {value!r}: use one of {', '.join(schema['enum'])}"
    if schema.get("x-kubernetes-int-or-string") and not isinstance(value, str):
        return
    strict = {bound: (holds, says) for key, (bound, holds, says) in _STRICT.items() if schema.get(key)}
    for bound, (measure, holds, says) in _BOUNDS.items():
        if bound in schema:
            holds, says = strict.get(bound, (holds, says))
            if not holds(measure(value), schema[bound]):
                yield says.format(schema[bound]) + f", not {value!r}"


def _fields(value: Json, schema: Json, path: Path) -> Iterator[Violation]:
    for name in schema.get("required", ()):
        if name not in value:
            yield Violation((*path, name), "is required")
    closed = "properties" in schema and "additionalProperties" not in schema
    for name, item in value.items():
        if closed and name not in schema["properties"]:
            yield Violation((*path, str(name)), "unknown field, it would be dropped" + _suggestion(str(name), schema))
        else:
            yield from _structure(item, _child(schema, name), (*path, str(name)))


def _suggestion(name: str, schema: Json) -> str:
    """A field of the same name further down, or of a similar name here."""
    lowered = {known.lower(): known for known in schema["properties"]}
    close = (lowered[match] for match in get_close_matches(name.lower(), lowered, n=1))
    meant = next(_below(name, schema, ""), None) or next(close, None)
    return f"; did you mean {meant}?" if meant else ""


def _below(name: str, schema: Json, path: str) -> Iterator[str]:
    for known, child in schema.get("properties", {}).items():
        if known == name and path:
            yield f"{path}{known}"
        yield from _below(name, child, f"{path}{known}.")


def _duplicates(items: list[Any], schema: Json, path: Path) -> Iterator[Violation]:
    keys = schema.get("x-kubernetes-list-map-keys", ())
    seen: set[str] = set()
    for index, item in enumerate(items):
        if keys and isinstance(item, dict):
            identity = ", ".join(str(item.get(key)) for key in keys)  # as text: a key of a wrong type may be a list
            if identity in seen:
                yield Violation((*path, index), f"is there twice: {identity}")
            seen.add(identity)


def _broken_rules(value: Any, schema: Json, path: Path) -> Iterator[Violation]:
    for rule in schema.get("x-kubernetes-validations", ()):
        check = CHECKS.get(rule["rule"])
        if check is not None and not check(value):
            below = tuple(part for part in rule.get("fieldPath", "").split(".") if part)
            yield Violation((*path, *below), rule["message"])
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _broken_rules(item, _child(schema, name), (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _broken_rules(item, schema.get("items", {}), (*path, index))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
