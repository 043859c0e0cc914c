"""Raw objects become facts: what is read, what is dropped, and what counts as a change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.edge.objects import CREATED, condition, container, deployment, node, pod, token_service
from tokenservice.core.model import Json, ObjectKey, Pod, ServiceKey
from tokenservice.core.names import PLACEMENT_GATE, SERVICE_LABEL, SERVING_CONDITION
from tokenservice.edge import projections
from tokenservice.edge.projections import CHILDREN, NODES, PODS, SERVICES, Resident, Unreadable
from tokenservice.edge.store import Store

# --- services ------------------------------------------------------------------------------------------------------


def test_a_service_is_read_with_its_identity_and_spec() -> None:
    seen = projections.service(token_service(tier="Spot", status={"replicas": 1}))
    assert (seen.key, seen.uid, seen.generation, seen.resource_version) == (
        ServiceKey("team", "chat"),
        "uid-chat",
        3,
        "5",
    )
    assert seen.created_at == 1793534400.0
    assert seen.spec is not None
    assert seen.spec.tier == "Spot"
    assert seen.status == {"replicas": 1}
    assert not seen.deleting


UNREADABLE: dict[str, tuple[Any, str]] = {
    "an unknown tier": ({"tier": "Platinum"}, "spec.tier"),
    "an unknown engine": ({"engine": {"name": "llama.cpp"}}, "spec.engine.name"),
    "text for a count": ({"scaling": {"minReplicas": "many"}}, "spec.scaling.minReplicas"),
    "a list for a mapping": ({"objectives": []}, "spec.objectives"),
    "a field of a later version": ({"engine": {"name": "vLLM", "novel": True}}, "spec.engine.novel"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_service_that_cannot_be_read_says_which_field(name: str) -> None:
    spec, field = UNREADABLE[name]
    seen = projections.service(token_service(**spec))
    assert seen.spec is None
    assert seen.error is not None
    assert seen.error.startswith(f"{field}: ")


def test_a_service_without_a_spec_is_unreadable_and_not_a_crash() -> None:
    bare = {key: value for key, value in token_service().items() if key != "spec"}
    assert projections.service(bare).error is not None


def test_our_own_status_write_does_not_matter_but_the_users_change_does() -> None:
    before, essence = projections.service(token_service()), SERVICES.essence
    told = projections.service(token_service(revision=6, status={"replicas": 2}))
    changed = projections.service(token_service(revision=6, tier="Spot"))
    assert essence(before) == essence(told)
    assert essence(before) != essence(changed)


def test_cluster_objects_that_cannot_be_read_are_named() -> None:
    broken = {"kind": "AcceleratorClass", "metadata": {"name": "h100", "uid": "u"}, "spec": {"vendor": "Acme"}}
    seen = projections.accelerator(broken)
    assert isinstance(seen, Unreadable)
    assert seen.key == ObjectKey("AcceleratorClass", "", "h100")
    assert seen.error.startswith("spec.")


def test_of_a_fleet_that_cannot_be_read_the_fields_that_can_are_read() -> None:
    spec = {"targetUtilization": "most", "budgetPerHour": 9.0, "namespaces": [{"name": "a", "maxAccelerators": 2}]}
    seen = projections.fleet({"kind": "TokenFleet", "metadata": {"name": "default"}, "spec": spec})
    assert seen.error is not None
    assert seen.error.startswith("spec.targetUtilization: ")
    assert (seen.spec.target_utilization, seen.spec.budget_per_hour) == (0.70, 9.0)
    assert seen.spec.namespaces[0].max_accelerators == 2
    assert projections.fleet({"metadata": {"name": "default"}, "spec": "all"}).spec.target_utilization == 0.70


# --- nodes ---------------------------------------------------------------------------------------------------------


def test_a_node_is_read_with_everything_that_might_be_an_accelerator() -> None:
    seen = projections.node(node())
    assert seen is not None
    assert seen.allocatable == {"nvidia.com/gpu": 8, "rdma/hca": 4}
    assert (seen.cpu_cores, seen.memory_bytes) == (127.5, 1900 * 2**30)
    assert seen.ready
    assert seen.schedulable
    assert seen.taints == ({"key": "nvidia.com/gpu", "effect": "NoSchedule"},)


NODES_IN_TROUBLE: dict[str, tuple[Json, str, bool]] = {
    "cordoned": (node(spec={"unschedulable": True}), "schedulable", False),
    "not ready": (node(status={"conditions": [condition("Ready", "False")]}), "ready", False),
    "unreachable": (node(status={"conditions": [condition("Ready", "Unknown")]}), "ready", False),
    "just registered": (node(status={"conditions": []}), "ready", False),
    "going": (node(metadata={"deletionTimestamp": "2026-11-01T12:00:00Z"}), "deleting", True),
}


@pytest.mark.parametrize("name", NODES_IN_TROUBLE)
def test_a_node_in_trouble_is_seen_as_such(name: str) -> None:
    obj, field, want = NODES_IN_TROUBLE[name]
    assert getattr(projections.node(obj), field) is want


def test_a_node_whose_device_plugin_is_down_is_there_and_offers_nothing() -> None:
    seen = projections.node(node(status={"allocatable": {"cpu": "4", "nvidia.com/gpu": "0"}}))
    assert seen is not None
    assert seen.allocatable == {"nvidia.com/gpu": 0}


@pytest.mark.parametrize("allocatable", [{"cpu": "4"}, {"hugepages-1Gi": "8"}, {}])
def test_a_node_without_extended_resources_is_of_no_interest(allocatable: Json) -> None:
    assert projections.node(node(status={"allocatable": allocatable})) is None


def test_a_heartbeat_of_a_node_does_not_matter() -> None:
    beat = node(metadata={"resourceVersion": "10"})
    beat["status"]["conditions"][1]["lastHeartbeatTime"] = "2026-11-01T12:05:00Z"
    assert NODES.of(node()) == NODES.of(beat)


def test_a_node_says_which_images_it_has_and_a_pull_wakes_nobody() -> None:
    model, engine = f"registry.example.org/models/chat@sha256:{'a' * 64}", "docker.io/vllm/vllm-openai:v0.32.0"
    names = [f"docker.io/vllm/vllm-openai@sha256:{'b' * 64}", engine]
    has = node(status={"images": [{"names": [model], "sizeBytes": 1}, {"names": names}, {}]})
    seen = NODES.of(has)
    assert seen is not None
    assert seen.images == (f"sha256:{'a' * 64}", f"sha256:{'b' * 64}", engine)
    assert NODES.essence(seen) == NODES.essence(projections.node(node()))


# --- pods ----------------------------------------------------------------------------------------------------------


def test_a_gated_engine_pod() -> None:
    seen = projections.pod(pod())
    assert seen is not None
    assert (seen.service, seen.variant, seen.template_hash) == (
        ServiceKey("team", "chat"),
        "h100-vllm-tp2-fp8",
        "6c5c8f869d",
    )
    assert seen.accelerators == {"nvidia.com/gpu": 2}
    assert (seen.cpu_cores, seen.memory_bytes) == (8.0, 64 * 2**30)
    assert seen.gated
    assert not seen.other_gates
    assert seen.serving is None
    assert seen.node is None


def test_an_engine_pod_says_which_images_it_needs_those_of_the_model_first() -> None:
    obj = pod()
    obj["spec"]["containers"] = [container({}, image="vllm/vllm-openai:v0.32.0"), {"name": "mesh", "image": "proxy"}]
    obj["spec"]["volumes"] = [{"name": "tmp"}, {"name": "model", "image": {"reference": f"m@sha256:{'a' * 64}"}}]
    seen = projections.pod(obj)
    assert isinstance(seen, Pod)
    assert seen.images == (f"sha256:{'a' * 64}", "docker.io/vllm/vllm-openai:v0.32.0")


def test_a_serving_engine_pod() -> None:
    conditions = [
        condition("Ready", "True"),
        condition("ContainersReady", "True"),
        condition("PodScheduled", "True"),
        condition(SERVING_CONDITION, "True"),
    ]
    obj = pod(
        gates=(),
        metadata={"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-100"}, "deletionTimestamp": "x"},
        status={"phase": "Running", "conditions": conditions, "containerStatuses": [{"restartCount": 3}]},
    )
    obj["spec"]["nodeName"] = "node-1"
    seen = projections.pod(obj)
    assert seen is not None
    assert (seen.ready, seen.containers_ready, seen.serving, seen.gated) == (True, True, True, False)
    assert (seen.node, seen.deletion_cost, seen.restarts, seen.deleting) == ("node-1", -100, 3, True)


STATES: dict[str, tuple[Json, str, Any]] = {
    "unschedulable": (
        {"status": {"conditions": [condition("PodScheduled", "False", "Unschedulable")]}},
        "unschedulable",
        True,
    ),
    "gated is not unschedulable": (
        {"status": {"conditions": [condition("PodScheduled", "False", "SchedulingGated")]}},
        "unschedulable",
        False,
    ),
    "shifted": ({"status": {"conditions": [condition(SERVING_CONDITION, "False")]}}, "serving", False),
    "serving is unknown": ({"status": {"conditions": [condition(SERVING_CONDITION, "Unknown")]}}, "serving", None),
    "nominated": ({"status": {"nominatedNodeName": "node-2"}}, "nominated_node", "node-2"),
    "nomination cleared": ({"status": {"nominatedNodeName": ""}}, "nominated_node", None),
    "image cannot be pulled": (
        {"status": {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}},
        "waiting_reason",
        "ImagePullBackOff",
    ),
    "an init container fails": (
        {"status": {"initContainerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}},
        "waiting_reason",
        "CrashLoopBackOff",
    ),
    "nothing waits": ({"status": {"containerStatuses": [{"state": {"running": {}}}]}}, "waiting_reason", None),
    "a cost that is no number": (
        {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "cheap"}}},
        "deletion_cost",
        0,
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_states_of_pods(name: str) -> None:
    changes, field, want = STATES[name]
    assert getattr(projections.pod(pod(**changes)), field) == want


@pytest.mark.parametrize(("rank", "worker"), [("0", False), ("3", True)])
def test_a_pod_of_a_group_knows_its_leader_and_whether_it_is_one(rank: str, worker: bool) -> None:
    labels = {
        SERVICE_LABEL: "chat",
        "leaderworkerset.sigs.k8s.io/name": "chat-large",
        "leaderworkerset.sigs.k8s.io/group-index": "2",
        "leaderworkerset.sigs.k8s.io/worker-index": rank,
        "leaderworkerset.sigs.k8s.io/template-revision-hash": "5f7d",
    }
    seen = projections.pod(pod(metadata={"labels": labels}))
    assert isinstance(seen, Pod)
    assert (seen.group, seen.worker, seen.template_hash) == ("chat-large-2", worker, "5f7d")


def test_groups_of_others_and_single_pods_are_in_no_group_of_ours() -> None:
    alone, foreign = pod(), pod()
    foreign["metadata"]["labels"] = {"leaderworkerset.sigs.k8s.io/group-index": "0"}
    for seen in map(projections.pod, (alone, foreign)):
        assert isinstance(seen, Pod)
        assert (seen.group, seen.worker) == ("", False)


def test_gates_of_others_are_told_from_ours() -> None:
    both, other = (
        projections.pod(pod(gates=(PLACEMENT_GATE, "kueue.x-k8s.io/admission"))),
        projections.pod(pod(gates=("kueue.x-k8s.io/admission",))),
    )
    assert both is not None
    assert other is not None
    assert (both.gated, both.other_gates) == (True, True)
    assert (other.gated, other.other_gates) == (False, True)


def foreign(requests: Json, **changes: Any) -> Json:
    obj = pod(gates=(), **changes)
    obj["metadata"]["labels"] = {"app": "notebook"}
    obj["spec"]["containers"] = [container(requests)]
    return obj


def test_a_foreign_pod_that_holds_accelerators_is_kept_until_it_is_finished() -> None:
    seen = projections.pod(foreign({"nvidia.com/gpu": "4"}))
    assert isinstance(seen, Pod)
    assert seen.service is None
    assert projections.pod(foreign({"nvidia.com/gpu": "4"}, status={"phase": "Succeeded"})) is None


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_an_engine_pod_that_is_finished_is_nobodys_replica(phase: str) -> None:
    """An evicted one stays until it is collected: its node can be emptied, and its mark holds up no move."""
    assert projections.pod(pod(status={"phase": "Running"})) is not None
    assert projections.pod(pod(status={"phase": phase})) is None


def bound(requests: Json, **changes: Any) -> Json:
    obj = foreign(requests, **changes)
    obj["spec"]["nodeName"] = "n1"
    return obj


def test_of_a_foreign_pod_without_accelerators_only_its_room_is_kept() -> None:
    assert projections.pod(bound({"cpu": "4", "memory": "1Ki"})) == Resident("n1", 4.0, 1024.0)


NO_ROOM: dict[str, Json] = {
    "waits for a node": foreign({"cpu": "4"}),
    "asks for nothing": bound({}),
    "asks for disk only": bound({"ephemeral-storage": "1Gi"}),
    "is finished": bound({"cpu": "4"}, status={"phase": "Failed"}),
}


@pytest.mark.parametrize("name", NO_ROOM)
def test_a_foreign_pod_that_takes_no_room_is_dropped(name: str) -> None:
    assert projections.pod(NO_ROOM[name]) is None


def test_coming_changing_and_going_of_foreign_pods_without_accelerators_wakes_nobody() -> None:
    woken: list[None] = []
    store = Store("Pod", PODS, wake=lambda: woken.append(None))
    store.replace({}, "1")
    woken.clear()
    store.put(bound({"cpu": "4"}))
    store.put(bound({"cpu": "5"}))
    assert list(store.each(Resident)) == [Resident("n1", 5.0, 0.0)]
    assert store.values(Pod) == []
    store.remove(bound({"cpu": "5"}))
    store.replace(store.project([bound({"cpu": "4"})]), "2")
    assert woken == []
    store.put(foreign({"nvidia.com/gpu": "1"}))
    assert len(woken) == 1


def test_an_engine_pod_without_accelerators_is_kept() -> None:
    obj = foreign({"cpu": "4"})
    obj["metadata"]["labels"] = {SERVICE_LABEL: "chat"}
    assert projections.pod(obj) is not None


SIDECAR = {"restartPolicy": "Always"}
REQUESTS: dict[str, tuple[Json, tuple[float, float, int]]] = {
    "containers add up": (
        {"containers": [container({"cpu": "1", "nvidia.com/gpu": "1"}), container({"cpu": "500m"})]},
        (1.5, 0, 1),
    ),
    "init containers run one after the other": (
        {
            "containers": [container({"cpu": "1"})],
            "initContainers": [container({"cpu": "4"}), container({"cpu": "3"})],
        },
        (4.0, 0, 0),
    ),
    "a sidecar runs beside the containers": (
        {"containers": [container({"cpu": "2"})], "initContainers": [container({"cpu": "1"}, **SIDECAR)]},
        (3.0, 0, 0),
    ),
    "a sidecar runs beside the init containers after it": (
        {
            "containers": [container({"cpu": "1"})],
            "initContainers": [container({"cpu": "2"}, **SIDECAR), container({"cpu": "5"})],
        },
        (7.0, 0, 0),
    ),
    "a sidecar does not run beside the init containers before it": (
        {
            "containers": [container({"cpu": "1"})],
            "initContainers": [container({"cpu": "5"}), container({"cpu": "2"}, **SIDECAR)],
        },
        (5.0, 0, 0),
    ),
    "overhead comes on top": (
        {"containers": [container({"cpu": "1"})], "overhead": {"cpu": "250m", "memory": "100Mi"}},
        (1.25, 100 * 2**20, 0),
    ),
    "requests of the whole pod stand in for its containers'": (
        {
            "containers": [container({"cpu": "1", "nvidia.com/gpu": "2"})],
            "resources": {"requests": {"cpu": "3", "memory": "1Gi"}},
        },
        (3.0, 2**30, 2),
    ),
    "exponents are numbers too": ({"containers": [container({"memory": "1e9"})]}, (0, 1e9, 0)),
    "no requests at all": ({"containers": [{"name": "engine"}]}, (0, 0, 0)),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_counted_as_the_scheduler_counts_them(name: str) -> None:
    spec, want = REQUESTS[name]
    obj = pod()
    obj["spec"] = spec
    seen = projections.pod(obj)
    assert seen is not None
    assert (seen.cpu_cores, seen.memory_bytes, seen.accelerators.get("nvidia.com/gpu", 0)) == want


def test_a_write_that_changes_nothing_we_see_does_not_matter() -> None:
    first, second = PODS.of(pod()), PODS.of(pod(metadata={"resourceVersion": "12"}))
    assert first is not None
    assert second is not None
    assert first != second
    assert PODS.essence(first) == PODS.essence(second)


# --- children ------------------------------------------------------------------------------------------------------


def test_a_child_is_kept_whole_without_who_wrote_what() -> None:
    seen = projections.child(deployment())
    assert seen is not None
    assert seen.key == ObjectKey("Deployment", "team", "chat-h100")
    assert seen.owner == ServiceKey("team", "chat")
    assert seen.body["spec"] == {"replicas": 2}
    assert "managedFields" not in seen.body["metadata"]


def test_an_object_with_our_label_and_another_owner_is_not_ours() -> None:
    assert projections.child(deployment(owner=None)) is None
    other = deployment()
    other["metadata"]["ownerReferences"][0]["apiVersion"] = "example.org/v1"
    assert projections.child(other) is None


def test_only_content_of_a_child_matters() -> None:
    first, again, scaled = (CHILDREN.of(obj) for obj in (deployment(), deployment(revision=8), deployment(replicas=3)))
    assert first is not None
    assert again is not None
    assert scaled is not None
    assert CHILDREN.essence(first) == CHILDREN.essence(again)
    assert CHILDREN.essence(first) != CHILDREN.essence(scaled)


_PARSED = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0]) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=1), inner, max_size=3),
    max_leaves=12,
)


@given(_PARSED, _PARSED)
def test_a_version_made_of_the_parts_of_another_says_the_same(last: Any, new: Any) -> None:
    """Down to what Python takes for equal and JSON does not: true and 1, 1 and 1.0."""
    before = json.dumps(last), json.dumps(new, sort_keys=True)
    assert json.dumps(projections.shared(last, new), sort_keys=True) == before[1]
    assert json.dumps(last) == before[0]


@given(_PARSED)
def test_a_version_that_says_the_same_is_the_same(parsed: Any) -> None:
    again = json.loads(json.dumps(parsed))
    assert projections.shared(parsed, again) is parsed


def test_a_new_version_is_made_of_the_last() -> None:
    store = Store("Deployment", CHILDREN)
    store.put(deployment())
    (before,) = store.values()
    store.put({**deployment(revision=8), "status": {"readyReplicas": 1}})
    (after,) = store.values()
    assert after.resource_version == "8"
    assert after.body["status"] == {"readyReplicas": 1}
    assert after.body["spec"] is before.body["spec"]


def test_a_service_keeps_its_spec_and_what_its_status_goes_on_saying() -> None:
    store = Store("TokenService", SERVICES)
    store.put(token_service(status={"replicas": 1, "decision": {"reason": "Steady"}}))
    (before,) = store.values()
    store.put(token_service(revision=9, status={"replicas": 2, "decision": {"reason": "Steady"}}))
    (after,) = store.values()
    assert after.status["replicas"] == 2
    assert after.spec is before.spec
    assert after.status["decision"] is before.status["decision"]


def test_two_objects_hold_the_same_texts_once() -> None:
    store = Store("Deployment", CHILDREN)
    for name in "ab":
        store.put(json.loads(json.dumps(deployment(name))))
    texts = [[*child.body["metadata"], child.body["apiVersion"]] for child in store.values()]
    assert all(one is other for one, other in zip(*texts, strict=True))


@given(st.dictionaries(st.text(max_size=20), st.integers(0, 10**6).map(str), max_size=6))
def test_no_mapping_of_resources_breaks_a_node(allocatable: dict[str, str]) -> None:
    projections.node(node(status={"allocatable": allocatable}))


CRASHED = {"terminated": {"exitCode": 1, "reason": "Error", "message": "x\n" * 1000 + "ValueError: too long"}}
FAILURES: dict[str, tuple[dict[str, object], str | None]] = {
    "it runs": ({"ready": True, "state": {"running": {}}, "restartCount": 5, "lastState": CRASHED}, None),
    "it crashed once": ({"ready": False, "state": {"running": {}}, "restartCount": 1, "lastState": CRASHED}, None),
    "it crashes again and again": (
        {"name": "engine", "ready": False, "state": {"running": {}}, "restartCount": 2, "lastState": CRASHED},
        "ValueError: too long",
    ),
    "its image is not there": (
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "v0: not found"}}},
        "ImagePullBackOff: v0: not found",
    ),
    "its image is being pulled": ({"state": {"waiting": {"reason": "ContainerCreating"}}}, None),
    "its Secret is not there": (
        {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "token" not found'}}},
        'CreateContainerConfigError: secret "token" not found',
    ),
    "it needs more memory than it may have": (
        {
            "name": "engine",
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "restartCount": 2,
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        },
        "engine ended with 137 (OOMKilled)",
    ),
}


@pytest.mark.parametrize(("state", "said"), FAILURES.values(), ids=FAILURES)
def test_a_container_that_does_not_start_is_heard(state: dict[str, object], said: str | None) -> None:
    seen = projections.pod(pod(status={"containerStatuses": [state]}))
    assert isinstance(seen, Pod)
    assert (seen.failure or "").endswith(said or "")
    assert (seen.failure is None) == (said is None)
    assert len(seen.failure or "") < 700


PREPARED: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing is said yet": ({}, False),
    "it waits": ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, False),
    "its image is being pulled": (
        {
            "conditions": [condition("PodReadyToStartContainers", "True")],
            "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}],
        },
        True,
    ),
    "its verifier runs": ({"initContainerStatuses": [{"state": {"running": {}}}]}, True),
    "its engine has crashed": (
        {"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": CRASHED}]},
        True,
    ),
}


@pytest.mark.parametrize(("status", "prepared"), PREPARED.values(), ids=PREPARED)
def test_a_pod_is_prepared_once_its_volumes_and_its_sandbox_are_there(status: dict[str, Any], prepared: bool) -> None:
    seen = projections.pod(pod(status=status))
    assert isinstance(seen, Pod)
    assert seen.unprepared is not prepared


def test_an_event_of_a_kubelet_says_what_a_pod_lacks_and_when_it_was_last_said() -> None:
    """As the recorder of client-go writes it, seen through events.k8s.io: one object that is counted up."""
    event = {
        "metadata": {"namespace": "team", "name": "chat-1.18", "creationTimestamp": CREATED, "resourceVersion": "7"},
        "reason": "FailedMount",
        "type": "Warning",
        "note": 'MountVolume.SetUp failed for volume "v" : secret "hub" not found',
        "regarding": {"kind": "Pod", "namespace": "team", "name": "chat-1", "uid": "u1"},
        "eventTime": None,
        "deprecatedCount": 7,
        "deprecatedLastTimestamp": "2026-11-01T12:01:04Z",
    }
    seen = projections.complaint(event)
    assert seen is not None
    assert (seen.pod, seen.uid) == (("team", "chat-1"), "u1")
    assert seen.words == 'FailedMount: MountVolume.SetUp failed for volume "v" : secret "hub" not found'
    assert seen.at == projections.seconds(CREATED) + 64
    again = projections.complaint(event | {"deprecatedLastTimestamp": "2026-11-01T12:03:04Z", "deprecatedCount": 8})
    assert again is not None
    assert projections.COMPLAINTS.essence(again) == projections.COMPLAINTS.essence(seen), "a repeat wakes nobody"
    series = {"series": {"count": 8, "lastObservedTime": "2026-11-01T12:05:00.5Z"}, "deprecatedLastTimestamp": None}
    newer = projections.complaint(event | series)
    assert newer is not None
    assert newer.at == projections.seconds(CREATED) + 300.5
    assert projections.complaint(event | {"reason": "NodeNotReady"}) is None


def unschedulable(message: str) -> dict[str, object]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"conditions": [condition]}


VOLUMES: dict[str, tuple[str, str | None, bool]] = {
    "its claim is not there": (
        '0/3 nodes are available: persistentvolumeclaim "weights" not found. not found, preemption: 0/3 nodes',
        'persistentvolumeclaim "weights" not found',
        True,
    ),
    "its claim waits for a volume": (
        "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
        "unbound immediate PersistentVolumeClaims",
        False,
    ),
    "there is no room": ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", None, False),
}


@pytest.mark.parametrize(("message", "unbound", "fails"), VOLUMES.values(), ids=VOLUMES)
def test_a_pod_that_waits_for_a_volume_is_told_from_one_without_room(
    message: str, unbound: str | None, fails: bool
) -> None:
    seen = projections.pod(pod(status=unschedulable(message)))
    assert isinstance(seen, Pod)
    assert (seen.unschedulable, seen.unbound) == (True, unbound)
    assert seen.failure == (unbound if fails else None)


STARTS: dict[str, tuple[dict[str, object], bool]] = {
    "nothing runs yet": ({}, True),
    "its engine starts": ({"started": False, "restartCount": 0}, True),
    "its engine has started up": ({"started": True, "restartCount": 0}, False),
    "its engine was started again": ({"started": False, "restartCount": 1}, False),
}


@pytest.mark.parametrize(("state", "starts"), STARTS.values(), ids=STARTS)
def test_a_first_start_counts_from_when_the_pod_got_its_node(state: dict[str, object], starts: bool) -> None:
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    seen = projections.pod(pod(status={"conditions": [bound], "containerStatuses": [state] if state else []}))
    assert isinstance(seen, Pod)
    assert seen.starting_since == (projections.seconds("2026-01-01T00:00:00Z") if starts else None)


BOUND = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}


def started(at: str, restarts: int = 0, ready: str = "True") -> Pod:
    """A pod that got its node at midnight, and was ready, or not so any more, since `at`."""
    condition = {"type": "ContainersReady", "status": ready, "lastTransitionTime": f"2026-01-01T{at}Z"}
    states = [{"name": "engine", "started": True, "restartCount": restarts}]
    seen = projections.pod(pod(status={"conditions": [BOUND, condition], "containerStatuses": states}))
    assert isinstance(seen, Pod)
    return seen


def test_a_start_is_measured_from_the_node_to_the_first_time_that_the_engine_is_ready() -> None:
    assert started("00:03:20").took_seconds == 200.0
    assert started("00:03:20", ready="False").took_seconds is None
    assert started("00:03:20", restarts=1).took_seconds is None, "its weights were there by then"


def test_who_is_ready_again_after_a_while_did_not_start_then() -> None:
    after, first = projections.PODS.after, started("00:03:20")
    assert after(None, first) == first
    lost = after(first, started("05:00:00", ready="False"))
    assert after(lost, started("06:00:00")).took_seconds == 200.0
    assert after(first, started("06:00:00", restarts=1)).took_seconds is None
    anew = replace(started("06:00:00"), uid="another")
    assert after(first, anew) == anew


def test_the_loader_of_adapters_starts_first_and_says_nothing_of_the_engines_start() -> None:
    bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    beside = [{"name": "load-adapters", "started": True, "restartCount": 0}]
    seen = projections.pod(pod(status={"conditions": [bound], "initContainerStatuses": beside}))
    assert isinstance(seen, Pod)
    assert seen.starting_since == projections.seconds("2026-01-01T00:00:00Z")
