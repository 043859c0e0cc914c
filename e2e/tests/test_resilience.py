"""The operator or Prometheus dies, hangs or is away for long: engines serve on, and nothing is done twice."""

from __future__ import annotations

import signal
import time

import pytest
import requests

from e2e.tests.support.api import eventually, is_true, throughout
from e2e.tests.support.bed import audit, leads, mended, writes
from e2e.tests.support.site import Site

pytestmark = pytest.mark.cluster

GATE = "taas.dev/placement"


def gates(pod: dict[str, dict[str, list[dict[str, str]]]]) -> list[str]:
    return [gate["name"] for gate in pod["spec"].get("schedulingGates") or []]


def asked(site: Site) -> int:
    """What the Deployment of the service asks for."""
    (found,) = site.deployments()
    return int(found["spec"]["replicas"])


def crash(site: Site, pod: str) -> None:
    """The engine's process dies, and the kubelet starts it again."""
    requests.post(f"{site.bed.farm_url}/admin/pods/{site.namespace}/{pod}/crash", timeout=10).raise_for_status()


# --- The operator ----------------------------------------------------------------------------------------------------


def test_a_plan_that_was_cut_short_is_finished_by_the_next_operator_without_duplicates(site: Site) -> None:
    for _ in range(2):
        site.node()
    names = [f"chat-{number:02}" for number in range(16)]  # twice what is written at a time
    with site.watched("deployments") as deployments, site.watched("pods") as pods:
        site.bed.cluster.apply(*(site.manifest(name, scaling={"minReplicas": 1}) for name in names))
        eventually(lambda: deployments.bodies(), "the first Deployment", pause=0.005)
        site.bed.operator.kill()
        assert 0 < len(site.deployments(None)) < len(names), "it was killed in the middle"
        mended(site.bed)
        for name in names:
            site.wait_ready_pods(1, name)
            site.wait_true("Ready", name)
        created = {pod["metadata"]["name"] for pod in pods.bodies()}
    assert len(created) == len(names), "no replica was started twice"
    for name in names:
        assert len(site.deployments(name)) == 1
        assert len(site.endpoints(name)) == 1
    for kind in ("services", "poddisruptionbudgets", "networkpolicies"):
        assert len(site.api.list(kind, site.namespace, "taas.dev/service")) == len(names)


def test_a_move_that_was_begun_is_finished_by_the_next_operator(site: Site) -> None:
    old = site.node()
    site.serving()
    new = site.node()
    with site.traffic(rate=1.0) as traffic:  # within what one replica is to take
        site.kubectl("cordon", old)
        site.eventually(
            lambda: site.deployments()[0]["spec"]["replicas"] == 2, "the successor is asked for", pause=0.05
        )
        site.bed.operator.kill()
        mended(site.bed)
        site.eventually(lambda: site.nodes_of() == [new], "the move is finished")
        assert asked(site) == 1
        traffic.goes_on()
    assert traffic.lost == {}


def test_without_the_operator_pods_are_replaced_scheduled_and_served(site: Site) -> None:
    site.node()
    site.serving(scaling={"minReplicas": 2})
    site.bed.operator.kill()
    crash(site, site.endpoints()[0])
    site.eventually(lambda: len(site.ready_pods()) == 1, "an engine has crashed")
    site.wait_ready_pods(2)
    with site.traffic(rate=2.0) as traffic:
        before = {pod["metadata"]["name"] for pod in site.pods()}
        site.kubectl("delete", "pod", min(before), "--wait=false")
        fresh = [pod for pod in site.wait_ready_pods(2) if pod["metadata"]["name"] not in before]
        assert len(fresh) == 1
        assert not gates(fresh[0])
        site.kubectl("scale", f"deployment/{site.deployments()[0]['metadata']['name']}", "--replicas=4")
        site.wait_ready_pods(4)
        site.eventually(lambda: len(site.endpoints()) == 4, "all of them are endpoints")
        traffic.goes_on()
        mended(site.bed)
        site.wait_ready_pods(2)
        site.wait_true("Ready")
        traffic.goes_on()
    assert traffic.lost == {}


def test_an_operator_that_hangs_blocks_no_pod(site: Site) -> None:
    site.node()
    site.serving()
    (before,) = site.pods()
    operator = site.bed.processes
    operator.signal("operator", signal.SIGSTOP)
    try:
        began = time.monotonic()
        site.kubectl("delete", "pod", before["metadata"]["name"], "--wait=false")
        others = eventually(lambda: site.pods(), "it is replaced", 8, pause=0.1)
        assert not gates(others[0])
        site.eventually(lambda: site.nodes_of() != [""], "and scheduled", 8, pause=0.1)
        took = time.monotonic() - began
    finally:
        operator.signal("operator", signal.SIGCONT)
    assert took < 9, "before its Lease was in danger"
    eventually(lambda: leads(site.bed), "it leads on")
    site.wait_ready_pods(1)


# --- Silence ---------------------------------------------------------------------------------------------------------


FIGURES = ("patch acceleratorclasses ", "patch tokenfleets ")
"""Counts of the whole fleet may be a minute old, so one write each may be left of what changed before."""


def test_with_no_change_in_nothing_is_written_but_the_lease(site: Site) -> None:
    site.node()
    site.serving(scaling={"minReplicas": 2})
    eventually(lambda: not _written(site, time.time() - 8), "eight seconds without a write", 120, pause=2.0)
    began, before = time.time(), _revisions(site)
    throughout(lambda: True, "time passes", seconds=30, pause=5.0)
    written = _written(site, began)
    assert [line for line in written if not line.startswith(FIGURES)] == []
    assert len(written) == len(set(written)), "a figure is written once"
    assert _revisions(site) == before


def _written(site: Site, since: float) -> list[str]:
    return [line for line in writes(audit(site.bed, since=since)) if " leases " not in line]


def _revisions(site: Site) -> dict[str, str]:
    """resourceVersion of everything of ours."""
    kinds = ("tokenservices", "deployments", "services", "poddisruptionbudgets", "networkpolicies", "serviceaccounts")
    found = {
        f"{kind}/{thing['metadata']['name']}": thing["metadata"]["resourceVersion"]
        for kind in (*kinds, "pods")
        for thing in site.api.list(kind, site.namespace)
    }
    cluster_wide = ("capacityprofiles", "mutatingwebhookconfigurations")
    return found | {
        f"{kind}/{thing['metadata']['name']}": thing["metadata"]["resourceVersion"]
        for kind in cluster_wide
        for thing in site.api.list(kind)
    }


# --- Prometheus ------------------------------------------------------------------------------------------------------


def test_without_prometheus_replicas_are_held_and_come_down_when_it_is_back(site: Site) -> None:
    site.node()
    site.serving(scaling={"minReplicas": 3})
    with site.traffic(rate=1.0) as traffic:
        site.wait_true("MetricsAvailable")
        site.bed.prometheus.pause()
        missing = site.wait_condition("MetricsAvailable", "False")
        assert "replicas are held, none is removed" in missing["message"]
        site.kubectl("patch", "tsvc", "chat", "--type=merge", "-p", '{"spec":{"scaling":{"minReplicas":1}}}')
        throughout(lambda: asked(site) == 3, "nothing is removed, though one would do", seconds=14, pause=1.0)
        assert is_true(site.service(), "Ready"), "it serves all the same"
        assert "3" in site.status()["decision"]["message"]
        site.bed.prometheus.start()
        site.wait_true("MetricsAvailable")
        site.eventually(lambda: asked(site) == 1, "what is too much is removed")
        traffic.goes_on(2)
    assert traffic.lost == {}
    assert any("replicas are held" in event.get("note", "") for event in site.events())
