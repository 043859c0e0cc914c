"""What a plan costs, and the least that any plan for the same services could cost.

Two linear programs (HiGHS). `whole` relaxes the very choice that the decision makes: one variant a service, as many
whole replicas of it as it needs, no class used beyond its stock; shares of that choice are allowed. `fractional`
relaxes the replicas as well: each service pays what its demand takes in a pool many times as large, where neither
rounding nor the caution of small pools costs anything. Nothing can be cheaper; no plan of whole replicas gets there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

try:
    import highspy
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("the bound is a linear program for HiGHS: install tokenservice[simulate]") from missing

from tokenservice.core.allocation import Want
from tokenservice.core.facts import Facts
from tokenservice.core.model import Apply, Plan, Snapshot
from tokenservice.core.outlook import outlook
from tokenservice.simulate.plan_fleet import moved

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_AMPLIFIED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """US dollars per hour."""

    whole: float
    fractional: float


def cost_per_hour(plan: Plan, snapshot: Snapshot) -> float:
    """Price of the replicas that a plan from nothing asks for, US dollars per hour."""
    prices = {one.name: one.spec.price_per_hour for one in snapshot.accelerators}
    resources = {one.name: one.spec.resource_name for one in snapshot.accelerators}
    total = 0.0
    for action in plan.actions:
        if isinstance(action, Apply) and action.manifest["kind"] == "Deployment":
            name = action.manifest["spec"]["selector"]["matchLabels"]["taas.dev/variant"].partition("-")[0]
            limits = action.manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
            total += action.manifest["spec"]["replicas"] * int(limits[resources[name]]) * prices[name]
    return total


def bound(snapshot: Snapshot, stock: dict[str, int]) -> Bound:
    """The least cost for services that run nothing yet; `stock` counts accelerators by class.

    Raises ValueError where the accelerators do not suffice.
    """
    wants = wanted(snapshot)
    larger = {key: moved(seen, _AMPLIFIED) for key, seen in snapshot.metrics.items()}
    amplified = wanted(replace(snapshot, metrics=larger))
    shares = [np.array(want.options) / _AMPLIFIED for want in amplified]
    whole = [np.array(want.options, dtype=float) for want in wants]
    smaller = [np.minimum(share, count) for share, count in zip(shares, whole, strict=True)]
    return Bound(whole=_solved(wants, whole, stock), fractional=_solved(wants, smaller, stock))


def wanted(snapshot: Snapshot) -> list[Want]:
    """What each service asks for, by itself."""
    facts = Facts(snapshot)
    return [want for service in snapshot.services if (want := outlook(facts, service).want) is not None]


def _solved(wants: Sequence[Want], counts: Sequence[Floats], stock: dict[str, int]) -> float:
    classes = sorted(stock)
    ways = [(row, variant) for row, want in enumerate(wants) for variant, _ in want.ranked]
    replicas = np.concatenate(counts)
    return _least(
        np.array([row for row, _ in ways]),
        np.array([classes.index(variant.accelerator.name) for _, variant in ways]),
        np.array([variant.price_per_hour for _, variant in ways]) * replicas,
        np.array([variant.accelerators for _, variant in ways]) * replicas,
        len(wants),
        np.array([stock[name] for name in classes], dtype=float),
    )


def _least(rows: Ints, owner: Ints, cost: Floats, takes: Floats, services: int, stock: Floats) -> float:
    """min cost*y where the shares y of each service add up to 1 and no class is used beyond its stock."""
    model = highspy.HighsLp()
    count = len(rows)
    model.num_col_, model.num_row_ = count, services + len(stock)
    model.col_cost_ = cost
    model.col_lower_, model.col_upper_ = np.zeros(count), np.ones(count)
    model.row_lower_ = np.concatenate([np.ones(services), np.full(len(stock), -highspy.kHighsInf)])
    model.row_upper_ = np.concatenate([np.full(services, highspy.kHighsInf), stock])
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = np.arange(0, 2 * count + 1, 2)
    model.a_matrix_.index_ = np.column_stack([rows, services + owner]).ravel()
    model.a_matrix_.value_ = np.column_stack([np.ones(count), takes]).ravel()
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.passModel(model)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise ValueError("demand exceeds the accelerators: no plan gives every service what it needs; ask for less")
    return float(solver.getInfo().objective_function_value)
