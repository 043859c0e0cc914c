"""Cheap looks at the API server: one HTTP connection where kubectl would be a process a question."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import requests
import yaml

from e2e.testbed.cluster import Cluster

Json = dict[str, Any]
T = TypeVar("T")

PATIENCE_SECONDS = 90.0
"""Four times what the slowest step takes on a quiet machine; tests pass as soon as what they wait for is there."""

_GROUPS = {
    "tokenservices": "/apis/taas.dev/v1alpha1",
    "tokenfleets": "/apis/taas.dev/v1alpha1",
    "acceleratorclasses": "/apis/taas.dev/v1alpha1",
    "capacityprofiles": "/apis/taas.dev/v1alpha1",
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "daemonsets": "/apis/apps/v1",
    "leaderworkersets": "/apis/leaderworkerset.x-k8s.io/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "endpointslices": "/apis/discovery.k8s.io/v1",
    "events": "/apis/events.k8s.io/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "mutatingwebhookconfigurations": "/apis/admissionregistration.k8s.io/v1",
    "podmonitors": "/apis/monitoring.coreos.com/v1",
    "roles": "/apis/rbac.authorization.k8s.io/v1",
    "rolebindings": "/apis/rbac.authorization.k8s.io/v1",
    "clusterroles": "/apis/rbac.authorization.k8s.io/v1",
    "clusterrolebindings": "/apis/rbac.authorization.k8s.io/v1",
}


def eventually(check: Callable[[], T | None], what: str, seconds: float = PATIENCE_SECONDS, pause: float = 0.3) -> T:
    """The first answer of `check` that is true; fails with `what` and the last answer when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}; the last look saw {found!r}"
        time.sleep(pause)
    return found


def throughout(check: Callable[[], object], what: str, seconds: float, pause: float = 0.5) -> None:
    """Holds at every look for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert (found := check()), f"no longer true: {what}; saw {found!r}"
        time.sleep(pause)


class Api:
    """Reads as an administrator."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._session = session(cluster)

    def close(self) -> None:
        self._session.close()

    def list(self, kind: str, namespace: str = "", selector: str = "") -> list[Json]:
        """All objects of a kind (plural, lower case), of one namespace or of all."""
        answer = self._session.get(
            self._cluster.server + path(kind, namespace), params={"labelSelector": selector}, timeout=30
        )
        answer.raise_for_status()
        items: list[Json] = answer.json()["items"]
        return items

    def get(self, kind: str, name: str, namespace: str = "") -> Json | None:
        """One object, or None when it is not there."""
        answer = self._session.get(f"{self._cluster.server}{path(kind, namespace)}/{name}", timeout=30)
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        body: Json = answer.json()
        return body

    def patch(self, kind: str, name: str, body: Json, namespace: str = "", subresource: str = "") -> Json:
        """A JSON merge patch."""
        url = "/".join(filter(None, [f"{self._cluster.server}{path(kind, namespace)}/{name}", subresource]))
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = self._session.patch(url, data=json.dumps(body), headers=headers, timeout=30)
        answer.raise_for_status()
        changed: Json = answer.json()
        return changed

    def create(self, kind: str, body: Json, namespace: str = "") -> Json:
        answer = self._session.post(self._cluster.server + path(kind, namespace), json=body, timeout=30)
        answer.raise_for_status()
        created: Json = answer.json()
        return created

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """Asks for it to go; it need not be there."""
        answer = self._session.delete(f"{self._cluster.server}{path(kind, namespace)}/{name}", timeout=30)
        if answer.status_code != 404:
            answer.raise_for_status()


@dataclass
class Record:
    """Everything that a watch has shown, in order: (type, object); nothing more once it has `ended`."""

    events: list[tuple[str, Json]] = field(default_factory=list)
    ended: bool = False

    def bodies(self, name: str | None = None) -> list[Json]:
        """Every state of the object of that name, or of all."""
        return [body for _, body in self.events if name is None or body["metadata"]["name"] == name]

    def has_seen(self, listed: Json) -> bool:
        """Whether it is as far as this list: a list may show what the watch has yet to say."""
        there = {it["metadata"]["name"]: _revision(it) for it in listed["items"]}
        last = {it["metadata"]["name"]: (type_, _revision(it)) for type_, it in [*self.events]}
        gone = (last[name] for name in last.keys() - there.keys())
        return all(type_ == "DELETED" or revision > _revision(listed) for type_, revision in gone) and all(
            name in last and last[name][1] >= revision for name, revision in there.items()
        )


def _revision(obj: Json) -> int:
    return int(obj["metadata"]["resourceVersion"])


@contextmanager
def watched(cluster: Cluster, kind: str, namespace: str) -> Iterator[Record]:
    """Records every state of every object of a kind in a namespace, from now on."""
    record, opened = Record(), threading.Event()
    http = session(cluster)
    answer = http.get(
        cluster.server + path(kind, namespace),
        params={"watch": "true", "timeoutSeconds": "600"},
        stream=True,
        timeout=600,
    )
    answer.raise_for_status()

    def follow() -> None:
        opened.set()
        try:
            for line in answer.iter_lines(chunk_size=None):
                event = json.loads(line)
                record.events.append((event["type"], event["object"]))
        except (requests.RequestException, AttributeError, ValueError, OSError):
            pass  # closed below, or by a server that went, while it was reading
        record.ended = True

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    opened.wait(10)
    try:
        yield record
        now = http.get(cluster.server + path(kind, namespace), timeout=30).json()
        seen = f"the watch of {kind} shows what is there by now"
        eventually(lambda: record.ended or record.has_seen(now), seen, 30, 0.05)
    finally:
        connection = answer.raw.connection
        if connection is not None and connection.sock is not None:
            connection.sock.shutdown(2)  # wakes the reader, which a close alone does not
        thread.join(10)
        answer.close()
        http.close()


def session(cluster: Cluster) -> requests.Session:
    """HTTP with the administrator's token."""
    made = requests.Session()
    made.trust_env = False  # a CA bundle of the environment would go before the cluster's own
    user = yaml.safe_load(cluster.kubeconfig.read_text())["users"][0]["user"]
    made.headers["Authorization"] = f"Bearer {user['token']}"
    made.verify = str(cluster.certificate)
    return made


def path(kind: str, namespace: str) -> str:
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{_GROUPS.get(kind, '/api/v1')}{scope}/{kind}"


def condition(thing: Json | None, kind: str) -> Json:
    """A condition of an object; empty when it is not there."""
    conditions = ((thing or {}).get("status") or {}).get("conditions") or []
    found: Json = next((c for c in conditions if c["type"] == kind), {})
    return found


def is_true(thing: Json | None, kind: str) -> bool:
    return condition(thing, kind).get("status") == "True"
