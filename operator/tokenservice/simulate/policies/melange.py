"""Mélange: the cheapest mix of accelerators for a workload of fixed rate, by integer programming.

From "Mélange: Cost Efficient Large Language Model Serving by Exploiting GPU Heterogeneity" (arXiv 2404.14527) and its
solver, tyler-griggs/melange-release. Requests fall into buckets by their lengths; a bucket is cut into equal slices,
each of which goes to one type; as many instances of a type are bought as their load adds up to.

The simulated fleet gives a service one variant, so as a policy Mélange is the count for the highest rate of the
window that it is told, which for a fixed rate is the workload itself. `allocate` answers the whole question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

import highspy

from tokenservice.core.capacity import Targets, Workload, capacity
from tokenservice.core.model import Variant
from tokenservice.simulate.policies.base import EachService, Moment, Peer, choices
from tokenservice.simulate.policy import ServiceView

SLICES = 8
_DAY, _MINUTE = 86_400.0, 60.0


def allocate(
    rates: Sequence[float],
    throughput: Sequence[Sequence[float]],
    cost: Sequence[float],
    slices: int = SLICES,
) -> tuple[int, ...]:
    """Instances of each type that take all buckets at the least cost.

    `rates[i]` is requests per second of bucket i; `throughput[j][i]` what one instance of type j takes of it, 0 where
    it cannot keep the objectives; `cost[j]` its price. Raises ValueError for a bucket that no type can take.
    """
    stranded = [i for i, rate in enumerate(rates) if rate > 0 and all(row[i] <= 0 for row in throughput)]
    if stranded:
        raise ValueError(f"no accelerator keeps the objectives for bucket {stranded[0]}: relax them or add a type")
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("mip_rel_gap", 0.0)
    counts = [solver.addIntegral(lb=0, obj=price) for price in cost]
    taken = [[solver.addIntegral(lb=0, ub=slices if able > 0 else 0) for able in row] for row in throughput]
    for i, rate in enumerate(rates):
        solver.addConstr(sum(row[i] for row in taken) == (slices if rate > 0 else 0))
    for j, row in enumerate(throughput):
        load = sum(
            rate / slices / able * taken[j][i]
            for i, (rate, able) in enumerate(zip(rates, row, strict=True))
            if able > 0
        )
        solver.addConstr(load <= counts[j])
    solver.minimize()
    return tuple(round(solver.val(count)) for count in counts)


def allocate_variants(rates: Mapping[Workload, float], variants: Sequence[Variant], targets: Targets) -> dict[str, int]:
    """Replicas by variant name for requests per second by kind of request; capacity as the operator estimates it."""
    throughput = [[capacity(it, work, targets).requests_per_second for work in rates] for it in variants]
    counts = allocate(list(rates.values()), throughput, [it.price_per_hour for it in variants])
    return {it.name: count for it, count in zip(variants, counts, strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedRate:
    """Seconds for which one allocation stands, and the share by which the rate is raised."""

    window: float = _DAY
    headroom: float = 0.0


@dataclass(slots=True)
class _Allocation:
    setting: FixedRate
    made_at: float = -inf

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        """It reads no metric at all: what it is told of the rate is its input."""
        if at.now - self.made_at < self.setting.window or seen.reference_rate <= 0:
            return None
        self.made_at = at.now
        starts = (at.now + n * _MINUTE for n in range(int(self.setting.window / _MINUTE)))
        peak = max(at.expected(start, start + _MINUTE) for start in starts)
        rate = peak * (1 + self.setting.headroom)
        return allocate([rate], [[seen.reference_rate]], [seen.variant.price_per_hour])[0]


def melange(setting: FixedRate) -> EachService:
    return EachService("melange", _MINUTE, partial(_Allocation, setting))


PEERS = (
    Peer(
        name="melange",
        scales_on="the rate it is told, fixed",
        description="cheapest allocation for the highest minute of a window, known in advance",
        citation="arXiv 2404.14527; tyler-griggs/melange-release",
        sweep=choices(
            melange,
            FixedRate(),
            FixedRate(headroom=0.15),
            FixedRate(window=3600.0),
            FixedRate(window=3600.0, headroom=0.15),
            foresight=lambda _: True,
        ),
    ),
)
