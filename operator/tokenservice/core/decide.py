"""`decide(snapshot, now) -> Plan`: one decision for the whole fleet.

Each service is first seen by itself (`outlook`), then all of them compete for the accelerators that there are
(`allocation`), then each is moved one step towards what it was granted (`rollout`), pods that wait are given nodes and
nodes that could be free are emptied (`moves`), and what is said about it all follows (`reporting`). The function is
total and deterministic: equal snapshots give equal plans, and after a plan was carried out the next one is empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tokenservice.core.allocation import Grant, allocate, stock
from tokenservice.core.choice import chosen
from tokenservice.core.drift import differs
from tokenservice.core.facts import Facts
from tokenservice.core.hindsight import Hindsight, begun, lived
from tokenservice.core.manifests import deployment, shared_children
from tokenservice.core.margin import moved
from tokenservice.core.memo import Memo
from tokenservice.core.model import (
    Action,
    Json,
    Margin,
    Missing,
    ObjectKey,
    Plan,
    Reason,
    Service,
    ServiceKey,
    Snapshot,
)
from tokenservice.core.moves import placements, repacking
from tokenservice.core.outlook import Outlook, outlook, started_with
from tokenservice.core.reporting import Decided, acting, told
from tokenservice.core.rollout import Step, apply, delete, retired, step
from tokenservice.core.scaling import utilization_target

_ROUND_SECONDS = 5.0
"""Between two rounds of metrics and decisions."""


def decide(snapshot: Snapshot, now: float, memo: Memo | None = None) -> Plan:
    """What to do now, and what to say about it.

    A `memo` that is handed from one decision to the next spares what did not change; the plan is the same without.
    """
    facts = Facts(snapshot, Memo() if memo is None else memo)
    facts.memo.begin(service.key for service in snapshot.services)
    outlooks = _chosen(facts, [outlook(facts, service) for service in snapshot.services if not service.deleting])
    grants = {grant.want.service.key: grant for grant in allocate([o.want for o in outlooks if o.want], facts)}
    acted_on = [grant for grant in grants.values() if acting(facts, grant.want.service)]
    actions: list[Action] = list(placements(facts, acted_on, now))
    for seen in outlooks:
        grant = grants.get(seen.service.key)
        if grant is not None and acting(facts, seen.service):
            actions += _recalled_actions(facts, seen, grant)
    moves, proposals = repacking(facts, _settled(outlooks, grants, actions), now)
    actions += moves
    plan = told(Decided(facts=facts, outlooks=outlooks, grants=grants, actions=actions), now)
    full = _full(facts, plan)
    margins = {seen.service.key: _margin(facts, seen, now, full) for seen in outlooks if seen.targets is not None}
    hindsights = {seen.service.key: record for seen in outlooks if (record := _hindsight(facts, seen, now)) is not None}
    return replace(plan, proposals=proposals, margins=margins, hindsights=hindsights)


def _full(facts: Facts, plan: Plan) -> bool:
    """Whether the fleet has reached its target utilization, by the user's own figure where there is one."""
    own = facts.snapshot.fleet_utilization
    now = plan.metrics.get("fleet_utilization_ratio", {}).get((), 0.0) if isinstance(own, Missing) else own
    return bool(now >= facts.snapshot.fleet.target_utilization)


def _hindsight(facts: Facts, seen: Outlook, now: float) -> Hindsight | None:
    """The record of the service's demand, one look longer; a new one when replicas take another time to load.

    Demand is in replicas' worth, as modelled.
    """
    record = facts.snapshot.hindsights.get(seen.service.key)
    if seen.want is None or seen.targets is None or seen.want.capacity.requests_per_second <= 0:
        return record
    lead = seen.want.variant.cold_start_seconds + _detection_seconds(facts)
    assert seen.service.spec is not None
    filled = utilization_target(seen.service.spec, facts.snapshot.fleet)
    able = facts.margin(seen.service.key).factor
    if record is None or record.lead_seconds != lead:
        return begun(lead, now, sum(seen.want.current.values()) * able * filled)
    told = facts.snapshot.metrics.get(seen.service.key)  # not the outlook's, which a memo may have kept from before
    if told is None or isinstance(told, Missing) or record.knows(told, now):
        return record
    fewest = max(1, seen.service.spec.scaling.min_replicas)
    load, tolerated = told.requests_per_second / seen.want.capacity.requests_per_second, seen.targets.ttft_seconds
    return lived(record, load, able, tolerated, fewest, now, filled=filled, told_by=told)


def _detection_seconds(facts: Facts) -> float:
    """From a change of demand until it is seen: a rate is that of the middle of its window, and is read in rounds."""
    return facts.snapshot.fleet.prometheus.window_seconds / 2 + _ROUND_SECONDS


def _margin(facts: Facts, seen: Outlook, now: float, full: bool) -> Margin:
    """What this moment teaches about the service's capacity."""
    assert seen.targets is not None
    margin = facts.margin(seen.service.key)
    load = seen.load(margin.factor, facts.ready(seen.service.key))
    return moved(margin, seen.metrics, seen.targets, now, load=load, queued=seen.queued, enough=full)


def _chosen(facts: Facts, outlooks: list[Outlook]) -> list[Outlook]:
    """The outlooks once services that run nothing yet have chosen their variants among them."""
    wants = [seen.want for seen in outlooks if seen.want is not None]
    if not any(want.options for want in wants):
        return outlooks
    picked = chosen(wants, stock(facts))
    return [
        started_with(facts, seen, start) if (start := picked.get(seen.service.key, 0)) else seen for seen in outlooks
    ]


def _recalled_actions(facts: Facts, seen: Outlook, grant: Grant) -> list[Action]:
    """Only silence is remembered: what is done may depend on the whole fleet's room, that nothing is to do does not."""
    key, around = seen.service.key, (facts.belongings(seen.service.key), facts.snapshot.stale_kinds, facts.scope)

    def by_what_is_rendered() -> list[Action]:
        ways = [variant for variant, _ in seen.ranked]
        given = (seen.service.spec, seen.service.uid, ways, grant.counts, seen.needed, *around)
        return facts.memo.recall("actions", key, given, lambda: _service_actions(facts, seen, grant), _nothing)

    return facts.memo.recall("quiet", key, (seen, grant, *around), by_what_is_rendered, _nothing)


def _nothing(actions: list[Action]) -> bool:
    return not actions


def _service_actions(facts: Facts, seen: Outlook, grant: Grant) -> list[Action]:
    """Shared children first, then one step for each variant, then variants that are wanted no more."""
    shared = _shared_actions(facts, seen, grant)
    before = tuple(action.id for action in shared)
    engines = [action for name, count in grant.counts.items() for action in _engine(facts, seen, name, count, before)]
    return [*shared, *engines, *_retirements(facts, seen, grant)]


def _shared_actions(facts: Facts, seen: Outlook, grant: Grant) -> list[Action]:
    spec = seen.service.spec
    assert spec is not None
    total = sum(grant.counts.values())
    needed = _needed(facts, seen, total)
    manifests = shared_children(seen.service, spec, facts.snapshot.settings, total, needed)
    return [action for manifest in manifests for action in _applied(facts, seen.service, manifest, Reason.UPDATED)]


def _needed(facts: Facts, seen: Outlook, total: int) -> int:
    """What an eviction must leave; a disruption budget that asks for one replica more than that is left as it is."""
    name = ObjectKey("PodDisruptionBudget", seen.service.key.namespace, seen.service.key.name)
    live = facts.snapshot.children.get(name)
    stands = live.body.get("spec", {}).get("minAvailable") if live is not None else None
    keeps = isinstance(stands, int) and seen.needed <= stands <= min(seen.needed + 1, total - 1)
    return int(stands) if keeps and stands is not None else seen.needed


def _engine(facts: Facts, seen: Outlook, name: str, count: int, before: tuple[str, ...]) -> list[Action]:
    service = seen.service
    variant = next(variant for variant, _ in seen.ranked if variant.name == name)
    live = facts.deployments.get(service.key, {}).get(name)
    next_step = step(facts, service.key, name, count, live)
    settings, fleet = facts.snapshot.settings, facts.snapshot.fleet
    manifest = deployment(service, variant, next_step.replicas, settings, fleet=fleet, surge=next_step.surge)
    after = (*before, *(action.id for action in next_step.before))
    return [*next_step.before, *_applied(facts, service, manifest, _reason(next_step), next_step.message, after)]


def _reason(next_step: Step) -> Reason:
    return Reason.UPDATED if next_step.reason is Reason.STEADY else next_step.reason


def _applied(
    facts: Facts, service: Service, manifest: Json, reason: Reason, message: str = "", after: tuple[str, ...] = ()
) -> Iterable[Action]:
    """The apply of a child, if it differs from what is there."""
    metadata = manifest["metadata"]
    live = facts.snapshot.children.get(ObjectKey(manifest["kind"], metadata["namespace"], metadata["name"]))
    if live is not None and not differs(manifest, live.body):
        return
    first = reason if live is not None or reason is not Reason.UPDATED else Reason.CREATED
    said = message or f"{manifest['kind']} {metadata['name']} {'changed' if live else 'created'}"
    yield apply(manifest, live, service.key, first, said, after)


def _retirements(facts: Facts, seen: Outlook, grant: Grant) -> list[Action]:
    if facts.snapshot.stale_kinds:
        return []
    gone = retired(facts, seen.service.key, grant.counts)
    return [
        delete(child, seen.service.key, Reason.REMOVED, f"{child.key.name}: its variant is no longer used")
        for child in gone
    ]


def _settled(
    outlooks: list[Outlook], grants: dict[ServiceKey, Grant], actions: list[Action]
) -> dict[ServiceKey, float]:
    """Services with nothing to do, and the seconds that a start of theirs takes."""
    busy = {action.service for action in actions}
    return {
        seen.service.key: max(variant.cold_start_seconds for variant, _ in seen.ranked)
        for seen in outlooks
        if seen.service.key in grants and seen.service.key not in busy
    }
