"""The API reference as Markdown, from the descriptions that `kubectl explain` shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenservice.api import API_VERSION
from tokenservice.api.resources import KINDS, Kind, resource_schema

Json = dict[str, Any]

_HEAD = f"""# API reference

`{API_VERSION}`. Generated from the models by `make generate`; the same text as `kubectl explain`.

"""
_TABLE = "| field | type | description |\n|---|---|---|"


def reference() -> str:
    """All kinds, each with the fields of its spec and status."""
    return _HEAD + "\n".join(_kind(kind) for kind in KINDS)


def _kind(kind: Kind) -> str:
    schema = resource_schema(kind)
    scope = "namespaced" if kind.namespaced else "cluster-scoped"
    lines = [f"## {kind.kind}", "", f"{schema['description']} Short name `{kind.short_name}`, {scope}.", ""]
    for part in ("spec", "status"):
        lines += [f"### {kind.kind} {part}", "", _TABLE]
        lines += list(_rows(schema["properties"][part], part))
        lines.append("")
    rules = list(_rules(schema, ""))
    if rules:
        lines += [f"### {kind.kind} rules", "", "Checked by the API server on every write.", "", *rules, ""]
    return "\n".join(lines)


def _rows(node: Json, path: str) -> Iterator[str]:
    for name, child in node["properties"].items():
        here = f"{path}.{name}"
        yield f"| `{here}` | {_type(child)} | {_cell(child['description'])} |"
        inner = child.get("items", child)
        if "properties" in inner:
            yield from _rows(inner, here + ("[]" if "items" in child else ""))


def _type(node: Json) -> str:
    if "enum" in node:
        return " \\| ".join(node["enum"])
    if node.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "items" in node:
        return f"list of {_type(node['items'])}"
    if "additionalProperties" in node:
        return f"map of {_type(node['additionalProperties'])}"
    return str(node["type"])


def _rules(node: Json, path: str) -> Iterator[str]:
    for rule in node.get("x-kubernetes-validations", ()):
        where = f"{path}{rule.get('fieldPath', '')}".lstrip(".")
        yield f"- {f'`{where}`: ' if where else ''}{_cell(rule['message'])}."
    for name, child in node.get("properties", {}).items():
        yield from _rules(child, f"{path}.{name}")
    if "items" in node:
        yield from _rules(node["items"], f"{path}[]")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
