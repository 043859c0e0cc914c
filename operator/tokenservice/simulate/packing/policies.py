"""The policies of the packing benchmark, and what each is told.

`random` and `best-fit` are told nothing. `fgd` is told the whole list in advance: the kinds of pods that make up 95 %
of it, as in its publication. `ours` is told nothing: it counts the pods that came so far, the present one included,
and renews its expectation each time four times as many have come. None refuses a pod that fits, and none moves one.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import numpy as np

from tokenservice.core.fragmentation import CPU, MEMORY, Demand, Ints, expected_demand
from tokenservice.simulate.packing import kernel
from tokenservice.simulate.packing.kernel import State
from tokenservice.simulate.packing.openb import NodeList, PodList


class Policy(Protocol):
    """Chooses for one pod after the other; made anew for each run."""

    def choose(self, kind: int, request: Ints) -> int:
        """The node for a pod of `kind` with `request`, which moves in; -1 where none fits."""


class RandomFit:
    """Any node that fits, any accelerator of it."""

    def __init__(self, nodes: NodeList, kinds: Ints, rng: np.random.Generator) -> None:
        self.state, self._rng = _state(nodes, len(kinds)), rng

    def choose(self, kind: int, request: Ints) -> int:
        """The node for a pod of `kind` with `request`, which moves in; -1 where none fits."""
        node, device = kernel.random_choice(self.state, request, kind, self._rng.random(), self._rng.random())
        if node >= 0:
            kernel.commit(self.state, node, device, request, kernel.BEST_FIT, _NOTHING)
        return int(node)


class Scored:
    """The node with the best score, by an expected demand that does not change."""

    def __init__(self, nodes: NodeList, kinds: Ints, how: int, demand: Demand) -> None:
        self.state, self._how, self._demand = _state(nodes, len(kinds)), how, demand
        kernel.reprice(self.state, how, demand)

    def choose(self, kind: int, request: Ints) -> int:
        """The node for a pod of `kind` with `request`, which moves in; -1 where none fits."""
        state, demand = self.state, self._demand
        node = kernel.decide(state, request, kind, self._how, demand)
        if node >= 0:
            device = state.device[kind, node]
            kernel.commit(state, node, device, request, self._how, demand)
        return int(node)

    def expect(self, demand: Demand) -> None:
        """Score by another demand from now on."""
        self._demand = demand
        kernel.reprice(self.state, self._how, demand)


class Ours(Scored):
    """`core.fragmentation`, by the demand seen so far."""

    def __init__(self, nodes: NodeList, kinds: Ints) -> None:
        self._kinds, self._counts = kinds, np.zeros(len(kinds), dtype=np.int64)
        self._seen, self._next_look = 0, 1
        super().__init__(nodes, kinds, kernel.OURS, _NOTHING)

    def choose(self, kind: int, request: Ints) -> int:
        """The node for a pod of `kind` with `request`, which moves in; -1 where none fits."""
        self._counts[kind] += 1
        self._seen += 1
        if self._seen == self._next_look:
            self._next_look *= 4
            self.expect(expected_demand(self._kinds, self._counts))
        return super().choose(kind, request)


POLICIES = ("random", "best-fit", "fgd", "ours")


def policy(name: str, nodes: NodeList, pods: PodList, kinds: Ints, rng: np.random.Generator) -> Policy:
    """A new policy by its name on the command line; ValueError for a name that there is not."""
    match name:
        case "random":
            return RandomFit(nodes, kinds, rng)
        case "best-fit":
            return Scored(nodes, kinds, kernel.BEST_FIT, _NOTHING)
        case "fgd":
            return Scored(nodes, kinds, kernel.FGD, typical_pods(pods))
        case "ours":
            return Ours(nodes, kinds)
    raise ValueError(f"no policy {name!r}; there are {', '.join(POLICIES)}")


def typical_pods(pods: PodList) -> Demand:
    """FGD's foreknowledge: kinds of the whole list, memory left out, until they make up 95 % of the pods.

    As in the original, pods without accelerators count among them, and models are told apart as they are written.
    """
    counted = Counter(
        (row[CPU], *row[MEMORY + 1 :], spec) for row, spec in zip(pods.requests.tolist(), pods.spec, strict=True)
    )
    ranked = sorted(counted.items(), key=lambda item: (item[1], item[0]), reverse=True)
    counts = np.array([count for _, count in ranked])
    kept = int(np.searchsorted(np.cumsum(counts), 0.95 * counts.sum())) + 1
    rows = [[kind[0], 0, *kind[1:4]] for kind, _ in ranked[:kept]]
    return Demand(np.array(rows), counts[:kept] / counts[:kept].sum(), _NOTHING.remainder)


_NOTHING = expected_demand(np.zeros((0, 5), dtype=np.int64), np.zeros(0, dtype=np.int64))


def _state(nodes: NodeList, kinds: int) -> State:
    size = len(nodes.cpu)
    return State(
        cpu=nodes.cpu.copy(),
        memory=nodes.memory.copy(),
        free=nodes.free.copy(),
        model=nodes.model,
        version=np.zeros(size, dtype=np.int64),
        base=np.zeros(size),
        seen=np.full((kinds, size), -1),
        score=np.full((kinds, size), kernel.NOWHERE),
        device=np.full((kinds, size), -1),
    )
