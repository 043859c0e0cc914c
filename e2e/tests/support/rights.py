"""Rights as the cluster knows them: what roles grant to the operator, and what its requests have needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from e2e.tests.support.api import Api, Json
from e2e.tests.support.bed import OPERATOR


class Right(NamedTuple):
    """A verb on a resource, as `apps/deployments` or `pods/status`; `namespace` is empty for all of them."""

    namespace: str
    resource: str
    verb: str


def granted(api: Api) -> set[Right]:
    """Everything that roles grant to the operator's ServiceAccount by name."""
    _, _, namespace, name = OPERATOR.split(":")
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    found = set[Right]()
    for bindings, scoped in (("clusterrolebindings", False), ("rolebindings", True)):
        for binding in api.list(bindings):
            if subject in (binding.get("subjects") or []):
                where = binding["metadata"]["namespace"] if scoped else ""
                found |= {Right(where, *pair) for pair in _pairs(_role(api, binding, where))}
    return found


def needed(entries: Iterable[Json], grants: Iterable[Right]) -> set[Right]:
    """What was used of the grants, and in its own namespace what none of them covers."""
    scopes = {(right.resource, right.verb, right.namespace) for right in grants}
    found = set[Right]()
    for entry in entries:
        reference = entry.get("objectRef")
        if reference is not None:
            resource = "/".join(
                filter(None, (reference.get("apiGroup"), reference["resource"], reference.get("subresource")))
            )
            for verb in _verbs(entry):
                everywhere = (resource, verb, "") in scopes
                found.add(Right("" if everywhere else reference.get("namespace", ""), resource, verb))
    return found


def _verbs(entry: Json) -> tuple[str, ...]:
    """A patch that makes an object is asked for the right to create it as well."""
    made = entry["verb"] == "patch" and entry["responseStatus"]["code"] == 201
    return (entry["verb"], "create") if made else (entry["verb"],)


def _role(api: Api, binding: Json, namespace: str) -> Json:
    reference = binding["roleRef"]
    if reference["kind"] == "ClusterRole":
        role = api.get("clusterroles", reference["name"])
    else:
        role = api.get("roles", reference["name"], namespace)
    assert role is not None, f"{reference['name']} is bound and does not exist"
    return role


def _pairs(role: Json) -> Iterator[tuple[str, str]]:
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield "/".join(filter(None, (group, resource))), verb
