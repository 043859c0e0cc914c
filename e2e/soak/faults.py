"""What happens in the minutes of a soak: faults and changes that must cost no request of a Guaranteed service.

A node that dies takes the requests on it with it, whatever an operator does; so only the node of the Spot service dies.
Nor is the leader killed here: memory is watched over the whole hour, and `e2e/faults` kills it at every write.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from e2e.tests.support.api import eventually
from e2e.tests.support.bed import leads
from e2e.tests.support.site import Site

GUARANTEED = ("chat", "code")
SPOT = "batch"
GUEST = "guest"
"""Comes and goes."""

Fault = Callable[["Stage"], None]


@dataclass
class Stage:
    """Where the faults happen. `spot_node` holds nothing but the Spot service."""

    site: Site
    spot_node: str
    turn: Iterator[int] = field(default_factory=itertools.count)

    def replicas(self, name: str, least: int) -> None:
        """The user asks for at least so many."""
        self.site.kubectl(
            "patch", "tokenservice", name, "--type=merge", f'--patch={{"spec":{{"scaling":{{"minReplicas":{least}}}}}}}'
        )


def pod_deleted(stage: Stage) -> None:
    """A pod of a Guaranteed service is deleted by hand, with its grace."""
    pod = stage.site.ready_pods(GUARANTEED[0])[0]["metadata"]["name"]
    stage.site.kubectl("delete", "pod", pod, "--wait=false")


def node_drained(stage: Stage) -> None:
    """A node is drained as an administrator does it, and comes back."""
    node = stage.site.nodes_of(GUARANTEED[1])[0]
    stage.site.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=45s", check=False)
    stage.site.kubectl("uncordon", node)


def node_dead(stage: Stage) -> None:
    """The node of the Spot service is gone at once; another comes."""
    stage.site.api.delete("nodes", stage.spot_node)
    stage.site.bed.autoscaler.forget(stage.spot_node)
    stage.spot_node = stage.site.node(region=f"{stage.site.region}-spot")


def operator_paused(stage: Stage) -> None:
    """The operator's process stands still for longer than its Lease lasts."""
    stage.site.bed.processes.signal("operator", signal.SIGSTOP)
    time.sleep(20)
    stage.site.bed.processes.signal("operator", signal.SIGCONT)
    eventually(lambda: leads(stage.site.bed), "the operator leads again", 60)


def prometheus_gone(stage: Stage) -> None:
    """Prometheus does not answer for half a minute."""
    stage.site.bed.prometheus.pause()
    time.sleep(30)
    stage.site.bed.prometheus.start()


def api_server_restarted(stage: Stage) -> None:
    """The API server is killed and started over the same etcd."""
    stage.site.bed.cluster.restart_api_server()


def rollout(stage: Stage) -> None:
    """A setting of the engine changes: every replica is replaced."""
    batch = 8 - next(stage.turn) % 2
    change = f'--patch={{"spec":{{"engine":{{"maxNumSeqs":{batch}}}}}}}'
    stage.site.kubectl("patch", "tokenservice", GUARANTEED[0], "--type=merge", change)


def floor_raised(stage: Stage) -> None:
    """More replicas are asked for, then as many as before."""
    stage.replicas(GUARANTEED[1], 3)
    time.sleep(15)
    stage.replicas(GUARANTEED[1], 1)


def edited_by_hand(stage: Stage) -> None:
    """Somebody scales what the operator owns."""
    deployment = stage.site.deployments(GUARANTEED[1])[0]["metadata"]["name"]
    stage.site.kubectl("scale", "deployment", deployment, "--replicas=5")


def churn(stage: Stage) -> None:
    """A service comes; or goes, where it is."""
    if stage.site.api.get("tokenservices", GUEST, stage.site.namespace):
        stage.site.kubectl("delete", "tokenservice", GUEST, "--wait=false")
    else:
        stage.site.apply(GUEST, tier="Elastic")


FAULTS: tuple[Fault, ...] = (
    churn,
    pod_deleted,
    rollout,
    prometheus_gone,
    node_drained,
    floor_raised,
    operator_paused,
    edited_by_hand,
    node_dead,
    api_server_restarted,
)
"""One a minute, in this order, over and over."""


def said(fault: Fault) -> str:
    """The first line of its description."""
    return (fault.__doc__ or fault.__name__).partition("\n")[0]
