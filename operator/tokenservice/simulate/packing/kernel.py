"""The hot loops of the packing benchmark, compiled: one decision over all nodes takes microseconds.

Scores are kept by (kind of pod, node) and made anew only for nodes that changed since that kind last arrived. Ours is
`core.fragmentation` itself, compiled; the published policies follow the authors' Go code to its rounding, and equal
scores go to the first node, as there. Nothing is cached on disk: numba would not see that `core.fragmentation`
changed.
"""

# mypy: disable-error-code="no-any-return"
# (numba's functions have no types)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from tokenservice.core import fragmentation
from tokenservice.core.fragmentation import COUNT, CPU, MEMORY, MILLI, MODELS, Demand, Floats, Ints

BEST_FIT, FGD, OURS = range(3)
"""How a node is scored."""

NOWHERE = -1e300
"""The score of a node that the pod does not fit."""

WHOLE = 1000
"""An accelerator of which nothing is taken, in milli."""

_MOST_CPU, _MOST_MILLI = 128_000.0, 8_000.0

Flags = NDArray[np.bool_]

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """`function`, compiled at its first call."""
    return cast(_F, numba.njit(function))


_stranded = compiled(fragmentation.stranded)
_preference = compiled(fragmentation.preference)


class State(NamedTuple):
    """What is left of every node, and the scores that still hold; changed in place.

    `version` counts the changes of each node, `base` is what its idle accelerators are worth to the score. `seen`,
    `score` and `device` have shape (kinds of pods, nodes).
    """

    cpu: Ints
    memory: Ints
    free: Ints
    model: Ints
    version: Ints
    base: Floats
    seen: Ints
    score: Floats
    device: Ints


@compiled
def fits(state: State, node: int, request: Ints) -> bool:
    """Whether the node has the cores, the memory, the model and the accelerators."""
    if state.cpu[node] < request[CPU] or state.memory[node] < request[MEMORY]:
        return False
    if request[COUNT] == 0:
        return True
    if request[MODELS] != 0 and (request[MODELS] >> state.model[node]) & 1 == 0:
        return False
    large_enough = 0
    for left in state.free[node]:
        large_enough += left >= request[MILLI]
    return large_enough >= request[COUNT]


@compiled
def take(free: Ints, request: Ints, device: int) -> None:
    """Take the request out of `free`: from `device` when it is a share, else from the first whole accelerators."""
    if request[COUNT] == 1 and request[MILLI] < WHOLE:
        free[device] -= request[MILLI]
        return
    missing = request[COUNT]
    for index in range(len(free)):
        if missing > 0 and free[index] == WHOLE:
            free[index] = 0
            missing -= 1


@compiled
def fragments(cpu: int, free: Ints, model: int, demand: Demand) -> float:
    """FGD's expected fragmentation of one node in milli-accelerators: its published definition, memory left out."""
    requests, idle, total = demand.requests, 0, 0.0
    for left in free:
        idle += left
    for kind in range(requests.shape[0]):
        count, milli, models = requests[kind, COUNT], requests[kind, MILLI], requests[kind, MODELS]
        allowed = models == 0 or (models >> model) & 1 == 1
        fitting, too_small = 0, 0
        for left in free:
            if left >= milli:
                fitting += 1
            else:
                too_small += left
        usable = count > 0 and allowed and cpu >= requests[kind, CPU] and fitting >= count
        total += demand.shares[kind] * (too_small if usable else idle)
    return total


@compiled
def worth(how: int, cpu: int, memory: int, free: Ints, model: int, demand: Demand) -> float:
    """The quantity whose change the policy looks at; 0 where it looks at none."""
    if how == FGD:
        return fragments(cpu, free, model, demand)
    if how == OURS:
        return _stranded(cpu, memory, free, model, demand)
    return 0.0


@compiled
def score_after(how: int, before: float, after: float, cpu: int, idle: int) -> float:
    """Higher is better. `cpu` and `idle` are what is left of the node's cores and accelerators with the pod on it."""
    if how == FGD:
        return math.floor(100 / (1 + math.exp((after - before) / 1000)))
    if how == OURS:
        return _preference(before, after, idle)
    return math.floor(100 * (1 - 0.5 * cpu / _MOST_CPU - 0.5 * idle / _MOST_MILLI))


@compiled
def _seen_before(free: Ints, device: int) -> bool:
    """An earlier accelerator has as much left: the same choice."""
    seen = False
    for earlier in range(device):
        seen |= free[earlier] == free[device]
    return seen


@compiled
def rate(state: State, node: int, request: Ints, how: int, demand: Demand) -> tuple[float, int]:
    """The best score on the node, and the accelerator that gives it when the pod asks for a share of one."""
    best, chosen = NOWHERE, -1
    shared = request[COUNT] == 1 and request[MILLI] < WHOLE
    cpu, memory = state.cpu[node] - request[CPU], state.memory[node] - request[MEMORY]
    for device in range(state.free.shape[1] if shared else 1):
        if shared and (state.free[node, device] < request[MILLI] or _seen_before(state.free[node], device)):
            continue
        free = state.free[node].copy()
        take(free, request, device)
        after = worth(how, cpu, memory, free, state.model[node], demand)
        score = score_after(how, state.base[node], after, cpu, free.sum())
        tighter = how == BEST_FIT and chosen >= 0 and state.free[node, device] < state.free[node, chosen]
        if score > best or tighter:
            best, chosen = score, device
    return best, chosen


@compiled
def decide(state: State, request: Ints, kind: int, how: int, demand: Demand) -> int:
    """The node for a pod of `kind`; -1 where none fits."""
    best, chosen = NOWHERE, -1
    for node in range(len(state.cpu)):
        if state.seen[kind, node] != state.version[node]:
            state.seen[kind, node] = state.version[node]
            state.score[kind, node] = NOWHERE
            if fits(state, node, request):
                state.score[kind, node], state.device[kind, node] = rate(state, node, request, how, demand)
        if state.score[kind, node] > best:
            best, chosen = state.score[kind, node], node
    return chosen


@compiled
def commit(state: State, node: int, device: int, request: Ints, how: int, demand: Demand) -> None:
    """The pod moves in."""
    state.cpu[node] -= request[CPU]
    state.memory[node] -= request[MEMORY]
    take(state.free[node], request, device)
    state.version[node] += 1
    state.base[node] = worth(how, state.cpu[node], state.memory[node], state.free[node], state.model[node], demand)


@compiled
def reprice(state: State, how: int, demand: Demand) -> None:
    """Another expected demand: no score holds any more."""
    for node in range(len(state.cpu)):
        state.version[node] += 1
        state.base[node] = worth(how, state.cpu[node], state.memory[node], state.free[node], state.model[node], demand)


@compiled
def _drawn(flags: Flags, draw: float) -> int:
    """One of the indices that are set."""
    skipped = int(draw * flags.sum())
    for index in range(len(flags)):
        if flags[index]:
            if skipped == 0:
                return index
            skipped -= 1
    return -1


@compiled
def random_choice(state: State, request: Ints, kind: int, node_draw: float, device_draw: float) -> tuple[int, int]:
    """A node that fits and, for a share, an accelerator of it; both draws are uniform in [0, 1)."""
    for node in range(len(state.cpu)):
        if state.seen[kind, node] != state.version[node]:
            state.seen[kind, node] = state.version[node]
            state.score[kind, node] = 0.0 if fits(state, node, request) else NOWHERE
    fitting = state.score[kind] > NOWHERE
    if not fitting.any():
        return -1, -1
    chosen = _drawn(fitting, node_draw)
    return chosen, _drawn(state.free[chosen] >= request[MILLI], device_draw)
