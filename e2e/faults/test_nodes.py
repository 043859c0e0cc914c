"""Nodes and pods do what they do: the operator replaces, waits, and never makes it worse.

Each case plays on its own nodes with one service of a few replicas. Watched throughout: endpoints never fall below what
the fault itself took away, accelerators of a node are never promised twice, and it ends in rest.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import requests

from e2e.faults.conftest import Stage
from e2e.faults.instance import Log
from e2e.faults.oracle import misdeeds
from e2e.faults.rig import Rig
from e2e.faults.scenario import Play
from e2e.tests.support.api import Json, eventually, throughout
from e2e.tests.support.nodes import silence
from tokenservice.core.names import FIELD_MANAGER, MANAGED_BY_LABEL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

RESOURCE = "nvidia.com/gpu"


@dataclass
class Lookout:
    """Looks at the endpoints and at the nodes all the time, and remembers the least and the worst."""

    play: Play
    least: int = 10**9
    promised_twice: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[Lookout]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join(10)

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.least = min(self.least, len(self.play.site.endpoints("auto")))
            self.promised_twice += overcommitted(self.play)


def overcommitted(play: Play) -> list[str]:
    """Nodes whose pods hold more accelerators than there are."""
    held: dict[str, int] = {}
    for pod in play.site.pods(None, deleting=True):
        node = pod["spec"].get("nodeName")
        if node and pod["status"].get("phase") in ("Pending", "Running"):
            limits = (c.get("resources", {}).get("limits", {}) for c in pod["spec"]["containers"])
            held[node] = held.get(node, 0) + sum(int(limit.get(RESOURCE, 0)) for limit in limits)
    there = {
        n["metadata"]["name"]: int(n["status"]["allocatable"].get(RESOURCE, 0)) for n in play.rig.api.list("nodes")
    }
    return [f"{node}: {count} of {there[node]}" for node, count in held.items() if count > there.get(node, count)]


@dataclass(frozen=True, slots=True)
class Trouble:
    """`happens` to a service of `replicas`; `endpoints` must remain meanwhile.

    When a node `shrinks` under its replicas, it is the node that promised twice.
    """

    happens: Callable[[Play], None]
    endpoints: int
    replicas: int = 2
    nodes: int = 2
    shrinks: bool = False


def pod_of(play: Play) -> Json:
    return min(play.site.pods("auto"), key=lambda pod: str(pod["metadata"]["name"]))


def node_of(play: Play) -> str:
    return str(pod_of(play)["spec"]["nodeName"])


def node_dies(play: Play) -> None:
    play.cordoned = node_of(play)
    silence(play.site, play.cordoned)
    play.site.eventually(lambda: set(play.site.nodes_of("auto")) - {play.cordoned}, "replaced elsewhere", 90)
    # its pods are deleted and nobody answers for them: what an administrator, or a cloud, does next
    play.rig.api.delete("nodes", play.cordoned)


def node_flaps(play: Play) -> None:
    node = node_of(play)
    for _ in range(3):
        for ready in ("False", "True"):
            found = play.rig.api.get("nodes", node) or {}
            others = [c for c in found["status"]["conditions"] if c["type"] != "Ready"]
            flapped = {"type": "Ready", "status": ready, "reason": "Flapping", "message": "injected"}
            _node_status(play, node, {"conditions": [*others, flapped]})
            time.sleep(0.7)


def node_cordoned(play: Play) -> None:
    play.cordoned = node_of(play)
    play.site.kubectl("cordon", play.cordoned)


def node_drained(play: Play) -> None:
    play.cordoned = node_of(play)
    play.site.kubectl("drain", play.cordoned, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s")


def cordoned_and_back(play: Play) -> None:
    node = node_of(play)
    play.site.kubectl("cordon", node)
    play.site.eventually(lambda: len(play.site.pods("auto")) > 2, "a successor is asked for", 20, 0.05)
    play.site.kubectl("uncordon", node)


def node_relabelled(play: Play) -> None:
    """It is of another region now: the residency of its replicas is broken, by the administrator."""
    node = node_of(play)
    play.site.kubectl("label", "node", node, "topology.kubernetes.io/region=elsewhere", "--overwrite")
    time.sleep(3)
    play.site.kubectl("label", "node", node, f"topology.kubernetes.io/region={play.site.region}", "--overwrite")


def accelerators_lost(play: Play) -> None:
    """The device plugin reports one accelerator where there were eight, then eight again."""
    node = node_of(play)
    _node_status(play, node, {"allocatable": {RESOURCE: "1"}})
    time.sleep(3)
    _node_status(play, node, {"allocatable": {RESOURCE: "8"}})


def pod_evicted(play: Play) -> None:
    """Refused while the disruption budget says so, which is fine too."""
    pod = pod_of(play)["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": play.site.namespace}}
    address = f"/api/v1/namespaces/{play.site.namespace}/pods/{pod}/eviction"
    play.rig.bed.cluster.kubectl("create", "--raw", address, "-f", "-", stdin=json.dumps(body), check=False)


def pod_deleted(play: Play) -> None:
    play.site.kubectl("delete", "pod", pod_of(play)["metadata"]["name"], "--wait=false")


def pod_deleted_at_once(play: Play) -> None:
    name = pod_of(play)["metadata"]["name"]
    play.site.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")


def crash_loops(play: Play) -> None:
    """An engine crashes again and again."""
    for _ in range(4):
        _crash(play, pod_of(play)["metadata"]["name"])
        time.sleep(0.8)


def all_crash(play: Play) -> None:
    for pod in play.site.pods("auto"):
        _crash(play, pod["metadata"]["name"])


def stuck_terminating(play: Play) -> None:
    """A pod that somebody's finalizer keeps, for a while."""
    name = pod_of(play)["metadata"]["name"]
    play.rig.api.patch("pods", name, {"metadata": {"finalizers": ["example.org/slow"]}}, play.site.namespace)
    play.site.kubectl("delete", "pod", name, "--wait=false")
    time.sleep(4)
    play.rig.api.patch("pods", name, {"metadata": {"finalizers": None}}, play.site.namespace)


def scaled_by_hand(play: Play) -> None:
    """Somebody scales the Deployment down; the operator owns that number."""
    play.site.kubectl("scale", f"deployment/{_deployment(play)}", "--replicas=1")


def template_edited(play: Play) -> None:
    """Somebody changes an argument of the engine by hand."""
    patch = '{"spec":{"template":{"metadata":{"annotations":{"edited":"by-hand"}}}}}'
    play.site.kubectl("patch", "deployment", _deployment(play), "--type=merge", "-p", patch)


def label_removed(play: Play) -> None:
    """Somebody takes off the label that the operator finds its Deployment by, is told so, and puts it back."""
    name, label, replicas = _deployment(play), f"{MANAGED_BY_LABEL}={FIELD_MANAGER}", _names(play)
    play.site.kubectl("label", "deployment", name, f"{MANAGED_BY_LABEL}-")
    said = play.site.wait_condition("Stalled", "True", "auto")
    assert said["reason"] == "NameTaken", said
    assert f"Deployment {name} is there already without its label: put {label} back" in said["message"], said
    assert _names(play) == replicas, "the same replicas serve on"
    play.site.kubectl("label", "deployment", name, label)


def children_deleted(play: Play) -> None:
    for kind in ("service", "poddisruptionbudget", "networkpolicy"):
        play.site.kubectl("delete", kind, "auto")


TROUBLES: dict[str, Trouble] = {
    "a node dies": Trouble(node_dies, endpoints=0, replicas=2),
    "a node flaps": Trouble(node_flaps, endpoints=0),
    "a node is cordoned": Trouble(node_cordoned, endpoints=2),
    "a node is cordoned and uncordoned": Trouble(cordoned_and_back, endpoints=2),
    "a node is drained": Trouble(node_drained, endpoints=0),
    "a node is relabelled, and back": Trouble(node_relabelled, endpoints=2),
    "a node loses accelerators, and gets them back": Trouble(accelerators_lost, endpoints=0, shrinks=True),
    "a pod is evicted": Trouble(pod_evicted, endpoints=1),
    "a pod is deleted by hand": Trouble(pod_deleted, endpoints=1),
    "a pod is deleted by force": Trouble(pod_deleted_at_once, endpoints=1),
    "an engine crashes again and again": Trouble(crash_loops, endpoints=1),
    "all engines crash at once": Trouble(all_crash, endpoints=0),
    "a pod is stuck terminating": Trouble(stuck_terminating, endpoints=1),
    "a Deployment is scaled by hand": Trouble(scaled_by_hand, endpoints=1),
    "a Deployment's template is edited by hand": Trouble(template_edited, endpoints=2),
    "a Deployment's label is removed by hand": Trouble(label_removed, endpoints=2),
    "Service, budget and policy are deleted by hand": Trouble(children_deleted, endpoints=0),
}


@pytest.mark.parametrize("case", TROUBLES)
def test_it_rests_again_when(faulty: Rig, stage: Stage, log: Log, case: str) -> None:
    trouble = TROUBLES[case]
    with stage("trouble") as play:
        for _ in range(trouble.nodes - 1):
            play.site.node()
        door = faulty.door()
        life = faulty.start(door, watchNamespaces=[play.site.namespace])
        play.ask("auto", trouble.replicas, scaling={"minReplicas": trouble.replicas})
        play.rest(life)
        eventually(lambda: len(play.site.endpoints("auto")) == trouble.replicas, "all are endpoints", 20)
        with Lookout(play).watching() as seen:
            trouble.happens(play)
            play.rest(life, 120)
            eventually(lambda: len(play.site.endpoints("auto")) == trouble.replicas, "all are endpoints", 30)
        assert seen.least >= trouble.endpoints, f"only {seen.least} served"
        assert trouble.shrinks or seen.promised_twice == []
        assert not (wrong := misdeeds(door.writes(), [play.site.namespace])), wrong
        assert log.errors() == []
        faulty.end()


def test_nothing_is_removed_while_no_replica_is_ready(faulty: Rig, stage: Stage) -> None:
    """All are not Ready and fewer are asked for: scale-in waits, or takes what does not serve."""
    with stage("unready") as play:
        life = faulty.start(faulty.door(), watchNamespaces=[play.site.namespace])
        play.ask("auto", 3, replicas=3)
        play.rest(life)
        survivor = max(pod["metadata"]["name"] for pod in play.site.pods("auto"))
        for pod in play.site.pods("auto"):
            if pod["metadata"]["name"] != survivor:
                _crash(play, pod["metadata"]["name"])
        play.ask("auto", 2, replicas=2)
        throughout(lambda: _serves_or_waits(play, survivor), "the one that serves stays", 6, 0.05)
        play.rest(life)
        faulty.end()


def test_a_namespace_that_is_deleted_is_left_in_peace(faulty: Rig, stage: Stage, log: Log) -> None:
    """Nothing can be made in it any more: that is no error, and nobody is left to be told."""
    with stage("leaving") as play:
        door = faulty.door()
        faulty.start(door, watchNamespaces=[play.site.namespace])
        for name in ("auto", "fixed", "other"):
            play.site.serving(name, replicas=1)
        faulty.bed.cluster.kubectl("delete", "namespace", play.site.namespace, "--wait=false")
        gone = lambda: faulty.api.get("namespaces", play.site.namespace) is None  # noqa: E731
        eventually(gone, "the namespace is gone", 120)
        assert log.errors() == []
        assert [r.getMessage() for r in log.records if "terminat" in r.getMessage()] == []
        faulty.end()


def _serves_or_waits(play: Play, survivor: str) -> bool:
    living = [pod["metadata"]["name"] for pod in play.site.pods("auto")]
    others = [pod for pod in play.site.ready_pods("auto") if pod["metadata"]["name"] != survivor]
    return survivor in living or len(others) >= 2


def _node_status(play: Play, node: str, status: Json) -> None:
    play.rig.api.patch("nodes", node, {"status": status}, subresource="status")


def _crash(play: Play, pod: str) -> None:
    address = f"{play.rig.bed.farm_url}/admin/pods/{play.site.namespace}/{pod}/crash"
    requests.post(address, timeout=10)


def _deployment(play: Play) -> str:
    (found,) = play.site.deployments("auto")
    return str(found["metadata"]["name"])


def _names(play: Play) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in play.site.pods("auto"))
