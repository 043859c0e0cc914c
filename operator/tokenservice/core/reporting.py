"""What is said about a decision: statuses that differ enough to be written, events, and the operator's own figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.capacity_profile import Provenance
from tokenservice.api.conditions import ConditionType
from tokenservice.core.adapters import AdapterReport, reports
from tokenservice.core.allocation import Grant
from tokenservice.core.capacity import Capacity
from tokenservice.core.capacity import capacity as capacity_of
from tokenservice.core.conditions import by_type
from tokenservice.core.deployment import startup_seconds
from tokenservice.core.facts import Facts, replicas, rolling_out, spans_nodes
from tokenservice.core.histogram import quantile
from tokenservice.core.margin import learned, overruns
from tokenservice.core.memo import column
from tokenservice.core.model import (
    Accelerator,
    Action,
    Apply,
    Event,
    Json,
    Missing,
    ObjectKey,
    Place,
    Plan,
    Pod,
    Problem,
    Reason,
    Service,
    ServiceKey,
    ServiceMetrics,
    SetServing,
    StatusWrite,
    Variant,
)
from tokenservice.core.names import ENGINE_KINDS
from tokenservice.core.outlook import Outlook
from tokenservice.core.refusal import advice, overdue, refusal, refused_pods, unprepared
from tokenservice.core.rollback import failure, newest, rolled_back, unverified
from tokenservice.core.rollout import exchanged_in_place
from tokenservice.core.room import NOBODY
from tokenservice.core.status import (
    DecisionReport,
    Figure,
    FleetReport,
    LoadingReport,
    ServiceReport,
    VariantReport,
    accelerator_status,
    fleet_status,
    service_status,
)
from tokenservice.core.status_changes import changed, events, rests, urgent, urgent_of
from tokenservice.core.stragglers import Straggler
from tokenservice.core.utilization import (
    Counts,
    Interval,
    Served,
    Waterfall,
    dollars_per_million_tokens,
    fleet_utilization,
    joules_per_token,
    service_utilization,
    waterfall,
    watts,
    work_per_request,
)
from tokenservice.core.variants import cost_per_million_tokens

Labels = tuple[tuple[str, str], ...]
_ZERO_TO_ONE = Interval(0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A decision, as far as it is to be told."""

    facts: Facts
    outlooks: Sequence[Outlook]
    grants: Mapping[ServiceKey, Grant]
    actions: Sequence[Action]
    attained: Mapping[ServiceKey, Interval | Missing]
    slow: Mapping[ServiceKey, tuple[Straggler, ...]]
    warm_nodes: Mapping[ServiceKey, tuple[str, ...]]


def told(decided: Decided, now: float) -> Plan:
    """The plan: the decision's actions, with statuses, events and figures. Proposals are the caller's to add."""
    by_service: dict[ServiceKey | None, list[Action]] = {}
    for action in decided.actions:
        by_service.setdefault(action.service, []).append(action)
    tales = _tales(decided, by_service, now)
    figures = dict(_all_figures(decided.facts, tales))
    written = [*(status for one in tales for status in one.written), *_fleet(decided, figures, now)]
    return Plan(
        actions=tuple(decided.actions),
        statuses=(*written, *_classes(decided.facts, now)),
        events=tuple([event for one in tales for event in one.events]),
        metrics=figures,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What is said of one service. `settled`: the same will be said of the same facts at any other time."""

    written: tuple[StatusWrite, ...]
    events: tuple[Event, ...]
    figures: tuple[tuple[str, Labels, float], ...]
    settled: bool


def _tales(decided: Decided, by_service: Mapping[ServiceKey | None, list[Action]], now: float) -> tuple[_Told, ...]:
    facts, grants = decided.facts, decided.grants
    seen = {one.service.key: one for one in decided.outlooks}
    keys = tuple(seen)
    mine = {key: tuple(by_service.get(key, ())) for key in seen}
    wait = dict(zip(keys, _rest(facts, keys, decided.outlooks, now), strict=True))
    given = (
        tuple(seen.values()),
        tuple(mine.values()),
        column(grants, keys, None),
        tuple(wait.values()),
        column(facts.all_belongings, keys, ()),
        column(facts.snapshot.refusals, keys, None),
        column(decided.slow, keys, None),
        [_adapters(facts, key) for key in keys],
        column(decided.warm_nodes, keys, ()),
    )
    found = facts.memo.recall_each(
        "told",
        keys,
        given,
        lambda new: [_told_of(decided, seen[key], mine[key], now, rests=wait[key]) for key in new],
        lambda one: one.settled,
        shared=(facts.scope,),
    )
    return tuple(found.values())


def _adapters(facts: Facts, key: ServiceKey) -> tuple[AdapterReport, ...]:
    return reports(facts.services[key].spec, facts.pods_of(key), facts.snapshot.adapters)


def _rest(facts: Facts, keys: tuple[ServiceKey, ...], outlooks: Iterable[Outlook], now: float) -> list[bool]:
    """Whether the figures of each service wait."""
    written, pause = facts.snapshot.status_written_at, facts.snapshot.settings.status_interval_seconds
    names = facts.memo.recall("names", None, (keys,), lambda: [ObjectKey("TokenService", *key) for key in keys])
    return [rests(written.get(name), now, pause, seen.service.uid) for name, seen in zip(names, outlooks, strict=True)]


def _all_figures(facts: Facts, tales: tuple[_Told, ...]) -> dict[str, dict[Labels, float]]:
    """By name and labels. Not to be written to: the next decision may give the same again."""
    return facts.memo.renew(
        "figures", tales, lambda: _figures(tales), lambda before, last: _refigured(before, last, tales)
    )


def _figures(tales: Iterable[_Told]) -> dict[str, dict[Labels, float]]:
    figures: dict[str, dict[Labels, float]] = {}
    for one in tales:
        for name, labels, value in one.figures:
            figures.setdefault(name, {})[labels] = value
    return figures


def _refigured(
    before: Sequence[_Told], figures: dict[str, dict[Labels, float]], tales: Sequence[_Told]
) -> dict[str, dict[Labels, float]]:
    """`_figures(tales)`, made from those of `before`: no two services have a figure in common."""
    was, now = {id(one) for one in before}, {id(one) for one in tales}
    found = {name: dict(values) for name, values in figures.items()}
    for one in before:
        if id(one) not in now:
            for name, labels, _ in one.figures:
                del found[name][labels]
    for name, values in _figures(one for one in tales if id(one) not in was).items():
        found.setdefault(name, {}).update(values)
    return {name: values for name, values in found.items() if values}


def _told_of(decided: Decided, seen: Outlook, mine: Sequence[Action], now: float, *, rests: bool) -> _Told:
    """While figures wait, a status that could not be written is not even rendered."""
    service, report = seen.service, _service_report(decided, seen, mine, now)
    figures, settled = tuple(_service_figures(service.key, report)), report.loading is None
    if rests and urgent_of(report) == _shown(decided.facts, service):
        return _Told(written=(), events=events(service, service.status, mine), figures=figures, settled=settled)
    status = service_status(_in_full(decided, seen, report), now)
    wanted = changed(service.status, status, None, now, decided.facts.snapshot.settings.status_interval_seconds)
    return _Told(
        written=() if wanted is None else (StatusWrite(key=_key(service), uid=service.uid, status=wanted),),
        events=events(service, status, mine),
        figures=figures,
        settled=settled and wanted is None,
    )


def _shown(facts: Facts, service: Service) -> Json:
    """What is urgent in the status that stands there."""
    return facts.memo.recall("shown", service.key, (service.status,), lambda: urgent(service.status))


def _key(service: Service) -> ObjectKey:
    return ObjectKey("TokenService", service.key.namespace, service.key.name)


def _write(facts: Facts, key: ObjectKey, uid: str, previous: Json, status: Json, now: float) -> tuple[StatusWrite, ...]:
    last, pause = facts.snapshot.status_written_at.get(key), facts.snapshot.settings.status_interval_seconds
    wanted = changed(previous, status, last, now, pause)
    return (StatusWrite(key=key, uid=uid, status=wanted),) if wanted is not None else ()


# --- One service ---------------------------------------------------------------------------------------------------


def _service_report(decided: Decided, seen: Outlook, mine: Sequence[Action], now: float) -> ServiceReport:
    """What decides whether a status is written at once, and what is exported; `_in_full` adds the rest."""
    facts, service = decided.facts, seen.service
    grant = decided.grants.get(service.key)
    crew = _crew_of(facts, service.key)
    metrics = seen.metrics if isinstance(seen.metrics, ServiceMetrics) else None
    return ServiceReport(
        service=service,
        floor=seen.floor,
        desired=sum(grant.counts.values()) if grant is not None else crew.existing,
        existing=crew.existing,
        ready=crew.ready,
        held_to=crew.held_to,
        doubted=crew.doubted,
        cluster_domain=facts.snapshot.settings.cluster_domain,
        problems=seen.problems,
        acting=facts.acting(service),
        changing=_changing(facts, service, mine),
        exchange=_exchange(facts, seen),
        failure=_failure(facts, seen, grant, now) if facts.acting(service) else None,
        contradiction=seen.scaling.contradiction if seen.scaling is not None else None,
        refused=_refused(facts, service.key, grant),
        slow=tuple(one.words for one in decided.slow.get(service.key, ())),
        variants=_variants(seen, grant, crew),
        loading=_loading(crew, seen, now),
        without_room=crew.stuck,
        room_message=_room_message(facts, seen, crew.stuck),
        limited=grant.limited if grant is not None else None,
        metrics=seen.metrics if isinstance(seen.metrics, Missing) else None,
        tokens_per_second=metrics.output_tokens_per_second if metrics else _missing(seen),
        requests_per_second=metrics.requests_per_second if metrics else _missing(seen),
        utilization=_utilization(seen, crew),
        ttft_seconds=_latency(seen, "ttft"),
        tpot_seconds=_latency(seen, "tpot"),
        cost_per_million_tokens=_cost(seen, crew),
        workload=seen.workload,
        capacity_factor=learned(facts.margin(service.key)),
        overrun_share=overruns(facts.margin(service.key)),
        adapters=_adapters(facts, service.key),
        warm_nodes=decided.warm_nodes.get(service.key, ()),
        decision=DecisionReport(reason=seen.scaling.reason, message="") if seen.scaling is not None else None,
    )


def _in_full(decided: Decided, seen: Outlook, report: ServiceReport) -> ServiceReport:
    """The report with what is only of interest when a status is written."""
    return replace(
        report,
        joules_per_token=_energy(decided.facts, seen, report.utilization),
        forecast=_forecast(seen),
        decision=_decision(seen, decided.grants.get(seen.service.key)),
    )


def _changing(facts: Facts, service: Service, mine: Sequence[Action]) -> bool:
    exchanging = any(rolling_out(child) for child in facts.deployments.get(service.key, {}).values())
    return exchanging or any(_touches_engines(action) for action in mine)


def _exchange(facts: Facts, seen: Outlook) -> str:
    """How replicas are exchanged for others: by a surge, in place, or not yet."""
    key = seen.service.key
    deployments, pods = facts.deployments.get(key, {}), facts.pods_of(key)
    exchanging = [child for child in deployments.values() if rolling_out(child)]
    if any(spans_nodes(child) and replicas(child) == 1 for child in exchanging):
        return (
            "the change waits: a LeaderWorkerSet starts no successor of a single replica (ask for 2 replicas for a"
            " while, or delete the LeaderWorkerSet to exchange it without one that serves)"
        )
    if exchanged_in_place(deployments, seen.ways, pods, seen.owed):
        return "changes are being rolled out in place, one replica at a time: no accelerators are free for a surge"
    if exchanging and any(pod.unschedulable for pod in pods):
        ready = sum(pod.ready for pod in pods)
        return (
            f"the rollout waits for accelerators: none are free for a surge, and of {ready} replicas that serve"
            f" {seen.owed} are needed"
        )
    return "changes are being rolled out by surge: a replica goes when its successor serves"


def _failure(facts: Facts, seen: Outlook, grant: Grant | None, now: float) -> Problem | None:
    """What keeps children, or engines of the variants that are wanted, from coming about."""
    key = seen.service.key
    if key in facts.snapshot.refusals:
        return facts.snapshot.refusals[key]
    stalled = by_type(seen.service.status).get(ConditionType.STALLED, {}).get("reason")
    known = stalled in (Reason.ENGINE_FAILED, Reason.VERIFICATION_FAILED)
    for variant in grant.counts if grant is not None else ():
        live, pods = facts.deployments.get(key, {}).get(variant), facts.pods.get((key, variant), ())
        left = rolled_back(live)
        if left is not None:
            does = "rolled back, for the version that the spec asks for did not come up"
            return Problem(Reason.ROLLED_BACK, variant, f"{does} (change the spec to try another): {left}")
        said = failure(pods, known=known) or unprepared(newest(pods), now) or _overdue(seen, variant, pods, now)
        if said is not None:
            if unverified(pods, known=known):
                does = "no engine starts with a model that is not verified"
                return Problem(Reason.VERIFICATION_FAILED, variant, f"{does}: {said}")
            fix = advice(said) or "mend the spec"
            back = "" if live is not None and spans_nodes(live) else "; spec.rollback: Automatic goes back"
            does = f"engines do not come up ({fix}{back})"
            return Problem(Reason.ENGINE_FAILED, variant, f"{does}: {said}")
        refused = refused_pods(live)
        if refused is not None and live is not None and (rolling_out(live) or _lacking(facts, seen)):
            return refusal(f"pods of {variant}", refused)
    return None


def _lacking(facts: Facts, seen: Outlook) -> bool:
    """Whether fewer replicas serve than must."""
    return facts.ready(seen.service.key) < max(1, seen.floor)


def _overdue(seen: Outlook, name: str, pods: Sequence[Pod], now: float) -> str | None:
    variant = next((variant for variant, _ in seen.ranked if variant.name == name), None)
    if variant is None or seen.service.spec is None:
        return None
    return overdue(newest(pods), startup_seconds(seen.service.spec, variant), now)


def _refused(facts: Facts, service: ServiceKey, grant: Grant | None) -> str:
    """Why the cluster lets the service have no more pods; empty while it does."""
    live = facts.deployments.get(service, {})
    found = [words for name in (grant.counts if grant is not None else ()) if (words := refused_pods(live.get(name)))]
    return refusal("", found[0]).message if found else ""


def _touches_engines(action: Action) -> bool:
    if isinstance(action, Apply):
        return action.manifest["kind"] in ENGINE_KINDS
    return isinstance(action, SetServing | Place)


def _variants(seen: Outlook, grant: Grant | None, crew: _Crew) -> tuple[VariantReport, ...]:
    counts = grant.counts if grant is not None else {}
    return tuple(
        VariantReport(
            variant=variant,
            replicas=counts[variant.name],
            ready=crew.ready_by_variant.get(variant.name, 0),
        )
        for variant, _ in seen.ranked
        if variant.name in counts
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crew:
    """A service's living pods, counted; dollars are of those on nodes."""

    existing: int
    ready: int
    held_to: frozenset[str | None]
    doubted: str
    ready_by_variant: Mapping[str, int]
    stuck: int
    starting: int
    oldest_start: float
    trouble: str
    dollars_per_hour: float


def _crew_of(facts: Facts, service: ServiceKey) -> _Crew:
    pods, workers = facts.pods_of(service), facts.workers_of(service)
    given = (pods, workers, facts.scope)
    return facts.memo.recall("crew", service, given, lambda: _counted_crew(facts, pods, workers))


def _counted_crew(facts: Facts, pods: Sequence[Pod], workers: Sequence[Pod]) -> _Crew:
    starting = sorted((pod for pod in pods if pod.starting and pod.node is not None), key=lambda pod: pod.name)
    troubles = (f"{pod.name}: {said}" for pod in starting if (said := pod.failure or pod.complaint))
    ready = [pod.variant for pod in pods if pod.ready]
    return _Crew(
        existing=len(pods),
        ready=len(ready),
        held_to=frozenset(pod.held_to for pod in pods if pod.ready),
        doubted=next(_doubts(pods), ""),
        ready_by_variant=Counter(ready),
        stuck=sum(pod.unschedulable for pod in pods),
        starting=len(starting),
        oldest_start=min((pod.created_at for pod in starting), default=0.0),
        trouble=next(troubles, ""),
        dollars_per_hour=sum(_price_per_hour(facts, pod) for pod in (*pods, *workers) if pod.node is not None),
    )


def _doubts(pods: Sequence[Pod]) -> Iterator[str]:
    """What the verifier says of replicas while others of their version serve: the model has changed in between."""
    for variant in sorted({pod.variant for pod in pods if pod.unverified}):
        version = newest([pod for pod in pods if pod.variant == variant])
        if any(pod.ready for pod in version):
            yield from (f"{pod.name}: {pod.failure}" for pod in version if pod.unverified and pod.failure)


def _loading(crew: _Crew, seen: Outlook, now: float) -> LoadingReport | None:
    if not crew.starting or seen.want is None:
        return None
    return LoadingReport(
        replicas=crew.starting,
        oldest_seconds=round(now - crew.oldest_start, 0),
        expected_seconds=seen.want.variant.cold_start_seconds,
        trouble=crew.trouble,
    )


def _room_message(facts: Facts, seen: Outlook, waiting: int) -> str:
    volume = next((pod.unbound for pod in facts.pods_of(seen.service.key) if pod.unschedulable and pod.unbound), None)
    if volume is not None:
        return f"they wait for their volume, not for room ({advice(volume) or 'see its claim'}): {volume}"
    size = seen.want.variant.accelerators if seen.want is not None else 0
    name = seen.want.variant.accelerator.name if seen.want is not None else "the allowed classes"
    return f"{waiting} replicas of {size} accelerators each find no room on nodes of {name}"


def _missing(seen: Outlook) -> Missing:
    return seen.metrics if isinstance(seen.metrics, Missing) else Missing(Reason.UNKNOWN, "not measured")


def _utilization(seen: Outlook, crew: _Crew) -> Figure:
    """Against what the ready replicas' own profiles promise, as the fleet's: what is learned moves decisions alone."""
    if seen.want is None or isinstance(seen.metrics, Missing):
        return _missing(seen)
    ready = crew.ready_by_variant
    able = sum(
        capacity.requests_per_second * ready[variant.name]
        for variant, capacity in _pinned(seen)
        if variant.name in ready
    )
    return service_utilization(seen.metrics.requests_per_second, able)


def _latency(seen: Outlook, which: str) -> Figure:
    if isinstance(seen.metrics, Missing) or seen.targets is None:
        return _missing(seen)
    if which == "ttft":
        return quantile(seen.metrics.ttft_buckets, seen.targets.ttft_fraction)
    return quantile(seen.metrics.tpot_buckets, seen.targets.tpot_fraction)


def _cost(seen: Outlook, crew: _Crew) -> Figure:
    if isinstance(seen.metrics, Missing):
        return seen.metrics
    return dollars_per_million_tokens(crew.dollars_per_hour, seen.metrics.output_tokens_per_second)


def _price_per_hour(facts: Facts, pod: Pod) -> float:
    accelerator = facts.accelerator_of(pod)
    return sum(pod.accelerators.values()) * accelerator.spec.price_per_hour if accelerator is not None else 0.0


def _energy(facts: Facts, seen: Outlook, busy: Figure) -> Figure:
    if isinstance(seen.metrics, Missing) or isinstance(busy, Missing):
        return _missing(seen)
    pods = (*facts.pods_of(seen.service.key), *facts.workers_of(seen.service.key))
    return joules_per_token(_watts(facts, pods, busy), seen.metrics.output_tokens_per_second)


def _watts(facts: Facts, pods: Sequence[Pod], busy: float) -> float:
    drawn = 0.0
    for pod in pods:
        accelerator = facts.accelerator_of(pod)
        if pod.node is not None and accelerator is not None:
            share = busy if pod.ready else 0.0
            spec = accelerator.spec
            drawn += watts(sum(pod.accelerators.values()), share, spec.idle_watts, spec.busy_watts)
    return drawn


def _forecast(seen: Outlook) -> str | None:
    if seen.want is None or isinstance(seen.demand, Missing):
        return None
    lead = seen.want.variant.cold_start_seconds
    return f"{seen.demand.forecast_requests_per_second:.3g} requests/s in {lead:.0f} s, when a start now would serve"


def _doubt(variant: Variant) -> str:
    """Stands beside every number that was never measured."""
    return " (estimate, not measured)" if variant.provenance is Provenance.ROOFLINE else ""


def _decision(seen: Outlook, grant: Grant | None) -> DecisionReport | None:
    if seen.scaling is None:
        return None
    others = tuple(
        f"{variant.name}: {cost_per_million_tokens(variant, capacity, seen.workload):.2f} $ per million tokens"
        f"{_doubt(variant)}"
        for variant, capacity in seen.ranked[:6]
        if grant is not None and variant.name not in grant.counts
    )
    notes = grant.notes if grant is not None else ()
    return DecisionReport(
        reason=seen.scaling.reason,
        message=seen.scaling.message,
        inputs=seen.scaling.inputs,
        rejected=(*seen.scaling.rejected, *others, *notes),
    )


def _service_figures(service: ServiceKey, report: ServiceReport) -> Iterator[tuple[str, Labels, float]]:
    labels: Labels = (("namespace", service.namespace), ("service", service.name))
    wanted = "service_desired_replicas" if report.acting else "service_recommended_replicas"  # an alert holds us to it
    values: dict[str, Figure] = {
        wanted: float(report.desired),
        "service_ready_replicas": float(report.ready),
        "service_slow_replicas": float(len(report.slow)),
        "service_utilization_ratio": report.utilization,
        "service_tokens_per_second": report.tokens_per_second,
        "service_dollars_per_million_tokens": report.cost_per_million_tokens,
    }
    for name, value in values.items():
        if not isinstance(value, Missing):
            yield name, labels, value


# --- The fleet -----------------------------------------------------------------------------------------------------


def _fleet(decided: Decided, figures: dict[str, dict[Labels, float]], now: float) -> tuple[StatusWrite, ...]:
    facts, found = decided.facts, decided.facts.snapshot.fleet_object
    counts = fleet_counts(facts)
    served = _all_served(decided)
    unknown = _fleet_metrics(decided.outlooks)
    parts = unknown or facts.memo.recall("waterfall", None, (served, counts), lambda: waterfall(served, counts))
    existing = [(facts.accelerators[name].spec, count) for name, count in facts.existing.items()]
    price: float = sum(count * spec.price_per_hour for spec, count in existing)
    output = _output(decided.outlooks)
    _add_fleet_figures(figures, counts, parts, price)
    if found is None:
        return ()
    metadata = found.get("metadata", {})
    report = FleetReport(
        generation=int(metadata.get("generation", 0)),
        previous=found.get("status", {}),
        services=len(decided.outlooks),
        accelerators=counts.existing,
        accelerators_in_use=counts.held,
        accelerators_fragmented=counts.free_on_used_nodes,
        cost_per_hour=price,
        problems=() if facts.snapshot.fleet_problem is None else (facts.snapshot.fleet_problem,),
        metrics=unknown,
        utilization=_fleet_utilization(facts, served, counts, unknown),
        utilization_1h=facts.snapshot.fleet_means.hour,
        utilization_24h=facts.snapshot.fleet_means.day,
        waterfall=parts,
        cost_per_million_tokens=dollars_per_million_tokens(price, output),
        joules_per_token=joules_per_token(_fleet_watts(existing, parts), output),
    )
    key = ObjectKey("TokenFleet", "", str(metadata.get("name", "default")))
    status = fleet_status(report, now)
    return _write(facts, key, str(metadata.get("uid", "")), report.previous, status, now)


def _classes(facts: Facts, now: float) -> tuple[StatusWrite, ...]:
    """What exists of each class that has nodes, or had some."""
    written: tuple[StatusWrite, ...] = ()
    for accelerator in facts.snapshot.accelerators:
        if facts.present(accelerator) or accelerator.status:
            status = _status_of_class(facts, accelerator)
            key = ObjectKey("AcceleratorClass", "", accelerator.name)
            written += _write(facts, key, accelerator.uid, accelerator.status, status, now)
    return written


def _status_of_class(facts: Facts, accelerator: Accelerator) -> Json:
    nodes, held = facts.nodes_of(accelerator), facts.tenancies
    status = facts.memo.recall(
        f"status of {accelerator.name}",
        None,
        (accelerator, nodes, held),
        lambda: accelerator_status(accelerator, nodes, held),
    )
    return dict(status)


def fleet_counts(facts: Facts) -> Counts:
    """Every accelerator of the fleet, counted once; what foreign pods hold is not the fleet's."""
    return facts.memo.recall("counts", None, (facts.tenancies, facts.rooms), lambda: _counted(facts))


def _counted(facts: Facts) -> Counts:
    ready = starting = draining = free_on_used = free_on_empty = 0
    for name, room in facts.rooms.items():
        held = facts.tenancies.get(name, NOBODY)
        ready, starting, draining = ready + held.ready, starting + held.starting, draining + held.draining
        free = sum(room.free.values())
        if room.used:
            free_on_used += free
        else:
            free_on_empty += free
    return Counts(
        ready=ready,
        starting=starting,
        draining=draining,
        free_on_used_nodes=max(0, free_on_used),
        free_on_empty_nodes=free_on_empty,
    )


def _all_served(decided: Decided) -> list[Served]:
    seen = {one.service.key: one for one in decided.outlooks}
    # Nothing but `metrics`, `ranked`, `targets` and `workload` of an outlook is looked at; all of them are in it.
    found = decided.facts.memo.recall_each(
        "served",
        tuple(seen),
        (tuple(seen.values()),),
        lambda new: [_served(seen[key], decided.attained[key]) for key in new],
    )
    return [one for one in found.values() if one is not None]


def _served(seen: Outlook, met: Interval | Missing) -> Served | None:
    """A service's goodput in units of its reference variant: the cheapest for its tokens."""
    if isinstance(seen.metrics, Missing) or not seen.ranked or seen.targets is None:
        return None
    variant, capacity = min(_pinned(seen), key=lambda pair: _reference_order(pair, seen))
    work = work_per_request(variant, capacity)
    if isinstance(work, Missing):
        return None
    return Served(
        requests_per_second=seen.metrics.requests_per_second,
        work_per_request=work,
        attainment=_ZERO_TO_ONE if isinstance(met, Missing) else met,
    )


def _pinned(seen: Outlook) -> Sequence[tuple[Variant, Capacity]]:
    """Variants with what their profiles themselves promise: what production teaches never moves utilization."""
    if seen.targets is None or all(variant.pinned is None for variant, _ in seen.ranked):
        return seen.ranked
    own = [replace(variant, step=variant.pinned or variant.step, pinned=None) for variant, _ in seen.ranked]
    return [(variant, capacity_of(variant, seen.workload, seen.targets)) for variant in own]


def _reference_order(pair: tuple[Variant, Capacity], seen: Outlook) -> tuple[float, str]:
    variant, capacity = pair
    return (cost_per_million_tokens(variant, capacity, seen.workload), variant.name)


def _fleet_utilization(facts: Facts, served: Sequence[Served], counts: Counts, unknown: Missing | None) -> Figure:
    """The user's own query if there is one, else ours: the lower end of the interval. `unknown` metrics are no zero."""
    if facts.snapshot.fleet.prometheus.utilization_query:
        return facts.snapshot.fleet_utilization
    if unknown is not None:
        return unknown
    found = facts.memo.recall("utilization", None, (served, counts), lambda: fleet_utilization(served, counts))
    return found if isinstance(found, Missing) else found.low


def _fleet_metrics(outlooks: Sequence[Outlook]) -> Missing | None:
    missing = [seen.metrics for seen in outlooks if isinstance(seen.metrics, Missing)]
    return missing[0] if missing and len(missing) == len(outlooks) else None


def _output(outlooks: Sequence[Outlook]) -> float:
    return sum(s.metrics.output_tokens_per_second for s in outlooks if isinstance(s.metrics, ServiceMetrics))


def _fleet_watts(existing: Iterable[tuple[AcceleratorClassSpec, int]], parts: Waterfall | Missing) -> float:
    """Every accelerator that exists draws its idle power at least; the work done draws the rest."""
    busy = 0.0 if isinstance(parts, Missing) else parts.utilization + parts.slo_misses
    return sum(watts(count, busy, spec.idle_watts, spec.busy_watts) for spec, count in existing)


def _add_fleet_figures(
    figures: dict[str, dict[Labels, float]], counts: Counts, parts: Waterfall | Missing, price: float
) -> None:
    figures["fleet_accelerators"] = {(): float(counts.existing)}
    figures["fleet_dollars_per_hour"] = {(): price}
    if not isinstance(parts, Missing):
        figures["fleet_utilization_ratio"] = {(): parts.utilization}
        names = ("headroom", "cold_start", "draining", "fragmentation", "idle_nodes", "slo_misses")
        figures["fleet_waterfall_ratio"] = {(("part", name),): getattr(parts, name) for name in names}
