"""Replicas that no node holds, made by the controller of LeaderWorkerSets itself: from its absence to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from e2e.testbed.bed import Bed
from e2e.testbed.lws import LeaderWorkerSets
from e2e.tests.support.api import Json, Record, eventually, throughout
from e2e.tests.support.bed import audit, mended
from e2e.tests.support.site import Site
from e2e.tests.test_manifests_contract import applied, named
from tests.core.rendering import ACROSS_NODES, SETTINGS, SPECS, spec_of
from tests.support.build import make_service
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.drift import differs
from tokenservice.core.manifests import children

pytestmark = pytest.mark.cluster

ARCHITECTURE = {"parameters": 7_000_000_000, "layers": 32, "heads": 32, "kvHeads": 8, "headDim": 128}
LARGE = {"name": "vLLM", "tensorParallelSize": 8, "pipelineParallelSize": 2}
WORKER_INDEX = "leaderworkerset.sigs.k8s.io/worker-index"


@pytest.fixture(scope="module")
def sets(whole_bed: Bed) -> Iterator[LeaderWorkerSets]:
    """Not there yet. Engines of these replicas, which nobody measured, are as fast as the slow model."""
    if not whole_bed.cluster.owned:
        pytest.skip("the controller brings webhooks for the whole cluster")
    _play(whole_bed, "steady-7b-bf16-vllm-h100-tp1")
    made = LeaderWorkerSets(whole_bed.cluster, whole_bed.processes)
    yield made
    made.uninstall()
    _play(whole_bed, "")


def _play(bed: Bed, profile: str) -> None:
    bed.default_profile = profile
    bed.processes.stop_one("farm")
    bed.start_farm()


@pytest.fixture
def large(sets: LeaderWorkerSets, bed: Bed, site: Site) -> Site:
    """Four nodes of eight, and a service of which a replica takes two."""
    mended(bed)
    for _ in range(4):
        site.node()
    return site


def apply(site: Site, **changes: Any) -> None:
    engine = LARGE | changes.pop("engine", {})
    model = {"uri": "hf://acme/large", "architecture": ARCHITECTURE}
    site.apply(**({"model": model, "engine": engine} | changes))


def groups(site: Site) -> list[Json]:
    return site.api.list("leaderworkersets", site.namespace)


def serving(site: Site) -> list[str]:
    """Pods that requests go to."""
    slices = site.api.list("endpointslices", site.namespace, "kubernetes.io/service-name=chat")
    return sorted(name for found in slices if found.get("ports") for name in _ready(found))


def _ready(endpoints: Json) -> list[str]:
    """Pods of a slice that requests go to."""
    return [it["targetRef"]["name"] for it in endpoints.get("endpoints") or [] if it["conditions"].get("ready")]


def test_replicas_that_span_nodes_from_the_absence_of_their_api_to_their_end(
    large: Site, sets: LeaderWorkerSets
) -> None:
    site, began = large, time.time()
    site.node()
    apply(site)
    said = site.wait_true("Stalled")
    assert said["reason"] == "NoLeaderWorkerSet"
    assert "CRD leaderworkersets.leaderworkerset.x-k8s.io: install it" in said["message"]
    site.apply("beside")
    site.wait_true("Ready", "beside")  # others never notice

    sets.install()  # which a running operator notices
    site.wait_true("Ready")
    name = "chat-h100-vllm-tp8pp2-bf16"
    assert [it["metadata"]["name"] for it in groups(site)] == [name]
    assert site.deployments() == []
    pods = {pod["metadata"]["name"]: pod for pod in site.wait_ready_pods(2)}
    assert sorted(pods) == [f"{name}-0", f"{name}-0-1"]
    assert len(set(site.nodes_of())) == 2
    assert site.eventually(lambda: serving(site), "requests go somewhere") == [f"{name}-0"], "workers are asked nothing"
    assert _environment(pods[f"{name}-0-1"])["LWS_WORKER_INDEX"] == "1"
    assert _environment(pods[f"{name}-0-1"])["LWS_LEADER_ADDRESS"] == f"{name}-0.{name}.{site.namespace}"
    status = site.status()
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)

    generation = groups(site)[0]["metadata"]["generation"]
    time.sleep(8)
    assert groups(site)[0]["metadata"]["generation"] == generation, "what is applied is not drift"

    apply(site, replicas=2)
    site.eventually(lambda: serving(site) == [f"{name}-0", f"{name}-1"], "two replicas serve")
    site.wait_ready_pods(4)
    with site.watched("pods") as record:
        apply(site, replicas=1)
        site.eventually(lambda: sorted(_names(site)) == [f"{name}-0", f"{name}-0-1"], "the last one went")
    assert _gone(record, f"{name}-1") < _told_to_go(record, f"{name}-1-1"), "workers live while their leader drains"

    apply(site, replicas=1, engine={"maxNumSeqs": 6})
    site.eventually(
        lambda: "the change waits" in site.condition("Reconciling")["message"], "a single replica has no successor"
    )
    throughout(lambda: serving(site) == [f"{name}-0"], "it serves on", 5)

    apply(site, replicas=1, engine={"pipelineParallelSize": 1})
    site.eventually(lambda: groups(site) == [], "the replica within a node took over")
    site.wait_true("Ready")
    assert [it["metadata"]["name"] for it in site.deployments()] == ["chat-h100-vllm-tp8-bf16"]

    refused = [e for e in audit(site.bed, since=began) if e["responseStatus"]["code"] == 403]
    assert [(e["verb"], e["requestURI"], e["responseStatus"].get("message")) for e in refused] == []
    site.kubectl("delete", "tsvc", "chat", "beside")


def test_a_replica_without_room_for_all_of_it_takes_none_from_one_that_serves(large: Site) -> None:
    """Three nodes are left for two replicas of two nodes each."""
    site = large
    eventually(lambda: "lws" in site.bed.processes.pids, "the controller runs")
    site.kubectl("cordon", site.nodes[3])
    apply(site, replicas=2)
    site.eventually(lambda: len(serving(site)) == 1, "one serves")
    site.wait_condition("CapacityAvailable", "False")
    site.kubectl("uncordon", site.nodes[3])
    site.eventually(lambda: len(serving(site)) == 2, "both serve once there is room")
    site.kubectl("delete", "tsvc", "chat")


def test_a_change_brings_a_group_more_and_is_one_short_at_its_end(large: Site) -> None:
    """Two groups, nodes for three: LeaderWorkerSet 0.8 takes the third away while the last of two is not ready."""
    site = large
    for _ in range(2):
        site.node()
    eventually(lambda: "lws" in site.bed.processes.pids, "the controller runs")
    apply(site, replicas=2)
    site.eventually(lambda: len(serving(site)) == 2, "both serve")
    before = {pod["metadata"]["uid"] for pod in site.pods()}
    with site.watched("endpointslices") as slices, site.watched("pods") as pods:
        apply(site, replicas=2, engine={"maxNumSeqs": 6})
        site.eventually(lambda: _replaced(site, before), "every group is another, and no third one is left")
        site.eventually(lambda: len(serving(site)) == 2, "both serve")
    counts = [len(_ready(body)) for _, body in slices.events if _is_of_service(body)]
    assert (min(counts), max(counts)) == (1, 3), "docs/engines.md says one fewer"
    assert _most_leaders(pods) == 3
    site.kubectl("delete", "tsvc", "chat")


def _replaced(site: Site, before: set[str]) -> bool:
    pods = site.pods()
    return len(pods) == 4 and not before & {pod["metadata"]["uid"] for pod in pods}


def _is_of_service(endpoints: Json) -> bool:
    return bool(endpoints.get("ports")) and endpoints["metadata"]["labels"]["kubernetes.io/service-name"] == "chat"


def _most_leaders(record: Record) -> int:
    """Groups that there were at once, those on their way out among them."""
    there, most = set[str](), 0
    for type_, pod in record.events:
        if pod["metadata"]["labels"][WORKER_INDEX] == "0":
            (there.discard if type_ == "DELETED" else there.add)(pod["metadata"]["uid"])
            most = max(most, len(there))
    return most


def test_the_server_takes_every_group_and_what_it_adds_is_no_drift(sets: LeaderWorkerSets, site: Site) -> None:
    """Fields that the CRD does not know would be dropped, and applied again for ever."""
    eventually(lambda: "lws" in site.bed.processes.pids, "the controller runs")
    for case in SPECS:
        service = replace(make_service(namespace=site.namespace), spec=spec_of(case))
        ways = [(variant, 2) for variant in ACROSS_NODES.values()]
        rendered = children(service, ways, SETTINGS, needed=1, fleet=TokenFleetSpec())
        desired = [manifest for manifest in rendered if manifest["kind"] == "LeaderWorkerSet"]
        live = named(applied(site.bed.cluster, desired, "--dry-run=server", "--validate=strict"))
        assert [key for key, manifest in named(desired).items() if differs(manifest, live[key])] == [], case


def _names(site: Site) -> list[str]:
    return [pod["metadata"]["name"] for pod in site.pods()]


def _gone(record: Record, name: str) -> int:
    """Place of the event by which a pod was gone."""
    return next(n for n, (type_, it) in enumerate(record.events) if _is(it, name) and type_ == "DELETED")


def _told_to_go(record: Record, name: str) -> int:
    """Place of the event by which a pod was first seen on its way out."""
    return next(n for n, (_, it) in enumerate(record.events) if _is(it, name) and "deletionTimestamp" in it["metadata"])


def _is(pod: Json, name: str) -> bool:
    return bool(pod["metadata"]["name"] == name)


def _environment(pod: Json) -> dict[str, str]:
    (container,) = pod["spec"]["containers"]
    return {item["name"]: item.get("value", "") for item in container["env"]}
