"""Promises that other tests hold only in passing; the mutants beside this file break each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.build import VARIANT, make_deployment, make_metrics, make_node, make_service
from tests.support.world import World
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.allocation import allocate
from tokenservice.core.decide import decide
from tokenservice.core.facts import Facts
from tokenservice.core.manifests import hashed
from tokenservice.core.memo import Memo
from tokenservice.core.model import Delete, ObjectKey, Plan, Reason, Service
from tokenservice.core.moves import SECOND_LOOK_SECONDS
from tokenservice.core.names import MANIFEST_HASH_ANNOTATION
from tokenservice.core.outlook import outlook

CHAT = make_service("chat", scaling={"minReplicas": 2})
FLEET = TokenFleetSpec()
OLD = "h100-vllm-tp2-bf16"
"""A variant without a profile beside one that has: no candidate."""


def settled(*services: Service, nodes: int = 2) -> World:
    made = World(services=list(services or (CHAT,)), nodes=[make_node(f"n{number}") for number in range(1, nodes + 1)])
    made.metrics = {service.key: make_metrics(0.5, engines_reporting=1000) for service in made.services}
    made.run(10)
    return made


# --- Moves -----------------------------------------------------------------------------------------------------------


def spread(fleet: TokenFleetSpec | None = None) -> World:
    """Two replicas on two nodes that have room for both, long after they started."""
    made = settled()
    if fleet is not None:
        made.extra["fleet"] = fleet
        made.run(10)  # what is still to do for another policy would keep every pod where it is
    first, second = made.pods.values()
    made.pods = {first.name: replace(first, node="n1"), second.name: replace(second, node="n2")}
    made.now += FLEET.consolidation.cooldown_seconds
    return made


def moves(plan: Plan) -> int:
    return sum(action.reason is Reason.MOVE_STARTED for action in plan.actions)


def test_a_move_waits_for_the_second_look() -> None:
    made = spread()
    first = decide(made.snapshot(), made.now)
    assert (len(first.proposals), moves(first)) == (1, 0)
    made.proposals = first.proposals
    assert moves(decide(made.snapshot(), made.now + SECOND_LOOK_SECONDS - 1)) == 0
    assert moves(decide(made.snapshot(), made.now + SECOND_LOOK_SECONDS)) == 1


def test_nothing_of_a_namespace_that_must_not_be_touched_is_moved() -> None:
    policy = FLEET.model_copy(update={"never_touch": FLEET.never_touch.model_copy(update={"namespaces": ("default",)})})
    made = spread(policy)
    made.run(4)
    assert (made.proposals, [it for it in made.history if it.reason is Reason.MOVE_STARTED]) == ((), [])
    made.extra["fleet"] = FLEET
    made.run(4)
    assert [it for it in made.history if it.reason is Reason.MOVE_STARTED], "elsewhere it would be"


def test_a_replica_that_has_just_arrived_is_not_moved() -> None:
    made = spread()
    arrived = made.now
    made.pods = {name: replace(pod, created_at=arrived) for name, pod in made.pods.items()}
    assert decide(made.snapshot(), arrived + FLEET.consolidation.cooldown_seconds - 1).proposals == ()
    assert len(decide(made.snapshot(), arrived + FLEET.consolidation.cooldown_seconds).proposals) == 1


def test_that_nothing_is_to_move_is_remembered_only_until_pods_have_rested() -> None:
    made, memo = spread(), Memo()
    arrived, cooldown = made.now, FLEET.consolidation.cooldown_seconds
    made.pods = {name: replace(pod, created_at=arrived) for name, pod in made.pods.items()}
    snapshot = made.snapshot()
    found = [len(decide(snapshot, arrived + cooldown + after, memo).proposals) for after in (-2, -1, 0, 1)]
    assert found == [0, 0, 1, 1]


def test_a_move_that_costs_more_than_it_frees_is_not_begun() -> None:
    """Eight accelerators for three seconds, against one that loads for a minute."""

    def proposed(payback_hours: float) -> int:
        patience = FLEET.consolidation.model_copy(update={"payback_hours": payback_hours})
        made = spread(FLEET.model_copy(update={"consolidation": patience}))
        return len(decide(made.snapshot(), made.now).proposals)

    assert (proposed(3 / 3600), proposed(1.0)) == (0, 1)


# --- Variants that are used no more ----------------------------------------------------------------------------------


def with_old_variant() -> World:
    made = settled()
    old = make_deployment(CHAT, 2, variant=OLD)
    made.children[old.key] = old
    return made


def deleted(made: World) -> list[ObjectKey]:
    return [action.key for action in decide(made.snapshot(), made.now).actions if isinstance(action, Delete)]


def test_a_variant_is_retired_once_its_successor_serves() -> None:
    made = with_old_variant()
    serving = dict(made.pods)
    made.pods = {name: replace(pod, ready=False) for name, pod in serving.items()}
    assert deleted(made) == []
    made.pods = serving
    assert [key.name for key in deleted(made)] == [f"chat-{OLD}"]
    assert {pod.variant for pod in serving.values()} == {VARIANT}


def test_no_variant_is_retired_on_a_stale_view() -> None:
    made = with_old_variant()
    made.extra["stale_kinds"] = ("Pod",)
    assert deleted(made) == []


# --- Several services ------------------------------------------------------------------------------------------------


def test_room_is_granted_by_tier_before_age() -> None:
    promise: dict[str, Any] = {"tier": "Guaranteed", "objectives": {"volume": {"guaranteedTokensPerSecond": 10}}}
    old = make_service("elastic", created_at=1.0, scaling={"minReplicas": 6})
    owed = make_service("owed", created_at=2.0, scaling={"minReplicas": 6}, **promise)
    made = World(services=[old, owed], nodes=[make_node("n1")])
    facts = Facts(made.snapshot())
    wants = [want for service in made.services if (want := outlook(facts, service).want) is not None]
    assert [grant.without_room for grant in allocate(wants, facts)] == [4, 0]


def test_a_new_service_is_served_beside_an_invalid_one() -> None:
    invalid = replace(make_service("bad"), spec=None, error="spec.engine: no such engine")
    assert settled(CHAT, invalid).serving(CHAT.key) == 2


# --- Restarts --------------------------------------------------------------------------------------------------------


def test_the_hash_of_a_manifest_is_the_same_in_every_process() -> None:
    """Python's own hash is not; another hash rolls nothing, but applies every object of the fleet anew."""
    made = hashed({"metadata": {"name": "chat"}, "spec": {"paused": False}})
    # pragma: allowlist nextline secret
    assert made["metadata"]["annotations"][MANIFEST_HASH_ANNOTATION] == "e86f723c57f1125f"
