"""What keeps children and replicas from coming about is told in the cluster's words, with what to do about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.core.test_rollback import BAD, GOOD, Story, conditions, with_status
from tests.support.build import NOW, VARIANT, make_pod, make_service, make_snapshot
from tokenservice.core.decide import decide
from tokenservice.core.memo import Memo
from tokenservice.core.model import Apply, Json, Plan, Pod, Problem, Reason
from tokenservice.core.refusal import advice, own_words, refusal, remembered, taken
from tokenservice.core.rollout import exchanged_in_place

QUOTA = 'pods "chat-h100-x7k2p" is forbidden: exceeded quota: small, requested: requests.nvidia.com/gpu=1, used: '
QUOTA += "requests.nvidia.com/gpu=2, limited: requests.nvidia.com/gpu=2"
RESTRICTED = 'pods "chat-x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false'
RANGE = 'Pod "chat-x" is forbidden: maximum memory usage per Container is 8Gi, but limit is 24Gi'

FIXES = {
    QUOTA: "ResourceQuota",
    "failed quota: cpu: must specify limits.cpu for: engine": "LimitRange",
    RESTRICTED: "Pod Security level",
    RANGE: "spec.engine.resources",
    "ImagePullBackOff: not found": "spec.engine.image",
    'CreateContainerConfigError: secret "token" not found': "spec.model.credentials",
    "CreateContainerConfigError: couldn't find key token in Secret default/hub": "spec.model.credentials",
    "engine ended with 137 (OOMKilled)": "spec.engine.resources.memory",
    'persistentvolumeclaim "weights" not found': "spec.model.uri",
    'FailedMount: MountVolume.SetUp failed for volume "v" : secret "hub" not found': "spec.model.credentials",
    'FailedMount: MountVolume.SetUp failed for volume "v" : configmap "keys" not found': "ConfigMap",
    "FailedMount: driver name efs not found in the list of registered CSI drivers": "CSI driver",
    'FailedAttachVolume: Multi-Attach error for volume "pvc-1"': "ReadOnlyMany",
}


@pytest.mark.parametrize(("words", "fix"), FIXES.items())
def test_words_that_are_known_come_with_the_field_or_the_object_that_mends_it(words: str, fix: str) -> None:
    assert fix in advice(words)


def test_a_refusal_says_nothing_of_the_pod_that_was_tried() -> None:
    """A ReplicaSet tries each time with another one, and the same refusal would be news each time."""
    assert own_words(QUOTA).startswith("exceeded quota: small")
    assert own_words('Forbidden: services "chat" is forbidden: exceeded quota: s').startswith("exceeded quota")
    assert len(own_words("x" * 5000)) == 600


# --- Pods


def refused(story: Story, message: str | None, **status: int) -> None:
    """The Deployment's controller says that its ReplicaSet may make no more pods; None: not any more."""
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    story.children = with_status(story.children, **status)
    for key, child in story.children.items():
        if key.kind == "Deployment":
            child.body["status"]["conditions"] = [condition] if message else []


def test_replicas_of_the_floor_that_are_refused_stall_the_service_until_they_are_let_in() -> None:
    story = Story()
    spec = {"scaling": {"minReplicas": 3}}
    story.plan(spec)
    refused(story, QUOTA, replicas=2, updatedReplicas=2, readyReplicas=2)
    found = conditions(story.plan(spec))
    for kind, status in {"Stalled": "True", "Ready": "False", "CapacityAvailable": "False"}.items():
        assert (found[kind]["status"], found[kind]["reason"]) == (status, "Refused"), kind
    said = found["Stalled"]["message"]
    assert f"pods of {VARIANT}: exceeded quota: small" in said
    assert "have the ResourceQuota of the namespace raised" in said
    assert said.endswith("2 replicas serve on")
    refused(story, None, replicas=3, updatedReplicas=3, readyReplicas=3)
    story.pods.append(make_pod("c", template_hash="good"))
    after = conditions(story.plan(spec))
    assert (after["Stalled"]["status"], after["Ready"]["status"]) == ("False", "True")
    assert after["CapacityAvailable"]["status"] == "True"


def test_replicas_beyond_the_floor_that_are_refused_leave_the_service_ready() -> None:
    story = Story()
    spec = {"replicas": 3, "scaling": {"minReplicas": 2}}
    story.plan(spec)
    refused(story, RANGE, replicas=2, updatedReplicas=2, readyReplicas=2)
    found = conditions(story.plan(spec | {"replicas": 2}))
    assert (found["Stalled"]["status"], found["Ready"]["status"]) == ("False", "True")
    assert (found["CapacityAvailable"]["status"], found["CapacityAvailable"]["reason"]) == ("False", "Refused")


def test_a_change_whose_pods_are_refused_stalls_though_the_old_ones_serve() -> None:
    story = Story()
    story.plan(BAD)
    refused(story, RESTRICTED, replicas=2, updatedReplicas=0, readyReplicas=2)
    found = conditions(story.plan(BAD))["Stalled"]
    assert (found["status"], found["reason"]) == ("True", "Refused")
    assert found["message"].startswith(f"pods of {VARIANT}: violates PodSecurity")


# --- Children

CHAT = make_service("chat", **GOOD)
REFUSALS: dict[str, Problem] = {
    "its name is somebody else's": taken("Service chat", "Service chat is there already"),
    "its quota is used up": refusal("Service chat", 'Forbidden: services "chat" is forbidden: exceeded quota: s'),
}


@pytest.mark.parametrize("problem", REFUSALS.values(), ids=REFUSALS)
def test_a_child_that_cannot_be_stalls_its_service_alone_and_is_told_once(problem: Problem) -> None:
    other = make_service("other", **GOOD)
    memo = Memo()
    first = decide(make_snapshot(CHAT, other), NOW, memo)
    written = {write.key.name: write.status for write in first.statuses if write.key.kind == "TokenService"}
    services = [replace(service, status=written[service.key.name]) for service in (CHAT, other)]
    calm = decide(make_snapshot(*services), NOW, memo)
    assert not [write for write in calm.statuses if write.key.kind == "TokenService"], "nothing is left to say"
    plan = decide(make_snapshot(*services, refusals={CHAT.key: problem}), NOW, memo)
    told = {write.key.name: write.status for write in plan.statuses if write.key.kind == "TokenService"}
    found = {name: {c["type"]: c for c in status["conditions"]} for name, status in told.items()}
    assert (found["chat"]["Stalled"]["status"], found["chat"]["Stalled"]["reason"]) == ("True", problem.reason)
    assert found["chat"]["Stalled"]["message"].startswith("Service chat: ")
    assert found["chat"]["Reconciling"]["status"] == found["chat"]["Ready"]["status"] == "False"
    assert "other" not in found
    warnings = [event for event in plan.events if event.type == "Warning" and event.reason == problem.reason]
    assert [event.regarding.name for event in warnings] == ["chat"]


@pytest.mark.parametrize("problem", REFUSALS.values(), ids=REFUSALS)
def test_a_new_leader_says_what_the_last_one_said_until_it_has_tried_itself(problem: Problem) -> None:
    """Or each restart would call the service well for a moment, in a condition and in an event."""
    serving = {"pods": (make_pod("a"), make_pod("b"))}
    plan = decide(make_snapshot(CHAT, refusals={CHAT.key: problem}, **serving), NOW)
    told = replace(CHAT, status=status_of(plan))
    assert remembered([told, make_service("other")]) == {CHAT.key: problem}
    well = decide(make_snapshot(CHAT, **serving), NOW)
    assert remembered([replace(CHAT, status=status_of(well))]) == {}


def test_a_child_of_another_service_is_not_taken_for_ones_own() -> None:
    """`chat` on the class `big-h100` and `chat-big` on `h100` would name their Deployments alike."""
    story = Story()
    key, child = next((key, child) for key, child in story.children.items() if key.kind == "Service")
    other = make_service("other", **GOOD)
    there = {key: replace(child, owner=other.key)}
    plan = decide(make_snapshot(CHAT, other, children=there), NOW)
    made = [it for it in plan.actions if isinstance(it, Apply) and it.manifest["kind"] == "Service"]
    mine = [it for it in made if it.service == CHAT.key]
    assert [it.resource_version for it in mine] == [None], "it is to be created, which the API server will refuse"


# --- Engines


def test_what_mends_an_engine_is_told_with_its_words() -> None:
    story = Story()
    story.pods = [make_pod("a", ready=False, template_hash="x", failure="engine ended with 137 (OOMKilled)")]
    said = conditions(story.plan(GOOD))["Stalled"]["message"]
    assert "raise spec.engine.resources.memory" in said
    assert "OOMKilled" in said


def pulling(reason: str) -> Pod:
    return make_pod("a", ready=False, template_hash="x", failure=f"{reason}: no such image", waiting_reason=reason)


def test_a_pull_that_failed_once_is_no_failure_and_a_further_one_is_no_recovery() -> None:
    """A kubelet alternates between the two words while it tries again, for as long as the image is not there."""
    story = Story()
    story.pods = [pulling("ErrImagePull")]
    assert conditions(story.plan(GOOD))["Stalled"]["status"] == "False"
    story.pods = [pulling("ImagePullBackOff")]
    plan = story.plan(GOOD)
    assert conditions(plan)["Stalled"]["reason"] == "EngineFailed"
    story.pods = [pulling("ErrImagePull")]
    service = replace(CHAT, status=status_of(plan))
    later = decide(make_snapshot(service, pods=tuple(story.pods), children=story.children), NOW)
    assert not [event for event in later.events if event.reason in (Reason.ACCEPTED, Reason.ENGINE_FAILED)]


def status_of(plan: Plan) -> Json:
    return next(write.status for write in plan.statuses if write.key.kind == "TokenService")


def test_a_start_that_has_not_ended_long_after_its_limit_is_told_and_no_other_is() -> None:
    story = Story()
    story.pods = [make_pod("a", ready=False, containers_ready=False, template_hash="x", starting_since=NOW - 60)]
    assert conditions(story.plan(GOOD))["Stalled"]["status"] == "False"
    story.pods = [make_pod("a", ready=False, containers_ready=False, template_hash="x", starting_since=NOW - 86_400)]
    found = conditions(story.plan(GOOD))["Stalled"]
    assert (found["status"], found["reason"]) == ("True", "EngineFailed")
    assert "kubectl describe pod a" in found["message"]


# --- Volumes


def waiting_for(unbound: str | None, **facts: Any) -> Pod:
    return make_pod("c", node=None, template_hash="new", unschedulable=True, unbound=unbound, **facts)


def test_a_replica_that_waits_for_its_volume_is_not_told_to_lack_room() -> None:
    story = Story()
    spec = {"scaling": {"minReplicas": 3}}
    story.plan(spec)
    story.pods.append(waiting_for("unbound immediate PersistentVolumeClaims"))
    found = conditions(story.plan(spec))["CapacityAvailable"]
    assert found["status"] == "False"
    assert "they wait for their volume, not for room" in found["message"]


@pytest.mark.parametrize("unbound", [None, 'persistentvolumeclaim "weights" not found'])
def test_no_replica_makes_room_for_one_that_waits_for_a_volume(unbound: str | None) -> None:
    story = Story()
    story.change({"replicas": 2, "engine": {"maxNumSeqs": 32}})
    pods = [*story.pods[:-1], waiting_for(unbound)]
    (deployment,) = [child for key, child in story.children.items() if key.kind == "Deployment"]
    assert bool(exchanged_in_place({VARIANT: deployment}, frozenset({VARIANT}), pods, 1)) == (unbound is None)


MOUNT = 'FailedMount: MountVolume.SetUp failed for volume "weights" : secret "hub" not found'


def unmounted(name: str, seconds: float, said: str | None = MOUNT) -> Pod:
    return make_pod(
        name, ready=False, containers_ready=False, template_hash="x", starting_since=NOW - seconds, complaint=said
    )


def test_a_volume_that_cannot_be_mounted_is_told_in_the_kubelets_words_after_a_minute() -> None:
    story = Story()
    story.pods = [unmounted("a", 10)]
    assert conditions(story.plan(GOOD))["Stalled"]["status"] == "False", "a Secret may come a little later"
    story.pods = [unmounted("a", 70, None), unmounted("b", 70)]
    found = conditions(story.plan(GOOD))["Stalled"]
    assert (found["status"], found["reason"]) == ("True", "EngineFailed")
    assert MOUNT in found["message"]
    assert "spec.model.credentials" in found["message"]


def test_a_volume_that_cannot_be_mounted_on_one_node_stalls_nothing_and_is_told_with_the_start() -> None:
    story = Story()
    story.pods = [*story.pods, unmounted("z", 70)]
    story.pods = [replace(pod, template_hash="x") for pod in story.pods]
    found = conditions(story.plan({"scaling": {"minReplicas": 3}}))
    assert found["Stalled"]["status"] == "False"
    assert f"1 start (z: {MOUNT})" in found["Ready"]["message"]


def test_a_volume_that_cannot_be_mounted_is_no_reason_to_go_back() -> None:
    """It may come to it: a disk that is still attached elsewhere, a driver that is being installed."""
    story = Story()
    story.plan(BAD)
    automatic = BAD | {"rollback": "Automatic"}
    story.pods = [*story.pods, unmounted("z", 7000)]
    story.children = with_status(story.children, replicas=3, updatedReplicas=1, readyReplicas=2)
    assert conditions(story.plan(automatic))["Stalled"]["reason"] == "EngineFailed"
