"""What a run amounts to: utilization with its waterfall, attainment, cost; as numbers, a table's rows and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from tokenservice.core.utilization import Waterfall, watts
from tokenservice.simulate.fleet import Fleet, Lane, Moment
from tokenservice.simulate.ledger import split

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceResult:
    """One service. Attainments are shares of its interactive requests, `deferrable` of those that may wait.

    `worth` of its mean request is in accelerator-seconds of the reference variant: times a rate, it is what serves it.
    """

    tier: str
    requests: int
    attainment: float
    ttft_attainment: float
    tpot_attainment: float
    deferrable: float
    output_tokens: int
    tokens_owed: int
    worth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run.

    `goodput_per_accelerator_hour` counts output tokens of requests within their objectives; `changes` counts
    writes to the cluster; `tokens_owed` were asked for and not delivered.
    """

    scenario: str
    policy: str
    seed: int
    utilization: float
    waterfall: Waterfall
    services: Mapping[str, ServiceResult]
    accelerator_hours: float
    dollars: float
    dollars_per_million_tokens: float
    joules_per_token: float
    goodput_per_accelerator_hour: float
    changes: int
    replicas_started: int
    moves: int
    nodes_started: int
    tokens_owed: int
    timeline: tuple[Moment, ...] = ()

    @property
    def attainment(self) -> float:
        """The worst among Guaranteed services, or among all where none is."""
        tiers = [one for one in self.services.values() if one.tier == "Guaranteed"] or list(self.services.values())
        return min(one.attainment for one in tiers)

    def json(self, *, timeline: bool = True) -> Json:
        """For machines."""
        found = asdict(self) | {"attainment": self.attainment}
        if not timeline:
            del found["timeline"]
        return found


def result(fleet: Fleet, *, scenario: str, policy: str, seed: int) -> Result:
    """Adds a finished run up."""
    ledger, lanes = fleet.cluster.ledger, list(fleet.lanes.values())
    existing = ledger.held.existing
    hours, dollars = existing / 3600, ledger.dollars(fleet.seconds)
    tokens = sum(lane.tally.output_tokens for lane in lanes)
    parts = _waterfall(fleet)
    return Result(
        scenario=scenario,
        policy=policy,
        seed=seed,
        utilization=parts.utilization,
        waterfall=parts,
        services={key.name: _service(lane) for key, lane in fleet.lanes.items()},
        accelerator_hours=hours,
        dollars=dollars,
        dollars_per_million_tokens=dollars / tokens * 1e6 if tokens else 0.0,
        joules_per_token=_joules(fleet, parts) / tokens if tokens else 0.0,
        goodput_per_accelerator_hour=sum(lane.tally.output_tokens_met for lane in lanes) / hours if hours else 0.0,
        changes=fleet.cluster.changes,
        replicas_started=fleet.cluster.replicas_started,
        moves=fleet.cluster.moves,
        nodes_started=ledger.nodes_started,
        tokens_owed=sum(lane.tally.tokens_owed for lane in lanes),
        timeline=tuple(fleet.timeline),
    )


def _service(lane: Lane) -> ServiceResult:
    tally, spec = lane.tally, lane.service.spec
    assert spec is not None
    arrived = max(1, tally.arrived)
    return ServiceResult(
        tier=spec.tier.value,
        requests=tally.arrived + tally.deferrable_arrived,
        attainment=tally.attainment,
        ttft_attainment=tally.ttft_met / arrived,
        tpot_attainment=tally.tpot_met / arrived,
        deferrable=tally.deferrable_attainment,
        output_tokens=tally.output_tokens,
        tokens_owed=tally.tokens_owed,
        worth=lane.reference.tensor_parallel_size / lane.reference.requests_per_second,
    )


def _waterfall(fleet: Fleet) -> Waterfall:
    held, tallies = fleet.cluster.ledger.held, [lane.tally for lane in fleet.lanes.values()]
    existing = held.existing or 1.0
    return split(sum(t.work_met for t in tallies) / existing, sum(t.work_missed for t in tallies) / existing, held)


def _joules(fleet: Fleet, parts: Waterfall) -> float:
    """Estimated from the classes' watts, between idle and busy by the share of time that is worked."""
    busy = parts.utilization + parts.slo_misses
    return sum(
        watts(span.accelerator_hours(fleet.seconds) * 3600, busy, spec.idle_watts, spec.busy_watts)
        for span in fleet.cluster.ledger.every_span()
        for spec in (span.accelerator.spec,)
    )


PARTS = tuple(part.name for part in fields(Waterfall))
