"""How many replicas a service should have.

Up as soon as the demand expected when a new replica would serve exceeds what the present ones take at the target
utilization; down only when fewer replicas pass the same check against the highest demand of the scale-down window,
with a little to spare. What is not known changes nothing: without metrics the count holds, or rises to its floor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, inf

from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.capacity import DEFAULT, Capacity, Workload, replicas_for
from tokenservice.core.demand import Demand
from tokenservice.core.model import Missing, Problem, Reason

_SPARE = 1.05
"""Demand that fewer replicas must be able to take, as a multiple of the peak: more than one step of the workload's
grid, so that its rounding cannot move the count to and fro."""


MOST_REPLICAS = 10_000
"""Of one service; maxReplicas may be no more either. A volume outranks what its own spec says and not the fleet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """A count and why: one sentence, the numbers behind it, and what was decided against.

    `replicas` is whole unless it is what there is, where other variants stand beside the one that it counts.
    `contradiction` is what the spec says against itself, where one of two fields had to give way.
    """

    replicas: float
    floor: int
    ceiling: int
    reason: Reason
    message: str
    contradiction: Problem | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Case:
    """One service's question."""

    spec: TokenServiceSpec
    current: float
    capacity: Capacity
    utilization: float
    factor: float
    floor: int
    ceiling: int
    guaranteed: int
    bound: float  # requests per second beyond which nothing is promised

    @property
    def able(self) -> bool:
        return self.capacity.requests_per_second > 0

    def carrying(self, requests_per_second: float) -> int:
        """Replicas that a rate fills to the target, whatever the bounds say of their count."""
        rate = min(requests_per_second, self.bound) / self.factor
        return replicas_for(rate, self.capacity, self.utilization)

    def needed(self, requests_per_second: float) -> int:
        """Replicas for a rate within the bounds."""
        load = self.carrying(requests_per_second)
        return min(max(load + self.spec.scaling.standby_replicas, self.floor), self.ceiling)


def desired(
    spec: TokenServiceSpec,
    current: float,
    demand: Demand | Missing,
    capacity: Capacity,
    fleet: TokenFleetSpec,
    workload: Workload = DEFAULT,
    margin: float = 1.0,
) -> Scaling:
    """The count for a service that has `current` replicas of the given capacity, or others that are worth as much.

    `margin` is a factor on that capacity, learned from the objectives that were missed.
    `workload` stands in for the demand's own while that is missing. A fixed `spec.replicas` wins over everything.
    """
    if spec.replicas is not None:
        return _fixed(spec.replicas, current)
    work = workload if isinstance(demand, Missing) else demand.workload
    case = _case(spec, current, capacity, fleet, work, margin)
    if isinstance(demand, Missing):
        return _held(case, Reason.METRICS_MISSING, f"metrics are missing ({demand.message}): holding", {})
    if not case.able:
        return _held(case, Reason.HOLDING, "no replica meets the objectives: holding", _inputs(case, demand))
    return _automatic(case, demand)


def utilization_target(spec: TokenServiceSpec, fleet: TokenFleetSpec) -> float:
    """The service's own target utilization, else the fleet's."""
    own = spec.scaling.target_utilization
    return fleet.target_utilization if own is None else own


def guaranteed_replicas(spec: TokenServiceSpec, capacity: Capacity, workload: Workload) -> int:
    """Replicas whose full capacity covers the guaranteed volume, as far as any service may have so many.

    0 without one or where nothing is known.
    """
    volume = spec.objectives.volume
    tokens = volume.guaranteed_tokens_per_second if volume is not None else None
    if tokens is None or capacity.requests_per_second <= 0:
        return 0
    return min(replicas_for(tokens / workload.output_tokens, capacity), MOST_REPLICAS)


def _case(
    spec: TokenServiceSpec,
    current: float,
    capacity: Capacity,
    fleet: TokenFleetSpec,
    workload: Workload,
    margin: float,
) -> _Case:
    """A guarantee that needs more than maxReplicas outranks it: what is owed is owed."""
    guaranteed = guaranteed_replicas(spec, capacity, workload)
    standby = min(spec.scaling.standby_replicas, spec.scaling.max_replicas)  # of before the two were held together
    floor = max(spec.scaling.min_replicas, standby, guaranteed)
    volume = spec.objectives.volume
    most = volume.max_tokens_per_second if volume is not None else None
    return _Case(
        spec=spec,
        current=current,
        capacity=capacity,
        utilization=utilization_target(spec, fleet),
        # Who sets a target of his own wants that headroom: what was learned may add to it and never take from it.
        factor=margin if spec.scaling.target_utilization is None else min(1.0, margin),
        floor=floor,
        ceiling=max(floor, spec.scaling.max_replicas),
        guaranteed=guaranteed,
        bound=inf if most is None else most / workload.output_tokens,
    )


def _automatic(case: _Case, demand: Demand) -> Scaling:
    ahead = max(demand.ahead(case.current * case.capacity.requests_per_second * case.factor), demand.steady)
    up = case.needed(ahead)
    lower = max(up, _lower(case, demand, ahead))
    wanted = up if up > case.current else min(case.current, lower)
    return Scaling(
        replicas=wanted,
        floor=case.floor,
        ceiling=case.ceiling,
        reason=_direction(wanted, case.current),
        message=_sentence(case, demand, wanted, ahead),
        contradiction=_contradiction(case),
        inputs=_inputs(case, demand),
        rejected=_rejected(case, demand, wanted, ahead),
    )


def _lower(case: _Case, demand: Demand, ahead: float) -> float:
    """Replicas to keep for the peak and until a queue is gone; the present ones while the peak is not known."""
    peak = max(demand.peak_requests_per_second, ahead, demand.until_worked_off)
    return case.needed(peak * _SPARE) if peak < inf else min(case.current, case.ceiling)


def _held(case: _Case, reason: Reason, why: str, inputs: dict[str, str]) -> Scaling:
    wanted = max(case.current, case.floor)
    raised = f" at the floor of {wanted}" if wanted > case.current else f" {whole(wanted)}"
    return Scaling(
        replicas=wanted,
        floor=case.floor,
        ceiling=case.ceiling,
        reason=reason,
        message=f"{why}{raised}",
        contradiction=_contradiction(case),
        inputs=inputs,
    )


def _fixed(replicas: int, current: float) -> Scaling:
    return Scaling(
        replicas=replicas,
        floor=replicas,
        ceiling=replicas,
        reason=_direction(replicas, current),
        message=f"spec.replicas fixes {replicas}",
        inputs={"spec.replicas": str(replicas)},
    )


def _direction(wanted: float, current: float) -> Reason:
    if wanted == current:
        return Reason.STEADY
    return Reason.SCALED_UP if wanted > current else Reason.SCALED_DOWN


def _contradiction(case: _Case) -> Problem | None:
    most = case.spec.scaling.max_replicas
    return outranked(most, case.guaranteed) if case.guaranteed > most else None


# --- Words ---------------------------------------------------------------------------------------------------------


def outranked(most: int, needed: int) -> Problem:
    """That the guaranteed volume takes more replicas than there may be."""
    more = " or more" if needed >= MOST_REPLICAS else ""
    return Problem(
        Reason.MAXIMUM_OUTRANKED,
        "spec.scaling.maxReplicas",
        f"the guaranteed volume takes {needed} replicas{more} and outranks maxReplicas {most}:"
        f" raise it to {needed}, or lower objectives.volume.guaranteedTokensPerSecond",
    )


def _sentence(case: _Case, demand: Demand, wanted: float, ahead: float) -> str:
    load = f"{ahead:.3g} requests/s ({demand.waiting:.0f} waiting)"
    if wanted < case.current and demand.peak_requests_per_second == inf:
        return f"maxReplicas is {case.ceiling}"
    if wanted < case.current:
        peak = demand.peak_requests_per_second
        return f"the recent peak of {peak:.3g} requests/s needs {_replicas(wanted)}, not {whole(case.current)}"
    if wanted == case.current:
        return f"{load} fill {_replicas(wanted)} to {_filled(case, ahead, wanted)}"
    if wanted == case.floor:
        return f"the floor is {_replicas(wanted)}: {_floor_words(case)}"
    return f"{load} fill {_replicas(case.current)} to {_filled(case, ahead, case.current)}: {wanted} are needed"


def _floor_words(case: _Case) -> str:
    """What sets the floor."""
    if case.floor == case.guaranteed:
        return "the guaranteed volume"
    return "minReplicas" if case.floor == case.spec.scaling.min_replicas else "standbyReplicas"


def whole(replicas: float) -> int:
    """Replicas that are worth as much."""
    return ceil(replicas - _EPSILON)


_EPSILON = 1e-6


def _replicas(replicas: float) -> str:
    count = whole(replicas)
    return f"{count} replica" if count == 1 else f"{count} replicas"


def _filled(case: _Case, requests_per_second: float, replicas: float) -> str:
    """`0.83 of their capacity (target 0.70)`; rates beyond the maximum volume do not count."""
    if replicas == 0:
        return "no capacity at all"
    share = min(requests_per_second, case.bound) / (replicas * case.capacity.requests_per_second * case.factor)
    return f"{share:.2f} of their capacity (target {case.utilization:.2f})"


def _inputs(case: _Case, demand: Demand) -> dict[str, str]:
    bounds = {"guaranteed": _replicas(case.guaranteed)} if case.guaranteed else {}
    if case.bound < inf:
        bounds["maximum"] = f"{case.bound:.4g} requests/s"
    return {
        "current": _replicas(case.current),
        "demand": f"{demand.requests_per_second:.4g} requests/s",
        "forecast": f"{demand.forecast_requests_per_second:.4g} requests/s",
        "peak": _peak(demand),
        "waiting": f"{demand.waiting:.0f} requests",
        "capacity": f"{case.capacity.requests_per_second:.4g} requests/s per replica, {case.capacity.limited_by}",
        "workload": f"{demand.workload.input_tokens:.0f} in, {demand.workload.output_tokens:.0f} out,"
        f" {demand.workload.hit_rate:.0%} cached",
        "target": f"{case.utilization:.2f}",
        "margin": f"{case.factor:.2f} of the modelled capacity, as the objectives were kept",
        "floor": _replicas(case.floor),
        "ceiling": _replicas(case.ceiling),
        **bounds,
    }


def _peak(demand: Demand) -> str:
    peak = demand.peak_requests_per_second
    return f"{peak:.4g} requests/s" if peak < inf else "not watched for long enough"


def _rejected(case: _Case, demand: Demand, wanted: float, ahead: float) -> tuple[str, ...]:
    """The next smaller fleet, and what the bounds cut off."""
    found = []
    if wanted > case.floor and demand.peak_requests_per_second == inf:
        found.append(f"{_replicas(wanted - 1)}: demand was not watched for long enough to remove any")
    elif wanted > case.floor:
        peak = max(demand.peak_requests_per_second, ahead)
        found.append(f"{_replicas(wanted - 1)}: {peak:.3g} requests/s fill {_filled(case, peak, wanted - 1)}")
    elif wanted == case.floor:
        found.append(f"{_replicas(wanted - 1)}: below the floor of {case.floor}")
    if case.floor > case.spec.scaling.max_replicas:
        found.append(f"maxReplicas {case.spec.scaling.max_replicas}: the guarantees need {case.floor}")
    load = case.carrying(ahead)
    if load > case.ceiling:
        found.append(f"{_replicas(load)}: above maxReplicas {case.ceiling}")
    return tuple(found)
