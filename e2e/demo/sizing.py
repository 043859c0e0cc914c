"""What can be said before anything runs: the yardstick of each service, and the static sizes it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from e2e.demo.scenario import Example
from e2e.load.trace import Arrival
from tokenservice.catalogue import accelerator_classes, architectures, capacity_profiles
from tokenservice.core.capacity import Workload, targets
from tokenservice.core.model import Accelerator, Profile, Variant
from tokenservice.core.variants import Ranked, candidates, ranked
from tokenservice.simulate.reference import Reference
from tokenservice.simulate.reference import reference as yardstick

BIN_SECONDS = 10.0
"""Demand is binned by so much time of the trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A static size and how it came about; demand and capacity in requests/s as they pass here."""

    service: str
    variant: Variant
    demand_p99: float
    capacity: float
    replicas: int


def workload(arrivals: Sequence[Arrival]) -> Workload:
    """Mean lengths of the traffic."""
    if not arrivals:
        return Workload()
    lengths = np.array([(a.input_tokens, a.output_tokens) for a in arrivals], dtype=float).mean(axis=0)
    return Workload(float(lengths[0]), float(lengths[1]))


def choices(example: Example, arrivals: Sequence[Arrival]) -> Ranked:
    """Variants that reach the objectives on this traffic, best first, as the operator ranks them."""
    classes = [Accelerator(name=name, spec=spec) for name, spec in sorted(accelerator_classes().items())]
    profiles = [Profile(name=name, spec=spec) for name, spec in sorted(capacity_profiles().items())]
    found, problems = candidates(example.spec, classes, profiles, architectures())
    order, unreachable = ranked(example.spec, found, workload(arrivals), targets(example.spec.objectives))
    if not order:
        raise ValueError(f"{example.name}: {[*problems, *unreachable]}")
    return order


def static_size(example: Example, arrivals: Sequence[Arrival], *, seconds: float, time_scale: float) -> Size:
    """`ceil(p99 of the demand in 10 s of the trace / capacity at the objectives)`, at least 1, first-choice variant."""
    variant, capacity = choices(example, arrivals)[0]
    width = BIN_SECONDS / time_scale
    counts, _ = np.histogram([a.at_s for a in arrivals], bins=np.arange(0, seconds + width / 2, width))
    demand = float(np.quantile(counts / width, 0.99))
    return Size(
        service=example.name,
        variant=variant,
        demand_p99=demand,
        capacity=capacity.requests_per_second,
        replicas=max(1, ceil(demand / capacity.requests_per_second)),
    )


def reference(example: Example, arrivals: Sequence[Arrival]) -> Reference:
    """The yardstick: the variant with the lowest price per token, its rate found by simulation on these lengths."""
    variant, _ = min(
        choices(example, arrivals),
        key=lambda pair: (pair[0].price_per_hour / pair[1].requests_per_second, pair[0].name),
    )
    lengths = [(a.input_tokens, a.output_tokens) for a in arrivals]
    usual = workload(arrivals)
    return yardstick(
        variant,
        lengths or [(round(usual.input_tokens), round(usual.output_tokens))],
        targets(example.spec.objectives),
    )


def by_service(arrivals: Sequence[Arrival], names: Sequence[str]) -> Mapping[str, tuple[Arrival, ...]]:
    """The traffic of each service."""
    return {name: tuple(a for a in arrivals if a.service == name) for name in names}
