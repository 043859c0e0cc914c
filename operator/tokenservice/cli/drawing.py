"""The picture of a comparison: demand against capacity over time, waterfalls, cost against attainment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from tokenservice.simulate.compare import Row
from tokenservice.simulate.fleet import Moment
from tokenservice.simulate.oracle import Foresight
from tokenservice.simulate.result import PARTS, Result

_COLOURS = ("#2a7f62", "#b5493b", "#c9d6df", "#e0a458", "#8d99ae", "#b8b8d1", "#e8e8e8")


_FIXED = {"operator": "#2a7f62", "static-p99": "#333333"}
"""The same in every picture."""

_OVER_TIME = 4
"""So many policies are drawn over time; more could not be told apart."""


def draw(rows: Sequence[Row], best: Mapping[str, Foresight], picture: Path) -> None:
    """Writes the PNG: the first few rows over time, all of them in the other two panels."""
    bars = 0.22 * len(rows) + 0.8
    figure, axes = plt.subplots(3, 1, figsize=(10, 7 + bars), height_ratios=(3, bars, 3), layout="constrained")
    _over_time(axes[0], rows)
    _waterfalls(axes[1], rows)
    _cost(axes[2], rows, best)
    figure.savefig(picture, dpi=80, metadata={"Software": None})
    plt.close(figure)


def _over_time(axes: Any, rows: Sequence[Row]) -> None:
    """Accelerators that exist, of each policy, and those that the demand is worth on the reference variants."""
    first = rows[0].results[0]
    at = [moment.at / 3600 for moment in first.timeline]
    axes.fill_between(at, [_worth(first, m) for m in first.timeline], color="#cccccc", label="demand", step="post")
    for row in rows[:_OVER_TIME]:
        line = row.results[0].timeline
        style = {"where": "post", "label": _name(row), "lw": 1.1, "color": _FIXED.get(row.policy)}
        axes.step([m.at / 3600 for m in line], [m.accelerators for m in line], **style)
    axes.set(xlabel="hours", ylabel="accelerators", title=f"{first.scenario}: accelerators that exist, and demand")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0, right=max(at, default=1.0))
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=5, fontsize=7, frameon=False)


def _worth(one: Result, moment: Moment) -> float:
    """Demand of all services in accelerators: those that would serve it, all at capacity."""
    return sum(rate * one.services[name].worth for name, rate in moment.demand.items())


def _waterfalls(axes: Any, rows: Sequence[Row]) -> None:
    names = [_name(row) for row in reversed(rows)]
    left = [0.0] * len(names)
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        shares = [row.mean(lambda one, part=part: _share(one, part)) for row in reversed(rows)]  # type: ignore[misc]
        axes.barh(names, shares, left=left, color=colour, label="U" if part == PARTS[0] else part.replace("_", " "))
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.set(xlim=(0, 1), xlabel="share of accelerator time")
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=7, fontsize=7, frameon=False)


def _name(row: Row) -> str:
    """Without its setting, which the table beside the picture has."""
    name = row.policy.partition(" ")[0]
    return name if row.kept else f"{name} †"


def _share(one: Result, part: str) -> float:
    return float(getattr(one.waterfall, part))


def _cost(axes: Any, rows: Sequence[Row], best: Mapping[str, Foresight]) -> None:
    """Hours from left to right on a logarithmic scale; a number in the plot for each row of the legend."""
    for number, row in enumerate(rows, start=1):
        hours, attained = row.mean(lambda one: one.accelerator_hours), row.mean(lambda one: one.attainment)
        axes.scatter(hours, 100 * attained, s=24, label=f"{number} {_name(row)}", color=_FIXED.get(row.policy))
        axes.annotate(str(number), (hours, 100 * attained), fontsize=7, xytext=(4, 3), textcoords="offset points")
    if best:
        found = sum(one.accelerator_hours for one in best.values())
        axes.axvline(found, color="#2a7f62", ls=":", lw=1, label="oracle's hours")
    axes.axhline(99, color="#b5493b", ls="--", lw=0.8)
    axes.set(xscale="log", xlabel="accelerator-hours", ylabel="attained, % (worst Guaranteed service)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)
