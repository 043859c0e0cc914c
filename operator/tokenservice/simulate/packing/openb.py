"""The openb benchmark: its lists of nodes and pods, and the order in which pods arrive.

Source: hkust-adsl/kubernetes-scheduler-simulator (Weng et al., USENIX ATC'23), Apache-2.0. The reading follows its
Go code: requests of zero cores count as 100 millicores, a pod names the models it may run on separated by '|'.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenservice.core.fragmentation import COUNT, MILLI, WHOLE_MILLI, Ints

DEVICES = 8
"""The most accelerators that a node of the benchmark has."""

DEMAND_RATIO = 1.3
"""Pods arrive until this multiple of the fleet's accelerators was asked for."""

_NO_SUCH_MODEL = 62
_CPU_OF_ZERO = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeList:
    """Nodes by row. `free` has shape (nodes, 8): milli left of each accelerator, 0 where there is none."""

    cpu: Ints
    memory: Ints
    free: Ints
    model: Ints
    models: tuple[str, ...]

    @property
    def capacity_milli(self) -> int:
        return int(self.free.sum())

    def reordered(self, order: Ints) -> NodeList:
        """The same nodes in another order."""
        return NodeList(
            cpu=self.cpu[order],
            memory=self.memory[order],
            free=self.free[order],
            model=self.model[order],
            models=self.models,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PodList:
    """Requests by row (columns of `core.fragmentation`), and the models each names, as written."""

    requests: Ints
    spec: tuple[str, ...]


def read_nodes(path: Path) -> NodeList:
    """Nodes of `path` (sn, cpu_milli, memory_mib, gpu, model)."""
    rows = _rows(path, ("cpu_milli", "memory_mib", "gpu", "model"))
    models = tuple(sorted({row.text("model") for row in rows}))
    counts = [row.number("gpu") for row in rows]
    if max(counts) > DEVICES:
        raise ValueError(f"{path}: a node has {max(counts)} accelerators; the most that is supported is {DEVICES}")
    if not any(counts):
        raise ValueError(f"{path}: no node has an accelerator")
    return NodeList(
        cpu=np.array([row.number("cpu_milli") for row in rows]),
        memory=np.array([row.number("memory_mib") for row in rows]),
        free=np.array([[1000] * count + [0] * (DEVICES - count) for count in counts]),
        model=np.array([models.index(row.text("model")) for row in rows]),
        models=models,
    )


def read_pods(path: Path, models: Sequence[str]) -> PodList:
    """Pods of `path` (cpu_milli, memory_mib, num_gpu, gpu_milli, and gpu_spec where the list has it)."""
    rows = _rows(path, ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli"))
    requests = np.array([_request(row, models) for row in rows], dtype=np.int64)
    if not (requests[:, COUNT] * requests[:, MILLI]).any():
        raise ValueError(f"{path}: no pod asks for an accelerator, so the fleet would never be full")
    return PodList(requests=requests, spec=tuple(row.text("gpu_spec") if row.number("num_gpu") else "" for row in rows))


def arrivals(requests: Ints, capacity_milli: int, rng: np.random.Generator) -> Ints:
    """Rows of `requests` in the order of arrival: shuffled, then topped up (or thinned out) to 1.3 x capacity.

    Topping up draws with replacement and stops at the first pod that would not fit under the target, counting one
    accelerator of it, as the original does.
    """
    asked = requests[:, COUNT] * requests[:, MILLI]
    order = rng.permutation(len(requests)).tolist()
    total, target = int(asked.sum()), DEMAND_RATIO * capacity_milli
    while total > target:
        total -= int(asked[order.pop(int(rng.integers(len(order))))])
    while len(order) >= len(requests):
        row = int(rng.integers(len(requests)))
        if total + requests[row, MILLI] > target:
            break
        total += int(asked[row])
        order.append(row)
    return np.array(order)


@dataclass(frozen=True, slots=True)
class _Row:
    """One line, with what an error needs to name it."""

    path: Path
    line: int
    cells: Mapping[str, str | None]

    def text(self, column: str) -> str:
        return (self.cells.get(column) or "").strip()

    def number(self, column: str) -> int:
        """A whole number from 0 on. Raises ValueError, which names file, line and column."""
        try:
            value = float(self.text(column))
        except ValueError:
            value = -1.0
        if not 0 <= value < 2**53 or value != int(value):
            what = f"must be a whole number from 0 on, not {self.text(column)!r}"
            raise ValueError(f"{self.path}:{self.line}: {column}: {what}")
        return int(value)


def _rows(path: Path, needed: tuple[str, ...]) -> list[_Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            rows = [_Row(path, reader.line_num, cells) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from None
    if missing:
        raise ValueError(f"{path}:1: no column {', '.join(missing)}; is this a list of the openb benchmark?")
    if not rows:
        raise ValueError(f"{path}:1: there is nothing below the header")
    return rows


def _request(row: _Row, models: Sequence[str]) -> tuple[int, int, int, int, int]:
    """A share of an accelerator is asked for by pods of one; those of several take whole ones."""
    count = row.number("num_gpu")
    named = {name.strip() for name in row.text("gpu_spec").split("|") if name.strip()} if count else set()
    numbers = {models.index(name) if name in models else _NO_SUCH_MODEL for name in named}
    bits = sum(1 << number for number in numbers)
    milli = 0 if not count else WHOLE_MILLI if count > 1 else min(row.number("gpu_milli"), WHOLE_MILLI)
    return row.number("cpu_milli") or _CPU_OF_ZERO, row.number("memory_mib"), count, milli, bits
