"""What is there, second by second: pods by state, nodes by life, what the TokenServices say of themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from e2e.demo.account import Held
from e2e.testbed.nodes import Span

Json = dict[str, Any]


@dataclass(slots=True)
class Store:
    """The newest state of one kind; a sink for `e2e.engines.reflector.follow`."""

    items: dict[tuple[str, str], Json] = field(default_factory=dict)

    def seen(self, item: Json) -> None:
        self.items[_key(item)] = item

    def gone(self, item: Json) -> None:
        self.items.pop(_key(item), None)

    def listed(self, items: list[Json]) -> None:
        self.items = {_key(item): item for item in items}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One sample: accelerators by state, replicas by service (ready, all), when."""

    held: Held
    replicas: Mapping[str, tuple[int, int]]


def moment(pods: Iterable[Json], spans: Iterable[Span], now: float) -> Moment:
    """Counts everything once; a node that was asked for and is not there yet is an empty one."""
    existing = {span.name: span.template.count for span in spans if span.released_at is None}
    used = dict.fromkeys(existing, 0)
    states = {"ready": 0, "starting": 0, "draining": 0}
    replicas: dict[str, tuple[int, int]] = {}
    for pod in pods:
        service = pod["metadata"].get("labels", {}).get("taas.dev/service", "")
        state = pod_state(pod)
        if state != "draining":
            ready, count = replicas.get(service, (0, 0))
            replicas[service] = (ready + (state == "ready"), count + 1)
        node = pod["spec"].get("nodeName")
        if node in used:
            size = accelerators(pod)
            used[node] += size
            states[state] += size
    free = {name: existing[name] - taken for name, taken in used.items()}
    held = Held(
        at=now,
        free_on_used_nodes=sum(count for name, count in free.items() if used[name]),
        on_empty_nodes=sum(count for name, count in free.items() if not used[name]),
        **states,
    )
    return Moment(held=held, replicas=replicas)


def pod_state(pod: Json) -> str:
    """ready, starting or draining."""
    conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", [])}
    if pod["metadata"].get("deletionTimestamp") or conditions.get("taas.dev/serving") == "False":
        return "draining"
    return "ready" if conditions.get("Ready") == "True" else "starting"


def accelerators(pod: Json) -> int:
    """Accelerators that a pod holds."""
    limits = [container.get("resources", {}).get("limits", {}) for container in pod["spec"]["containers"]]
    return sum(int(count) for limit in limits for name, count in limit.items() if name.endswith(".com/gpu"))


def _key(item: Json) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def clock() -> float:
    """The clock of spans, samples and arrivals: seconds since the epoch."""
    return time.time()
