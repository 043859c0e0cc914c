"""What is judged without a cluster; e2e/tests/test_bad_input.py holds the same corpus against the API server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.bad_input import BAD, GOOD, SERVICE, Bad, changed
from tokenservice.api.base import CHECKS, cel_text
from tokenservice.api.resources import KINDS, resource_schema
from tokenservice.api.validation import kind_of, violations, with_defaults

Json = dict[str, Any]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_is_named_with_its_field_and_the_way_out(bad: Bad) -> None:
    found = violations(bad.resource)
    assert [it.field for it in found] == [bad.field]
    assert bad.says in found[0].message


@pytest.mark.parametrize("resource", GOOD.values(), ids=GOOD)
def test_sound_input_is_left_in_peace(resource: Json) -> None:
    assert violations(resource) == ()


def test_every_rule_but_those_about_changes_has_a_check() -> None:
    def expressions(node: Json) -> list[str]:
        own = [rule["rule"] for rule in node.get("x-kubernetes-validations", ())]
        below = [*node.get("properties", {}).values(), *(node[key] for key in ("items",) if key in node)]
        return own + [rule for child in below for rule in expressions(child)]

    every = {rule for kind in KINDS for rule in expressions(resource_schema(kind))}
    assert {rule for rule in every if rule not in CHECKS} == {rule for rule in every if "oldSelf" in rule}


def test_every_rule_is_broken_by_some_bad_input() -> None:
    """A rule that nothing in the corpus breaks is compared with nothing."""

    def messages(node: Json) -> set[str]:
        own = {rule["message"] for rule in node.get("x-kubernetes-validations", ()) if "oldSelf" not in rule["rule"]}
        below = [*node.get("properties", {}).values(), *(node[key] for key in ("items",) if key in node)]
        return own.union(*(messages(child) for child in below))

    told = {
        it.message.partition(", for example")[0].partition("; for example")[0]
        for bad in BAD
        for it in violations(bad.resource)
    }
    for message in set().union(*(messages(resource_schema(kind)) for kind in KINDS)):
        assert message.partition(", for example")[0].partition("; for example")[0] in told, message


def test_all_faults_are_told_at_once() -> None:
    resource = changed(SERVICE, {"spec": {"tier": "Gold", "mode": "Off", "engine": {"nam": "vLLM"}}})
    assert {it.field for it in violations(resource)} == {"spec.tier", "spec.mode", "spec.engine.nam"}


def test_another_kind_is_not_ours_to_judge() -> None:
    assert kind_of({"apiVersion": "apps/v1", "kind": "TokenService"}) is None
    with pytest.raises(ValueError, match="not a kind of"):
        violations({"apiVersion": "v1", "kind": "Pod"})


def test_status_is_the_operators() -> None:
    assert violations(SERVICE | {"status": {"anything": 1}}) == ()


def test_defaults_reach_into_lists_and_below_given_objects() -> None:
    schema = {
        "properties": {
            "a": {"default": {}, "properties": {"b": {"default": 1}, "c": {"default": 2}}},
            "d": {"items": {"properties": {"e": {"default": 3}}}},
        }
    }
    assert with_defaults({"a": {"b": 5}, "d": [{}, {"e": 4}]}, schema) == {
        "a": {"b": 5, "c": 2},
        "d": [{"e": 3}, {"e": 4}],
    }
    assert with_defaults({}, schema) == {"a": {"b": 1, "c": 2}}


def test_a_literal_survives_being_quoted() -> None:
    assert cel_text(r"a\.b'c") == r"'a\\.b\'c'"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(spec=anything, name=anything)
def test_nothing_in_a_file_breaks_the_judge(spec: Any, name: Any) -> None:
    violations(SERVICE | {"spec": spec})
    violations(SERVICE | {"metadata": name})
    violations(changed(SERVICE, {"metadata": {"name": name}}))


FIELDS = sorted(name for name in resource_schema(KINDS[0])["properties"]["spec"]["properties"])


@given(field=st.sampled_from(FIELDS), value=anything)
def test_nothing_below_a_known_field_breaks_the_judge(field: str, value: Any) -> None:
    violations(SERVICE | {"spec": SERVICE["spec"] | {field: value}})
