"""The pool's memory: every replica, request and queue of one service in flat arrays that compiled code can walk.

Records instead of objects, indices instead of references, -1 for none. A request's record goes back to a free list
when it finishes, so memory follows the most that was ever unfinished at once, not what was ever simulated. Only
Python grows the arrays, between calls into `pool_kernel`; the kernel never allocates.

Times are milliseconds (`_ms`), as in `engine`; what crosses the border to the caller is in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Records = NDArray[Any]
Floats = NDArray[np.float64]
Indices = NDArray[np.int32]
Counts = NDArray[np.int64]

BLOCK = 8192
"""Arrivals handed to the kernel at once: bounds the memory of one long `advance`."""


def _layout(*columns: tuple[type, str]) -> np.dtype[Any]:
    return np.dtype([(name, kind) for kind, names in columns for name in names.split()], align=True)


REPLICA = _layout(
    (np.float64, "alpha_ms beta_ms kappa_ms kappa_per_token_ms delta_ms weight"),
    (np.int64, "max_num_seqs max_num_batched_tokens kv_capacity_tokens"),
    # Now, as `Engine` has it. Waiting is a list from `wait_head`, running one back from `last_admitted`.
    (np.int64, "step kv_tokens context_tokens decoding running waiting wait_head wait_tail last_admitted prefilling"),
    # The run of iterations under way. Its prefill chunks belong to the sequences from `first_chunk` to the last
    # admitted: each of them is done with it but perhaps the last, which gets `last_chunk` tokens.
    (np.float64, "run_start_ms run_first_ms run_slope_ms"),
    (np.int64, "run_steps first_chunk last_chunk"),
    # Totals since the replica was added.
    (np.float64, "busy_ms"),
    (np.int64, "arrived finished prompt_tokens cached_tokens generation_tokens preemptions"),
    (np.bool_, "alive routable unplanned"),
)
"""One engine. `unplanned`: its next run is laid out as soon as time moves on, when all that comes now has come."""

SEQUENCE = _layout(
    (np.float64, "at_s deadline_s dispatched_ms first_token_ms"),
    (np.int64, "finish_step order"),
    (np.int32, "input_tokens output_tokens cached_tokens prefill_target computed produced replica"),
    (np.int32, "next previous place"),
    (np.bool_, "decoding"),
)
"""One unfinished request. `next` and `previous` link it where it is; `place` is its index among the finish steps."""

REQUEST = _layout((np.float64, "at_s deadline_s"), (np.int32, "input_tokens output_tokens cached_tokens"))

OUTCOME = _layout(
    (np.float64, "at_s deadline_s ttft_s tpot_s finished_s"), (np.int32, "input_tokens output_tokens cached_tokens")
)

POOL = _layout(
    (np.float64, "now_ms fill_to ttft_bound_s tpot_bound_s unfinished_integral_ms"),
    (np.int64, "free finished held held_head held_tail deferred unplanned unfinished order"),
    (np.int64, "interactive_arrived met_targets met_deadlines"),
    (np.bool_, "may_fill"),
)
"""What there is once. `unfinished` counts held and dispatched requests; `finished` those of this call."""


class State(NamedTuple):
    """All of a pool; `next_ms` and `load` are keys of tournament trees over the replicas, smallest first."""

    pool: Records
    replicas: Records
    sequences: Records
    free: Indices
    arrivals: Records
    outcomes: Records
    deferred: Indices
    unplanned: Indices
    due_step: Counts
    due_sequence: Indices
    next_ms: Floats
    next_tree: Indices
    load: Floats
    load_tree: Indices
    ttft_edges_s: Floats
    tpot_edges_s: Floats
    ttft_counts: Counts
    tpot_counts: Counts


def empty_state(
    ttft_edges_s: Sequence[float], tpot_edges_s: Sequence[float], ttft_bound_s: float, tpot_bound_s: float
) -> State:
    """A pool without replicas or requests at time 0. Edges ascend; the bucket above the last is implied."""
    pool = np.zeros(1, POOL)
    pool["held_head"] = pool["held_tail"] = -1
    pool["ttft_bound_s"], pool["tpot_bound_s"] = ttft_bound_s, tpot_bound_s
    none = np.zeros(0, np.int32)
    state = State(
        pool=pool,
        replicas=np.zeros(0, REPLICA),
        sequences=np.zeros(0, SEQUENCE),
        free=none,
        arrivals=np.zeros(BLOCK, REQUEST),
        outcomes=np.zeros(0, OUTCOME),
        deferred=none,
        unplanned=none,
        due_step=np.zeros((0, 0), np.int64),
        due_sequence=np.zeros((0, 0), np.int32),
        next_ms=np.zeros(0),
        next_tree=none,
        load=np.zeros(0),
        load_tree=none,
        ttft_edges_s=np.array(ttft_edges_s, np.float64),
        tpot_edges_s=np.array(tpot_edges_s, np.float64),
        ttft_counts=np.zeros(len(ttft_edges_s) + 1, np.int64),
        tpot_counts=np.zeros(len(tpot_edges_s) + 1, np.int64),
    )
    return with_replicas(state, 2, 1)


def with_replicas(state: State, slots: int, max_num_seqs: int) -> State:
    """The same pool with room for this many replicas (at least doubled) and sequences in each."""
    have, width = state.due_step.shape
    rows = have
    while rows < slots:
        rows = max(2, 2 * rows)
    shape = (rows, max(width, max_num_seqs))
    load, next_ms = _grown(state.load, rows, np.inf), _grown(state.next_ms, rows, np.inf)
    return state._replace(
        replicas=_grown(state.replicas, rows),
        unplanned=_grown(state.unplanned, rows),
        due_step=_grown_table(state.due_step, shape),
        due_sequence=_grown_table(state.due_sequence, shape),
        load=load,
        load_tree=_tournament(load),
        next_ms=next_ms,
        next_tree=_tournament(next_ms),
    )


def with_requests(state: State, more: int) -> State:
    """The same pool with room for at least this many more unfinished requests (memory doubled)."""
    have, free = len(state.sequences), int(state.pool["free"][0])
    size = max(2 * have, have - free + more)
    grown = state._replace(
        sequences=_grown(state.sequences, size),
        free=_grown(state.free, size),
        deferred=_grown(state.deferred, size),
        outcomes=_grown(state.outcomes, size),
    )
    grown.free[free : free + size - have] = np.arange(size - 1, have - 1, -1)
    state.pool["free"] = free + size - have
    return grown


def _grown(array: NDArray[Any], size: int, fill: float | None = None) -> NDArray[Any]:
    grown = np.zeros(size, array.dtype)
    if fill is not None:
        grown[:] = fill
    grown[: len(array)] = array
    return grown


def _grown_table(table: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    grown = np.zeros(shape, table.dtype)
    grown[: table.shape[0], : table.shape[1]] = table
    return grown


def _tournament(keys: Floats) -> Indices:
    """Winner tree: node n is the smaller of 2n and 2n+1, leaves follow from `len(keys)`; node 1 is the smallest."""
    size = len(keys)
    tree = np.zeros(2 * size, np.int32)
    tree[size:] = np.arange(size)
    for node in range(size - 1, 0, -1):
        left, right = tree[2 * node], tree[2 * node + 1]
        tree[node] = left if keys[left] <= keys[right] else right
    return tree
