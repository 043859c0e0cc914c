"""Carrying a plan out: order, fence, preconditions, and what becomes of failures."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.edge.fakes import Server
from tokenservice.core.model import (
    Action,
    Apply,
    Delete,
    Json,
    ObjectKey,
    Place,
    Reason,
    ServiceKey,
    SetDeletionCost,
    SetServing,
)
from tokenservice.core.names import FIELD_MANAGER, MANAGED_BY_LABEL, PLACEMENT_GATE, SERVING_CONDITION
from tokenservice.edge.apply import MANY_OWNERS, Applier, Result
from tokenservice.edge.kube import Patch
from tokenservice.errors import ApiError, Conflict, Forbidden, Invalid, NotFound, Retryable

OURS = {MANAGED_BY_LABEL: FIELD_MANAGER}
POD = ObjectKey("Pod", "team", "chat-1")


class Fence:
    """Open for a number of questions."""

    def __init__(self, answers: int = 10**9) -> None:
        self.left = answers

    def held(self) -> bool:
        self.left -= 1
        return self.left >= 0


def make_applier(server: Server, fence: Fence | None = None, parallel: int = 8) -> Applier:
    return Applier(server, fence or Fence(), server, wall_clock=lambda: 1_800_000_000.0, parallel=parallel)


def manifest(name: str = "chat", **metadata: Any) -> Json:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "team", "name": name, **metadata}}


def applied(id_: str, *after: str, revision: str | None = None) -> Apply:
    return Apply(
        id=id_, reason=Reason.UPDATED, message="", after=after, manifest=manifest(id_), resource_version=revision
    )


def live_pod(server: Server) -> str:
    server.put({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "team", "name": "chat-1", "uid": "u1"}})
    return "u1"


async def test_an_action_waits_for_those_it_comes_after() -> None:
    server = Server()
    report = await make_applier(server).apply([applied("c", "b"), applied("b", "a"), applied("a")])
    assert [key.name for _, key, _ in server.calls] == ["a", "b", "c"]
    assert [outcome.action.id for outcome in report.outcomes] == ["c", "b", "a"]
    assert {outcome.result for outcome in report.outcomes} == {Result.DONE}


async def test_what_comes_after_a_failure_is_skipped_and_says_for_whom_it_waits() -> None:
    server = Server()
    server.failures = [Invalid("no such field")]
    report = await make_applier(server).apply([applied("a"), applied("b", "a"), applied("c", "b"), applied("d")])
    assert [outcome.result for outcome in report.outcomes] == [
        Result.FAILED,
        Result.SKIPPED,
        Result.SKIPPED,
        Result.DONE,
    ]
    assert [outcome.message for outcome in report.outcomes[1:3]] == ["waits for a", "waits for b"]


async def test_what_stands_first_in_the_plan_is_done_before_what_could_have_begun_earlier() -> None:
    server = Server()
    await make_applier(server, parallel=1).apply([applied("a"), applied("b", "a"), applied("c"), applied("d", "b")])
    assert [key.name for _, key, _ in server.calls] == ["a", "b", "c", "d"]


async def test_what_can_wait_is_left_to_the_next_plan_where_this_one_takes_long() -> None:
    server, again = Server(), list[int]()
    applier = Applier(server, Fence(), server, again=lambda: again.append(1), clock=lambda: 3.0 * len(server.calls))
    actions = [applied(name) for name in "abc"]
    report = await applier.apply(
        [*actions, replace(applied("d", *"abc"), can_wait=True), applied("e", "c"), applied("f", "d")]
    )
    results = [outcome.result for outcome in report.outcomes]
    assert results == [Result.DONE, Result.DONE, Result.DONE, Result.LEFT, Result.DONE, Result.SKIPPED]
    assert again == [1]
    assert report.failures == ()


async def test_an_action_after_one_that_was_never_planned_is_not_done() -> None:
    report = await make_applier(Server()).apply([applied("a", "forgotten")])
    assert report.outcomes[0].result is Result.SKIPPED


async def test_a_plan_without_an_order_is_refused_before_anything_is_written() -> None:
    server = Server()
    with pytest.raises(ValueError, match="cycle"):
        await make_applier(server).apply([applied("a", "b"), applied("b", "a")])
    assert server.calls == []


async def test_of_two_services_that_want_a_child_of_one_name_the_second_is_told_and_nobody_else_minds() -> None:
    """NAME-warm-up is the NetworkPolicy of a service of that name and of the warm nodes of NAME, say."""
    server = Server()
    mine, others = ServiceKey("team", "chat"), ServiceKey("team", "chat-warm-up")
    first, second = (replace(applied("a"), service=service) for service in (mine, others))
    its_engines, my_engines = (
        replace(applied(name, "a"), service=service) for name, service in (("b", others), ("d", mine))
    )
    report = await make_applier(server).apply([first, second, its_engines, my_engines, applied("c")])
    assert [o.result for o in report.outcomes] == [
        Result.DONE,
        Result.TAKEN,
        Result.SKIPPED,
        Result.DONE,
        Result.DONE,
    ]
    assert report.outcomes[1] in report.failures
    assert "TokenService chat makes a child of the same name" in report.outcomes[1].message
    assert {key.name for _, key, _ in server.calls} == {"a", "c", "d"}


async def test_a_write_without_an_answer_holds_up_no_other_and_is_not_made_twice() -> None:
    server, now, answer = Server(), 0.0, asyncio.Event()
    write = server.apply

    async def hanging(body: Json, **more: Any) -> Json:
        nonlocal now
        if body["metadata"]["name"] == "slow":
            asyncio.get_running_loop().call_later(0.01, lambda: None)
            now += 60.0
            await answer.wait()
        return await write(body, **more)

    server.apply = hanging  # type: ignore[method-assign]
    applier = Applier(server, Fence(), server, clock=lambda: now, parallel=8)
    report = await applier.apply([applied("slow"), applied("after", "slow"), applied("other")])
    assert [o.result for o in report.outcomes] == [Result.RETRYABLE, Result.SKIPPED, Result.DONE]
    assert "did not answer" in report.outcomes[0].message
    again = await applier.apply([applied("slow"), applied("third")])
    assert [o.result for o in again.outcomes] == [Result.SKIPPED, Result.DONE]
    answer.set()
    await asyncio.sleep(0.01)
    assert [o.result for o in (await applier.apply([applied("fourth")])).outcomes] == [Result.DONE]
    assert [key.name for _, key, _ in server.calls].count("slow") == 1
    last = await applier.apply([applied("slow", revision=None)])
    assert last.outcomes[0].result is not Result.SKIPPED, "the answer is there"


FAILURES: dict[str, tuple[ApiError, Result, bool]] = {
    "a conflict is quiet": (Conflict("changed"), Result.CONFLICT, False),
    "a vanished object is quiet": (NotFound("gone"), Result.GONE, False),
    "a missing right is told": (Forbidden("quota exceeded"), Result.FAILED, True),
    "a wrong object is told": (Invalid("wrong"), Result.FAILED, True),
    "a busy server is told": (Retryable("busy", after=7.0), Result.RETRYABLE, True),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_each_failure_has_its_result(name: str) -> None:
    error, want, told = FAILURES[name]
    server = Server()
    server.put(manifest("a", labels=OURS))
    server.failures = [error]
    report = await make_applier(server).apply([applied("a")])
    assert report.outcomes[0].result is want
    assert bool(report.failures) is told
    assert report.retry_after == (7.0 if want is Result.RETRYABLE else 0.0)


async def test_the_fence_is_asked_before_every_write() -> None:
    server = Server()
    report = await make_applier(server, Fence(2), parallel=1).apply([applied("a"), applied("b"), applied("c")])
    assert [outcome.result for outcome in report.outcomes] == [Result.DONE, Result.DONE, Result.FENCED]
    assert len(server.calls) == 2


async def test_at_most_eight_writes_are_in_flight() -> None:
    server, flying, most = Server(), 0, 0
    write = server.apply

    async def slow(*arguments: Any, **more: Any) -> Json:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        flying -= 1
        return await write(*arguments, **more)

    server.apply = slow  # type: ignore[method-assign]
    await make_applier(server).apply([applied(f"a{number}") for number in range(40)])
    assert most == 8


async def test_writing_over_a_live_object_names_uid_and_revision() -> None:
    server = Server()
    key = server.put(manifest("chat", uid="u7"))
    revision = server.objects[key]["metadata"]["resourceVersion"]
    await make_applier(server).apply([applied("chat", revision=revision)])
    _, _, sent = server.calls[0]
    assert sent["manifest"]["metadata"] == {
        "namespace": "team",
        "name": "chat",
        "uid": "u7",
        "resourceVersion": revision,
    }
    assert sent["force"] is True


async def test_what_was_made_since_by_another_leader_is_not_written_over() -> None:
    """A leader that was frozen on the way to making it comes late: its successor's replicas stay as they are."""
    server = Server()
    key = server.put({**manifest("chat", labels=OURS), "spec": {"replicas": 3}})
    late = Apply(
        id="late",
        reason=Reason.CREATED,
        message="",
        manifest={**manifest("chat", labels=OURS), "spec": {"replicas": 1}},
    )
    report = await make_applier(server).apply([late])
    assert report.outcomes[0].result is Result.CONFLICT
    assert server.objects[key]["spec"] == {"replicas": 3}


def child(name: str, owner_uid: str, owner_name: str = "chat") -> Apply:
    owner = {"apiVersion": "taas.dev/v1alpha1", "kind": "TokenService", "name": owner_name, "uid": owner_uid}
    made = manifest(name, labels=OURS, ownerReferences=[owner])
    return Apply(id=name, reason=Reason.CREATED, message="", manifest=made)


def owner(**metadata: Any) -> Json:
    named = {"namespace": "team", "name": "chat", "uid": "u1", **metadata}
    return {"apiVersion": "taas.dev/v1alpha1", "kind": "TokenService", "metadata": named}


async def test_children_are_made_for_an_owner_that_is_there_and_it_is_asked_for_once() -> None:
    server = Server()
    server.put(owner())
    report = await make_applier(server).apply([child("a", "u1"), child("b", "u1")])
    assert {outcome.result for outcome in report.outcomes} == {Result.DONE}
    assert [verb for verb, _, _ in server.calls].count("get") == 1


def many_children() -> list[Apply]:
    return [child(f"child-{number}", "u1", f"chat-{number}") for number in range(MANY_OWNERS)]


async def test_many_owners_of_a_namespace_are_listed() -> None:
    server, children = Server(), many_children()
    for number in range(len(children)):
        server.put(owner(name=f"chat-{number}"))
    report = await make_applier(server).apply(children)
    assert {outcome.result for outcome in report.outcomes} == {Result.DONE}
    assert [verb for verb, _, _ in server.calls if verb != "apply"] == ["list"]


GONE_OWNERS: dict[str, Json | None] = {
    "it is not there": None,
    "it was made anew": owner(uid="u2"),
    "it is being deleted": owner(deletionTimestamp="2026-01-01T00:00:00Z"),
}


@pytest.mark.parametrize("name", GONE_OWNERS)
async def test_no_child_is_made_for_an_owner_that_is_gone(name: str) -> None:
    """Its deletion has not come through yet, and that of its children has."""
    server = Server()
    if (there := GONE_OWNERS[name]) is not None:
        server.put(there)
    report = await make_applier(server).apply([child("a", "u1"), child("b", "u1")])
    assert {outcome.result for outcome in report.outcomes} == {Result.GONE}
    assert [verb for verb, _, _ in server.calls] == ["get"]


@pytest.mark.parametrize("name", GONE_OWNERS)
async def test_nor_where_owners_are_listed(name: str) -> None:
    server, children = Server(), many_children()
    for number in range(1, len(children)):
        server.put(owner(name=f"chat-{number}"))
    if (there := GONE_OWNERS[name]) is not None:
        server.put({**there, "metadata": {**there["metadata"], "name": "chat-0"}})
    report = await make_applier(server).apply(children)
    assert [outcome.result for outcome in report.outcomes] == [Result.GONE] + [Result.DONE] * (len(children) - 1)


async def test_a_list_of_owners_that_fails_makes_no_child() -> None:
    server = Server()
    server.failures = [Retryable("busy")]
    report = await make_applier(server).apply(many_children())
    assert {outcome.result for outcome in report.outcomes} == {Result.RETRYABLE}
    assert [verb for verb, _, _ in server.calls] == ["list"]


def owned_by(name: str) -> list[Json]:
    return [{"apiVersion": "taas.dev/v1alpha1", "kind": "TokenService", "name": name, "uid": "u1"}]


NOT_OURS, NO_LABEL = "rename or remove it", "put app.kubernetes.io/managed-by=tokenservice-operator back"
OTHERS: dict[str, tuple[Json, str]] = {
    "it has no label of ours": ({}, NOT_OURS),
    "it has our label and is another controller's": (
        {
            "labels": OURS,
            "ownerReferences": [{"apiVersion": "example.org/v1", "kind": "App", "name": "chat", "uid": "u8"}],
        },
        NOT_OURS,
    ),
    "it is of another TokenService": ({"labels": OURS, "ownerReferences": owned_by("other")}, NOT_OURS),
    "it is the service's and somebody took its label": ({"ownerReferences": owned_by("chat")}, NO_LABEL),
}


@pytest.mark.parametrize("name", OTHERS)
async def test_what_has_a_childs_name_and_is_not_the_services_is_left_alone_and_told(name: str) -> None:
    """Our watches do not see it as a child, so it looks as if it had to be made; it may be anybody's."""
    server = Server()
    server.put(owner())
    made, fix = OTHERS[name]
    key = server.put(manifest("a", uid="u7", **made))
    before = server.objects[key]
    report = await make_applier(server).apply([child("a", "u1"), child("b", "u1")])
    assert [outcome.result for outcome in report.outcomes] == [Result.TAKEN, Result.DONE]
    assert "Deployment a is there already" in report.outcomes[0].message
    assert fix in report.outcomes[0].message
    assert report.failures == report.outcomes[:1]
    assert server.objects[key] is before


@pytest.mark.parametrize("there", [True, False], ids=["another leader made it", "it is gone again"])
async def test_a_child_that_was_made_meanwhile_is_a_race_and_quiet(there: bool) -> None:
    server = Server()
    server.put(owner())
    if there:
        server.put(manifest("a", labels=OURS, ownerReferences=owned_by("chat")))
    else:
        server.apply = refusing(Conflict("exists"))  # type: ignore[method-assign]
    report = await make_applier(server).apply([child("a", "u1")])
    assert report.outcomes[0].result is Result.CONFLICT
    assert report.failures == ()


def refusing(error: ApiError) -> Any:
    async def refuse(*_: Any, **__: Any) -> Json:
        raise error

    return refuse


async def test_the_plan_is_not_changed_by_carrying_it_out() -> None:
    server = Server()
    server.put(manifest("chat"))
    action = applied("chat", revision="2")
    await make_applier(server).apply([action])
    assert action.manifest == manifest("chat")


async def test_an_object_that_vanished_from_view_is_not_written_over() -> None:
    server = Server()
    report = await make_applier(server).apply([applied("chat", revision="1")])
    assert report.outcomes[0].result is Result.GONE
    assert server.calls == []


async def test_deleting_names_uid_and_revision() -> None:
    server = Server()
    key = server.put(manifest("chat", uid="u7"))

    def delete(uid: str, revision: str) -> Delete:
        return Delete(id="d", reason=Reason.REMOVED, message="", key=key, uid=uid, resource_version=revision)

    applier, revision = make_applier(server), server.objects[key]["metadata"]["resourceVersion"]
    results = [
        (await applier.apply([delete(*expected)])).outcomes[0].result
        for expected in (("u8", revision), ("u7", "0"), ("u7", revision), ("u7", revision))
    ]
    assert results == [Result.CONFLICT, Result.CONFLICT, Result.DONE, Result.GONE]


async def test_a_placed_pod_may_serve_before_its_gate_is_lifted() -> None:
    server = Server()
    uid = live_pod(server)
    place = Place(id="p", reason=Reason.PLACED, message="", pod=POD, uid=uid, node="node-1")
    report = await make_applier(server).apply([place])
    (_, _, first), (_, _, second) = server.calls
    assert (first["subresource"], first["how"]) == ("status", Patch.STRATEGIC)
    assert first["body"]["status"]["nominatedNodeName"] == "node-1"
    assert first["body"]["status"]["conditions"][0]["type"] == SERVING_CONDITION
    assert first["body"]["status"]["conditions"][0]["status"] == "True"
    assert second["body"]["spec"] == {"schedulingGates": [{"$patch": "delete", "name": PLACEMENT_GATE}]}
    assert report.written == ((POD, server.objects[POD]["metadata"]["resourceVersion"]),)


async def test_who_is_frozen_before_it_lifts_a_gate_lifts_none() -> None:
    """Another leads by then, and may hold it."""
    server = Server()
    uid = live_pod(server)
    place = Place(id="p", reason=Reason.PLACED, message="", pod=POD, uid=uid, node="node-1")
    report = await make_applier(server, Fence(answers=1)).apply([place])
    assert report.outcomes[0].result is Result.CONFLICT
    assert "spec" not in server.objects[POD]


@pytest.mark.parametrize("failures", [[], [Invalid("a webhook says no")]], ids=["placed", "refused"])
async def test_pods_without_a_node_are_let_go_when_no_other_can_lose_its_room_to_them(failures: list[ApiError]) -> None:
    """The scheduler knows nothing of what is planned: whoever is let go first takes what was meant for others."""
    server = Server()
    server.failures = list(failures)
    pods = [ObjectKey("Pod", "team", f"chat-{number}") for number in range(4)]
    for pod in pods:
        server.put({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "team", "name": pod.name, "uid": "u"}})
    nodes = [None, "node-1", None, "node-2"]
    places = [
        Place(id=f"p{number}", reason=Reason.PLACED, message="", pod=pods[number], uid="u", node=node)
        for number, node in enumerate(nodes)
    ]
    report = await make_applier(server).apply([applied("a"), *places])
    let_go = [key.name for _, key, detail in server.calls if key.kind == "Pod" and "spec" in detail["body"]]
    assert set(let_go[-2:]) == {"chat-0", "chat-2"}
    assert [o.result for o in report.outcomes].count(Result.DONE) == 5 - len(failures)


async def test_a_pod_whose_status_cannot_be_written_keeps_its_gate() -> None:
    server = Server()
    uid = live_pod(server)
    server.failures = [Retryable("busy")]
    place = Place(id="p", reason=Reason.PLACED, message="", pod=POD, uid=uid, node=None)
    await make_applier(server).apply([place])
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "action",
    [
        Place(id="p", reason=Reason.PLACED, message="", pod=POD, uid="u9", node="node-1"),
        SetServing(id="s", reason=Reason.MOVE_SHIFTED, message="", pod=POD, uid="u9", serving=False),
        SetDeletionCost(id="c", reason=Reason.VICTIM_CHOSEN, message="", pod=POD, uid="u9", cost=-1),
    ],
    ids=lambda action: type(action).__name__,
)
async def test_a_pod_of_the_same_name_is_not_the_pod_that_was_meant(action: Action) -> None:
    server = Server()
    live_pod(server)
    report = await make_applier(server).apply([action])
    assert report.outcomes[0].result is Result.CONFLICT


async def test_a_defect_of_ours_that_one_action_shows_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    unknown = Action(id="x", reason=Reason.UPDATED, message="")
    report = await make_applier(server).apply([unknown, applied("a"), applied("b", "x")])
    assert [outcome.result for outcome in report.outcomes] == [Result.FAILED, Result.DONE, Result.SKIPPED]
    assert report.outcomes[0].message.startswith("an error of the operator's own: TypeError: Action is not")
    assert caplog.records[0].exc_info


@settings(max_examples=40)
@given(st.data())
async def test_every_action_has_one_outcome_and_none_runs_before_its_time(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 12))
    names = [f"a{number}" for number in range(count)]
    actions = [
        applied(name, *data.draw(st.sets(st.sampled_from(names[:number]), max_size=3) if number else st.just(set())))
        for number, name in enumerate(names)
    ]
    shuffled = data.draw(st.permutations(actions))
    server = Server()
    server.failures = list(data.draw(st.lists(st.just(Invalid("no")), max_size=4)))
    report = await make_applier(server).apply(shuffled)
    assert [outcome.action for outcome in report.outcomes] == list(shuffled)
    results = {outcome.action.id: outcome.result for outcome in report.outcomes}
    tried = [key.name for _, key, _ in server.calls]
    for action in actions:
        if action.id in tried:
            assert all(results[before] is Result.DONE for before in action.after)
            assert all(tried.index(before) < tried.index(action.id) for before in action.after)
