"""What docs/scenarios/README.md says of the mixed fleet: `python -m tests.simulate.seldom_used [SERVEGEN]`.

Without a folder: the least accelerator-hours of `mixed-fleet.yaml`, and what its large services ask for. With a clone
of <https://github.com/alibaba/ServeGen>: how much clients ask for that are seldom on, by the rates per ten minutes of
its `data/*/SERVICE/chunk-*-trace.csv` (second column).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenservice.simulate import scenario
from tokenservice.simulate.assemble import BIN_SECONDS, setting

Floats = NDArray[np.float64]

SCENARIO = Path(__file__).parents[2] / "docs/scenarios/mixed-fleet.yaml"
LARGE = ("conv", "code")
CLASSES = {"20 to 80 % of windows": (0.2, 0.8), "2 to 10 % of windows": (0.02, 0.1)}
ALWAYS = 0.8
WINDOWS_A_DAY = 144
ACCELERATORS_A_NODE = 8
BINS_A_MEAN = 30  # five minutes


def clients(folder: Path) -> dict[str, Floats]:
    """Rates by service: a row for each client and day, a column for each window of ten minutes."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for file in sorted(folder.glob("data/*/*/chunk-*-trace.csv")):
        with file.open(newline="") as lines:
            found[file.parent.name].append([float(row[1]) for row in csv.reader(lines)])
    return {service: _days(rates) for service, rates in found.items()}


def _days(rates: list[list[float]]) -> Floats:
    """Whole days of the length that most clients have."""
    length = int(np.bincount([len(mine) for mine in rates]).argmax())
    even = np.array([[*mine[:length], *[0.0] * (length - len(mine))] for mine in rates])
    days = length // WINDOWS_A_DAY
    return even[:, : days * WINDOWS_A_DAY].reshape(-1, WINDOWS_A_DAY)


def shape(days: Floats, least: float, most: float) -> tuple[float, float, float]:
    """Medians over the client-days that are on in such a share of windows: p99 over that of those that are always on,
    mean over p99, largest rise within a window over p99."""
    on, p99 = (days > 0).mean(axis=1), np.percentile(days, 99, axis=1)
    mine = (on >= least) & (on < most) & (p99 > 0)
    mean, rise = days[mine].mean(axis=1), np.diff(days[mine], axis=1).max(axis=1)
    always = float(np.median(p99[on >= ALWAYS]))
    return (
        float(np.median(p99[mine])) / always,
        float(np.median(mean / p99[mine])),
        float(np.median(rise / p99[mine])),
    )


def table(folder: Path) -> str:
    """The table of the page."""
    services = clients(folder)
    lines = []
    for title, (least, most) in CLASSES.items():
        each = np.array([shape(days, least, most) for days in services.values()])
        cells = [f"{np.median(c):.2f} ({c.min():.2f} to {c.max():.2f})" for c in each.T]
        lines.append(" | ".join([title, *cells]))
    return "\n".join(lines)


def least(floor: int) -> tuple[float, float]:
    """Accelerator-hours of the work of the mixed fleet, and of whole nodes for counts that follow it at once.

    `floor` replicas of each service stay.
    """
    held: dict[str, Floats] = {}
    work = 0.0
    for one in setting(scenario.load(SCENARIO)).offers.values():
        full, size = one.yardstick.requests_per_second, one.yardstick.tensor_parallel_size
        means = one.demand.reshape(-1, BINS_A_MEAN).mean(axis=1)
        count = np.maximum(floor, np.ceil(means / full - 1e-6)) * size
        name = one.variant.accelerator.name
        held[name] = held.get(name, np.zeros_like(count)) + count
        work += float(one.demand.sum()) / full * size * BIN_SECONDS / 3600
    nodes = sum(np.ceil(each / ACCELERATORS_A_NODE).sum() for each in held.values())
    return work, float(nodes) * ACCELERATORS_A_NODE * BINS_A_MEAN * BIN_SECONDS / 3600


def main() -> None:
    """Prints one or the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("servegen", nargs="?", type=Path, help="a checkout of ServeGen")
    folder = parser.parse_args().servegen
    if folder is not None:
        print(table(folder))
        return
    for key, work in scenario.load(SCENARIO).workloads().items():
        if key.name in LARGE:
            minutes = [work.expected_rate(start, start + 60) * 60 for start in range(0, 86400, 60)]
            print(f"{key.name}: p99 {np.percentile(minutes, 99):.0f} requests a minute")
    for floor in (1, 0):
        work, hours = least(floor)
        print(f"{floor} of each stay: {work:.0f} h of work in {hours:.0f} h of nodes, U at most {work / hours:.2f}")


if __name__ == "__main__":
    main()
