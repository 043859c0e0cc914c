"""The snapshot: complete or none, and only accelerators count as such."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.edge.objects import container, deployment, node, pod, token_service
from tests.support.build import SETTINGS
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.app.metering import Metering
from tokenservice.app.observe import CHILD_KINDS, Observer
from tokenservice.core.model import Json, Margin, Missing, ObjectKey, Plan, Proposal, ServiceKey
from tokenservice.edge.projections import CHILDREN, PROJECTIONS, Complaint
from tokenservice.edge.prometheus import NO_QUERY, Answer, Question
from tokenservice.edge.store import Store, Stores


class NoMetrics:
    async def read(self, question: Question) -> Answer:
        nothing = Missing("Unreachable", "nobody answers")
        return Answer(services=dict.fromkeys(question.services.values(), nothing), utilization=NO_QUERY)


H100 = {
    "kind": "AcceleratorClass",
    "metadata": {"name": "h100", "uid": "u"},
    "spec": {
        "vendor": "NVIDIA",
        "nodeLabels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "resourceName": "nvidia.com/gpu",
        "memory": "80Gi",
        "bandwidthGigabytesPerSecond": 3350,
        "denseTeraflops": {"bf16": 989},
        "pricePerHour": 3.0,
        "idleWatts": 100,
        "busyWatts": 700,
    },
}


def make_observer(**objects: list[Json]) -> tuple[Observer, Stores]:
    kinds = (*PROJECTIONS, *CHILD_KINDS)
    stores = Stores([Store[Any](kind, PROJECTIONS.get(kind, CHILDREN)) for kind in kinds])
    for store in stores:
        store.replace(store.project(objects.get(store.kind, [])), "1")
    metering = Metering(NoMetrics(), default_address=None, interval_seconds=5)
    observer = Observer(
        stores=stores,
        metering=metering,
        settings=SETTINGS,
        architectures={},
        status_written_at=lambda: {ObjectKey("TokenService", "team", "chat"): 3.0},
    )
    asyncio.run(metering.round(observer.services(), TokenFleetSpec()))
    return observer, stores


def test_what_is_said_of_a_pod_that_cannot_be_prepared_goes_with_it_while_it_is_so() -> None:
    waits = pod("p1", metadata={"uid": "u1"})
    mounted = {"conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]}
    starts = pod("p2", metadata={"uid": "u2"}, status=mounted)
    observer, _ = make_observer(AcceleratorClass=[H100], Pod=[waits, starts])
    observer.complaints = lambda: [
        Complaint(("team", "p1"), "u1", "FailedMount: no such secret", 9.0),
        Complaint(("team", "p1"), "u1", "FailedMount: no such volume", 5.0),
        Complaint(("team", "p2"), "u2", "FailedMount: over by now", 9.0),
        Complaint(("others", "p1"), "u1", "FailedMount: of another namespace, under the uid of this pod", 99.0),
        Complaint(("team", "p1"), "u0", "FailedMount: of an earlier pod of that name", 99.0),
    ]
    snapshot = observer.snapshot()
    assert snapshot is not None
    assert [one.complaint for one in snapshot.pods] == ["FailedMount: no such secret", None]


def test_there_is_no_snapshot_until_prometheus_was_asked() -> None:
    """A first plan without metrics would tell every service that they are missing, and take that back in the next."""
    observer, _ = make_observer()
    assert observer.snapshot() is not None
    observer.metering = Metering(NoMetrics(), default_address=None, interval_seconds=5)
    assert observer.snapshot() is None


def test_there_is_no_snapshot_until_every_kind_was_listed() -> None:
    observer, stores = make_observer()
    assert observer.snapshot() is not None
    next(iter(stores)).synced = False
    assert observer.snapshot() is None


def test_a_snapshot_has_everything_sorted() -> None:
    observer, _ = make_observer(
        TokenService=[token_service("b"), token_service("a")],
        AcceleratorClass=[H100],
        Node=[node("n2"), node("n1")],
        Pod=[pod("p2"), pod("p1")],
        Deployment=[deployment()],
    )
    proposals = (Proposal(node="n1", pods=(), since=1.0),)
    margins = {ServiceKey("team", "a"): Margin(0.9)}
    seen = observer.snapshot(("Pod",), Plan(proposals=proposals, margins=margins))
    assert seen is not None
    assert [service.key.name for service in seen.services] == ["a", "b"]
    assert [found.name for found in seen.nodes] == ["n1", "n2"]
    assert [found.name for found in seen.pods] == ["p1", "p2"]
    assert list(seen.children) == [ObjectKey("Deployment", "team", "chat-h100")]
    assert seen.stale_kinds == ("Pod",)
    assert seen.proposals == proposals
    assert seen.status_written_at == {ObjectKey("TokenService", "team", "chat"): 3.0}
    assert isinstance(seen.metrics[ServiceKey("team", "a")], Missing)


def test_a_snapshot_says_whether_replicas_can_span_nodes() -> None:
    observer, stores = make_observer()
    told = []
    for change in (lambda store: store.none(), lambda store: store.replace({}, "2")):
        change(next(store for store in stores if store.kind == "LeaderWorkerSet"))
        seen = observer.snapshot()
        told.append(seen is not None and seen.leader_worker_sets)
    assert told == [False, True]


def test_what_was_learned_of_capacity_outlives_the_process_that_learned_it() -> None:
    observer, _ = make_observer(
        TokenService=[token_service(name, status={"capacityFactor": 0.8}) for name in ("known", "restarted")]
        + [token_service("new")]
    )
    seen = observer.snapshot((), Plan(margins={ServiceKey("team", "known"): Margin(0.9)}))
    assert seen is not None
    assert {key.name: margin.factor for key, margin in seen.margins.items()} == {
        "known": 0.9,
        "restarted": 0.8,
        "new": 1.0,
    }


def test_other_extended_resources_are_no_accelerators() -> None:
    network = pod("network", gates=())
    network["metadata"]["labels"] = {}
    network["spec"]["containers"] = [container({"rdma/hca": "1"})]
    observer, _ = make_observer(AcceleratorClass=[H100], Node=[node()], Pod=[network, pod()])
    seen = observer.snapshot()
    assert seen is not None
    assert seen.nodes[0].allocatable == {"nvidia.com/gpu": 8}
    assert [found.name for found in seen.pods] == ["chat-1"]


def test_a_snapshot_says_which_nodes_have_the_images_that_services_use() -> None:
    model = f"r/m@sha256:{'a' * 64}"
    images = [{"names": [model, "r/m:v1"]}, {"names": ["r/other:v1"]}]
    has, bare = node("node-1", status={"images": images}), node("node-2")
    served = token_service(model={"uri": f"oci://{model}"})
    observer, stores = make_observer(AcceleratorClass=[H100], Node=[has, bare], TokenService=[served])
    seen = observer.snapshot()
    assert seen is not None
    assert seen.holders == {f"sha256:{'a' * 64}": {"node-1"}}
    nodes = next(store for store in stores if store.kind == "Node")
    nodes.put(node("node-2", status={"images": images}))
    later = observer.snapshot()
    assert later is not None
    assert later.holders == {f"sha256:{'a' * 64}": {"node-1", "node-2"}}
    assert all(old is new for old, new in zip(seen.nodes, later.nodes, strict=True))


def tenant(name: str, on: str, **requests: str) -> Json:
    obj = pod(name, gates=())
    obj["metadata"]["labels"] = {}
    obj["spec"] |= {
        "nodeName": on,
        "containers": [container({key.replace("__", "/"): v for key, v in requests.items()})],
    }
    return obj


def test_what_pods_without_accelerators_take_is_not_there_for_engines() -> None:
    machines = [node("n1"), node("n2")]
    daemons = [tenant(f"logs-{on}", on, cpu="2", memory="1Gi") for on in ("n1", "n2", "elsewhere")]
    others = [*daemons, tenant("web", "n1", cpu="1"), tenant("storage", "n1", cpu="3", rdma__hca="1")]
    bare, crowded = (make_observer(AcceleratorClass=[H100], Node=machines, Pod=pods)[0] for pods in ([], others))
    before, after = bare.snapshot(), crowded.snapshot()
    assert before is not None
    assert after is not None
    assert after.pods == ()
    left = [
        (old.cpu_cores - new.cpu_cores, old.memory_bytes - new.memory_bytes)
        for old, new in zip(before.nodes, after.nodes, strict=True)
    ]
    assert left == [(6.0, 2.0**30), (2.0, 2.0**30)]


def test_a_class_that_nobody_can_read_harms_no_other() -> None:
    broken = {"kind": "AcceleratorClass", "metadata": {"name": "b", "uid": "u"}, "spec": {}}
    observer, _ = make_observer(AcceleratorClass=[broken, H100])
    seen = observer.snapshot()
    assert seen is not None
    assert [found.name for found in seen.accelerators] == ["h100"]
    assert [found.key.name for found in observer.unreadable()] == ["b"]


def test_the_fleet_named_default_is_the_fleet() -> None:
    named = {"kind": "TokenFleet", "metadata": {"name": "default", "uid": "u"}, "spec": {"targetUtilization": 0.5}}
    other = {"kind": "TokenFleet", "metadata": {"name": "other", "uid": "u"}, "spec": {"targetUtilization": 0.9}}
    observer, _ = make_observer(TokenFleet=[other, named])
    seen = observer.snapshot()
    assert seen is not None
    assert seen.fleet.target_utilization == 0.5
    assert seen.fleet_object is not None
    absent = make_observer()[0].snapshot()
    assert absent is not None
    assert absent.fleet.target_utilization == 0.70
    assert absent.fleet_object is None


def token_fleet(**spec: Any) -> Json:
    return {"kind": "TokenFleet", "metadata": {"name": "default", "uid": "f", "resourceVersion": "2"}, "spec": spec}


LIMITED = token_fleet(namespaces=[{"name": "team", "maxAccelerators": 2}], budgetPerHour=9.0)
BROKEN = token_fleet(namespaces=[{"name": "team", "maxAccelerators": "two"}], budgetPerHour=12.0)


def test_a_policy_that_cannot_be_read_lifts_no_limit_and_is_told() -> None:
    observer, stores = make_observer(TokenFleet=[LIMITED])
    good = observer.snapshot()
    (store,) = (one for one in stores if one.kind == "TokenFleet")
    store.put(BROKEN)
    seen = observer.snapshot()
    assert good is not None
    assert seen is not None
    assert seen.fleet == good.fleet
    assert seen.fleet.namespaces[0].max_accelerators == 2
    assert observer.policy() == good.fleet, "metrics are asked for by the same policy"
    assert good.fleet_problem is None
    assert seen.fleet_problem is not None
    assert seen.fleet_problem.field == "spec.namespaces.0.maxAccelerators"
    assert "the last policy that could be read holds" in seen.fleet_problem.message
    (told,) = observer.unreadable()
    assert told.key == ObjectKey("TokenFleet", "", "default")
    store.put(token_fleet(budgetPerHour=12.0))
    mended = observer.snapshot()
    assert mended is not None
    assert (mended.fleet.budget_per_hour, mended.fleet.namespaces, mended.fleet_problem) == (12.0, (), None)


def test_who_never_saw_a_good_policy_takes_what_can_be_read() -> None:
    seen = make_observer(TokenFleet=[BROKEN])[0].snapshot()
    assert seen is not None
    assert seen.fleet.budget_per_hour == 12.0
    assert seen.fleet_problem is not None
    assert "the fields that can be read hold" in seen.fleet_problem.message


def test_a_policy_that_was_deleted_holds_no_more() -> None:
    observer, stores = make_observer(TokenFleet=[LIMITED])
    observer.snapshot()
    (store,) = (one for one in stores if one.kind == "TokenFleet")
    store.remove(LIMITED)
    seen = observer.snapshot()
    assert seen is not None
    assert seen.fleet.namespaces == ()
