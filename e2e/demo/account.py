"""Who delivered what, and what it took: SLO-goodput utilization and its waterfall.

Above the line stand the requests that met both objectives, each worth the accelerator-seconds it takes on its
service's reference variant at the reference rate. That worth is fixed by the scenario, the same for every policy.
Below the line stands every accelerator of every node from its start request to its release. The parts of the
waterfall are shares of the same total and add up to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from tokenservice.core.utilization import Waterfall, watts
from tokenservice.simulate import ledger
from tokenservice.simulate.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request as the client saw it; `met` is false for what was refused, cut, failed or late."""

    service: str
    arrived_at: float
    input_tokens: int
    output_tokens: int
    met: bool
    delivered_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpan:
    """A node's time on the bill, in seconds; `watts` is what it draws beside the work it does."""

    accelerators: int
    price_per_hour: float
    idle_watts: float
    busy_watts: float
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Accelerators at one instant, by what they are held for."""

    at: float
    ready: int
    starting: int
    draining: int
    free_on_used_nodes: int
    on_empty_nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """The result of one phase."""

    waterfall: Waterfall
    accelerator_hours: float
    dollars: float
    joules: float
    output_tokens: int
    attainment: Mapping[str, float]

    @property
    def dollars_per_million_tokens(self) -> float:
        return self.dollars / self.output_tokens * 1e6

    @property
    def joules_per_token(self) -> float:
        return self.joules / self.output_tokens


def bill(
    outcomes: Sequence[Outcome],
    references: Mapping[str, Reference],
    spans: Iterable[NodeSpan],
    held: Sequence[Held],
) -> Bill:
    """Adds a phase up. `held` are samples at even distances; their mean stands for the phase."""
    nodes = list(spans)
    existed = sum((span.end - span.start) * span.accelerators for span in nodes)
    met = sum(_worth(outcome, references) for outcome in outcomes if outcome.met)
    missed = sum(_worth(outcome, references) for outcome in outcomes if not outcome.met)
    waterfall = ledger.split(met / existed, missed / existed, _mean(held))
    busy = waterfall.utilization + waterfall.slo_misses
    return Bill(
        waterfall=waterfall,
        accelerator_hours=existed / 3600,
        dollars=sum((s.end - s.start) / 3600 * s.accelerators * s.price_per_hour for s in nodes),
        joules=sum(watts((s.end - s.start) * s.accelerators, busy, s.idle_watts, s.busy_watts) for s in nodes),
        output_tokens=sum(outcome.delivered_tokens for outcome in outcomes),
        attainment=attainment(outcomes),
    )


def attainment(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Joint attainment by service: the share of all requests that arrived which met both objectives."""
    arrived: dict[str, int] = {}
    met: dict[str, int] = {}
    for outcome in outcomes:
        arrived[outcome.service] = arrived.get(outcome.service, 0) + 1
        met[outcome.service] = met.get(outcome.service, 0) + outcome.met
    return {service: met[service] / count for service, count in sorted(arrived.items())}


def worth(reference: Reference, input_tokens: int, output_tokens: int) -> float:
    """Accelerator-seconds of a request; the demo's traffic shares no prefixes, so each prompt is computed whole."""
    return reference.accelerator_seconds(float(input_tokens), float(output_tokens), float(input_tokens))


def _worth(outcome: Outcome, references: Mapping[str, Reference]) -> float:
    return worth(references[outcome.service], outcome.input_tokens, outcome.output_tokens)


def _mean(samples: Sequence[Held]) -> ledger.Held:
    """What a sample held in the mean; the parts of the waterfall are shares of it."""
    names = [field.name for field in fields(Held) if field.name != "at"]
    return ledger.Held(**{name: sum(getattr(sample, name) for sample in samples) / len(samples) for name in names})
