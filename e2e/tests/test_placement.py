"""Where replicas go when nodes fill up, empty, are cordoned or die, and who gets the last accelerators."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from e2e.testbed.nodes import H100, Pool
from e2e.tests.support.api import Record, condition, eventually, throughout
from e2e.tests.support.bed import FLEET
from e2e.tests.support.nodes import foreign_pod, silence
from e2e.tests.support.site import Site
from e2e.tests.support.traffic import Traffic

pytestmark = pytest.mark.cluster

GPU = "nvidia.com/gpu"


def fewest_ready(slices: Record) -> int:
    """The smallest number of ready endpoints that a watch has shown, from the first one on."""
    counts = [
        sum(bool(endpoint["conditions"].get("ready")) for endpoint in body.get("endpoints") or [])
        for body in slices.bodies()
    ]
    started = next(index for index, count in enumerate(counts) if count)
    return min(counts[started:])


@dataclass(frozen=True)
class Dying:
    """A service whose node has died under traffic, and where it may go."""

    site: Site
    traffic: Traffic
    dead: str
    other: str


@pytest.fixture(scope="module", autouse=True)
def dying(module_site: Site) -> Iterator[Dying]:
    """A node dies as this module begins; until the cluster has given it up, other tests have their turn."""
    site = module_site
    dead = site.node()
    site.serving(scaling={"minReplicas": 2})
    other = site.node()
    site.bed.cluster.apply(foreign_pod(site, "neighbour", other, gpus=1))  # so that the node is not taken for unused
    with site.traffic(rate=0.5) as traffic:
        silence(site, dead)
        yield Dying(site, traffic, dead, other)


# --- Packing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def restless(site: Site) -> Iterator[Site]:
    """A fleet that repacks after seconds, and a node autoscaler that removes what is empty."""
    site.api.patch("tokenfleets", "default", {"spec": {"consolidation": {"cooldownSeconds": 5}}})
    site.bed.autoscaler.pools = (Pool(template=H100, maximum=0, start_seconds=0, idle_seconds=2),)
    yield site
    site.bed.autoscaler.pools = ()
    site.api.patch("tokenfleets", "default", {"spec": {"consolidation": FLEET["spec"]["consolidation"]}})


def test_replicas_of_several_services_share_a_node(site: Site) -> None:
    site.node()
    site.node()
    names = [f"small-{number}" for number in range(4)]
    site.bed.cluster.apply(*(site.manifest(name, scaling={"minReplicas": 2}) for name in names))
    for name in names:
        site.wait_ready_pods(2, name)
    assert len(set(site.nodes_of(None))) == 1


def test_of_two_nodes_that_pack_alike_the_one_with_the_images_gets_the_replica(site: Site) -> None:
    site.node()
    site.serving("there")
    (engine,) = {one["image"] for pod in site.pods("there") for one in pod["spec"]["containers"]}
    site.api.patch("nodes", site.nodes[0], {"spec": {"unschedulable": True}})
    site.kubectl("delete", "tsvc/there")
    first, second = sorted([site.node(), site.node()])
    reported = {"images": [{"names": ["example.org/other:v1", engine], "sizeBytes": 10**10}]}
    site.api.patch("nodes", second, {"status": reported}, subresource="status")
    with site.watched("pods") as record:
        site.serving()
        assert site.nodes_of() == [second], f"and not {first}, whose name comes first"
    nominated = {body["status"].get("nominatedNodeName") for body in record.bodies()} - {None}
    assert nominated == {second}


def test_a_node_is_emptied_make_before_break_and_goes(restless: Site) -> None:
    site = restless
    first = site.node()
    site.serving("wide", replicas=7)
    second = site.node()
    site.serving("moving", replicas=2)
    assert site.nodes_of("moving") == sorted([first, second])
    with site.traffic("moving", rate=1.5) as traffic, site.watched("endpointslices") as slices:
        traffic.goes_on(1)
        site.kubectl("scale", "tsvc/wide", "--replicas=5")

        def gone() -> bool:
            site.bed.autoscaler.look(time.time())
            return site.api.get("nodes", second) is None

        eventually(gone, f"{second} was emptied and removed", 150, pause=1.0)
        traffic.goes_on(1)
    assert traffic.lost == {}
    assert site.nodes_of("moving") == [first, first]
    mine = [body for body in slices.bodies() if body["metadata"]["labels"]["kubernetes.io/service-name"] == "moving"]
    assert fewest_ready(Record([("", body) for body in mine])) == 2
    assert any("so that the node becomes free" in note for note in site.told("MoveStarted", "moving"))
    assert site.api.get("nodes", first) is not None


# --- Nodes that go ---------------------------------------------------------------------------------------------------


def test_a_cordoned_node_is_left_before_it_is_drained(site: Site) -> None:
    old = site.node()
    site.serving()
    new = site.node()
    with site.watched("endpointslices") as slices, site.traffic(rate=1.5) as traffic:
        traffic.goes_on(1)
        site.kubectl("cordon", old)
        site.eventually(lambda: site.nodes_of() == [new], "its replica is on the new node, and only there")
        site.eventually(lambda: len(site.pods(deleting=True)) == 1, "the old one has finished")
        traffic.goes_on()
    assert traffic.lost == {}
    assert fewest_ready(slices) == 1
    assert any("successors start before they go" in note for note in site.told("Surged"))
    assert "evicting" not in site.kubectl("drain", old, "--ignore-daemonsets", "--delete-emptydir-data")


def test_a_drain_waits_for_successors_and_loses_no_request(site: Site) -> None:
    old = site.node()
    site.serving(scaling={"minReplicas": 2})
    with site.watched("endpointslices") as slices, site.traffic(rate=4.0) as traffic:  # two replicas' worth
        site.eventually(lambda: _least(site) == 2, "two replicas are needed")
        new = site.node()
        site.kubectl("drain", old, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=150s")
        site.eventually(lambda: set(site.nodes_of()) == {new}, "they are on the new node")
        traffic.goes_on()
    assert traffic.lost == {}
    assert fewest_ready(slices) >= 2


def _least(site: Site) -> int:
    budget = site.api.get("poddisruptionbudgets", "chat", site.namespace)
    return int(budget["spec"]["minAvailable"]) if budget else -1


# --- Scarcity --------------------------------------------------------------------------------------------------------


def test_of_two_that_race_for_the_last_accelerators_the_guaranteed_one_gets_them(site: Site) -> None:
    node = site.node()
    promise = {"tier": "Guaranteed", "objectives": {"volume": {"guaranteedTokensPerSecond": 10}}}
    with site.watched("pods") as record:
        site.bed.cluster.apply(
            site.manifest("elastic", scaling={"minReplicas": 6}),
            site.manifest("owed", scaling={"minReplicas": 6}, **promise),
        )
        site.wait_true("Ready", "owed")
        site.wait_condition("CapacityAvailable", "False", "elastic")
        site.eventually(lambda: len(site.ready_pods("elastic")) == 2, "the rest goes to the other")
    assert len(site.ready_pods("owed")) == 6
    assert site.condition("CapacityAvailable", "owed")["status"] == "True"
    assert "4 replicas wait" in site.condition("CapacityAvailable", "elastic")["message"]
    assert not [body for body in record.bodies() if _evicted(body)], "nobody had to give way"
    assert len([name for name in site.nodes_of(None) if name == node]) == 8


def _evicted(pod: dict[str, object]) -> bool:
    return condition(pod, "DisruptionTarget") != {}


def test_foreign_pods_hold_their_room_and_residency_is_not_traded_for_more(site: Site) -> None:
    mine = site.node()
    abroad = site.node(region=f"{site.region}-abroad")
    site.bed.cluster.apply(foreign_pod(site, "training", mine, gpus=7))
    site.apply(
        scaling={"minReplicas": 2},
        placement={"accelerators": ["h100"], "residency": {"regions": [site.region]}},
    )
    site.wait_condition("CapacityAvailable", "False")
    site.eventually(lambda: len(site.ready_pods()) == 1, "one replica serves in what is left")
    throughout(lambda: abroad not in site.nodes_of(), "nothing goes abroad", seconds=4)
    assert site.condition("Ready")["status"] == "False"
    site.kubectl("delete", "pod", "training")
    site.wait_true("Ready")
    site.wait_true("CapacityAvailable")
    assert site.nodes_of() == [mine, mine]


# --- Other hands -----------------------------------------------------------------------------------------------------


def test_kubectl_scale_is_followed_without_a_fight(site: Site) -> None:
    site.node()
    site.serving()
    generation = site.service()["metadata"]["generation"]
    for count in (3, 1):
        site.kubectl("scale", "tsvc/chat", f"--replicas={count}")
        site.wait_ready_pods(count)
    found = site.service()
    assert found["metadata"]["generation"] == generation + 2, "nobody but kubectl wrote the spec"
    writers = {
        entry["manager"]
        for entry in found["metadata"]["managedFields"]
        if entry.get("subresource") != "status" and "f:spec" in entry["fieldsV1"]
    }
    assert not {writer for writer in writers if "tokenservice" in writer}
    site.bed.cluster.kubectl(
        "apply", "--server-side", "--field-manager=gitops", "--force-conflicts", "-f", "-", stdin=site.yaml()
    )
    throughout(
        lambda: (site.service()["spec"].get("replicas"), len(site.pods())) == (1, 1),
        "the count stays with who scaled, whatever others apply",
        seconds=3,
    )
    (made,) = site.deployments()
    assert {e["manager"] for e in made["metadata"]["managedFields"] if _owns_replicas(e)} == {"tokenservice-operator"}


def _owns_replicas(entry: dict[str, dict[str, dict[str, object]]]) -> bool:
    return "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})


# --- A node that dies ------------------------------------------------------------------------------------------------


def test_replicas_of_a_node_that_died_come_up_elsewhere(dying: Dying) -> None:
    site = dying.site
    site.eventually(lambda: set(site.nodes_of()) == {dying.other}, "both replicas are on the other node", 120)
    site.wait_ready_pods(2)
    site.wait_true("Ready")
    dying.traffic.goes_on()
    assert site.status()["replicaSummary"] == "2/2"
    lost = [event["note"] for event in site.events() if event["type"] == "Warning"]
    assert any("of 2 replicas serve" in note for note in lost), lost
    site.api.delete("nodes", dying.dead)
    site.kubectl("delete", "pods", "--force", "--grace-period=0", f"--field-selector=spec.nodeName={dying.dead}")
    throughout(lambda: site.nodes_of() == [dying.other] * 2, "two replicas are enough", seconds=4)
