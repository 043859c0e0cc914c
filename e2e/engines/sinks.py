"""What the API server shows, handed to the fleet: one sink per kind of object."""

from __future__ import annotations

import logging

from e2e.engines.contract import Json, PodKey, is_engine_pod, read_pod, read_profile
from e2e.engines.fleet import Fleet

log = logging.getLogger(__name__)


class PodSink:
    """Pods of the API server to the fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def seen(self, item: Json) -> None:
        if not is_engine_pod(item):  # a label was taken off
            self.gone(item)
            return
        try:
            self._fleet.pod_seen(read_pod(item))
        except ValueError as error:
            metadata = item["metadata"]
            log.warning("pod %s/%s cannot be played: %s", metadata["namespace"], metadata["name"], error)

    def gone(self, item: Json) -> None:
        self._fleet.pod_gone(_key(item))

    def listed(self, items: list[Json]) -> None:
        self._fleet.only_pods({_key(item) for item in items})
        for item in items:
            self.seen(item)


class NodeSink:
    """Nodes to the fleet: a deleted one, or one whose kubelet went silent, takes its engines with it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._known: set[str] = set()

    def seen(self, item: Json) -> None:
        name = item["metadata"]["name"]
        self._known.add(name)
        if _is_silent(item):
            self._fleet.node_lost(name)
        else:
            self._fleet.node_present(name)

    def gone(self, item: Json) -> None:
        name = item["metadata"]["name"]
        self._known.discard(name)
        self._fleet.node_lost(name)

    def listed(self, items: list[Json]) -> None:
        present = {item["metadata"]["name"] for item in items}
        for name in self._known - present:
            self._fleet.node_lost(name)
        self._known = present
        for item in items:
            self.seen(item)


class ProfileSink:
    """CapacityProfiles to the fleet. A deleted one stays known: engines of it are still running."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def seen(self, item: Json) -> None:
        name = item["metadata"]["name"]
        try:
            self._fleet.profile_seen(name, read_profile(item))
        except (KeyError, TypeError, ValueError) as error:
            log.warning("profile %s cannot be read: %r", name, error)

    def gone(self, item: Json) -> None:
        """Nothing to do."""

    def listed(self, items: list[Json]) -> None:
        for item in items:
            self.seen(item)


def _key(item: Json) -> PodKey:
    return PodKey(item["metadata"]["namespace"], item["metadata"]["name"])


def _is_silent(node: Json) -> bool:
    """Ready is Unknown once the node controller has heard nothing for its grace period."""
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "Unknown" for c in conditions)
