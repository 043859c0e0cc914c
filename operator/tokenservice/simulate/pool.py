"""All replicas of one service behind a least-loaded router, in simulated time: the fast inner loop of the fleet.

The engines are those of `engine`, rule by rule, compiled (see `pool_kernel`). Interactive requests go, as they arrive,
to the routable replica with the least unfinished requests per weight, or wait for one. Deferrable requests wait in
order of deadline, and are sent while the least loaded replica has less than `fill_to` unfinished per weight.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenservice.core.engines.base import histogram_bounds
from tokenservice.core.engines.vllm import TPOT_BOUNDS, TTFT_BOUNDS
from tokenservice.core.step import StepModel
from tokenservice.simulate import pool_state
from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.engine import EngineLimits
from tokenservice.simulate.pool_state import BLOCK, Counts, Floats, Records
from tokenservice.simulate.traffic import Outcomes, Requests

try:
    from tokenservice.simulate import pool_kernel as kernel
except ModuleNotFoundError as missing:
    if missing.name != "numba":
        raise
    raise ModuleNotFoundError("the simulator is compiled by numba: install tokenservice[simulate]") from missing

_UNLIMITED = 2**62
_COUNTERS = ("arrived", "finished", "prompt_tokens", "cached_tokens", "generation_tokens", "preemptions")

_REQUEST_FIELDS = tuple(it.name for it in fields(Requests))
_OUTCOME_FIELDS = tuple(it.name for it in fields(Outcomes))

_WRONG = {
    kernel.OUT_OF_ORDER: "at_s must ascend and lie between the pool's now_s and until_s",
    kernel.EMPTY: "input_tokens and output_tokens must be at least 1",
    kernel.ALL_CACHED: "cached_tokens must be at least 0 and below input_tokens: one prompt token is always computed",
    kernel.TOO_LARGE: "input_tokens + output_tokens - 1 must fit in kv_capacity_tokens of every replica",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counters since the pool began, replicas that are gone included; they never go back."""

    arrived: int
    finished: int
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    preemptions: int
    busy_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a pool did and holds at one moment.

    By slot, valid where `alive`: gauges, and counters that begin at 0 with each replica, as a pod's do. `arrived`
    counts requests dispatched to it; prompt and cached tokens count at the first token, generated tokens as they
    come; `busy_seconds` is time with an iteration under way; `kv_usage` is 0 to 1.

    Of the pool: `held` interactive requests wait for a replica, `deferred` ones to be sent; `interactive_arrived`
    counts arrivals; `unfinished_request_seconds` is the integral over time of held and dispatched requests, so mean
    concurrency over a window is its difference. `met_targets` counts interactive requests finished within both
    latency targets, `met_deadlines` deferrable ones finished in time. `ttft_counts[i]` requests took at most
    `Pool.ttft_edges_s[i]` (cumulative; the last bucket is infinite), counted at the first token from the arrival, or
    from the dispatch of a deferrable request, as its engine sees it; TPOT counts when requests finish.
    """

    now_s: float
    alive: NDArray[np.bool_]
    arrived: Counts
    finished: Counts
    prompt_tokens: Counts
    cached_tokens: Counts
    generation_tokens: Counts
    preemptions: Counts
    busy_seconds: Floats
    running: Counts
    waiting: Counts
    kv_usage: Floats
    held: int
    deferred: int
    interactive_arrived: int
    unfinished_request_seconds: float
    met_targets: int
    met_deadlines: int
    ttft_counts: Counts
    tpot_counts: Counts
    totals: Totals


class Pool:
    """The replicas of one service, by slot, and what waits for them. It begins empty at `now_s` 0.

    `ttft_edges_s` and `tpot_edges_s` are the histograms' upper bounds: vLLM's, and the service's own targets.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.now_s = 0.0
        self.ttft_edges_s = (*histogram_bounds(TTFT_BOUNDS, bounds.ttft_seconds), inf)
        self.tpot_edges_s = (*histogram_bounds(TPOT_BOUNDS, bounds.tpot_seconds), inf)
        self._slots = 0  # ever used
        self._most_kv_tokens = _UNLIMITED  # that every replica can hold
        self._gone = np.zeros(1, pool_state.REPLICA)  # the counters of removed replicas
        self._state = pool_state.empty_state(
            self.ttft_edges_s[:-1], self.tpot_edges_s[:-1], bounds.ttft_seconds, bounds.tpot_seconds
        )
        # Columns of records cost a microsecond to look up; `advance` is called a million times.
        self._pool = {field: self._state.pool[field] for field in ("free", "may_fill")}
        self._arrivals = [self._state.arrivals[field] for field in _REQUEST_FIELDS]
        self._outcomes: list[NDArray[Any]] = []
        self._make_room(BLOCK)

    # -- replicas

    def add(self, step: StepModel, limits: EngineLimits, *, weight: float = 1.0) -> int:
        """A new, idle replica that gets no requests before `open`; its slot, the lowest that is free.

        ValueError for a weight or `alpha_ms` that is not positive, or a cache too small for a request that waits.
        """
        self._check_replica(step, limits, weight)
        slot = self._free_slot(limits.max_num_seqs)
        record = self._state.replicas[slot : slot + 1]
        unplanned = record["unplanned"].copy()  # its last tenant may still be listed
        record[:] = np.zeros(1, pool_state.REPLICA)
        record["unplanned"] = unplanned
        for field in ("alpha_ms", "beta_ms", "kappa_ms", "delta_ms"):
            record[field] = getattr(step, field)
        for field in ("max_num_seqs", "max_num_batched_tokens", "kv_capacity_tokens"):
            record[field] = getattr(limits, field)
        for field in ("wait_head", "wait_tail", "last_admitted", "prefilling", "first_chunk"):
            record[field] = -1
        record["kappa_per_token_ms"] = step.kappa_ms / 1000
        record["weight"] = weight
        record["alive"] = True
        self._slots = max(self._slots, slot + 1)
        self._note_capacity()
        return slot

    def open(self, slot: int, routable: bool) -> None:
        """Let the router send new requests there, or no more; requests held for want of a replica go at once."""
        self._replica(slot)["routable"] = routable
        kernel.set_load(self._state, slot)
        if routable:
            kernel.route_held(self._state)

    def unfinished(self, slot: int) -> int:
        """Requests that are queued or running there."""
        record = self._replica(slot)
        return int(record["running"] + record["waiting"])

    def fail(self, slot: int) -> Requests:
        """The replica dies and its slot is free; its unfinished requests, in order of arrival, are lost."""
        lost = np.zeros(self.unfinished(slot), pool_state.REQUEST)
        kernel.drop_all(self._state, slot, lost)
        self._forget(slot)
        lost.sort(order="at_s", kind="stable")
        return Requests(*(lost[field].copy() for field in _REQUEST_FIELDS))

    def remove(self, slot: int) -> None:
        """Take an idle replica out; its slot is free. ValueError while it has requests."""
        if count := self.unfinished(slot):
            raise ValueError(f"slot {slot} has {count} unfinished requests: close it and wait, or let it fail")
        self.fail(slot)

    # -- requests

    @property
    def fill_to(self) -> float:
        """Deferrable requests are sent while the least loaded replica has fewer unfinished per weight; 0: none."""
        return float(self._state.pool["fill_to"][0])

    @fill_to.setter
    def fill_to(self, unfinished_per_weight: float) -> None:
        self._state.pool["fill_to"] = unfinished_per_weight

    def advance(self, requests: Requests, until_s: float) -> Outcomes:
        """Run to `until_s` with these arrivals and return what finished, in order.

        ValueError, before anything has happened, for arrivals out of order or outside of [now_s, until_s], or
        requests that some replica could never hold.
        """
        if not (isfinite(until_s) and until_s >= self.now_s):
            raise ValueError(f"until_s is {until_s}, but must be finite and not before now_s, {self.now_s}")
        until_s = float(until_s)  # an integer would have the kernel compiled once more
        blocks = _blocks(requests, until_s)
        self._check_arrivals(blocks)
        self._pool["may_fill"][0] = True
        done = [self._run(block, end_s) for block, end_s in blocks]
        self.now_s = until_s
        return Outcomes(*(done[0] if len(done) == 1 else map(np.concatenate, zip(*done, strict=True))))

    def stats(self) -> Stats:
        """Counters and gauges as of `now_s`."""
        own, alive = self._replicas_now(), self._state.replicas["alive"][: self._slots].copy()
        pool = self._state.pool[0]
        return Stats(
            now_s=self.now_s,
            alive=alive,
            **{name: own[name] for name in (*_COUNTERS, "running", "waiting")},
            busy_seconds=own["busy_ms"] / 1000,
            kv_usage=own["kv_tokens"] / np.maximum(own["kv_capacity_tokens"], 1),
            held=int(pool["held"]),
            deferred=int(pool["deferred"]),
            interactive_arrived=int(pool["interactive_arrived"]),
            unfinished_request_seconds=float(pool["unfinished_integral_ms"]) / 1000,
            met_targets=int(pool["met_targets"]),
            met_deadlines=int(pool["met_deadlines"]),
            ttft_counts=np.cumsum(self._state.ttft_counts),
            tpot_counts=np.cumsum(self._state.tpot_counts),
            totals=self._totals(own),
        )

    # -- inside

    def _replica(self, slot: int) -> Any:
        """Its record. ValueError when the slot is free."""
        if not (0 <= slot < self._slots and self._state.replicas["alive"][slot]):
            raise ValueError(f"slot {slot} holds no replica")
        return self._state.replicas[slot]

    def _check_replica(self, step: StepModel, limits: EngineLimits, weight: float) -> None:
        if not (isfinite(weight) and weight > 0):
            raise ValueError(f"weight is {weight}, but must be above 0")
        if step.alpha_ms <= 0:
            raise ValueError(f"alpha_ms is {step.alpha_ms}, but must be above 0: each iteration takes time")
        largest = self._largest_waiting()
        if largest > limits.kv_capacity_tokens:
            raise ValueError(
                f"kv_capacity_tokens is {limits.kv_capacity_tokens}, but a waiting request needs {largest}"
            )

    def _largest_waiting(self) -> int:
        """KV tokens of the largest request that has no replica yet."""
        records = self._state.sequences
        waiting = records[records["replica"] == -1]
        return int((waiting["input_tokens"] + waiting["output_tokens"] - 1).max(initial=0))

    def _free_slot(self, max_num_seqs: int) -> int:
        """The lowest free slot, in tables that are large enough."""
        free = np.flatnonzero(~self._state.replicas["alive"])
        slot = int(free[0]) if len(free) else len(self._state.replicas)
        rows, width = self._state.due_step.shape
        if slot >= rows or max_num_seqs > width:
            self._state = pool_state.with_replicas(self._state, slot + 1, max_num_seqs)
        return slot

    def _forget(self, slot: int) -> None:
        record = self._state.replicas[slot]
        for field in (*_COUNTERS, "busy_ms"):
            self._gone[field] += record[field]
        record["alive"] = False
        self._note_capacity()

    def _note_capacity(self) -> None:
        records = self._state.replicas
        self._most_kv_tokens = int(records["kv_capacity_tokens"][records["alive"]].min(initial=_UNLIMITED))

    def _check_arrivals(self, blocks: list[tuple[Requests, float]]) -> None:
        since_s, before = self.now_s, 0
        for block, end_s in blocks:
            self._load(block)
            wrong, at = kernel.check(self._state.arrivals, len(block), since_s, end_s, self._most_kv_tokens)
            if wrong != kernel.ACCEPTED:
                raise ValueError(f"request {before + at}: {_WRONG[wrong]}")
            since_s, before = end_s, before + len(block)

    def _make_room(self, requests: int) -> None:
        if self._pool["free"][0] < requests:
            self._state = pool_state.with_requests(self._state, requests)
            self._outcomes = [self._state.outcomes[field] for field in _OUTCOME_FIELDS]

    def _load(self, block: Requests) -> None:
        count = len(block)
        for column, field in zip(self._arrivals, _REQUEST_FIELDS, strict=True):
            column[:count] = getattr(block, field)

    def _run(self, block: Requests, end_s: float) -> list[NDArray[Any]]:
        """The columns of the outcomes."""
        self._make_room(len(block))
        self._load(block)
        finished = kernel.advance(self._state, len(block), end_s * 1000)
        return [column[:finished].copy() for column in self._outcomes]

    def _replicas_now(self) -> Records:
        """Every slot's record with the run under way counted in; zeros for free slots."""
        own = self._state.replicas[: self._slots].copy()
        tokens, busy_ms = np.zeros(self._slots, np.int64), np.zeros(self._slots)
        kernel.in_flight(self._state, tokens, busy_ms)
        own["generation_tokens"] += tokens
        own["kv_tokens"] += tokens
        own["busy_ms"] += busy_ms
        own[~own["alive"]] = np.zeros(1, own.dtype)
        return own

    def _totals(self, own: Records) -> Totals:
        gone = self._gone[0]
        return Totals(
            **{name: int(gone[name] + own[name].sum()) for name in _COUNTERS},
            busy_seconds=float(gone["busy_ms"] + own["busy_ms"].sum()) / 1000,
        )


def prepare() -> None:
    """Compile what is not in numba's cache: half a minute the first time, at once later. Else the first call does."""
    pool = Pool(Bounds(ttft_seconds=1.0, tpot_seconds=1.0))
    slot = pool.add(StepModel(1.0, 0.0, 0.0, 0.0), EngineLimits(1, 1, 1))
    pool.open(slot, True)
    floats, ints = np.zeros(0), np.zeros(0, np.int32)
    pool.advance(Requests(floats, ints, ints, ints, floats), 0.0)
    pool.stats()
    pool.fail(slot)


def _blocks(requests: Requests, until_s: float) -> list[tuple[Requests, float]]:
    """Stretches of at most `BLOCK` arrivals, each with the time to run to."""
    if len(requests) <= BLOCK:
        return [(requests, until_s)]
    starts = range(0, len(requests), BLOCK)
    parts = [_part(requests, slice(start, start + BLOCK)) for start in starts]
    return list(zip(parts, [*(float(part.at_s[-1]) for part in parts[:-1]), until_s], strict=True))


def _part(requests: Requests, part: slice) -> Requests:
    return Requests(**{field: getattr(requests, field)[part] for field in _REQUEST_FIELDS})
