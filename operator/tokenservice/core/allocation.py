"""Counts for the whole fleet at once: who gets how many replicas of which variant.

Deciding service by service would hand the same free accelerator out twice. Services are served in the order of their
tier, then of their age; each replica that is added takes its room from what is left. A replica that finds no room in
its first-choice variant takes another variant with room now, when that costs at most twice as much for its tokens;
otherwise it is asked for all the same, so that it is Unschedulable and a node autoscaler sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from tokenservice.api.token_service import Tier
from tokenservice.core.capacity import Capacity
from tokenservice.core.facts import Facts
from tokenservice.core.model import Pod, Problem, Reason, Service, ServiceKey, Variant
from tokenservice.core.packing import Yard
from tokenservice.core.room import usable

_ORDER = {Tier.GUARANTEED: 0, Tier.ELASTIC: 1, Tier.SPOT: 2}
ALTERNATIVE_PRICE_LIMIT = 2.0

Ranked = tuple[tuple[Variant, Capacity], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What one service asks for: `replicas` of `ranked[primary]`, of which `owed` are beyond any budget.

    `options` are for a service that runs nothing yet and may choose: the replicas that each of `ranked` would take by
    itself, 0 for one that may not be chosen. `waiting`: a replica that spans nodes lacks some of its room.
    """

    service: Service
    ranked: Ranked
    primary: int
    replicas: float
    owed: int
    current: Mapping[str, int]
    options: tuple[int, ...] = ()
    waiting: bool = False

    @property
    def variant(self) -> Variant:
        return self.ranked[self.primary][0]

    @property
    def capacity(self) -> Capacity:
        return self.ranked[self.primary][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What it gets: replicas by variant name, and how many of them have no room yet.

    `limited` says why it gets less than it wants where a limit of the TokenFleet lets it have no more.
    """

    want: Want
    counts: Mapping[str, int]
    without_room: int = 0
    notes: tuple[str, ...] = ()
    limited: Problem | None = None


def allocate(wants: Sequence[Want], facts: Facts) -> tuple[Grant, ...]:
    """Grants in the order of `wants`; room is given by tier and age, to services that are only observed at last."""
    limit = facts.snapshot.fleet.budget_per_hour
    budget = _Budget(limit, _spent(wants, facts) if limit is not None else 0.0)
    left = cache(lambda: after_pending(facts))
    quotas = _quotas(wants, facts)
    asking = {want.service.key: want for want in _by_precedence(wants, facts)}
    grants = facts.memo.recall_each(
        "grant",
        tuple(asking),
        (tuple(asking.values()),),
        lambda new: [_grant(asking[key], left, budget, quotas.get(key.namespace)) for key in new],
        lambda grant: not _grows(grant),  # a grant without growth depends on nobody else
    )
    return tuple([grants[want.service.key] for want in wants])


def _by_precedence(wants: Sequence[Want], facts: Facts) -> list[Want]:
    """By tier, then by age; last those that nothing is done for: what they are told they would get, nobody misses."""
    services = tuple([want.service for want in wants])
    order = facts.memo.recall(
        "precedence",
        None,
        (services, facts.snapshot.fleet),
        lambda: sorted(range(len(wants)), key=lambda n: (not facts.acting(services[n]), _precedence(services[n]))),
    )
    return [wants[number] for number in order]


def stock(facts: Facts) -> dict[str, int]:
    """Accelerators that are free for new replicas, by class, once pods that wait for a node have theirs."""
    free: dict[str, int] = {}
    for room in after_pending(facts).rooms.values():
        accelerator = facts.class_of(room.node)
        if accelerator is not None:
            count = room.free.get(accelerator.spec.resource_name, 0)
            free[accelerator.name] = free.get(accelerator.name, 0) + max(0, count)
    return free


def _grows(grant: Grant) -> bool:
    return bool(grant.notes) or any(count > grant.want.current.get(name, 0) for name, count in grant.counts.items())


def _precedence(service: Service) -> tuple[int, float, str, str]:
    tier = _ORDER[service.spec.tier] if service.spec is not None else len(_ORDER)
    return (tier, service.created_at, service.key.namespace, service.key.name)


def open_room(facts: Facts) -> Yard:
    """Room that new pods may have."""
    return Yard((room for room in facts.rooms.values() if usable(room.node)), facts.admits, facts.site)


def after_pending(facts: Facts) -> Yard:
    """Room that is left once pods that wait for a node have theirs."""
    waiting = [p for p in facts.engine_pods if p.node is None and not p.deleting and (p.gated or not p.nominated_node)]
    left = open_room(facts)
    for pod in sorted(waiting, key=lambda pod: (pod.created_at, pod.namespace, pod.name)):
        left.fill(pod)
    return left


def _spent(wants: Sequence[Want], facts: Facts) -> float:
    """What is spent per hour, also by services about which nothing can be decided.

    Replicas that are to be replaced do not count, as with quotas.
    """
    decided = {want.service.key for want in wants}
    others = (service.key for service in facts.snapshot.services if service.key not in decided)
    return sum(_price(want, want.current) for want in wants) + sum(_held(key, facts) for key in others)


def _held(service: ServiceKey, facts: Facts) -> float:
    """What the pods of a service cost per hour, as far as their class is known."""
    pods = [(pod, facts.accelerator_of(pod)) for pod in (*facts.pods_of(service), *facts.workers_of(service))]
    return sum(
        sum(pod.accelerators.values()) * accelerator.spec.price_per_hour for pod, accelerator in pods if accelerator
    )


class _Budget:
    """What may still be spent per hour; growth above every floor stops when it is gone."""

    def __init__(self, limit: float | None, spent: float) -> None:
        self._left = math.inf if limit is None else limit - spent

    def take(self, price: float, *, owed: bool) -> bool:
        if not owed and price > self._left:
            return False
        self._left -= price
        return True


@dataclass
class _Quota:
    """Accelerators that a namespace may hold, and how many its engines hold or were granted so far."""

    namespace: str
    limit: int
    held: int

    def allows(self, variant: Variant) -> bool:
        return self.held + variant.accelerators <= self.limit

    @property
    def problem(self) -> Problem:
        return Problem(
            Reason.NAMESPACE_LIMIT,
            "spec.namespaces",
            f"namespace {self.namespace} may hold {self.limit} accelerators, and {self.held} are given:"
            " make do with fewer, or have maxAccelerators raised in the TokenFleet",
        )


_SPENT = Problem(
    Reason.BUDGET_LIMIT,
    "spec.budgetPerHour",
    "the fleet's budgetPerHour is used up: make do with fewer, or have it raised in the TokenFleet",
)


def _quotas(wants: Sequence[Want], facts: Facts) -> dict[str, _Quota]:
    """Of each namespace with a bound. What stays counts before anything is added, whoever is served first.

    Replicas that are to be replaced do not: they serve until the others do, so for that time both are there.
    """
    bounds = {limit.name: limit.max_accelerators for limit in facts.snapshot.fleet.namespaces}
    quotas = {name: _Quota(name, bound, 0) for name, bound in bounds.items() if bound is not None}
    decided = {want.service.key for want in wants}
    for want in wants:
        if (quota := quotas.get(want.service.key.namespace)) is not None:
            stays = _kept(want) if facts.acting(want.service) else want.current
            quota.held += sum(variant.accelerators * stays.get(variant.name, 0) for variant, _ in want.ranked)
    for service in facts.snapshot.services:
        quota = quotas.get(service.key.namespace)
        if quota is not None and service.key not in decided:
            pods = (*facts.pods_of(service.key), *facts.workers_of(service.key))
            quota.held += sum(sum(pod.accelerators.values()) for pod in pods)
    return quotas


def _grant(want: Want, left: Callable[[], Yard], budget: _Budget, quota: _Quota | None) -> Grant:
    counts = _kept(want)
    deficit = want.replicas - _total(want, counts)
    without_room, notes, limited = 0, list[str](), None
    while deficit > 1e-6:
        choice, has_room = _choice(want, left())
        if quota is not None and not quota.allows(choice[0]):
            limited = quota.problem
            notes.append(limited.message)
            break
        if not has_room and choice[0].pods > 1 and (without_room or want.waiting):
            notes.append("a replica that spans nodes waits for room already, and two could each hold a part of it")
            break
        owed = _total(want, counts) < want.owed
        if not budget.take(choice[0].price_per_hour, owed=owed):
            limited = _SPENT
            notes.append(limited.message)
            break
        counts[choice[0].name] = counts.get(choice[0].name, 0) + 1
        if quota is not None:
            quota.held += choice[0].accelerators
        deficit -= _relative(want.service, want.capacity, choice[1])
        if has_room:
            for pod in replica(want.service, choice[0]):
                left().fill(pod)
        else:
            without_room += 1
    return Grant(want=want, counts=counts, without_room=without_room, notes=tuple(notes), limited=limited)


def _kept(want: Want) -> dict[str, int]:
    """Current counts of variants that are still candidates, lowered to what is wanted, dearest first."""
    counts = {variant.name: want.current.get(variant.name, 0) for variant, _ in want.ranked}
    surplus = _total(want, counts) - want.replicas
    order = [pair for pair in reversed(want.ranked) if pair[0] is not want.variant] + [want.ranked[want.primary]]
    for variant, capacity in order:
        one = _relative(want.service, want.capacity, capacity)
        removable = min(counts[variant.name], math.floor(surplus / one + 1e-6)) if surplus > 0 else 0
        counts[variant.name] -= removable
        surplus -= removable * one
    return {name: count for name, count in counts.items() if count > 0}


def _choice(want: Want, left: Yard) -> tuple[tuple[Variant, Capacity], bool]:
    """The first choice if it has room, else the best other with room, else the first choice without."""
    first = want.ranked[want.primary]
    limit = ALTERNATIVE_PRICE_LIMIT * _token_price(first)
    others = [pair for pair in want.ranked if pair[0] is not first[0] and _token_price(pair) <= limit]
    for pair in (first, *others):
        if left.holds(replica(want.service, pair[0])):
            return pair, True
    return first, False


def replica(service: Service, variant: Variant, name: str = "") -> tuple[Pod, ...]:
    """The pods of a replica that does not exist yet, as far as room is concerned."""
    one = Pod(
        namespace=service.key.namespace,
        name=name,
        uid=name,
        resource_version="",
        created_at=0.0,
        accelerators={variant.accelerator.spec.resource_name: variant.accelerators_per_pod},
        service=service.key,
        variant=variant.name,
    )
    if variant.pods == 1:
        return (one,)
    return tuple([replace(one, uid=f"{name}/{n}", group=name, worker=n > 0) for n in range(variant.pods)])


def worth(service: Service, ranked: Ranked, primary: int, counts: Mapping[str, int]) -> float:
    """What replicas of several variants are worth, in replicas of `ranked[primary]`."""
    reference = ranked[primary][1]
    return math.fsum(
        counts.get(variant.name, 0) * _relative(service, reference, capacity) for variant, capacity in ranked
    )


def _relative(service: Service, reference: Capacity, capacity: Capacity) -> float:
    """Worth of one replica; a count that the spec fixes is one of replicas, whatever they can do."""
    fixed = service.spec is not None and service.spec.replicas is not None
    able, other = capacity.requests_per_second, reference.requests_per_second
    return able / other if able > 0 and other > 0 and not fixed else 1.0


def _total(want: Want, counts: Mapping[str, int]) -> float:
    return worth(want.service, want.ranked, want.primary, counts)


def _token_price(pair: tuple[Variant, Capacity]) -> float:
    variant, capacity = pair
    return variant.price_per_hour / capacity.requests_per_second if capacity.requests_per_second > 0 else math.inf


def _price(want: Want, counts: Mapping[str, int]) -> float:
    return sum(counts.get(variant.name, 0) * variant.price_per_hour for variant, _ in want.ranked)
