"""One service seen by itself: what is wrong with it, how it could be run, what is asked of it, what that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.allocation import Ranked, Want, worth
from tokenservice.core.capacity import DEFAULT, Targets, Workload, replicas_for, targets
from tokenservice.core.checks import no_class, not_allowed, problems, with_image
from tokenservice.core.demand import Demand, demand, remembered, workload_of
from tokenservice.core.facts import Facts
from tokenservice.core.margin import UNTRIED, usable, within
from tokenservice.core.memo import column
from tokenservice.core.model import (
    Accelerator,
    Margin,
    Missing,
    Problem,
    Reason,
    Service,
    ServiceKey,
    ServiceMetrics,
    Variant,
)
from tokenservice.core.scaling import Scaling, desired, whole
from tokenservice.core.starts import as_started
from tokenservice.core.utilization import Interval
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
        """What arrives as a share of what the replicas that serve are held to take; 0 where neither is known.

        A queue is left out: where one stands although no more arrives than they should take, they take less.
        """
        if self.want is None or isinstance(self.demand, Missing):
            return 0.0
        able = ready * self.want.capacity.requests_per_second * margin
        return self.demand.arriving / able if able > 0 else 0.0

    @property
    def ways(self) -> frozenset[str]:
        """Names of the variants in which it may run."""
        return frozenset(variant.name for variant, _ in self.ranked)

    @property
    def queued(self) -> bool:
        """Whether a queue stands: more than arrives in a second."""
        return not isinstance(self.demand, Missing) and self.demand.waiting > self.demand.arriving

    @property
    def owed(self) -> int:
        """Replicas that must serve whatever is exchanged: the recent peak's, and those of the guaranteed volume."""
        return max(self.needed, self.floor)

    @property
    def floor(self) -> int:
        """Replicas without which the service is not Ready; a fixed count is an aim, not a promise."""
        spec = self.service.spec
        if self.scaling is None or spec is None:
            return 1
        return min(self.scaling.floor, spec.scaling.min_replicas) if spec.replicas is not None else self.scaling.floor

    @property
    def needed(self) -> int:
        """Replicas that the recent peak takes without headroom: what an eviction must leave."""
        if self.want is None or self.scaling is None or isinstance(self.demand, Missing):
            return whole(self.scaling.replicas) if self.scaling is not None else 0
        peak, wanted = self.demand.peak_requests_per_second, whole(self.scaling.replicas)
        return min(wanted, replicas_for(peak, self.want.capacity)) if peak < inf else wanted


def outlooks(facts: Facts) -> list[Outlook]:
    """The outlook of every service that is to stay."""
    services = {service.key: service for service in facts.snapshot.services if not service.deleting}
    keys, snapshot = tuple(services), facts.snapshot
    metrics, margins = column(snapshot.metrics, keys, NOT_READ), column(snapshot.margins, keys, UNTRIED)
    columns = (
        tuple(services.values()),
        metrics,
        [usable(margin) for margin in margins],
        [_usual(margin, seen) for margin, seen in zip(margins, metrics, strict=True)],
        column(facts.holdings, keys, None),
        column(facts.all_belongings, keys, ()),
        column(facts.all_rivals, keys, ()),
    )
    found = facts.memo.recall_each(
        "outlook", keys, columns, lambda new: [outlook(facts, services[key]) for key in new], shared=(facts.scope,)
    )
    return list(found.values())


def outlook(facts: Facts, service: Service) -> Outlook:
    """Judges one service on the facts; what else it may look at has to be given to the memo in `outlooks` as well."""
    metrics = facts.snapshot.metrics.get(service.key, NOT_READ)
    spec = service.spec
    work = workload_of(metrics, remembered(service.status))
    if spec is None:
        return Outlook(service=service, problems=problems(facts, service, (), ()), workload=work, metrics=metrics)
    rivals, used = facts.rivals(service.key), tuple(facts.counts(service.key))
    given = (spec, work, rivals, used, facts.scope)
    ways = facts.memo.recall("ways", service.key, given, lambda: _ways(facts, service, spec, work))
    pods = facts.pods_of(service.key)
    order = facts.memo.recall("starts", service.key, (ways, pods), lambda: as_started(ways.ranked, spec, pods))
    seen = Outlook(
        service=service,
        problems=ways.problems,
        targets=ways.targets,
        workload=ways.workload,
        ranked=order,
        metrics=metrics,
    )
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
    snapshot, classes = facts.snapshot, facts.allowed_classes(service.key.namespace)
    known = (snapshot.profiles, snapshot.architectures)
    limit = facts.limit_of(service.key.namespace)
    if not_allowed(spec, limit):
        return (), ()  # the checks say it
    if limit is not None and not classes:
        return (), (no_class(limit),)
    if not spec.placement.accelerators:
        there = tuple(a for a in classes if facts.present(a) or _used(facts, service, a))
        found, wrong = candidates(spec, there, *known, groups=snapshot.leader_worker_sets)
        if found:
            return found, wrong
    return candidates(spec, classes, *known, groups=snapshot.leader_worker_sets)


def _used(facts: Facts, service: Service, accelerator: Accelerator) -> bool:
    return any(name.startswith(f"{accelerator.name}-") for name in facts.counts(service.key))


def attained(facts: Facts, outlooks: Sequence[Outlook]) -> Mapping[ServiceKey, Interval | Missing]:
    """Share of each service's requests within both objectives, in the last window of metrics."""
    given = {seen.service.key: seen for seen in outlooks}
    return facts.memo.recall_each(
        "attained",
        tuple(given),
        ([seen.metrics for seen in outlooks], [seen.targets for seen in outlooks]),
        lambda new: [_within(given[key].metrics, given[key].targets) for key in new],
    )


def _within(metrics: ServiceMetrics | Missing, goals: Targets | None) -> Interval | Missing:
    if isinstance(metrics, Missing) or goals is None:
        return metrics if isinstance(metrics, Missing) else NOT_READ
    return within(metrics, goals)


def started_with(facts: Facts, seen: Outlook, primary: int) -> Outlook:
    """The outlook of a service that runs nothing yet, once it was decided which of `ranked` it starts with."""
    return _scaled(facts, seen, primary)


def _scaled(facts: Facts, seen: Outlook, start: int = 0) -> Outlook:
    """Adds what is asked of the service, and how many replicas of which variant that takes."""
    current = facts.counts(seen.service.key)
    primary = _primary(seen.ranked, current, start)
    asked, count = _asked(facts, seen, primary), _present(seen, primary, current)
    scaling = _held_if_partial(facts, seen, _desired(facts, seen, primary, asked, count), count)
    want = Want(
        service=seen.service,
        ranked=seen.ranked,
        primary=primary,
        replicas=scaling.replicas,
        owed=scaling.floor,
        current=current,
        options=() if any(current.values()) else _options(facts, seen, asked),
        waiting=_waiting(facts, seen.service.key),
    )
    return Outlook(
        service=seen.service,
        targets=seen.targets,
        workload=seen.workload,
        ranked=seen.ranked,
        metrics=seen.metrics,
        demand=asked,
        scaling=scaling,
        want=want,
    )


def _waiting(facts: Facts, service: ServiceKey) -> bool:
    """Whether a part of a replica that spans nodes has no node yet."""
    grouped = (pod for pod in (*facts.pods_of(service), *facts.workers_of(service)) if pod.group)
    return any(pod.node is None and not pod.nominated_node for pod in grouped)


def _asked(facts: Facts, seen: Outlook, index: int) -> Demand | Missing:
    lead, usual = seen.ranked[index][0].cold_start_seconds, _usual(facts.margin(seen.service.key), seen.metrics)
    asked = demand(seen.metrics, seen.workload, lead_seconds=lead, usual=usual)
    held = facts.holding(seen.service.key)
    if held is None or isinstance(asked, Missing):
        return asked
    able = seen.ranked[index][1].requests_per_second
    return replace(
        asked,
        peak_requests_per_second=held.peak * able,
        forecast_requests_per_second=held.ahead * able,
    )


def _desired(facts: Facts, seen: Outlook, index: int, asked: Demand | Missing, count: float) -> Scaling:
    spec = seen.service.spec
    assert spec is not None
    margin = usable(facts.margin(seen.service.key))
    return desired(spec, count, asked, seen.ranked[index][1], facts.snapshot.fleet, seen.workload, margin)


def _options(facts: Facts, seen: Outlook, asked: Demand | Missing) -> tuple[int, ...]:
    """Replicas that each variant would take alone, for those of the most preferred class if the spec names classes.

    Empty while nothing is known of the demand: one replica of the smallest variant would then always look cheapest.
    """
    spec = seen.service.spec
    promised = spec is not None and spec.objectives.volume is not None
    if spec is None or spec.replicas is not None or (isinstance(asked, Missing) and not promised):
        return ()
    first = seen.ranked[0][0].accelerator.name if spec.placement.accelerators else None
    return tuple(
        whole(_desired(facts, seen, index, _asked(facts, seen, index), 0).replicas)
        if first in (None, variant.accelerator.name)
        else 0
        for index, (variant, _) in enumerate(seen.ranked)
    )


def _usual(margin: Margin, metrics: ServiceMetrics | Missing) -> float:
    """The usual rate, requests per second, to a tenth; of interest only where work waits that may."""
    if isinstance(metrics, Missing) or not metrics.owed_requests_per_second:
        return 0.0
    return round(margin.usual, 1)


def _primary(order: Ranked, current: Mapping[str, int], start: int) -> int:
    """The variant in use with most replicas while it is a candidate: a better one on paper is no reason to reload."""
    in_use = [(current.get(variant.name, 0), -index) for index, (variant, _) in enumerate(order)]
    most, negative_index = max(in_use)
    return -negative_index if most > 0 else start


def _present(seen: Outlook, primary: int, current: Mapping[str, int]) -> float:
    """What there is, in replicas of the primary variant.

    Replicas of variants that are no candidates any more serve until their successors do, who knows at what rate: what
    is held is at least as many. Never rounded: what is held would grow by the rest, in every pass.
    """
    there = worth(seen.service, seen.ranked, primary, current)
    known = {variant.name for variant, _ in seen.ranked}
    return max(there, float(sum(current[name] for name in current.keys() - known)))


def _held_if_partial(facts: Facts, seen: Outlook, scaling: Scaling, current: float) -> Scaling:
    """Demand seen by only some of the engines, or not yet for long, is a lower bound: it never lowers the count."""
    if isinstance(seen.metrics, Missing) or scaling.replicas >= current:
        return scaling
    ready = facts.ready(seen.service.key)
    if seen.metrics.engines_reporting >= ready or seen.service.spec is None or seen.service.spec.replicas is not None:
        return scaling
    message = (
        f"{seen.metrics.engines_reporting} of {ready} engines reported for a whole window of rates:"
        f" holding {whole(current)}"
    )
    return replace(scaling, replicas=current, reason=Reason.METRICS_MISSING, message=message)
