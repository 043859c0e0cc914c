"""How much of a node's idle accelerators the demand to come cannot use: the score that keeps nodes whole.

FGD (Weng et al., USENIX ATC'23) counts an idle accelerator as fragmented for a kind of pod when not even one such pod
could use it. That is blind to what the pods need beside accelerators: a node with eight idle accelerators and the
cores of one pod looks whole until the last of those cores is gone. So the score here is the mean of two: FGD's
fragments, and what would stay idle if the node were filled with copies of that kind, cores and memory counted.
Placing each pod where the score rises least keeps the resources of every node in proportion to one another.

`stranded` is plain arithmetic over arrays: the operator runs it as it is, benchmarks compile the same function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CPU, MEMORY, COUNT, MILLI, MODELS = range(5)
"""Columns of a request: CPU in millicores, memory in MiB, accelerators, milli of each (1 to 1000), and a bit for each
model of accelerator that may serve it (0: any)."""

GRAIN_MILLI = 20
"""Rises that differ by less are equal: the estimate of the demand is no finer. The fuller node is then taken."""

POPULAR_SHARE = 0.95
"""Kinds are taken from the most frequent down to this share of pods, as FGD does; the tail is noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What pods are expected to ask for: one request a row (columns above), and the share of pods that ask for it."""

    requests: Ints
    shares: Floats


def expected_demand(requests: Ints, counts: Ints) -> Demand:
    """The popular kinds among the pods seen so far; pods without accelerators cannot use any and are left out.

    `requests` has shape (kinds, 5), `counts` (kinds,). Empty when no pod asked for accelerators.
    """
    asking = (requests[:, COUNT] > 0) & (counts > 0)
    requests, counts = requests[asking], counts[asking]
    order = np.argsort(-counts, kind="stable")
    kept = order[: _popular(counts[order])]
    return Demand(requests=requests[kept], shares=counts[kept] / max(1, counts[kept].sum()))


def _popular(descending: Ints) -> int:
    """How many of the kinds make up the popular share."""
    total = int(descending.sum())
    return int(np.searchsorted(np.cumsum(descending), POPULAR_SHARE * total)) + 1 if total else 0


def stranded(cpu: int, memory: int, free: Ints, model: int, requests: Ints, shares: Floats) -> float:
    """Milli-accelerators of one node that the expected demand is expected to leave idle.

    `free` holds what is left of each accelerator in milli, `cpu` millicores, `memory` MiB, `model` the number of the
    node's model. Half a copy is added to those that the cores allow: what is left after the last one serves smaller
    pods.
    """
    idle = 0
    for left in free:
        idle += left
    if idle == 0:
        return 0.0
    total = 0.0
    for kind in range(requests.shape[0]):
        cpu_each, memory_each, models = requests[kind, CPU], requests[kind, MEMORY], requests[kind, MODELS]
        count, milli = requests[kind, COUNT], requests[kind, MILLI]
        usable = 0.0
        allowed = models == 0 or (models >> model) & 1 == 1
        if allowed and cpu >= cpu_each and memory >= memory_each:
            slots, reachable = 0, 0
            for left in free:
                if left >= milli:
                    slots += 1 if left < 2 * milli else left // milli  # dividing is slow, and one is the usual
                    reachable += left
            if slots >= count:
                copies = float(slots // count)
                if cpu_each > 0:
                    copies = min(copies, cpu / cpu_each + 0.5)
                if memory_each > 0:
                    copies = min(copies, memory / memory_each + 0.5)
                usable = 0.5 * (reachable + copies * milli * count)
        total += shares[kind] * (idle - usable)
    return total


def preference(before: float, after: float, idle_after: int) -> float:
    """Higher is better: the rise of `stranded` in whole grains, then the least left idle on the node."""
    return float((before - after) // GRAIN_MILLI * 1000 - idle_after / 1000)
