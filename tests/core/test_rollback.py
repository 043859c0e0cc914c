"""A change of engines that does not come up leaves what serves, says why, and can be undone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.build import NOW, make_metrics, make_node, make_pod, make_service, make_snapshot
from tokenservice.core.conditions import by_type
from tokenservice.core.decide import decide
from tokenservice.core.model import Apply, Child, Json, ObjectKey, Plan, Pod, Service
from tokenservice.core.names import FAILED_TEMPLATE_ANNOTATION, GOOD_TEMPLATE_ANNOTATION
from tokenservice.core.rollback import failure

SAID = "engine ended with 1 (Error): ValueError: max_model_len is greater than the derived 8192"
GOOD: dict[str, Any] = {"replicas": 2}
BAD: dict[str, Any] = {"replicas": 2, "engine": {"maxModelLen": 65_536}}


def applied(plan: Plan, kind: str = "Deployment") -> list[Json]:
    return [action.manifest for action in plan.actions if isinstance(action, Apply) and action.manifest["kind"] == kind]


def carried_out(plan: Plan, service: Service, before: dict[ObjectKey, Child]) -> dict[ObjectKey, Child]:
    """Children after a plan; Deployments keep the status that they had."""
    after = dict(before)
    for action in plan.actions:
        if isinstance(action, Apply):
            metadata = action.manifest["metadata"]
            key = ObjectKey(action.manifest["kind"], metadata["namespace"], metadata["name"])
            status = before[key].body.get("status", {}) if key in before else {}
            body = action.manifest | {"status": status, "metadata": metadata | {"generation": 1}}
            after[key] = Child(key=key, uid=f"uid-{key.name}", resource_version="2", owner=service.key, body=body)
    return after


def with_status(children: dict[ObjectKey, Child], **status: int) -> dict[ObjectKey, Child]:
    """The Deployment after its controller looked at it."""
    return {
        key: replace(child, body=child.body | {"status": {"observedGeneration": 1} | status})
        if key.kind == "Deployment"
        else child
        for key, child in children.items()
    }


class Story:
    """A service with two replicas that serve; then its spec changes."""

    def __init__(self) -> None:
        self.children: dict[ObjectKey, Child] = {}
        self.pods = [make_pod("a", template_hash="good"), make_pod("b", template_hash="good")]
        self.plan(GOOD)
        self.children = with_status(self.children, replicas=2, updatedReplicas=2, readyReplicas=2)
        assert applied(self.plan(GOOD)) == []

    def plan(self, spec: dict[str, Any], **facts: Any) -> Plan:
        service = make_service("chat", **spec)
        given = {"metrics": {service.key: make_metrics()}, "nodes": (make_node("n1"),)} | facts
        plan = decide(make_snapshot(service, pods=tuple(self.pods), children=self.children, **given), NOW)
        self.children = carried_out(plan, service, self.children)
        self.last = service
        return plan

    def change(self, spec: dict[str, Any]) -> None:
        """The change is applied, and its first replica crashes again and again."""
        self.plan(spec)
        self.children = with_status(self.children, replicas=3, updatedReplicas=1, readyReplicas=2)
        crashing = make_pod("c", template_hash="bad", ready=False, containers_ready=False, restarts=3, failure=SAID)
        self.pods.append(crashing)

    def deployment(self) -> Json:
        return next(child.body for key, child in self.children.items() if key.kind == "Deployment")

    def args(self) -> list[str]:
        return list(self.deployment()["spec"]["template"]["spec"]["containers"][0]["args"])


def conditions(plan: Plan) -> dict[str, Json]:
    (write,) = [write for write in plan.statuses if write.key.kind == "TokenService"]
    return by_type(write.status)


def test_what_does_not_come_up_is_told_in_the_engines_own_words_and_the_last_good_version_stays() -> None:
    story = Story()
    story.change(BAD)
    plan = story.plan(BAD)
    assert applied(plan) == []
    found = conditions(plan)
    assert (found["Stalled"]["status"], found["Stalled"]["reason"]) == ("True", "EngineFailed")
    assert SAID in found["Stalled"]["message"]
    assert "2 replicas of the last good version serve on" in found["Stalled"]["message"]
    assert found["Reconciling"]["status"] == found["Ready"]["status"] == "False"


def test_a_first_version_that_does_not_come_up_is_told_too() -> None:
    story = Story()
    story.pods = [make_pod("a", ready=False, template_hash="x", failure=SAID)]
    assert conditions(story.plan(GOOD))["Stalled"]["reason"] == "EngineFailed"


def test_rollback_goes_back_to_the_template_that_served_and_stays_there() -> None:
    story = Story()
    good = story.deployment()["spec"]["template"]
    story.change(BAD)
    assert "65536" in story.args()
    automatic = BAD | {"rollback": "Automatic"}
    plan = story.plan(automatic)
    assert len(applied(plan)) == 1
    assert story.deployment()["spec"]["template"] == good

    story.pods.pop()
    story.children = with_status(story.children, replicas=2, updatedReplicas=2, readyReplicas=2)
    later = story.plan(automatic)
    assert applied(later) == [], "what failed is not tried again"
    found = conditions(later)["Stalled"]
    assert found["reason"] == "RolledBack"
    assert SAID in found["message"]


@pytest.mark.parametrize("written", ["oops", "[]", "{", "[" * 100_000])
def test_what_others_write_where_the_template_is_kept_stops_nobody(written: str) -> None:
    story = Story()
    story.change(BAD)
    (key,) = [key for key in story.children if key.kind == "Deployment"]
    child = story.children[key]
    metadata = child.body["metadata"]
    notes = metadata["annotations"] | {GOOD_TEMPLATE_ANNOTATION: written}
    story.children[key] = replace(child, body=child.body | {"metadata": metadata | {"annotations": notes}})
    story.plan(BAD | {"rollback": "Automatic"})
    assert "65536" in story.args()


def test_setting_rollback_is_the_request_to_go_back() -> None:
    story = Story()
    story.change(BAD)
    assert applied(story.plan(BAD)) == []
    assert len(applied(story.plan(BAD | {"rollback": "Automatic"}))) == 1
    assert "65536" not in story.args()


def test_another_change_is_tried_after_a_rollback() -> None:
    story = Story()
    story.change(BAD)
    story.plan(BAD | {"rollback": "Automatic"})
    story.pods.pop()
    story.children = with_status(story.children, replicas=2, updatedReplicas=2, readyReplicas=2)
    story.plan({"replicas": 2, "engine": {"maxModelLen": 4096}, "rollback": "Automatic"})
    assert "4096" in story.args()
    notes = story.deployment()["metadata"]["annotations"]
    assert FAILED_TEMPLATE_ANNOTATION not in notes
    kept = json.loads(notes[GOOD_TEMPLATE_ANNOTATION])
    assert "65536" not in kept["spec"]["containers"][0]["args"]


def test_a_rolled_back_service_still_scales() -> None:
    story = Story()
    story.change(BAD)
    story.plan(BAD | {"rollback": "Automatic"})
    story.pods.pop()
    story.children = with_status(story.children, replicas=2, updatedReplicas=2, readyReplicas=2)
    story.plan(BAD | {"rollback": "Automatic", "replicas": 3})
    assert story.deployment()["spec"]["replicas"] == 3
    assert "65536" not in story.args()


def test_a_second_bad_change_does_not_become_the_good_version() -> None:
    story = Story()
    good = story.deployment()["spec"]["template"]
    story.change(BAD)
    worse = {"replicas": 2, "engine": {"maxModelLen": 32_768}, "rollback": "Automatic"}
    story.change(worse)
    story.plan(worse)
    assert story.deployment()["spec"]["template"] == good


def test_a_version_of_which_one_replica_serves_is_not_given_up() -> None:
    pods = [make_pod("a", template_hash="x"), make_pod("b", ready=False, template_hash="x", failure=SAID)]
    assert failure(pods) is None


def test_a_version_that_fails_says_nothing_of_its_successor() -> None:
    old = make_pod("a", ready=False, template_hash="old", failure=SAID, created_at=1.0)
    new = make_pod("b", ready=False, template_hash="new", created_at=2.0)
    assert failure([old, new]) is None
    assert failure([old]) == SAID


# --- Surge or in place


def waiting() -> Pod:
    return make_pod("c", node=None, template_hash="new", unschedulable=True)


def strategy(story: Story) -> int:
    return int(story.deployment()["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"])


@pytest.mark.parametrize("full", [True, False])
def test_replicas_are_exchanged_in_place_only_where_no_accelerators_are_free(full: bool) -> None:
    story = Story()
    story.change({"replicas": 2, "engine": {"maxNumSeqs": 32}})
    story.pods[-1] = waiting() if full else make_pod("c", ready=False, template_hash="new")
    plan = story.plan({"replicas": 2, "engine": {"maxNumSeqs": 32}})
    assert strategy(story) == int(full)
    said = conditions(plan)["Reconciling"]["message"]
    assert ("in place" in said) == full
    assert ("by surge" in said) == (not full)


def test_no_replica_goes_in_place_that_the_objectives_need() -> None:
    story = Story()
    spec = {"engine": {"maxNumSeqs": 32}, "scaling": {"minReplicas": 2, "maxReplicas": 2}}
    story.change(spec)
    story.pods[-1] = waiting()
    plan = story.plan(spec)
    assert strategy(story) == 0
    assert "of 2 replicas that serve 2 are needed" in conditions(plan)["Reconciling"]["message"]
