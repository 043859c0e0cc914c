"""Nodes, classes and promises that do not fit each other: who has it worse is told, and the others serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from e2e.testbed.nodes import MI300X
from e2e.tests.support.api import Json, condition, throughout
from e2e.tests.support.bed import FLEET, reinstalled
from e2e.tests.support.site import Site, profile

pytestmark = pytest.mark.cluster

GPU = "nvidia.com/gpu"
LABEL = "example.org/board"


def accelerator_class(site: Site) -> Json:
    """A class of the user's own, for nodes that the catalogue's knows as well."""
    spec: Json = dict(site.bed.cluster.get("acceleratorclass", "h100")["spec"])
    return {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "AcceleratorClass",
        "metadata": {"name": "own"},
        "spec": spec | {"nodeLabels": {LABEL: site.namespace}},
    }


def test_a_class_deleted_while_in_use_leaves_its_engines_serving_and_two_on_one_node_share_it(site: Site) -> None:
    node = site.node()
    site.kubectl("label", "node", node, f"{LABEL}={site.namespace}")
    own: dict[str, Any] = {"placement": {"accelerators": ["own"], "regions": [site.region]}}
    site.bed.cluster.apply(accelerator_class(site), profile("vLLM", "own"))
    try:
        site.serving(scaling={"minReplicas": 5})
        site.serving("mine", **own, scaling={"minReplicas": 3})
        site.apply("late", **own)
        assert site.wait_condition("CapacityAvailable", "False", "late")["reason"] == "InsufficientCapacity"
        assert len(site.ready_pods(None)) == 8, "no accelerator of the node is given twice"
        site.kubectl("delete", "tsvc", "late")
        site.kubectl("delete", "acceleratorclass", "own")
        found = site.wait_true("Stalled", "mine")
        assert found["reason"] == "UnknownAccelerator"
        assert "there is no AcceleratorClass 'own': use one of" in found["message"]
        assert "3 replicas of the last valid spec serve on" in site.condition("Ready", "mine")["message"]
        with site.traffic("mine", rate=1.0) as traffic:
            throughout(lambda: len(site.ready_pods("mine")) == 3, "its replicas stay", seconds=6)
            traffic.goes_on(2)
        assert traffic.lost == {}
        site.bed.cluster.apply(accelerator_class(site))
        site.wait_true("Ready", "mine")
        assert site.wait_condition("Stalled", "False", "mine")["reason"] == "Accepted"
        assert len(site.ready_pods("chat")) == 5
    finally:
        made_up = ("acceleratorclass/own", "capacityprofile/steady-7b-bf16-vllm-own-tp1")
        site.kubectl("delete", *made_up, "--ignore-not-found")


def allocatable(site: Site, node: str, count: int) -> None:
    """What the device plugin of a node reports."""
    site.api.patch("nodes", node, {"status": {"allocatable": {GPU: str(count)}}}, subresource="status")


def test_a_node_whose_device_plugin_reports_nothing_is_no_room_until_it_does(site: Site) -> None:
    node = site.node()
    allocatable(site, node, 0)
    site.apply()
    found = site.wait_condition("CapacityAvailable", "False")
    assert found["reason"] == "InsufficientCapacity"
    assert "find no room on nodes of h100" in found["message"]
    assert site.ready_pods() == []
    allocatable(site, node, 8)
    site.wait_true("Ready")


PROMISED: Json = {"volume": {"guaranteedTokensPerSecond": 2000}}
"""Six replicas or so of the slow model."""


def test_of_guaranteed_volumes_that_exceed_the_fleet_the_oldest_has_its_own(site: Site) -> None:
    site.node()
    site.serving("old", tier="Guaranteed", objectives=PROMISED)
    owed = site.status("old")["desiredReplicas"]
    assert 4 < owed <= 8, "two such volumes are more than the node has"
    site.apply("young", tier="Guaranteed", objectives=PROMISED)
    found = site.wait_condition("CapacityAvailable", "False", "young")
    assert found["reason"] == "InsufficientCapacity"
    assert f"{2 * owed - 8} replicas wait" in found["message"]
    assert len(site.ready_pods("old")) == owed, "who came first keeps what it was promised"
    site.wait_condition("CapacityAvailable", "True", "old")
    site.eventually(lambda: len(site.ready_pods("young")) == 8 - owed, "what is left is used")


def test_a_volume_beyond_max_replicas_is_kept_and_the_contradiction_is_said(site: Site) -> None:
    site.node()
    spec: dict[str, Any] = {"tier": "Guaranteed", "objectives": PROMISED, "scaling": {"maxReplicas": 2}}
    site.serving(**spec)
    owed = site.status()["desiredReplicas"]
    found = site.condition("Stalled")
    assert (found["status"], found["reason"]) == ("False", "MaximumOutranked")
    assert f"the guaranteed volume takes {owed} replicas and outranks maxReplicas 2: raise it" in found["message"]
    assert [event["type"] for event in site.events() if event["reason"] == "MaximumOutranked"] == ["Warning"]
    site.apply(**(spec | {"scaling": {"maxReplicas": 8}}))
    site.eventually(lambda: site.condition("Stalled")["reason"] == "Accepted", "the contradiction is gone")


# --- An accelerator that is throttled --------------------------------------------------------------------------------


@pytest.fixture
def watchful(site: Site) -> Iterator[Site]:
    """A fleet in which a replica may be replaced soon after it came; no node is emptied just to have it free."""
    site.api.patch("tokenfleets", "default", {"spec": {"consolidation": {"cooldownSeconds": 5, "paybackHours": 1e-6}}})
    yield site
    usual = FLEET["spec"]["consolidation"] | {"paybackHours": None}
    site.api.patch("tokenfleets", "default", {"spec": {"consolidation": usual}})


def starts(site: Site, **rule: object) -> None:
    """How engines of this site run that start from now on."""
    rules = [{"namespace": site.namespace, **rule}] if rule else []
    requests.put(f"{site.bed.farm_url}/admin/starts", json=rules, timeout=10).raise_for_status()


def test_a_replica_that_is_much_slower_than_its_siblings_is_told_of_and_replaced(watchful: Site) -> None:
    """Six times as long for each token, and no error anywhere."""
    site = watchful
    bad = site.node()
    site.node()
    starts(site, stepFactor=6.0)
    try:
        site.serving(replicas=1)
    finally:
        starts(site)
    (slow,) = site.endpoints()
    site.apply(replicas=3)
    site.wait_ready_pods(3)
    with site.traffic(rate=1.5) as traffic, site.watched("tokenservices") as states:
        site.eventually(lambda: site.told("SlowReplica"), "it is told of", 120)
        site.eventually(lambda: slow not in site.endpoints(), "it leaves", 120)
        assert len(site.endpoints()) == 3, "when its successor serves"
        traffic.goes_on(3)
    assert traffic.lost == {}
    assert f"{slow} on {bad} takes " in site.told("SlowReplica")[0]
    said = [condition(body, "ObjectivesMet").get("reason") for body in states.bodies("chat")]
    assert "SlowReplica" in said
    site.eventually(lambda: sum(node != bad for node in site.nodes_of()) == 1, "its successor is on the other node")
    assert site.told("Surged"), "as any other that leaves"


# --- An image for other accelerators ---------------------------------------------------------------------------------

SIZED: Json = {
    "uri": "hf://testbed/sized",
    "architecture": {"parameters": 8_000_000_000, "layers": 32, "heads": 32, "kvHeads": 8, "headDim": 128},
}
CUDA = "vllm/vllm-openai@sha256:" + "0a" * 32


def test_an_image_for_cuda_is_not_run_on_amd(site: Site) -> None:
    """The chart has its repository for NVIDIA alone, so the administrator has said what it is for."""
    engine = {"name": "vLLM", "image": CUDA}
    try:
        reinstalled(site.bed, allowedEngineImages=["vllm/vllm-openai"])
        site.node(MI300X)
        site.node()
        site.apply(model=SIZED, engine=engine, placement={"accelerators": ["mi300x"], "regions": [site.region]})
        found = site.wait_true("Stalled")
        assert found["reason"] == "NoEngineImage"
        assert f"spec.engine.image: {CUDA} is built for NVIDIA, and the model would run on AMD" in found["message"]
        assert site.pods() == []
        both = {"accelerators": ["mi300x", "h100"], "regions": [site.region]}
        site.apply(model=SIZED, engine=engine, placement=both)
        site.eventually(lambda: site.status().get("variantSummary", "").startswith("h100"), "it runs where it can")
    finally:
        reinstalled(site.bed, allowedEngineImages=[])
