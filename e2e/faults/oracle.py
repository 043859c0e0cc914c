"""What must be true whatever happened: the state that was reached, what was created and deleted on the way, the writes.

State is compared as a whole, not by a few fields. What is masked is what two undisturbed runs may differ by, each with
its reason here; `test_two_undisturbed_runs_are_equal` holds the list to that.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from e2e.faults.proxy import Call
from e2e.tests.support.api import Api, Json, Record, eventually, is_true, watched
from e2e.tests.support.site import SERVICE_LABEL
from tokenservice.core.names import (
    MANIFEST_HASH_ANNOTATION,
    PLACEMENT_GATE,
    SCALED_AT_ANNOTATION,
    TEMPLATE_ANNOTATION,
    VARIANT_LABEL,
)

CHILDREN = ("deployments", "services", "serviceaccounts", "poddisruptionbudgets", "networkpolicies")
COUNTED = ("tokenservices", *CHILDREN, "pods")

_MASKED = frozenset(
    {
        "uid",
        "resourceVersion",
        "generation",  # counts writes: a crash between two of them may join or split them
        "creationTimestamp",
        "managedFields",
        "lastTransitionTime",
        "lastUpdateTime",
        "clusterIP",
        "clusterIPs",
        "observedGeneration",
        SCALED_AT_ANNOTATION,
        MANIFEST_HASH_ANNOTATION,  # and the two hashes below: of manifests that name the region, which is the run's own
        TEMPLATE_ANNOTATION,
        "pod-template-hash",
        "kubectl.kubernetes.io/last-applied-configuration",
    }
)
_STATUS_MASKED = frozenset(
    {
        "decision",  # says what the last pass did and saw, in figures of the moment
        "message",
        "forecast",
        "utilization",
        "tokensPerSecond",
        "costPerMillionTokens",
        "joulesPerToken",
        "workload",
        "objectives",
        "measured",
    }
)


def state(api: Api, namespace: str) -> Json:
    """Everything of a namespace that the operator answers for, by kind and name, without what may differ."""
    found: Json = {}
    for kind in ("tokenservices", *CHILDREN):
        for thing in api.list(kind, namespace):
            mine = kind == "tokenservices" or SERVICE_LABEL in thing["metadata"].get("labels", {})
            if mine:
                found[f"{kind}/{thing['metadata']['name']}"] = _scrubbed(thing, kind)
    for pod in api.list("pods", namespace, SERVICE_LABEL):
        key = f"pods/{_owner(pod)}"
        found[key] = sorted([*found.get(key, []), _pod(pod)], key=str)
    renamed: Json = json.loads(json.dumps(found).replace(namespace, "NAMESPACE"))
    return renamed


def _pod(pod: Json) -> Json:
    """What a replica is, whoever placed it: one made while no operator lives has no gates, and any node that fits."""
    return {
        "ready": is_true(pod, "Ready"),
        "placed": bool(pod["spec"].get("nodeName")),
        "gated": any(gate["name"] == PLACEMENT_GATE for gate in pod["spec"].get("schedulingGates") or ()),
        "cost": (pod["metadata"].get("annotations") or {}).get("controller.kubernetes.io/pod-deletion-cost", "0"),
        "deleting": "deletionTimestamp" in pod["metadata"],
        "template": pod["metadata"]["labels"].get("pod-template-hash", "") != "",
    }


def _scrubbed(value: Any, kind: str, within: str = "") -> Any:
    if isinstance(value, dict):
        masked = _MASKED | (_STATUS_MASKED if within == "status" and kind == "tokenservices" else frozenset())
        if kind == "deployments" and not within:
            value = {name: part for name, part in value.items() if name != "status"} | {
                "status": {name: value.get("status", {}).get(name, 0) for name in ("replicas", "readyReplicas")}
            }
        return {
            name: _scrubbed(part, kind, "status" if within == "status" or (not within and name == "status") else name)
            for name, part in value.items()
            if name not in masked
        }
    if isinstance(value, list):
        return [_scrubbed(part, kind, within) for part in value]
    return value


def difference(before: Any, after: Any, path: str = "") -> list[str]:
    """Paths at which two states differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted({*before, *after})
        return [line for name in names for line in difference(before.get(name), after.get(name), f"{path}.{name}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for index, (a, b) in pairs for line in difference(a, b, f"{path}[{index}]")]
    return [] if before == after else [f"{path.lstrip('.')}: {_short(before)} became {_short(after)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 160 else f"{text[:150]}…"


# --- creations and deletions -----------------------------------------------------------------------------------------


@dataclass
class Births:
    """How often each object was created and deleted, by kind and name; replicas count for their Deployment."""

    records: dict[str, Record]
    api: Api
    namespace: str

    def counts(self) -> Counter[str]:
        """So far; everything that has happened is in."""
        found: Counter[str] = Counter()
        for kind, record in self.records.items():
            for what, body in list(record.events):
                if what in ("ADDED", "DELETED") and _counts(kind, body):
                    found[f"{what.lower()} {kind}/{_name(kind, body)}"] += 1
        return found

    def settle(self) -> None:
        """Waits until the watches have shown what the API server holds."""
        for kind, record in self.records.items():
            there = {thing["metadata"]["uid"] for thing in self.api.list(kind, self.namespace)}
            eventually(lambda r=record, t=there: _living(r) == t, f"the watch of {kind} has caught up", 20, 0.02)  # type: ignore[misc]


@contextmanager
def births(api: Api, cluster: Any, namespace: str) -> Iterator[Births]:
    """Counts from now on, what is there already included."""
    with ExitStack() as stack:
        records = {kind: stack.enter_context(watched(cluster, kind, namespace)) for kind in COUNTED}
        yield Births(records, api, namespace)


def _living(record: Record) -> set[str]:
    living: dict[str, None] = {}
    for what, body in list(record.events):
        if what == "DELETED":
            living.pop(body["metadata"]["uid"], None)
        else:
            living[body["metadata"]["uid"]] = None
    return set(living)


def _counts(kind: str, body: Json) -> bool:
    return kind == "tokenservices" or SERVICE_LABEL in (body["metadata"].get("labels") or {})


def _name(kind: str, body: Json) -> str:
    return _owner(body) if kind == "pods" else str(body["metadata"]["name"])


def _owner(pod: Json) -> str:
    labels = pod["metadata"]["labels"]
    return f"{labels[SERVICE_LABEL]}/{labels.get(VARIANT_LABEL, '')}"


# --- writes ----------------------------------------------------------------------------------------------------------

OPERATORS_OWN = "tokenservice-system"


def misdeeds(writes: Iterable[Call], namespaces: Iterable[str]) -> list[str]:
    """Writes that must never be, whatever happens, each with the rule that it breaks."""
    allowed = {OPERATORS_OWN, *namespaces}
    return [f"{call}: {why}" for call in writes for why in _misdeeds(call, allowed)]


def _misdeeds(call: Call, allowed: set[str]) -> Iterator[str]:
    if call.namespace and call.namespace not in allowed:
        yield "a namespace that holds no TokenService"
    if call.kind == "tokenservices" and call.subresource != "status":
        yield "spec and metadata of a user's object"
    if call.method == "DELETE" and not {"uid", "resourceVersion"} <= (call.json.get("preconditions") or {}).keys():
        yield "a deletion that does not say which object it means"
    if call.kind in ("secrets", "roles", "rolebindings", "clusterroles", "clusterrolebindings"):
        yield "nothing of the operator's"
    if call.kind == "pods" and not call.json.get("metadata", {}).get("uid"):
        yield "a pod by its name alone"


def named(call: Call, namespace: str) -> str:
    """A write in words that do not depend on the run."""
    return re.sub(r"-[a-z0-9]{6,10}-[a-z0-9]{5}\b", "-POD", str(call).replace(namespace, "NAMESPACE"))
