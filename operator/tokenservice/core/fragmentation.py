"""How much of a node's idle accelerators the demand to come cannot use: the score that keeps nodes whole.

FGD (Weng et al., USENIX ATC'23) counts an idle accelerator as fragmented for a kind of pod when not even one such pod
could use it. That is blind to what comes after that pod: a node with eight idle accelerators and the cores of one
looks whole until the last of those cores is gone, and so does an accelerator of which pods must leave a part.
Two more views are weighed in: what would stay idle if the node were filled with copies of one kind, cores and memory
counted, and what would stay idle of each accelerator if pods filled it as they come. Placing each pod where the score
rises least keeps the resources of every node in proportion, and what is left of accelerators in useful sizes.

`stranded` is plain arithmetic over arrays: the operator runs it as it is, benchmarks compile the same function.
"""

from __future__ import annotations

from typing import NamedTuple

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


WHOLE_MILLI = 1000

FRAGMENTS, COPIES, REMAINDERS = 0.75, 0.25, 0.5
"""Weights of the three views. Round numbers between which results hardly differ (docs/packing.md)."""


class Demand(NamedTuple):
    """What pods are expected to ask for: one request a row (columns above), and the share of pods that ask for it.

    `remainder[free]` is what stays of an accelerator with `free` milli left when pods fill it in random order until
    none fits, in milli; shape (1001,).
    """

    requests: Ints
    shares: Floats
    remainder: Floats


def expected_demand(requests: Ints, counts: Ints) -> Demand:
    """The popular kinds among the pods seen so far; pods without accelerators cannot use any and are left out.

    `requests` has shape (kinds, 5), `counts` (kinds,). Empty when no pod asked for accelerators.
    """
    asking = (requests[:, COUNT] > 0) & (counts > 0)
    requests, counts = requests[asking], counts[asking]
    order = np.argsort(-counts, kind="stable")
    kept = order[: _popular(counts[order])]
    shares = counts[kept] / max(1, counts[kept].sum())
    return Demand(requests[kept], shares, _remainders(requests[kept][:, MILLI], shares))


def _remainders(milli: Ints, shares: Floats) -> Floats:
    """By what is free: the mean over the pods that fit, in proportion to their shares, of what they leave to others."""
    sizes, size_of = np.unique(milli, return_inverse=True)
    share = np.bincount(size_of, weights=shares, minlength=len(sizes))
    fitting, total = np.searchsorted(sizes, np.arange(WHOLE_MILLI + 1), side="right"), np.cumsum(share)
    left = np.arange(WHOLE_MILLI + 1, dtype=float)
    for free in range(int(sizes[0]) if len(sizes) else WHOLE_MILLI + 1, WHOLE_MILLI + 1):
        count = fitting[free]
        left[free] = share[:count] @ left[free - sizes[:count]] / total[count - 1]
    return left


def _popular(descending: Ints) -> int:
    """How many of the kinds make up the popular share."""
    total = int(descending.sum())
    return int(np.searchsorted(np.cumsum(descending), POPULAR_SHARE * total)) + 1 if total else 0


def stranded(cpu: int, memory: int, free: Ints, model: int, demand: Demand) -> float:
    """How much of one node the expected demand would leave idle, in milli-accelerators (up to 1.5 times what is idle).

    `free` holds what is left of each accelerator in milli, `cpu` millicores, `memory` MiB, `model` the number of the
    node's model. Half a copy is added to those that the cores allow: what is left after the last one serves smaller
    pods.
    """
    requests = demand.requests
    idle, total = 0, 0.0
    for left in free:
        idle += left
        total += REMAINDERS * demand.remainder[left]
    if idle == 0:
        return 0.0
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
                usable = FRAGMENTS * reachable + COPIES * copies * milli * count
        total += demand.shares[kind] * (idle - usable)
    return total


def preference(before: float, after: float, idle_after: int) -> float:
    """Higher is better: the rise of `stranded` in whole grains, then the least left idle on the node."""
    return float((before - after) // GRAIN_MILLI * 1000 - idle_after / 1000)
