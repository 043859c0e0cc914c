"""The picture of a comparison: demand against capacity over time, waterfalls, cost against attainment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from tokenservice.simulate.compare import Row
from tokenservice.simulate.oracle import Foresight
from tokenservice.simulate.result import PARTS, Result

_COLOURS = ("#2a7f62", "#b5493b", "#c9d6df", "#e0a458", "#8d99ae", "#b8b8d1", "#e8e8e8")


def draw(rows: Sequence[Row], best: dict[str, Foresight], picture: Path) -> None:
    """Writes the PNG."""
    figure, axes = plt.subplots(3, 1, figsize=(10, 12), height_ratios=(3, max(2, 0.4 * len(rows)), 3))
    _over_time(axes[0], rows)
    _waterfalls(axes[1], rows)
    _cost(axes[2], rows, best)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def _over_time(axes: Any, rows: Sequence[Row]) -> None:
    for row in rows[:4]:
        line = row.results[0].timeline
        axes.step([m.at / 3600 for m in line], [m.accelerators for m in line], where="post", label=row.policy, lw=1.2)
    line = rows[0].results[0].timeline
    demand = axes.twinx()
    demand.plot([m.at / 3600 for m in line], [sum(m.demand.values()) for m in line], color="#999999", lw=0.8)
    demand.set_ylabel("requests per second (grey)")
    demand.set_ylim(bottom=0)
    axes.set(xlabel="hours", ylabel="accelerators that exist", title=rows[0].results[0].scenario)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize=8)


def _waterfalls(axes: Any, rows: Sequence[Row]) -> None:
    names = [row.policy for row in reversed(rows)]
    left = [0.0] * len(names)
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        shares = [row.mean(lambda one, part=part: _share(one, part)) for row in reversed(rows)]  # type: ignore[misc]
        axes.barh(names, shares, left=left, color=colour, label=part.replace("_", " "))
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.set(xlim=(0, 1), xlabel="share of accelerator time")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=7, fontsize=7)


def _share(one: Result, part: str) -> float:
    return float(getattr(one.waterfall, part))


def _cost(axes: Any, rows: Sequence[Row], best: dict[str, Foresight]) -> None:
    for row in rows:
        hours, attained = row.mean(lambda one: one.accelerator_hours), row.mean(lambda one: one.attainment)
        axes.scatter(hours, attained, s=28)
        axes.annotate(row.policy, (hours, attained), fontsize=7, xytext=(4, 3), textcoords="offset points")
    if best:
        axes.axvline(sum(one.accelerator_hours for one in best.values()), color="#2a7f62", ls=":", lw=1)
    axes.axhline(0.99, color="#b5493b", ls="--", lw=0.8)
    axes.set(xlabel="accelerator-hours (dotted: oracle)", ylabel="worst joint attainment of a Guaranteed service")
