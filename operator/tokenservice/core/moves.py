"""Which gated pods go where, and which pods should leave a node so that it becomes free."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tokenservice.api.token_service import Mode, Tier
from tokenservice.core.allocation import Grant, Ranked, after_pending, replica
from tokenservice.core.facts import Facts, replicas, rolling_out, spans_nodes
from tokenservice.core.locality import told
from tokenservice.core.memo import column
from tokenservice.core.model import (
    Action,
    Child,
    ObjectKey,
    Place,
    Pod,
    Proposal,
    Reason,
    Service,
    ServiceKey,
    SetDeletionCost,
    Variant,
)
from tokenservice.core.packing import place
from tokenservice.core.refusal import refused_pods
from tokenservice.core.repack import LEAVING, Rules, due, proposals
from tokenservice.core.rollout import mark
from tokenservice.core.room import Room
from tokenservice.core.stragglers import Straggler

GATE_SECONDS = 30.0
"""A pod is never kept from the scheduler for longer than this."""

SECOND_LOOK_SECONDS = 10.0


def placements(facts: Facts, grants: Sequence[Grant], now: float) -> tuple[Place, ...]:
    """Lifts our gate from every pod that has it: with a node where there is room, else without.

    Tiers come one after the other, and each keeps the room of replicas that it was granted and that are yet to appear:
    the pods of two Deployments that were made at once come in any order. A pod for which that leaves no room waits.
    """
    gated = facts.gated
    if not gated:
        return ()
    left, reserved, placed = facts.rooms, False, list[Place]()
    most = sum(count for room in left.values() for count in room.free.values() if count > 0)
    for tier in _TIERS:
        mine = [pod for pod in gated if _tier(facts, pod) is tier]
        expected = [pod for grant in grants if _tier_of(grant) is tier for pod in _expected(facts, grant, most)]
        chosen = place([*mine, *expected], left, facts.admits, avoid=facts.emptied, site=facts.site, held=facts.held)
        waits = reserved
        placed += [
            _placed(facts, pod, chosen[pod.uid], now)
            for pod in mine
            if chosen[pod.uid] or not waits or _expired(pod, now)
        ]
        left = _taken(left, [*mine, *expected], chosen)
        reserved = reserved or bool(expected)
    return tuple(placed)


_TIERS = (Tier.GUARANTEED, Tier.ELASTIC, Tier.SPOT, None)
"""In the order in which they are given room; None are pods whose service is gone or cannot be read."""


def _tier(facts: Facts, pod: Pod) -> Tier | None:
    service = facts.services.get(pod.service) if pod.service is not None else None
    return service.spec.tier if service is not None and service.spec is not None else None


def _tier_of(grant: Grant) -> Tier | None:
    return grant.want.service.spec.tier if grant.want.service.spec is not None else None


def _expected(facts: Facts, grant: Grant, most: int) -> list[Pod]:
    """Pods of replicas that were granted which do not exist yet, also those that a leader still waits for.

    No more than `most` of a variant: what finds no room anyway is not worth imagining, and counts may be anything.
    """
    service, found = grant.want.service, list[Pod]()
    for variant, _ in grant.want.ranked:
        there = facts.pods.get((service.key, variant.name), ())
        for number in range(min(most, grant.counts.get(variant.name, 0) - len(there))):
            absent = replica(service, variant, f"{service.uid}/{variant.name}/{number}")
            found += [replace(pod, images=there[0].images) for pod in absent] if there else absent
        if variant.pods > 1:
            found += _absent_workers(facts, service, variant, there)
    return found


def _absent_workers(facts: Facts, service: Service, variant: Variant, leaders: Sequence[Pod]) -> list[Pod]:
    """They come a moment after their leader, and are to find room where it does."""
    present = Counter(worker.group for worker in facts.workers_of(service.key))
    return [
        replace(pod, group=leader.group)
        for leader in leaders
        for pod in replica(service, variant, leader.uid)[1 + present[leader.group] :]
    ]


def _taken(left: Mapping[str, Room], pods: Sequence[Pod], chosen: Mapping[str, str | None]) -> Mapping[str, Room]:
    rooms = dict(left)
    for pod in pods:
        node = chosen[pod.uid]
        if node is not None:
            rooms[node] = rooms[node].less(pod)
    return rooms


def _expired(pod: Pod, now: float) -> bool:
    return now - pod.created_at > GATE_SECONDS


def _placed(facts: Facts, pod: Pod, node: str | None, now: float) -> Place:
    if _expired(pod, now):
        node, reason, message = None, Reason.GATE_EXPIRED, f"gated for more than {GATE_SECONDS:.0f} s"
    elif node is None:
        reason, message = Reason.NO_ROOM, "no node has room: left to the scheduler and a node autoscaler"
    else:
        reason = Reason.PLACED
        message = f"placed on {node}, the fullest node that fits{told(pod, node, facts.snapshot.holders)}"
    return Place(
        id=f"place/{pod.namespace}/{pod.name}",
        service=pod.service,
        reason=reason,
        message=f"{pod.name}: {message}",
        pod=ObjectKey("Pod", pod.namespace, pod.name),
        uid=pod.uid,
        node=node,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Departures:
    """Marks of pods that should leave a node, what is proposed for the next look, and when moves were given up."""

    actions: tuple[Action, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    given_up: Mapping[str, float]


def departures(
    facts: Facts,
    wanted: Mapping[ServiceKey, Container[str]],
    settled: Mapping[ServiceKey, Ranked],
    slow: Mapping[ServiceKey, Sequence[Straggler]],
    now: float,
) -> Departures:
    """Which pods should leave their node.

    `wanted` are the variants that each service that is acted on is to have: a move of another (paused, say) stands
    still, and holds up no other. `settled` holds the services that are as they should be, and the ways in which they
    may run. A slow replica goes before nodes are emptied: it costs its users something now. Whose move was given up
    rests as if it had just come, for what was in its way, which the planner did not see, may be there still.
    """
    policy = facts.snapshot.fleet.consolidation
    rules = Rules(
        cooldown_seconds=policy.cooldown_seconds,
        payback_hours=policy.payback_hours,
        second_look_seconds=SECOND_LOOK_SECONDS,
        max_moves=policy.max_concurrent_moves,
    )
    under_way = [pod for pod in facts.moving if pod.service in wanted]
    cancelled = _cancellations(facts, under_way, wanted)
    resting = {uid: at for uid, at in facts.snapshot.given_up.items() if now - at < rules.cooldown_seconds}
    given_up = resting | {mark.uid: now for mark in cancelled}
    if cancelled or under_way or not policy.enabled or facts.snapshot.stale_kinds:
        return Departures(actions=cancelled, given_up=given_up)
    replaced = _replaced(facts, settled, slow, rules, now, resting)
    if replaced:
        return Departures(actions=replaced, given_up=given_up)
    found = _proposals(facts, settled, rules, now, frozenset(resting))
    started = [move for proposal in found if due(proposal, rules, now) for move in _start(facts, proposal, rules)]
    return Departures(actions=tuple(started), proposals=found, given_up=given_up)


def _replaced(
    facts: Facts,
    settled: Mapping[ServiceKey, Ranked],
    slow: Mapping[ServiceKey, Sequence[Straggler]],
    rules: Rules,
    now: float,
    resting: Container[str],
) -> tuple[Action, ...]:
    """The slowest that has rested and whose successor has room; the next when that one is gone."""
    if not slow:
        return ()
    warm_ups, left = _warm_ups(facts, {key: ways for key, ways in settled.items() if key in slow}), after_pending(facts)
    may = [
        one
        for service, mine in slow.items()
        for one in mine
        if one.pod.variant in warm_ups.get(service, {})
        and now - one.pod.created_at >= rules.cooldown_seconds
        and one.pod.uid not in resting
        and left.best(one.pod, but=one.pod.node or "") is not None
    ]
    return tuple(
        mark(one.pod, LEAVING, Reason.SLOW_REPLICA, f"{one.words}: it is replaced, look at that node")
        for one in sorted(may, key=lambda one: (-one.times, one.pod.name))[: min(1, rules.max_moves)]
    )


def _proposals(
    facts: Facts, settled: Mapping[ServiceKey, Ranked], rules: Rules, now: float, resting: frozenset[str]
) -> tuple[Proposal, ...]:
    """Only that there is none is remembered: until something stands elsewhere, or another pod has rested."""
    pods, warm_ups = facts.engine_pods, _warm_ups(facts, settled)
    births = facts.memo.recall("births", None, (pods,), lambda: sorted([pod.created_at for pod in pods]))
    rested = bisect_left(births, True, key=lambda created_at: now - created_at < rules.cooldown_seconds)
    specs = tuple([service.spec for service in facts.snapshot.services])
    return facts.memo.recall(
        "proposals",
        None,
        (facts.staying, facts.rooms, warm_ups, specs, facts.scope, rules, rested, resting),
        lambda: proposals(
            facts.staying,
            facts.rooms,
            facts.admits,
            lambda pod: pod.ready and pod.uid not in resting and _may_move(pod, warm_ups),
            lambda room, residents: _pays_back(room, residents, warm_ups, rules.payback_hours),
            rules,
            facts.snapshot.proposals,
            now,
            facts.site,
        ),
        lambda found: not found,
    )


def _may_move(pod: Pod, warm_ups: WarmUps) -> bool:
    return pod.service is not None and pod.variant in warm_ups.get(pod.service, {})


def _start(facts: Facts, proposal: Proposal, rules: Rules) -> list[Action]:
    residents = [pod for pod in facts.engine_pods if f"{pod.namespace}/{pod.name}" in proposal.pods]
    why = f"leaves {proposal.node}, so that the node becomes free"
    return [mark(pod, LEAVING, Reason.MOVE_STARTED, why) for pod in residents[: rules.max_moves]]


def _cancellations(
    facts: Facts, under_way: Sequence[Pod], wanted: Mapping[ServiceKey, Container[str]]
) -> tuple[SetDeletionCost, ...]:
    """A move that cannot lead anywhere is given up: the pod stays where it is."""
    stuck = {(pod.service, pod.variant) for pod in facts.stuck}
    ends = [(pod, _retired(pod, wanted) or _in_vain(facts, pod, stuck)) for pod in under_way]
    return tuple(mark(pod, 0, Reason.MOVE_CANCELLED, why) for pod, why in ends if why)


def _retired(pod: Pod, wanted: Mapping[ServiceKey, Container[str]]) -> str:
    """That the pod is not replaced by its like any more, so that its move would never end; empty where it may be."""
    kept = pod.service is None or pod.variant in wanted[pod.service]
    return "" if kept else "its variant is no longer used"


def _in_vain(facts: Facts, pod: Pod, stuck: Container[tuple[ServiceKey | None, str]]) -> str:
    """Why the pod would be moved in vain; empty while there is hope."""
    if (pod.service, pod.variant) in stuck:
        return "its successor found no room"
    if _came_back(facts, pod):
        return "its successor went to the same node"
    return _refused(facts, pod)


def _came_back(facts: Facts, pod: Pod) -> bool:
    """Whether a successor starts on the node that the pod is to leave.

    Without the webhook, or where it was late, nothing keeps the scheduler from a node that is being emptied; and it
    prefers those where others of the service are.
    """
    siblings = facts.pods.get((pod.service, pod.variant), ()) if pod.service is not None else ()
    return any(one.node == pod.node and one.starting and one.created_at > pod.created_at for one in siblings)


def _refused(facts: Facts, pod: Pod) -> str:
    """That a quota, say, lets the Deployment of the pod have no more; empty where none does."""
    deployments = facts.deployments.get(pod.service, {}) if pod.service is not None else {}
    refused = refused_pods(deployments.get(pod.variant or "")) is not None
    return "its successor is refused" if refused else ""


WarmUps = Mapping[ServiceKey, Mapping[str, float]]
"""Seconds that a replica takes to start again, of every service and variant that may be moved."""


def _warm_ups(facts: Facts, settled: Mapping[ServiceKey, Ranked]) -> WarmUps:
    services, keys = facts.services, tuple(settled)
    return facts.memo.recall_each(
        "warm-ups",
        keys,
        ([services[key].spec for key in keys], tuple(settled.values()), column(facts.all_belongings, keys, ())),
        lambda new: [_warm_up(facts, services[key], settled[key]) for key in new],
    )


def _warm_up(facts: Facts, service: Service, ways: Ranked) -> dict[str, float]:
    """By variant; only those that may be acted on, and of which every replica serves.

    Replicas that span nodes stay where they are: their set lets nobody choose which of them goes.
    """
    spec = service.spec
    if spec is None or spec.mode is not Mode.ACT or spec.paused:
        return {}
    seconds = max((variant.cold_start_seconds for variant, _ in ways), default=0.0)
    deployments = facts.deployments.get(service.key, {})
    return {
        name: seconds
        for name, child in deployments.items()
        if not spans_nodes(child) and _all_serve(facts, service.key, name, child)
    }


def _all_serve(facts: Facts, service: ServiceKey, variant: str, deployment: Child) -> bool:
    pods = facts.pods.get((service, variant), ())
    return not rolling_out(deployment) and len(pods) == replicas(deployment) and all(pod.ready for pod in pods)


def _pays_back(room: Room, residents: Iterable[Pod], warm_ups: WarmUps, payback_hours: float) -> bool:
    """Whether the accelerator-hours freed within the payback time exceed those that warming up again takes."""
    freed = sum(room.node.allocatable.values()) * payback_hours
    warm_up = sum(
        warm_ups[pod.service][pod.variant] / 3600 * sum(pod.accelerators.values())
        for pod in residents
        if pod.service is not None
    )
    return freed > warm_up
