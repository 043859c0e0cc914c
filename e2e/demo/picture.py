"""The picture of the result: demand against capacity, utilization, and where the rest went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from e2e.demo.account import Bill, worth
from e2e.demo.phase import Phase
from tokenservice.simulate.reference import Reference

_PARTS = {
    "utilization": ("good tokens", "#2a9d5c"),
    "slo_misses": ("missed objectives", "#d1495b"),
    "headroom": ("headroom and trough", "#8ab6d6"),
    "cold_start": ("loading", "#edae49"),
    "draining": ("draining", "#b98b3e"),
    "fragmentation": ("free on used nodes", "#9c89b8"),
    "idle_nodes": ("empty or starting nodes", "#c9c9c9"),
}


def draw(
    path: Path, phases: Mapping[str, Phase], bills: Mapping[str, Bill], references: Mapping[str, Reference], note: str
) -> None:
    """Left: accelerators over time, one panel a phase. Right: the waterfall of both."""
    figure = plt.figure(figsize=(12, 6.2), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    top = max(_existing(phase).max() for phase in phases.values()) * 1.08
    for row, (name, phase) in enumerate(phases.items()):
        axes = figure.add_subplot(grid[row, :2])
        _timeline(axes, phase, references)
        axes.set(title=name, ylabel="accelerators", ylim=(0, top))
        axes.legend(loc="upper right", fontsize=8, frameon=False, ncols=3)
    axes.set_xlabel("seconds")
    _waterfall(figure.add_subplot(grid[:, 2]), bills)
    figure.suptitle(note, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _timeline(axes: plt.Axes, phase: Phase, references: Mapping[str, Reference]) -> None:
    at = np.array([moment.held.at - phase.started for moment in phase.moments])
    ready = np.array([moment.held.ready for moment in phase.moments])
    axes.fill_between(at, _existing(phase), step="post", color="#dddddd", label="exist")
    axes.fill_between(at, ready, step="post", color="#8ab6d6", label="serve")
    axes.plot(at, _demand(phase, references, at), color="#22223b", linewidth=1.2, label="demand at the objectives")
    axes.axvspan(0, phase.measured_from - phase.started, color="white", alpha=0.6)
    axes.set_xlim(0, phase.ended - phase.started)


def _existing(phase: Phase) -> np.ndarray:
    held = [moment.held for moment in phase.moments]
    return np.array([h.ready + h.starting + h.draining + h.free_on_used_nodes + h.on_empty_nodes for h in held])


def _demand(phase: Phase, references: Mapping[str, Reference], at: np.ndarray, window: float = 5.0) -> np.ndarray:
    """Accelerators that the arrivals of the last seconds are worth on the reference variants."""
    arrived = np.array([result.arrived_epoch_s - phase.started for result in phase.results])
    worths = np.array([worth(references[r.service], r.input_tokens, r.output_tokens) for r in phase.results])
    return np.array([worths[(arrived > now - window) & (arrived <= now)].sum() / window for now in at])


def _waterfall(axes: plt.Axes, bills: Mapping[str, Bill]) -> None:
    names: Sequence[str] = list(bills)
    bottom = np.zeros(len(names))
    for part, (label, color) in _PARTS.items():
        heights = np.array([asdict(bills[name].waterfall)[part] for name in names])
        bars = axes.bar(names, heights, bottom=bottom, color=color, label=label, width=0.6)
        axes.bar_label(bars, [f"{h:.2f}" if h >= 0.03 else "" for h in heights], label_type="center", fontsize=8)
        bottom += heights
    axes.set(title="where accelerator time goes", ylim=(0, 1))
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)
