"""The edge against the real API server: what only it can tell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from e2e.testbed.cluster import Cluster, TestbedError
from e2e.testbed.processes import free_port
from tokenservice.core.model import (
    Action,
    Apply,
    Delete,
    Event,
    Json,
    ObjectKey,
    Place,
    Plan,
    Reason,
    SetDeletionCost,
    SetServing,
    StatusWrite,
)
from tokenservice.core.names import FIELD_MANAGER, MANAGED_BY_LABEL, PLACEMENT_GATE, SERVICE_LABEL, SERVING_CONDITION
from tokenservice.edge.apply import Applier, Report, Result
from tokenservice.edge.catalogue import apply_catalogue
from tokenservice.edge.events import Events
from tokenservice.edge.expectations import Expectations
from tokenservice.edge.kube import Kube, connect, key_of
from tokenservice.edge.lease import Lease, Terms
from tokenservice.edge.projections import CHILDREN, PODS, PROJECTIONS, SERVICES
from tokenservice.edge.reflector import Reflector
from tokenservice.edge.report import Reporter
from tokenservice.edge.store import Store, Stores, Version
from tokenservice.edge.webhook import Webhook
from tokenservice.errors import Conflict, Forbidden, Invalid, NotFound

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]


class Seen(dict[ObjectKey, Version]):
    """What a store would know."""

    def version(self, key: ObjectKey) -> Version | None:
        return self.get(key)

    async def look(self, kube: Kube, key: ObjectKey) -> str:
        """Sees an object as it is now, and returns its revision."""
        metadata = (await kube.get(key))["metadata"]
        self[key] = Version(metadata["uid"], metadata["resourceVersion"])
        return str(metadata["resourceVersion"])


class Leading:
    """A fence that is open."""

    def held(self) -> bool:
        return True


@pytest.fixture(scope="module", autouse=True)
def _crds(cluster: Cluster) -> None:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")


@pytest_asyncio.fixture
async def kube(cluster: Cluster) -> AsyncIterator[Kube]:
    """A connection as administrator."""
    client = Kube(await connect(str(cluster.kubeconfig)))
    yield client
    await client.close()


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    """Waits for something that the cluster does."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.02)


def deployment(namespace: str, name: str = "chat", *, replicas: int = 1, owner: str | None = None) -> Json:
    labels = {"app": name, SERVICE_LABEL: name}
    pod = {"containers": [_container()], "securityContext": _POD_SECURITY}
    owners = [{"apiVersion": "taas.dev/v1alpha1", "kind": "TokenService", "name": "chat", "uid": owner}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {MANAGED_BY_LABEL: "tokenservice-operator"},
            "ownerReferences": owners if owner else [],
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


_POD_SECURITY = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}


def _container() -> Json:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {"name": "engine", "image": "example.org/engine:1", "securityContext": security}


def pod(namespace: str, name: str, *, gates: tuple[str, ...] = (), labelled: bool = True) -> Json:
    spec: Json = {"containers": [_container()], "securityContext": _POD_SECURITY}
    if gates:
        spec["schedulingGates"] = [{"name": gate} for gate in gates]
    labels = {SERVICE_LABEL: "chat", MANAGED_BY_LABEL: FIELD_MANAGER} if labelled else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": spec,
    }


def service(namespace: str, name: str = "chat") -> Json:
    return {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"}},
    }


async def owner_in(kube: Kube, namespace: str) -> str:
    """Uid of a TokenService; children of one that does not exist are collected at once."""
    return str((await kube.create("TokenService", service(namespace)))["metadata"]["uid"])


async def carry_out(kube: Kube, *actions: Action, seen: Seen | None = None) -> Report:
    return await Applier(kube, Leading(), seen or Seen()).apply(actions)


async def changed(kube: Kube, manifest: Json) -> Report:
    """Applied over the object as it is now; its controller may be writing its status meanwhile."""
    async with asyncio.timeout(15):
        while True:
            seen = Seen()
            revision = await seen.look(kube, key_of(manifest))
            report = await carry_out(kube, applied(manifest, revision=revision), seen=seen)
            if report.outcomes[0].result is not Result.CONFLICT:
                return report


def applied(manifest: Json, *, id_: str = "apply", revision: str | None = None, after: tuple[str, ...] = ()) -> Apply:
    return Apply(id=id_, reason=Reason.UPDATED, message="", manifest=manifest, resource_version=revision, after=after)


# --- writes --------------------------------------------------------------------------------------------------------


async def test_apply_creates_updates_and_leaves_alone_what_is_the_same(kube: Kube, namespace: str) -> None:
    report = await carry_out(kube, applied(deployment(namespace)))
    assert [outcome.result for outcome in report.outcomes] == [Result.DONE]
    key, first = report.written[0]
    again = (await changed(kube, deployment(namespace))).written
    assert int((await kube.get(key))["metadata"]["generation"]) == 1
    assert again[0][0] == key
    await changed(kube, deployment(namespace, replicas=3))
    live = await kube.get(key)
    assert live["spec"]["replicas"] == 3
    assert int(live["metadata"]["resourceVersion"]) > int(first)


async def test_apply_over_a_revision_that_is_not_the_last_conflicts(kube: Kube, namespace: str) -> None:
    (key, _), *_ = (await carry_out(kube, applied(deployment(namespace)))).written
    seen = Seen()
    revision = await seen.look(kube, key)
    await changed(kube, deployment(namespace, replicas=2))
    late = await carry_out(kube, applied(deployment(namespace, replicas=0), revision=revision), seen=seen)
    assert [outcome.result for outcome in late.outcomes] == [Result.CONFLICT]
    assert (await kube.get(key))["spec"]["replicas"] == 2


async def test_what_is_there_already_is_not_created_over(kube: Kube, namespace: str) -> None:
    """By a leader that was frozen on the way, and comes when its successor has made it and scaled it."""
    (key, _), *_ = (await carry_out(kube, applied(deployment(namespace, replicas=3)))).written
    late = await carry_out(kube, applied(deployment(namespace, replicas=1)))
    assert [outcome.result for outcome in late.outcomes] == [Result.CONFLICT]
    assert (await kube.get(key))["spec"]["replicas"] == 3


async def test_what_is_there_without_our_label_is_left_alone(kube: Kube, cluster: Cluster, namespace: str) -> None:
    (key, _), *_ = (await carry_out(kube, applied(deployment(namespace)))).written
    cluster.kubectl("label", "deployment", "-n", namespace, "chat", f"{MANAGED_BY_LABEL}-")
    await until_settled(kube, key)
    report = await carry_out(kube, applied(deployment(namespace)))
    assert [outcome.result for outcome in report.outcomes] == [Result.TAKEN]
    assert MANAGED_BY_LABEL not in (await kube.get(key))["metadata"].get("labels", {})


async def test_apply_over_a_live_object_does_not_bring_back_what_was_deleted(
    kube: Kube, cluster: Cluster, namespace: str
) -> None:
    (key, _), *_ = (await carry_out(kube, applied(deployment(namespace)))).written
    seen = Seen()
    revision = await seen.look(kube, key)
    cluster.kubectl("delete", "deployment", "-n", namespace, "chat")
    late = await carry_out(kube, applied(deployment(namespace), revision=revision), seen=seen)
    known = await carry_out(kube, applied(deployment(namespace), revision=revision))
    assert [late.outcomes[0].result, known.outcomes[0].result] == [Result.CONFLICT, Result.GONE]
    with pytest.raises(NotFound):
        await kube.get(key)


async def until_settled(kube: Kube, key: ObjectKey) -> None:
    """Until its controller has written nothing for half a second."""
    async with asyncio.timeout(15):
        before = ""
        while before != (before := await Seen().look(kube, key)):  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.5)


async def until_gone(kube: Kube, key: ObjectKey) -> None:
    with contextlib.suppress(NotFound):
        async with asyncio.timeout(15):
            while True:
                await kube.get(key)
                await asyncio.sleep(0.05)


async def test_apply_leaves_the_fields_of_others_alone(kube: Kube, cluster: Cluster, namespace: str) -> None:
    without_count = deployment(namespace)
    del without_count["spec"]["replicas"]
    await carry_out(kube, applied(without_count))
    cluster.kubectl("scale", "-n", namespace, "deployment/chat", "--replicas=4")
    await changed(kube, without_count)
    assert (await kube.get(ObjectKey("Deployment", namespace, "chat")))["spec"]["replicas"] == 4


async def test_what_depends_on_a_failure_is_not_tried_and_the_rest_is(kube: Kube, namespace: str) -> None:
    broken = deployment(namespace, "broken")
    broken["spec"]["selector"] = {"matchLabels": {"app": "other"}}
    report = await carry_out(
        kube,
        applied(broken, id_="broken"),
        applied(deployment(namespace, "dependent"), id_="dependent", after=("broken",)),
        applied(deployment(namespace, "free"), id_="free"),
    )
    assert [outcome.result for outcome in report.outcomes] == [Result.FAILED, Result.SKIPPED, Result.DONE]
    assert "selector" in report.failures[0].message
    with pytest.raises(NotFound):
        await kube.get(ObjectKey("Deployment", namespace, "dependent"))


async def test_delete_takes_only_the_object_that_was_seen(kube: Kube, namespace: str) -> None:
    (key, seen), *_ = (await carry_out(kube, applied(deployment(namespace)))).written
    uid = (await kube.get(key))["metadata"]["uid"]
    await changed(kube, deployment(namespace, replicas=2))

    def delete(uid: str, revision: str) -> Delete:
        return Delete(id="delete", reason=Reason.REMOVED, message="", key=key, uid=uid, resource_version=revision)

    stale = await carry_out(kube, delete(uid, seen))
    await until_settled(kube, key)
    revision = await Seen().look(kube, key)
    other = await carry_out(kube, delete("another", revision))
    assert [report.outcomes[0].result for report in (stale, other)] == [Result.CONFLICT, Result.CONFLICT]
    right = await carry_out(kube, delete(uid, revision))
    assert right.outcomes[0].result is Result.DONE
    await until_gone(kube, key)
    again = await carry_out(kube, delete(uid, seen))
    assert again.outcomes[0].result is Result.GONE


async def test_placing_nominates_lets_serve_and_lifts_only_our_gate(kube: Kube, namespace: str) -> None:
    created = await kube.create("Pod", pod(namespace, "gated", gates=("example.org/quota", PLACEMENT_GATE)))
    key, uid = ObjectKey("Pod", namespace, "gated"), created["metadata"]["uid"]
    place = Place(id="place", reason=Reason.PLACED, message="", pod=key, uid=uid, node="node-1")
    await until_scheduler_saw(kube, key)
    assert (await carry_out(kube, place)).outcomes[0].result is Result.DONE
    live = await kube.get(key)
    conditions = {condition["type"]: condition["status"] for condition in live["status"]["conditions"]}
    assert live["spec"]["schedulingGates"] == [{"name": "example.org/quota"}]
    assert live["status"]["nominatedNodeName"] == "node-1"
    assert conditions == {SERVING_CONDITION: "True", "PodScheduled": "False"}


async def until_scheduler_saw(kube: Kube, key: ObjectKey) -> None:
    async with asyncio.timeout(15):
        while not (await kube.get(key)).get("status", {}).get("conditions"):  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.05)


async def test_placing_twice_and_without_a_node_is_harmless(kube: Kube, namespace: str) -> None:
    created = await kube.create("Pod", pod(namespace, "gated", gates=(PLACEMENT_GATE,)))
    key, uid = ObjectKey("Pod", namespace, "gated"), created["metadata"]["uid"]
    place = Place(id="place", reason=Reason.NO_ROOM, message="", pod=key, uid=uid, node=None)
    results = [(await carry_out(kube, place)).outcomes[0].result for _ in range(2)]
    assert results == [Result.DONE, Result.DONE]
    live = await kube.get(key)
    assert not live["spec"].get("schedulingGates")
    assert "nominatedNodeName" not in live["status"]


async def test_a_pod_that_was_made_anew_is_not_the_pod_that_was_meant(kube: Kube, namespace: str) -> None:
    await kube.create("Pod", pod(namespace, "gated", gates=(PLACEMENT_GATE,)))
    key = ObjectKey("Pod", namespace, "gated")
    actions: list[Action] = [
        Place(id="place", reason=Reason.PLACED, message="", pod=key, uid="another", node="node-1"),
        SetServing(id="shift", reason=Reason.MOVE_SHIFTED, message="", pod=key, uid="another", serving=False),
        SetDeletionCost(id="cost", reason=Reason.VICTIM_CHOSEN, message="", pod=key, uid="another", cost=-1),
    ]
    report = await carry_out(kube, *actions)
    assert [outcome.result for outcome in report.outcomes] == [Result.CONFLICT] * 3
    live = await kube.get(key)
    assert live["spec"]["schedulingGates"] == [{"name": PLACEMENT_GATE}]
    assert "annotations" not in live["metadata"]


async def test_the_deletion_cost_and_the_serving_condition_are_set(kube: Kube, namespace: str) -> None:
    created = await kube.create("Pod", pod(namespace, "engine"))
    key, uid = ObjectKey("Pod", namespace, "engine"), created["metadata"]["uid"]
    await carry_out(
        kube,
        SetDeletionCost(id="cost", reason=Reason.VICTIM_CHOSEN, message="", pod=key, uid=uid, cost=-100),
        SetServing(id="shift", reason=Reason.MOVE_SHIFTED, message="", pod=key, uid=uid, serving=False),
    )
    seen = PODS.of(await kube.get(key))
    assert seen is not None
    assert (seen.deletion_cost, seen.serving) == (-100, False)


async def test_refusals_have_names(kube: Kube, cluster: Cluster, namespace: str) -> None:
    with pytest.raises(NotFound):
        await kube.get(ObjectKey("Pod", namespace, "none"))
    with pytest.raises(Invalid):
        await kube.create("Pod", {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": "x"}})
    await kube.create("Pod", pod(namespace, "twice"))
    with pytest.raises(Conflict):
        await kube.create("Pod", pod(namespace, "twice"))
    weak = cluster.service_account_kubeconfig(namespace, "default")
    nobody = Kube(await connect(str(weak)))
    with pytest.raises(Forbidden):
        await nobody.get(ObjectKey("Pod", namespace, "twice"))
    await nobody.close()


# --- views ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def reflecting(kube: Any, *stores: Store[Any], selector: str = "") -> AsyncIterator[None]:
    tasks = [asyncio.create_task(Reflector(kube, store, selector=selector).run()) for store in stores]
    try:
        await until(lambda: all(store.synced for store in stores))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_store_follows_creation_change_and_deletion(kube: Kube, cluster: Cluster, namespace: str) -> None:
    store, owner = Store("Deployment", CHILDREN, namespace=namespace), await owner_in(kube, namespace)
    async with reflecting(kube, store, selector=f"{MANAGED_BY_LABEL}=tokenservice-operator"):
        (key, _), *_ = (await carry_out(kube, applied(deployment(namespace, owner=owner)))).written
        await until(lambda: [child.key for child in store.values()] == [key])
        await changed(kube, deployment(namespace, replicas=2, owner=owner))
        await until(lambda: store.values()[0].body["spec"]["replicas"] == 2)
        cluster.kubectl("delete", "deployment", "-n", namespace, "chat")
        await until(lambda: not store.values())


class Forgetful:
    """The API server, asked once for a revision that it no longer has."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self.asked: list[str] = []
        self.lists = 0

    def list_pages(self, kind: str, namespace: str = "", *, selector: str = "") -> Any:
        self.lists += 1
        return self._kube.list_pages(kind, namespace, selector=selector)

    def watch(self, kind: str, namespace: str = "", *, revision: str, selector: str = "") -> Any:
        self.asked.append(revision)
        asked = "1" if len(self.asked) == 1 else revision
        return self._kube.watch(kind, namespace, revision=asked, selector=selector)


async def test_a_compacted_revision_leads_to_a_new_list(kube: Kube, namespace: str) -> None:
    """The kind is younger than the cluster's first revision, so that nobody remembers that one."""
    store, source = Store("TokenService", SERVICES, namespace=namespace), Forgetful(kube)
    async with reflecting(source, store):
        await until(lambda: source.lists == 2)
        await kube.create("TokenService", service(namespace, "late"))
        await until(lambda: [seen.key.name for seen in store.values()] == ["late"])
    assert source.lists == 2


async def test_the_next_plan_waits_for_our_own_writes(kube: Kube, namespace: str) -> None:
    store, owner = Store("Deployment", CHILDREN, namespace=namespace), await owner_in(kube, namespace)
    async with reflecting(kube, store, selector=f"{MANAGED_BY_LABEL}=tokenservice-operator"):
        expectations = Expectations(Stores([store]))
        for replicas in range(1, 6):
            manifest = deployment(namespace, replicas=replicas, owner=owner)
            wrote = await (carry_out(kube, applied(manifest)) if replicas == 1 else changed(kube, manifest))
            expectations.add(wrote.written)
            assert await expectations.settle() == ()
            assert store.values()[0].body["spec"]["replicas"] == replicas


# --- leadership ----------------------------------------------------------------------------------------------------

_LEADER = """
import asyncio, sys
from tokenservice.core.model import ObjectKey
from tokenservice.edge.kube import Kube, connect
from tokenservice.edge.lease import Lease, Terms

async def main(kubeconfig, namespace):
    kube = Kube(await connect(kubeconfig))
    lease = Lease(kube, ObjectKey("Lease", namespace, "leader"), "first", terms=Terms(duration=3, trust=2, retry=0.3))
    await lease.acquire()
    print("leading", flush=True)
    try:
        await lease.hold()
    except Exception as error:
        print(type(error).__name__, lease.held(), flush=True)
    await kube.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_frozen_leader_finds_itself_deposed(kube: Kube, cluster: Cluster, namespace: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LEADER, str(cluster.kubeconfig), namespace, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"leading\n"
            second = Lease(
                kube, ObjectKey("Lease", namespace, "leader"), "second", terms=Terms(duration=3, trust=2, retry=0.3)
            )
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(second.acquire(), 4)
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.wait_for(second.acquire(), 10)
            os.kill(process.pid, signal.SIGCONT)
            assert await process.stdout.readline() == b"LeaseLost False\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    lease = await kube.get(ObjectKey("Lease", namespace, "leader"))
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("second", 1)


async def test_a_released_lease_is_taken_at_once(kube: Kube, namespace: str) -> None:
    key = ObjectKey("Lease", namespace, "leader")
    first, second = Lease(kube, key, "first"), Lease(kube, key, "second")
    await first.acquire()
    await first.release()
    assert not first.held()
    await asyncio.wait_for(second.acquire(), 2)
    assert second.held()


async def test_who_does_not_lead_writes_nothing(kube: Kube, namespace: str) -> None:
    key = ObjectKey("Lease", namespace, "leader")
    other = Lease(kube, key, "other")
    await Lease(kube, key, "leader").acquire()
    report = await Applier(kube, other, Seen()).apply([applied(deployment(namespace))])
    assert report.outcomes[0].result is Result.FENCED
    with pytest.raises(NotFound):
        await kube.get(ObjectKey("Deployment", namespace, "chat"))


# --- webhook -------------------------------------------------------------------------------------------------------


def configuration(name: str, namespace: str, port: int) -> Json:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "pods.taas.dev",
                "admissionReviewVersions": ["v1"],
                "failurePolicy": "Ignore",
                "timeoutSeconds": 1,
                "sideEffects": "None",
                "clientConfig": {"url": f"https://127.0.0.1:{port}/pods"},
                "objectSelector": {"matchExpressions": [{"key": SERVICE_LABEL, "operator": "Exists"}]},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
            }
        ],
    }


async def test_pods_are_gated_while_someone_plans_and_admitted_as_they_are_otherwise(
    kube: Kube, cluster: Cluster, namespace: str
) -> None:
    port, active = free_port(), [True]
    cluster.apply(configuration(namespace, namespace, port))
    webhook = Webhook(
        api=kube,
        configuration=ObjectKey("MutatingWebhookConfiguration", "", namespace),
        hosts=["127.0.0.1"],
        address="127.0.0.1",
        port=port,
        active=lambda: active[0],
    )
    serving = asyncio.create_task(webhook.run())
    try:
        gated = await first_gated(kube, namespace)
        assert gated["spec"]["schedulingGates"] == [{"name": PLACEMENT_GATE}]
        assert gated["spec"]["readinessGates"] == [{"conditionType": SERVING_CONDITION}]
        assert "schedulingGates" not in (await kube.create("Pod", pod(namespace, "other", labelled=False)))["spec"]
        active[0] = False
        assert "schedulingGates" not in (await kube.create("Pod", pod(namespace, "idle")))["spec"]
        active[0] = True
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    stopped = await kube.create("Pod", pod(namespace, "stopped"))
    assert "schedulingGates" not in stopped["spec"]
    assert "readinessGates" not in stopped["spec"]
    cluster.kubectl("delete", "mutatingwebhookconfiguration", namespace)


async def first_gated(kube: Kube, namespace: str) -> Json:
    """The API server takes a moment to learn of the CA."""
    async with asyncio.timeout(20):
        for number in range(1000):
            created = await kube.create("Pod", pod(namespace, f"gated-{number}"))
            if "schedulingGates" in created["spec"]:
                return created
            await asyncio.sleep(0.2)
    raise AssertionError("unreachable")


# --- reports and catalogue -----------------------------------------------------------------------------------------


async def test_status_and_event_are_written_for_the_object_that_was_meant(
    kube: Kube, cluster: Cluster, namespace: str
) -> None:
    cluster.apply(service(namespace))
    key = ObjectKey("TokenService", namespace, "chat")
    live = await kube.get(key)
    uid, status = live["metadata"]["uid"], {"replicas": 2, "replicaSummary": "1/2"}
    event = Event(regarding=key, uid=uid, type="Normal", reason=Reason.SCALED_UP, message="1 -> 2: the queue grows")
    plan = Plan(statuses=(StatusWrite(key=key, uid=uid, status=status),), events=(event, event))
    seen = Seen()
    await seen.look(kube, key)
    reporter = Reporter(kube, Events(kube, "test"), Leading(), seen)
    assert [written for written, _ in await reporter.report(plan)] == [key]
    assert (await kube.get(key))["status"]["replicas"] == 2
    told = cluster.get("events.events.k8s.io", "-n", namespace)["items"]
    assert [(item["reason"], item["note"]) for item in told] == [("ScaledUp", "1 -> 2: the queue grows")]
    assert "the queue grows" in cluster.kubectl("describe", "tokenservice", "-n", namespace, "chat")
    late = Plan(statuses=(StatusWrite(key=key, uid=uid, status={"replicas": 9}),))
    assert await reporter.report(late) == ()
    assert (await kube.get(key))["status"]["replicas"] == 2


async def test_what_users_set_in_the_catalogue_is_theirs(kube: Kube, cluster: Cluster) -> None:
    shipped = {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "AcceleratorClass",
        "metadata": {"name": "catalogue-test"},
        "spec": {
            "vendor": "NVIDIA",
            "nodeLabels": {"nvidia.com/gpu.product": "TEST"},
            "resourceName": "nvidia.com/gpu",
            "memory": "80Gi",
            "bandwidthGigabytesPerSecond": 3000,
            "denseTeraflops": {"bf16": 900},
            "pricePerHour": 3.0,
            "idleWatts": 100,
            "busyWatts": 700,
        },
    }
    assert await apply_catalogue(kube, [shipped], Leading()) == []
    key = ObjectKey("AcceleratorClass", "", "catalogue-test")
    cluster.kubectl("patch", "accel", key.name, "--type=merge", "-p", '{"spec":{"pricePerHour":1.5}}')
    corrected = {**shipped, "spec": {**shipped["spec"], "bandwidthGigabytesPerSecond": 3350}}
    assert await apply_catalogue(kube, [corrected], Leading()) == []
    spec = (await kube.get(key))["spec"]
    assert (spec["pricePerHour"], spec["bandwidthGigabytesPerSecond"]) == (1.5, 3350)
    cluster.kubectl("delete", "accel", key.name)


async def test_every_kind_can_be_listed_and_watched(kube: Kube) -> None:
    stores = [Store(kind, PROJECTIONS.get(kind, CHILDREN)) for kind in (*PROJECTIONS, "Deployment", "NetworkPolicy")]
    async with reflecting(kube, *stores):
        assert Stores(stores).stale_kinds() == ()


def test_the_cluster_says_what_went_wrong(cluster: Cluster) -> None:
    with pytest.raises(TestbedError):
        cluster.kubectl("get", "no-such-kind")
