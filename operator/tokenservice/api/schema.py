"""pydantic's JSON schema, made structural: what a CustomResourceDefinition may hold.

The API server takes one schema tree without references, unions, nulls or titles, with draft-4 style exclusive bounds.
Defaults of nested objects name only what differs from the defaults of their own fields: the server fills in the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenservice.api.base import ApiModel

Json = dict[str, Any]

_KEPT = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)
_MORE = ("minProperties", "maxProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "required")
_ORDER = (*_KEPT, *_MORE, "properties", "items", "additionalProperties")
_EMPTY: tuple[Any, ...] = (None, [], {}, "")


def structural_schema(model: type[ApiModel]) -> Json:
    """The schema of `model` as a CRD may hold it."""
    generated = model.model_json_schema(by_alias=True)
    return _structural(generated, generated.get("$defs", {}))


def _structural(node: Json, definitions: Json) -> Json:
    node = _dereferenced(_without_null(node), definitions)
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
    _draft4_bounds(node)
    if "properties" in node:
        node["properties"] = {name: _structural(child, definitions) for name, child in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = _structural(node[key], definitions)
    _short_default(node)
    return {key: node[key] for key in _ordered(node)}


def _ordered(node: Json) -> Iterable[str]:
    known = [key for key in _ORDER if key in node]
    return known + sorted(key for key in node if key.startswith("x-kubernetes-"))


def _without_null(node: Json) -> Json:
    """`T | None` is an optional T: absence is how nothing is said."""
    options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) > 1:
        raise TypeError(f"a structural schema has no unions: {node}")
    chosen: Json = options[0] if options else {}
    return chosen | {key: value for key, value in node.items() if key != "anyOf"}


def _dereferenced(node: Json, definitions: Json) -> Json:
    """The definition under what the field itself says of it; rules of both hold."""
    if "$ref" not in node:
        return dict(node)
    target: Json = definitions[node["$ref"].rsplit("/", 1)[1]]
    rules = [*target.get("x-kubernetes-validations", ()), *node.get("x-kubernetes-validations", ())]
    merged = target | {key: value for key, value in node.items() if key != "$ref"}
    return merged | ({"x-kubernetes-validations": rules} if rules else {})


def _draft4_bounds(node: Json) -> None:
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            node[bound] = node[exclusive]
            node[exclusive] = True


def _short_default(node: Json) -> None:
    """Leaves out of the default whatever its absence says as well."""
    default = _beyond_fields(node.pop("default", None), node)
    children = node.get("properties", {}).values()
    if default not in _EMPTY or (default == {} and any("default" in child for child in children)):
        node["default"] = default


def _beyond_fields(default: Any, node: Json) -> Any:
    """What `default` says that the defaults of the fields below `node` do not."""
    if not isinstance(default, dict) or "properties" not in node:
        return default
    fields = node["properties"]
    shorter = {name: _beyond_fields(value, fields[name]) for name, value in default.items()}
    return {name: value for name, value in shorter.items() if value not in (*_EMPTY, fields[name].get("default"))}
