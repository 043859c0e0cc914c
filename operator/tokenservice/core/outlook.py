"""One service seen by itself: what is wrong with it, how it could be run, what is asked of it, what that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.allocation import Ranked, Want
from tokenservice.core.capacity import DEFAULT, Targets, Workload, replicas_for, targets
from tokenservice.core.checks import problems, with_image
from tokenservice.core.demand import Demand, demand, remembered, workload_of
from tokenservice.core.facts import Facts
from tokenservice.core.margin import UNTRIED, usable
from tokenservice.core.model import Accelerator, Missing, Problem, Reason, Service, ServiceMetrics, Variant
from tokenservice.core.scaling import Scaling, desired
from tokenservice.core.variants import candidates, ranked

NOT_READ = Missing("NotRead", "metrics were not read yet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A service's part of the decision before the fleet is considered; `want` is None when nothing can be decided."""

    service: Service
    problems: tuple[Problem, ...] = ()
    targets: Targets | None = None
    workload: Workload = DEFAULT
    ranked: Ranked = ()
    metrics: ServiceMetrics | Missing = NOT_READ
    demand: Demand | Missing = NOT_READ
    scaling: Scaling | None = None
    want: Want | None = None

    def load(self, margin: float, ready: int) -> float:
        """Demand as a share of what the replicas that serve are held to take; 0 where neither is known."""
        if self.want is None or isinstance(self.demand, Missing):
            return 0.0
        able = ready * self.want.capacity.requests_per_second * margin
        return self.demand.requests_per_second / able if able > 0 else 0.0

    @property
    def needed(self) -> int:
        """Replicas that the recent peak takes without headroom: what an eviction must leave."""
        if self.want is None or self.scaling is None or isinstance(self.demand, Missing):
            return self.scaling.replicas if self.scaling is not None else 0
        return min(self.scaling.replicas, replicas_for(self.demand.peak_requests_per_second, self.want.capacity))


def outlook(facts: Facts, service: Service) -> Outlook:
    """Judges one service on the facts; what else it may look at has to be given to the memo as well."""
    metrics = facts.snapshot.metrics.get(service.key, NOT_READ)
    margin = usable(facts.snapshot.margins.get(service.key, UNTRIED))
    given = (service, metrics, facts.belongings(service.key), facts.rivals(service.key), facts.scope, margin)
    return facts.memo.recall("outlook", service.key, given, lambda: _judged(facts, service, metrics))


def _judged(facts: Facts, service: Service, metrics: ServiceMetrics | Missing) -> Outlook:
    spec = service.spec
    work = remembered(service.status) if isinstance(metrics, Missing) else workload_of(metrics)
    if spec is None:
        return Outlook(service=service, problems=problems(facts, service, (), ()), workload=work, metrics=metrics)
    rivals, used = facts.rivals(service.key), tuple(facts.counts(service.key))
    given = (spec, work, rivals, used, facts.scope)
    ways = facts.memo.recall("ways", service.key, given, lambda: _ways(facts, service, spec, work))
    seen = replace(ways, service=service, metrics=metrics)
    return _scaled(facts, seen) if seen.ranked and not seen.problems else seen


def _ways(facts: Facts, service: Service, spec: TokenServiceSpec, work: Workload) -> Outlook:
    """How the service could be run, which hangs on the lengths of its requests and not on their rate."""
    found, wrong = facts.memo.recall(
        "candidates",
        service.key,
        (spec, tuple(facts.counts(service.key)), facts.scope),
        lambda: _candidates(facts, service, spec),
    )
    deployable = with_image(spec, found, facts.snapshot.settings.images)
    goals = targets(spec.objectives)
    order, unreachable = ranked(spec, deployable, work, goals)
    if unreachable and work != DEFAULT:
        # What clients send must not stall a service whose spec is sound: it is planned for the usual lengths instead.
        work = DEFAULT
        order, unreachable = ranked(spec, deployable, work, goals)
    return Outlook(
        service=service,
        problems=problems(facts, service, found, (*wrong, *unreachable)),
        targets=goals,
        workload=work,
        ranked=order,
    )


def _candidates(
    facts: Facts, service: Service, spec: TokenServiceSpec
) -> tuple[tuple[Variant, ...], tuple[Problem, ...]]:
    """Who names no accelerator gets one that there is; one that nodes must be bought for only if no other will do."""
    snapshot = facts.snapshot
    if not spec.placement.accelerators:
        there = tuple(a for a in snapshot.accelerators if facts.present(a) or _used(facts, service, a))
        found, wrong = candidates(spec, there, snapshot.profiles, snapshot.architectures)
        if found:
            return found, wrong
    return candidates(spec, snapshot.accelerators, snapshot.profiles, snapshot.architectures)


def _used(facts: Facts, service: Service, accelerator: Accelerator) -> bool:
    return any(name.startswith(f"{accelerator.name}-") for name in facts.counts(service.key))


def _scaled(facts: Facts, seen: Outlook) -> Outlook:
    """Adds what is asked of the service, and how many replicas of which variant that takes."""
    spec = seen.service.spec
    assert spec is not None
    current = facts.counts(seen.service.key)
    primary = _primary(seen.ranked, current)
    variant, capacity = seen.ranked[primary]
    asked = demand(seen.metrics, seen.workload, lead_seconds=variant.cold_start_seconds)
    count = _equivalent(seen.ranked, primary, current)
    margin = usable(facts.snapshot.margins.get(seen.service.key, UNTRIED))
    scaling = _held_if_partial(
        facts, seen, desired(spec, count, asked, capacity, facts.snapshot.fleet, seen.workload, margin), count
    )
    want = Want(
        service=seen.service,
        ranked=seen.ranked,
        primary=primary,
        replicas=scaling.replicas,
        owed=scaling.floor,
        current=current,
    )
    return replace(seen, demand=asked, scaling=scaling, want=want)


def _primary(order: Ranked, current: Mapping[str, int]) -> int:
    """The variant in use with most replicas while it is a candidate: a better one on paper is no reason to reload."""
    in_use = [(current.get(variant.name, 0), -index) for index, (variant, _) in enumerate(order)]
    most, negative_index = max(in_use)
    return -negative_index if most > 0 else 0


def _equivalent(order: Ranked, primary: int, current: Mapping[str, int]) -> int:
    """What there is, in replicas of the primary variant, rounded up."""
    reference = order[primary][1].requests_per_second
    worth: float = sum(
        current.get(variant.name, 0) * capacity.requests_per_second / reference for variant, capacity in order
    )
    return int(worth + 0.999)


def _held_if_partial(facts: Facts, seen: Outlook, scaling: Scaling, current: int) -> Scaling:
    """Demand seen by only some of the engines is a lower bound: it may raise the count and never lower it."""
    if isinstance(seen.metrics, Missing) or scaling.replicas >= current:
        return scaling
    ready = facts.ready(seen.service.key)
    if seen.metrics.engines_reporting >= ready or seen.service.spec is None or seen.service.spec.replicas is not None:
        return scaling
    message = f"{seen.metrics.engines_reporting} of {ready} engines report metrics: holding {current}"
    return replace(scaling, replicas=current, reason=Reason.METRICS_MISSING, message=message)


def primary_variant(seen: Outlook) -> Variant | None:
    """The variant that a service is planned with."""
    return seen.want.variant if seen.want is not None else None
