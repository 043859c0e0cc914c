"""`decide(snapshot, now) -> Plan`: one decision for the whole fleet.

Each service is first seen by itself (`outlook`), then all of them compete for the accelerators that there are
(`allocation`), then each is moved one step towards what it was granted (`rollout`), pods that wait are given nodes and
nodes that could be free are emptied (`moves`), and what is said about it all follows (`reporting`). The function is
total and deterministic: equal snapshots give equal plans, and after a plan was carried out the next one is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tokenservice.api.token_service import Rollback
from tokenservice.core.adapters import mounts_list
from tokenservice.core.allocation import Grant, Ranked, Want, allocate, stock, worth
from tokenservice.core.capacity import Targets
from tokenservice.core.choice import chosen
from tokenservice.core.facts import Facts, rolling_out, spans_nodes
from tokenservice.core.hindsight import Hindsight, Look, all_lived, begun
from tokenservice.core.manifests import engines_of, shared_children
from tokenservice.core.margin import UNTRIED, moved
from tokenservice.core.memo import Memo, column
from tokenservice.core.model import (
    Action,
    Apply,
    Margin,
    Missing,
    ObjectKey,
    Plan,
    Reason,
    Service,
    ServiceKey,
    ServiceMetrics,
    Snapshot,
)
from tokenservice.core.moves import departures, placements
from tokenservice.core.names import adapters_name
from tokenservice.core.outlook import Outlook, attained, outlooks, started_with
from tokenservice.core.pace import turn
from tokenservice.core.reporting import Decided, told
from tokenservice.core.rollback import failure, with_history
from tokenservice.core.rollout import (
    Step,
    applied,
    delete,
    exchanged_in_place,
    lacking,
    making_room,
    retired,
    step,
    without_room,
)
from tokenservice.core.scaling import utilization_target
from tokenservice.core.starts import alike
from tokenservice.core.stragglers import lasting, since, stragglers
from tokenservice.core.utilization import Interval
from tokenservice.core.warmup import warm_ups

_ROUND_SECONDS = 5.0
"""Between two rounds of metrics and decisions."""


def decide(snapshot: Snapshot, now: float, memo: Memo | None = None) -> Plan:
    """What to do now, and what to say about it.

    A `memo` that is handed from one decision to the next spares what did not change; the plan is the same without.
    """
    facts = Facts(snapshot, Memo() if memo is None else memo)
    facts.memo.begin(service.key for service in snapshot.services)
    seen = _chosen(facts, outlooks(facts))
    grants = {grant.want.service.key: grant for grant in allocate([one.want for one in seen if one.want], facts)}
    acted_on = {key: grant for key, grant in grants.items() if facts.acting(grant.want.service)}
    actions: list[Action] = [*placements(facts, list(acted_on.values()), now), *_actions(facts, seen, acted_on)]
    suspects = stragglers(facts, seen)
    slow_since = since(facts, suspects, now)
    slow = lasting(facts, suspects, slow_since, now)
    wanted = {key: grant.counts for key, grant in acted_on.items()}
    leave = departures(facts, wanted, _settled(facts, seen, acted_on, actions), slow, now)
    actions += leave.actions
    warmed = warm_ups(facts, acted_on)
    actions += [action for one in warmed.values() for action in one.actions]
    ready = {key: one.ready for key, one in warmed.items()}
    met = attained(facts, seen)
    plan = told(
        Decided(facts=facts, outlooks=seen, grants=grants, actions=actions, attained=met, slow=slow, warm_nodes=ready),
        now,
    )
    return replace(
        plan,
        proposals=leave.proposals,
        slow_since=slow_since,
        given_up=leave.given_up,
        margins=_margins(facts, seen, met, now, full=_full(facts, plan)),
        hindsights=_hindsights(facts, seen, now),
    )


def _full(facts: Facts, plan: Plan) -> bool:
    """Whether the fleet has reached its target utilization, by the user's own figure where there is one."""
    own = facts.snapshot.fleet_utilization
    now = plan.metrics.get("fleet_utilization_ratio", {}).get((), 0.0) if isinstance(own, Missing) else own
    return bool(now >= facts.snapshot.fleet.target_utilization)


def _hindsights(facts: Facts, outlooks: Sequence[Outlook], now: float) -> dict[ServiceKey, Hindsight]:
    """The records of demand, one look longer where there is something new to see. Demand is in replicas' worth."""
    found, looks = dict[ServiceKey, Hindsight](), dict[ServiceKey, Look]()
    leads = _leads(facts, outlooks)
    keys = tuple(leads)
    records = column(facts.snapshot.hindsights, keys, None)
    metrics = column(facts.snapshot.metrics, keys, None)  # not the outlooks', which a memo may have kept from before
    for seen, lead, record, last in zip(outlooks, leads.values(), records, metrics, strict=True):
        key = seen.service.key
        if lead is not None and seen.want is not None and seen.targets is not None:
            unit = seen.want.variant.name
            if record is None or record.unit != unit or not alike(record.lead_seconds, lead):
                # With another lead, and in replicas of another variant, nothing learned holds.
                record = begun(lead, now, _able(facts, seen, seen.want), unit)
            elif not record.knows(last, now, turn(seen.service.uid)) and isinstance(last, ServiceMetrics):
                looks[key] = _look(facts, seen, seen.want, seen.targets, last, record)
        if record is not None:
            found[key] = record
    return found | dict(zip(looks, all_lived(list(looks.values()), now), strict=True))


def _leads(facts: Facts, outlooks: Sequence[Outlook]) -> Mapping[ServiceKey, float | None]:
    """Seconds from a change of demand until a replica that it calls for serves; None where no demand can be told."""
    given = {seen.service.key: seen for seen in outlooks}
    detection = _detection_seconds(facts)
    return facts.memo.recall_each(
        "lead",
        tuple(given),
        (tuple(given.values()),),
        lambda new: [_lead_seconds(given[key], detection) for key in new],
        shared=(detection,),
    )


def _lead_seconds(seen: Outlook, detection_seconds: float) -> float | None:
    if seen.want is None or seen.targets is None or seen.want.capacity.requests_per_second <= 0:
        return None
    return seen.want.variant.cold_start_seconds + detection_seconds


def _detection_seconds(facts: Facts) -> float:
    """From a change of demand until it is seen: a rate is that of the middle of its window, and is read in rounds."""
    return facts.snapshot.fleet.prometheus.window_seconds / 2 + _ROUND_SECONDS


def _able(facts: Facts, seen: Outlook, want: Want) -> float:
    """What the present replicas are to take, in replicas' worth."""
    there = worth(seen.service, want.ranked, want.primary, want.current)
    return there * facts.margin(seen.service.key).factor * _filled(facts, seen)


def _filled(facts: Facts, seen: Outlook) -> float:
    """Share of what its replicas take to which a service fills them."""
    spec = seen.service.spec
    assert spec is not None
    return utilization_target(spec, facts.snapshot.fleet)


def _look(
    facts: Facts, seen: Outlook, want: Want, targets: Targets, metrics: ServiceMetrics, record: Hindsight
) -> Look:
    spec = seen.service.spec
    assert spec is not None
    return Look(
        record,
        demand=metrics.requests_per_second / want.capacity.requests_per_second,
        capacity=facts.margin(seen.service.key).factor,
        tolerated_seconds=targets.ttft_seconds,
        fewest=max(1, spec.scaling.min_replicas),
        filled=_filled(facts, seen),
        told_by=metrics,
    )


def _margins(
    facts: Facts, outlooks: Iterable[Outlook], met: Mapping[ServiceKey, Interval | Missing], now: float, *, full: bool
) -> dict[ServiceKey, Margin]:
    """What this moment teaches about each service's capacity."""
    keys = tuple(met)
    margins, ready = column(facts.snapshot.margins, keys, UNTRIED), column(facts.all_ready, keys, 0)
    found: dict[ServiceKey, Margin] = {}
    for seen, margin, serving, share in zip(outlooks, margins, ready, met.values(), strict=True):
        if seen.targets is not None:
            found[seen.service.key] = moved(
                margin,
                seen.metrics,
                seen.targets,
                now,
                load=seen.load(margin.factor, serving),
                filled=_filled(facts, seen),
                queued=seen.queued,
                enough=full,
                seen=share,
            )
    return found


def _chosen(facts: Facts, outlooks: list[Outlook]) -> list[Outlook]:
    """The outlooks once services that run nothing yet have chosen their variants among them."""
    wants = [seen.want for seen in outlooks if seen.want is not None]
    if not any(want.options for want in wants):
        return outlooks
    picked = chosen(wants, stock(facts))
    return [
        started_with(facts, seen, start) if (start := picked.get(seen.service.key, 0)) else seen for seen in outlooks
    ]


def _actions(facts: Facts, outlooks: Iterable[Outlook], grants: Mapping[ServiceKey, Grant]) -> list[Action]:
    """What is to do for each service.

    Only silence is remembered: what is done may depend on the whole fleet's room, that nothing is to do does not.
    """
    asked = {seen.service.key: seen for seen in outlooks if seen.service.key in grants}
    keys = tuple(asked)
    done = facts.memo.recall_each(
        "quiet",
        keys,
        (tuple(asked.values()), column(grants, keys, None), column(facts.all_belongings, keys, ())),
        lambda new: [_recalled_actions(facts, asked[key], grants[key]) for key in new],
        _nothing,
        shared=(facts.snapshot.stale_kinds, facts.scope),
    )
    found = [action for mine in done.values() for action in mine]
    without_room = {pod.service for pod in facts.stuck}
    found += [action for key in keys if key in without_room for action in _giving_way(facts, asked[key], grants[key])]
    return sorted(found, key=lambda action: action.can_wait)


def _recalled_actions(facts: Facts, seen: Outlook, grant: Grant) -> list[Action]:
    """New demand alone gives no other manifests: those that were compared with the same objects need no second look."""
    key, ways = seen.service.key, [variant for variant, _ in seen.ranked]
    around = (facts.belongings(key), facts.snapshot.stale_kinds, facts.scope)
    given = (
        seen.service.spec,
        seen.service.uid,
        ways,
        grant.counts,
        grant.want.replicas,
        seen.needed,
        seen.owed,
        *around,
    )
    return facts.memo.recall("actions", key, given, lambda: _service_actions(facts, seen, grant), _nothing)


def _nothing(actions: list[Action]) -> bool:
    return not actions


def _service_actions(facts: Facts, seen: Outlook, grant: Grant) -> list[Action]:
    """Shared children first, then one step for each variant, then variants that are wanted no more.

    Of a new service only what its pods need comes before its engines, which take minutes to start; what nobody needs
    until they serve comes at the end of the plan, or the last of many services would wait for it.
    """
    shared = _shared_actions(facts, seen, grant)
    first = [action for action in shared if not action.can_wait]
    before = tuple(action.id for action in first)
    engines = [action for name in grant.counts for action in _engine(facts, seen, name, grant.counts, before)]
    after = tuple(action.id for action in engines)
    last = [replace(action, after=after) for action in shared if action.can_wait]
    return [*first, *engines, *last, *_retirements(facts, seen, grant), *_unlisted(facts, seen.service)]


_FOR_WHAT_SERVES = frozenset({"Service", "PodDisruptionBudget", "PodMonitor"})
"""Shared children that find and guard replicas, once there are some."""


def _shared_actions(facts: Facts, seen: Outlook, grant: Grant) -> list[Apply]:
    spec = seen.service.spec
    assert spec is not None
    total = sum(grant.counts.values())
    sizes = {variant.name: variant.pods for variant, _ in seen.ranked}
    workers = sum(count * (sizes[name] - 1) for name, count in grant.counts.items())
    groups = workers > 0 or any(map(spans_nodes, facts.deployments.get(seen.service.key, {}).values()))
    needed = _needed(facts, seen, total, workers)
    manifests = shared_children(
        seen.service, spec, facts.snapshot.settings, total, needed, workers=workers, groups=groups
    )
    found = [action for manifest in manifests for action in applied(facts, seen.service.key, manifest, Reason.UPDATED)]
    return [replace(action, can_wait=_can_wait(action)) for action in found]


def _can_wait(action: Apply) -> bool:
    return action.resource_version is None and action.manifest["kind"] in _FOR_WHAT_SERVES


def _needed(facts: Facts, seen: Outlook, total: int, workers: int) -> int:
    """What an eviction must leave; a disruption budget that asks for one replica more than that is left as it is."""
    name = ObjectKey("PodDisruptionBudget", seen.service.key.namespace, seen.service.key.name)
    live = facts.snapshot.children.get(name)
    stands = live.body.get("spec", {}).get("minAvailable") if live is not None else None
    keeps = isinstance(stands, int) and seen.needed <= stands - workers <= min(seen.needed + 1, total - 1)
    return int(stands) - workers if keeps and stands is not None else seen.needed


def _engine(facts: Facts, seen: Outlook, name: str, counts: Mapping[str, int], before: tuple[str, ...]) -> list[Action]:
    service = seen.service
    variant = next(variant for variant, _ in seen.ranked if variant.name == name)
    deployments = facts.deployments.get(service.key, {})
    live = deployments.get(name)
    missed = lacking(facts, service.key, name, counts, seen.owed)
    next_step = step(facts, service.key, name, counts[name], live, missed)
    settings, fleet = facts.snapshot.settings, facts.snapshot.fleet
    pods = facts.pods.get((service.key, name), ())
    in_place = name in exchanged_in_place(deployments, seen.ways, facts.pods_of(service.key), seen.owed)
    manifest = engines_of(
        service, variant, next_step.replicas, settings, fleet=fleet, surge=next_step.surge, in_place=in_place
    )
    automatic = service.spec is not None and service.spec.rollback is Rollback.AUTOMATIC
    if variant.pods == 1:
        manifest = with_history(manifest, live, failure(pods), automatic=automatic)
    after = (*before, *(action.id for action in next_step.before))
    return [*next_step.before, *applied(facts, service.key, manifest, _reason(next_step), next_step.message, after)]


def _reason(next_step: Step) -> Reason:
    return Reason.UPDATED if next_step.reason is Reason.STEADY else next_step.reason


def _retirements(facts: Facts, seen: Outlook, grant: Grant) -> list[Action]:
    if facts.snapshot.stale_kinds:
        return []
    gone = retired(facts, seen.service.key, grant.counts, grant.want.replicas)
    return [
        delete(child, seen.service.key, Reason.REMOVED, f"{child.key.name}: its variant is no longer used")
        for child in gone
    ]


def _giving_way(facts: Facts, seen: Outlook, grant: Grant) -> Iterable[Action]:
    """What goes of a variant that is wanted no more before its successors serve: what waits for room, or makes it."""
    key = seen.service.key
    if facts.snapshot.stale_kinds or retired(facts, key, grant.counts, grant.want.replicas):
        return
    waiting = tuple(without_room(facts, key, grant.counts))
    yield from waiting
    if not waiting and (fewer := making_room(facts, key, grant.counts, seen.owed)) is not None:
        yield fewer


def _unlisted(facts: Facts, service: Service) -> Iterable[Action]:
    """Deletes the list of adapters once no pod mounts it any more: one that starts anew would wait for it."""
    live = facts.child(service.key, "ConfigMap", adapters_name(service.key.name))
    wanted = service.spec is None or service.spec.model.runtime_adapters is not None
    if live is None or wanted or facts.snapshot.stale_kinds:
        return
    deployments = facts.deployments.get(service.key, {}).values()
    if not any(rolling_out(child) or mounts_list(child.body, service.key) for child in deployments):
        yield delete(live, service.key, Reason.REMOVED, f"{live.key.name}: adapters are loaded when engines start")


def _settled(
    facts: Facts, outlooks: list[Outlook], grants: dict[ServiceKey, Grant], actions: list[Action]
) -> dict[ServiceKey, Ranked]:
    """Services with nothing to do or to wait for, and the ways in which they may run."""
    busy = {action.service for action in actions}
    return {
        seen.service.key: seen.ranked
        for seen in outlooks
        if (grant := grants.get(seen.service.key)) is not None
        and seen.service.key not in busy
        and facts.deployments.get(seen.service.key, {}).keys() <= grant.counts.keys()
    }
