"""The CRDs as generated: fit for the API server, readable for people, and the same as what is checked in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from tokenservice.api.base import REQUIRED, ApiModel, Rule, field
from tokenservice.api.resources import KINDS, Kind, custom_resource_definition, resource_schema
from tokenservice.api.schema import structural_schema
from tokenservice.cli.crd import generated_files

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)


def fields(node: Json, path: str) -> Iterator[tuple[str, Json]]:
    """Every named field below `node`, items of lists included."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child.get("items", child), f"{path}.{name}")


def nodes(node: Json, path: str) -> Iterator[tuple[str, Json]]:
    """`node` and every schema below it."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}[]")


def own_fields(kind: Kind) -> list[tuple[str, Json]]:
    """Fields that this API declares, without those that every Kubernetes object has."""
    schema = resource_schema(kind)["properties"]
    return [pair for part in ("spec", "status") for pair in fields(schema[part], part)]


def test_the_version_that_a_profile_was_measured_with_is_shown_and_promises_no_more() -> None:
    profile = next(kind for kind in KINDS if kind.kind == "CapacityProfile")
    assert ".spec.engineVersion" in [column.path for column in profile.columns]
    version = resource_schema(profile)["properties"]["spec"]["properties"]["engineVersion"]
    assert "was measured with; used with any" in version["description"]


@every_kind
def test_every_field_has_a_description_with_unit_and_default(kind: Kind) -> None:
    found = own_fields(kind)
    assert found
    for path, node in found:
        text = node.get("description", "")
        assert text.endswith("."), path
        assert "Required." in text or "Default: " in text, f"{path} does not say its default: {text!r}"
        if node.get("type") in ("integer", "number"):
            assert "Unit: " in text, f"{path} is a number without a unit: {text!r}"


@every_kind
def test_the_stated_default_is_the_one_in_the_schema(kind: Kind) -> None:
    for path, node in own_fields(kind):
        default = node.get("default")
        if isinstance(default, (str, int, float)):
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            assert f"Default: {shown}." in node["description"], path


@every_kind
def test_required_in_text_is_required_in_the_schema(kind: Kind) -> None:
    for path, node in nodes(resource_schema(kind), kind.kind):
        for name, child in node.get("properties", {}).items():
            if "description" in child and path != kind.kind:
                assert child["description"].endswith("Required.") == (name in node.get("required", ())), path


@every_kind
def test_everything_is_bounded_so_that_rules_stay_affordable(kind: Kind) -> None:
    for path, node in nodes(resource_schema(kind), kind.kind):
        if path in (f"{kind.kind}.apiVersion", f"{kind.kind}.kind"):
            continue
        if node.get("type") == "string" or node.get("x-kubernetes-int-or-string"):
            assert "maxLength" in node or "enum" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
            assert "x-kubernetes-list-type" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


@every_kind
def test_the_schema_is_structural(kind: Kind) -> None:
    for path, node in nodes(resource_schema(kind), kind.kind):
        assert not {"$ref", "anyOf", "title", "$defs", "const", "examples"} & node.keys(), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert node.get("default", 0) is not None, path
        assert not isinstance(node.get("exclusiveMinimum"), (int, float)) or node["exclusiveMinimum"] is True, path


@every_kind
def test_bounds_are_whole_numbers_for_the_server_drops_their_decimals_when_it_tells_them(kind: Kind) -> None:
    for path, node in nodes(resource_schema(kind), kind.kind):
        assert all(node.get(bound, 0) % 1 == 0 for bound in ("minimum", "maximum")), path


def test_checked_in_files_are_what_the_models_say() -> None:
    wanted = generated_files(ROOT / "crds", ROOT / "charts" / "tokenservice", ROOT / "docs" / "reference.md")
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    assert not stale, "run `make generate`"
    assert {path.name for path in (ROOT / "crds").iterdir()} == {
        path.name for path in wanted if "crds" in path.parts[-2]
    }


@every_kind
def test_columns_point_at_fields_that_exist(kind: Kind) -> None:
    known = {path for path, _ in own_fields(kind)} | {"metadata.creationTimestamp"}
    version = custom_resource_definition(kind)["spec"]["versions"][0]
    for column in version["additionalPrinterColumns"]:
        assert column["jsonPath"].lstrip(".").split("[")[0] in known, column


def test_the_scale_subresource_points_at_fields_that_exist() -> None:
    for kind in KINDS:
        scale = custom_resource_definition(kind)["spec"]["versions"][0]["subresources"].get("scale", {})
        for path in scale.values():
            assert path.lstrip(".") in {name for name, _ in own_fields(kind)}


def test_kubectl_get_shows_first_what_users_ask_first() -> None:
    names = [column.name for column in KINDS[0].columns if not column.priority]
    assert names == [
        "Replicas",
        "Variant",
        "Tokens/s",
        "Utilization",
        "TTFT/TPOT",
        "$/Mtok",
        "Ready",
        "Age",
    ]


class Inner(ApiModel):
    rules: ClassVar[tuple[Rule, ...]] = (Rule("self.size > 0", "too small"),)
    size: int = field(3, "Size", unit="units", gt=0)
    label: str = field("x", "Label", max_length=4)
    note: str | None = field(None, "Note", max_length=4)


class Outer(ApiModel):
    inner: Inner = field(Inner(size=5), "Inner", rules=(Rule("self.size < 9", "too large"),))
    many: tuple[Inner, ...] = field((), "Many", max_length=2)
    must: Inner = field(REQUIRED, "Must")


def test_a_nested_default_names_only_what_differs() -> None:
    assert structural_schema(Outer)["properties"]["inner"]["default"] == {"size": 5}


def test_rules_of_the_object_and_of_the_field_both_hold() -> None:
    inner = structural_schema(Outer)["properties"]["inner"]
    assert [rule["rule"] for rule in inner["x-kubernetes-validations"]] == ["self.size > 0", "self.size < 9"]


def test_exclusive_bounds_are_written_the_old_way() -> None:
    size = structural_schema(Inner)["properties"]["size"]
    assert (size["minimum"], size["exclusiveMinimum"]) == (0, True)


def test_absent_is_how_optional_fields_and_empty_lists_stay_silent() -> None:
    schema = structural_schema(Outer)["properties"]
    assert "default" not in schema["many"]
    assert "default" not in schema["many"]["items"]["properties"]["note"]
    assert schema["many"]["items"]["properties"]["note"]["type"] == "string"


def test_a_union_is_refused_when_the_schema_is_made() -> None:
    class Union(ApiModel):
        either: int | str = Field(1, description="Either.")

    with pytest.raises(TypeError, match="no unions"):
        structural_schema(Union)
