"""The pool's inner loop, compiled: engines as in `engine`, on the arrays of `pool_state`, behind a least-loaded router.

The engine's rules are written a second time here because objects are a hundred times slower; a test holds the two
equal, request by request. What is different: an engine is only touched at events of its own and when a request comes
to an empty queue, so the cost of an event does not depend on how many replicas there are, but for the depth of two
tournament trees, one over the engines' next events and one over their loads.

One instant goes: iterations that end, deferrable requests that may now be sent, arrivals; then, when time moves on,
new runs are laid out.

One module, though long: numba's cache looks only at the file of the function that is called, and would keep a stale
copy of helpers that live in another.
"""

# mypy: disable-error-code="no-any-return"
# (the fields of a record have no types for it)

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan, sqrt
from typing import Any, TypeVar, cast

import numba

from tokenservice.simulate.pool_state import Counts, Floats, Indices, Records, State

_F = TypeVar("_F", bound=Callable[..., Any])

ACCEPTED, OUT_OF_ORDER, EMPTY, ALL_CACHED, TOO_LARGE = range(5)
"""What `check` says of arrivals."""


_OPTIONS: dict[str, Any] = {
    "cache": True,  # beside the module, or where NUMBA_CACHE_DIR says
    "error_model": "numpy",  # nothing here divides by zero
    "_nrt": False,  # nothing here allocates, and counting references to the state's arrays took 3/4 of the time
}


def jit(function: _F) -> _F:
    """Compile at the first call, and keep the result for the next process."""
    return cast(_F, numba.njit(**_OPTIONS)(function))


# -- tournament trees: the smallest of a changing set of keys, the lowest index among equals


@jit
def _replay(keys: Floats, tree: Indices, leaf: int) -> None:
    """Play again the matches of a leaf whose key changed."""
    node = (leaf + len(keys)) >> 1
    while node >= 1:
        left, right = tree[2 * node], tree[2 * node + 1]
        best = left if keys[left] <= keys[right] else right
        if best == tree[node] and best != leaf:
            return
        tree[node] = best
        node >>= 1


@jit
def _set_next(state: State, r: int, at_ms: float) -> None:
    state.next_ms[r] = at_ms
    _replay(state.next_ms, state.next_tree, r)


@jit
def set_load(state: State, r: int) -> None:
    """Tell the router what a replica has to do."""
    rep = state.replicas[r]
    state.load[r] = (rep.running + rep.waiting) / rep.weight if rep.routable else inf
    _replay(state.load, state.load_tree, r)


# -- finish steps: one heap an engine, from which preempted sequences are taken out


@jit
def _due_put(state: State, r: int, place: int, step: int, s: int) -> None:
    state.due_step[r, place] = step
    state.due_sequence[r, place] = s
    state.sequences[s].place = place


@jit
def _due_rise(state: State, r: int, place: int, step: int, s: int) -> None:
    while place > 0:
        above = (place - 1) >> 1
        if state.due_step[r, above] <= step:
            break
        _due_put(state, r, place, state.due_step[r, above], state.due_sequence[r, above])
        place = above
    _due_put(state, r, place, step, s)


@jit
def _due_sink(state: State, r: int, place: int, step: int, s: int, size: int) -> None:
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and state.due_step[r, below + 1] < state.due_step[r, below]:
            below += 1
        if step <= state.due_step[r, below]:
            break
        _due_put(state, r, place, state.due_step[r, below], state.due_sequence[r, below])
        place = below
    _due_put(state, r, place, step, s)


@jit
def _due_remove(state: State, r: int, place: int, size: int) -> None:
    """Take one of `size` entries out."""
    last = size - 1
    if place == last:
        return
    step, s = state.due_step[r, last], state.due_sequence[r, last]
    if place > 0 and step < state.due_step[r, (place - 1) >> 1]:
        _due_rise(state, r, place, step, s)
    else:
        _due_sink(state, r, place, step, s, last)


# -- deferrable requests: one heap, earliest deadline first, then first come


@jit
def _sooner(state: State, s: int, other: int) -> bool:
    one, two = state.sequences[s], state.sequences[other]
    if one.deadline_s != two.deadline_s:
        return one.deadline_s < two.deadline_s
    return one.order < two.order


@jit
def _defer(state: State, s: int) -> None:
    heap, place = state.deferred, state.pool[0].deferred
    state.pool[0].deferred += 1
    while place > 0 and _sooner(state, s, heap[(place - 1) >> 1]):
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = s


@jit
def _pop_deferred(state: State) -> int:
    heap, size = state.deferred, state.pool[0].deferred - 1
    state.pool[0].deferred = size
    first, s, place = heap[0], heap[size], 0
    while 2 * place + 1 < size:
        below = 2 * place + 1
        if below + 1 < size and _sooner(state, heap[below + 1], heap[below]):
            below += 1
        if not _sooner(state, heap[below], s):
            break
        heap[place] = heap[below]
        place = below
    heap[place] = s
    return first


# -- an engine: runs of iterations


@jit
def _elapsed_ms(rep: Any, steps: int) -> float:
    return steps * rep.run_first_ms + rep.run_slope_ms * (steps * (steps - 1) / 2)


@jit
def _steps_within(rep: Any, elapsed_ms: float) -> int:
    """Whole steps of the run that fit in `elapsed_ms`: the root of a parabola, then exact."""
    if elapsed_ms < rep.run_first_ms:
        return 0
    half_slope = rep.run_slope_ms / 2
    b = rep.run_first_ms - half_slope
    if half_slope > 0:
        steps = int((sqrt(b * b + 4 * half_slope * elapsed_ms) - b) / (2 * half_slope))
    else:
        steps = int(elapsed_ms / b)
    while _elapsed_ms(rep, steps + 1) <= elapsed_ms:
        steps += 1
    while _elapsed_ms(rep, steps) > elapsed_ms:
        steps -= 1
    return steps


@jit
def _steps_done(rep: Any, now_ms: float) -> int:
    return min(_steps_within(rep, now_ms - rep.run_start_ms), rep.run_steps - 1)


@jit
def _await_plan(state: State, r: int) -> None:
    """Nothing is under way: lay out the next run when time moves on."""
    _set_next(state, r, inf)
    rep = state.replicas[r]
    if not rep.unplanned:
        rep.unplanned = True
        state.unplanned[state.pool[0].unplanned] = r
        state.pool[0].unplanned += 1


@jit
def _catch_up(state: State, r: int) -> None:
    """Carry out what is done of the run under way; its last iteration ends as an event of its own."""
    rep = state.replicas[r]
    if rep.run_steps > 0:
        _carry_out(state, r, _steps_done(rep, state.pool[0].now_ms))


@jit
def _end_run_early(state: State, r: int) -> None:
    """Let the iteration under way be the last of this run; one that has not begun is planned anew."""
    rep = state.replicas[r]
    rep.run_steps = min(rep.run_steps, 1)
    if rep.first_chunk < 0 and rep.run_start_ms == state.pool[0].now_ms:
        rep.run_steps = 0
    if rep.run_steps == 0:
        _await_plan(state, r)
    else:
        _set_next(state, r, rep.run_start_ms + _elapsed_ms(rep, 1))


@jit
def _plan(state: State, r: int) -> None:
    """Lay out the next run from now, if there is anything to run."""
    rep = state.replicas[r]
    rep.unplanned = False
    preempted = _make_room(state, r)
    chunks, prefill_tokens, cached_tokens = _schedule_prefill(state, r, not preempted)
    decoding = rep.decoding
    if decoding == 0 and chunks == 0:
        return
    context_tokens = rep.context_tokens + decoding + cached_tokens
    rep.run_start_ms = state.pool[0].now_ms
    rep.run_first_ms = (
        rep.alpha_ms
        + rep.beta_ms * (decoding + chunks)
        + rep.kappa_ms * context_tokens / 1000
        + rep.delta_ms * prefill_tokens
    )
    if chunks > 0:
        rep.run_steps = 1
        rep.run_slope_ms = 0.0
    else:
        room = (rep.kv_capacity_tokens - rep.kv_tokens) // decoding
        rep.run_steps = min(state.due_step[r, 0] - rep.step, room)
        rep.run_slope_ms = rep.kappa_per_token_ms * decoding
    _set_next(state, r, rep.run_start_ms + _elapsed_ms(rep, rep.run_steps))


@jit
def _make_room(state: State, r: int) -> bool:
    """Preempt from the end until the decoding sequences' next tokens fit. True when any had to go."""
    rep = state.replicas[r]
    preempted = False
    while rep.kv_tokens + rep.decoding > rep.kv_capacity_tokens:
        _preempt(state, r, rep.last_admitted)
        preempted = True
    return preempted


@jit
def _preempt(state: State, r: int, s: int) -> None:
    rep, seq = state.replicas[r], state.sequences[s]
    if seq.decoding:
        seq.produced = seq.output_tokens - (seq.finish_step - rep.step)
    _leave(state, r, s)
    seq.prefill_target = seq.input_tokens + seq.produced
    rep.preemptions += 1
    seq.next = rep.wait_head
    rep.wait_head = s
    if rep.wait_tail < 0:
        rep.wait_tail = s
    rep.waiting += 1


@jit
def _schedule_prefill(state: State, r: int, admit: bool) -> tuple[int, int, int]:
    """Chunks of the next iteration: the sequence half way first, then newcomers while they fit.

    How many chunks, their tokens, and the tokens that were there before them.
    """
    rep = state.replicas[r]
    budget = rep.max_num_batched_tokens - rep.decoding
    chunks = prefill_tokens = cached_tokens = 0
    rep.first_chunk = -1
    if rep.prefilling >= 0 and budget > 0:
        seq = state.sequences[rep.prefilling]
        rep.first_chunk = rep.prefilling
        rep.last_chunk = min(budget, seq.prefill_target - seq.computed)
        chunks, prefill_tokens, cached_tokens = 1, rep.last_chunk, seq.computed
        budget -= rep.last_chunk
    while admit and budget > 0 and rep.waiting > 0 and _fits(rep, state.sequences[rep.wait_head]):
        s = rep.wait_head
        seq = state.sequences[s]
        _admit(state, r, s)
        if rep.first_chunk < 0:
            rep.first_chunk = s
        rep.last_chunk = min(budget, seq.prefill_target - seq.computed)
        chunks += 1
        prefill_tokens += rep.last_chunk
        cached_tokens += seq.computed
        budget -= rep.last_chunk
    return chunks, prefill_tokens, cached_tokens


@jit
def _fits(rep: Any, seq: Any) -> bool:
    if rep.running >= rep.max_num_seqs:
        return False
    return rep.kv_tokens + rep.decoding + seq.prefill_target <= rep.kv_capacity_tokens


@jit
def _admit(state: State, r: int, s: int) -> None:
    rep, seq = state.replicas[r], state.sequences[s]
    rep.wait_head = seq.next
    if rep.wait_head < 0:
        rep.wait_tail = -1
    rep.waiting -= 1
    seq.computed = seq.cached_tokens
    seq.next = -1
    seq.previous = rep.last_admitted
    if seq.previous >= 0:
        state.sequences[seq.previous].next = s
    rep.last_admitted = s
    rep.running += 1
    rep.kv_tokens += seq.prefill_target


@jit
def _leave(state: State, r: int, s: int) -> None:
    """Take a running sequence out of the batch and give its KV back."""
    rep, seq = state.replicas[r], state.sequences[s]
    if seq.next >= 0:
        state.sequences[seq.next].previous = seq.previous
    else:
        rep.last_admitted = seq.previous
    if seq.previous >= 0:
        state.sequences[seq.previous].next = seq.next
    rep.running -= 1
    if seq.decoding:
        context = seq.input_tokens + seq.output_tokens - (seq.finish_step - rep.step) - 1
        _due_remove(state, r, seq.place, rep.decoding)
        seq.decoding = False
        rep.decoding -= 1
        rep.context_tokens -= context
        rep.kv_tokens -= context
    else:
        rep.prefilling = -1
        rep.kv_tokens -= seq.prefill_target


@jit
def _carry_out(state: State, r: int, steps: int) -> None:
    """Make `steps` iterations of the run happen."""
    if steps == 0:
        return
    rep = state.replicas[r]
    decoding = rep.decoding
    end_ms = rep.run_start_ms + _elapsed_ms(rep, steps)
    rep.busy_ms += end_ms - rep.run_start_ms
    rep.step += steps
    rep.generation_tokens += steps * decoding
    rep.context_tokens += steps * decoding
    rep.kv_tokens += steps * decoding
    rep.run_start_ms = end_ms
    rep.run_first_ms += steps * rep.run_slope_ms
    rep.run_steps -= steps
    if rep.first_chunk >= 0:
        _prefilled(state, r, end_ms)
    while rep.decoding > 0 and state.due_step[r, 0] <= rep.step:
        _finish(state, r, state.due_sequence[r, 0], end_ms)


@jit
def _prefilled(state: State, r: int, at_ms: float) -> None:
    rep = state.replicas[r]
    s = rep.first_chunk
    rep.first_chunk = rep.prefilling = -1
    while s >= 0:
        seq = state.sequences[s]
        if seq.next < 0 and seq.computed + rep.last_chunk < seq.prefill_target:
            seq.computed += rep.last_chunk
            rep.prefilling = s
        else:
            _start_decoding(state, r, s, at_ms)
        s = seq.next


@jit
def _start_decoding(state: State, r: int, s: int, at_ms: float) -> None:
    rep, seq = state.replicas[r], state.sequences[s]
    seq.decoding = True
    seq.finish_step = rep.step + seq.output_tokens - seq.produced - 1
    _due_rise(state, r, rep.decoding, seq.finish_step, s)
    rep.decoding += 1
    rep.context_tokens += seq.prefill_target
    rep.generation_tokens += 1
    if seq.first_token_ms < 0:
        seq.first_token_ms = at_ms
        rep.prompt_tokens += seq.input_tokens
        rep.cached_tokens += seq.cached_tokens
        since_ms = seq.at_s * 1000 if isnan(seq.deadline_s) else seq.dispatched_ms
        _observe(state.ttft_edges_s, state.ttft_counts, (at_ms - since_ms) / 1000)


@jit
def _observe(edges: Floats, counts: Counts, value: float) -> None:
    bucket = 0
    while bucket < len(edges) and value > edges[bucket]:
        bucket += 1
    counts[bucket] += 1


@jit
def _finish(state: State, r: int, s: int, at_ms: float) -> None:
    _leave(state, r, s)
    pool, seq = state.pool[0], state.sequences[s]
    state.replicas[r].finished += 1
    done = state.outcomes[pool.finished]
    pool.finished += 1
    done.at_s = seq.at_s
    done.deadline_s = seq.deadline_s
    done.input_tokens = seq.input_tokens
    done.output_tokens = seq.output_tokens
    done.cached_tokens = seq.cached_tokens
    done.ttft_s = (seq.first_token_ms - seq.at_s * 1000) / 1000
    done.tpot_s = (at_ms - seq.first_token_ms) / max(1, seq.output_tokens - 1) / 1000
    done.finished_s = at_ms / 1000
    _observe(state.tpot_edges_s, state.tpot_counts, done.tpot_s)
    if not isnan(seq.deadline_s):
        pool.met_deadlines += done.finished_s <= seq.deadline_s
    else:
        pool.met_targets += done.ttft_s <= pool.ttft_bound_s and done.tpot_s <= pool.tpot_bound_s
    pool.unfinished -= 1
    pool.may_fill = True
    _release(state, s)
    set_load(state, r)


@jit
def _release(state: State, s: int) -> None:
    state.free[state.pool[0].free] = s
    state.pool[0].free += 1


# -- the router


@jit
def _take_in(state: State, request: Any) -> int:
    """A record for an arrival."""
    pool = state.pool[0]
    pool.free -= 1
    s = state.free[pool.free]
    pool.order += 1
    seq = state.sequences[s]
    seq.at_s = request.at_s
    seq.deadline_s = request.deadline_s
    seq.input_tokens = request.input_tokens
    seq.output_tokens = request.output_tokens
    seq.cached_tokens = request.cached_tokens
    seq.prefill_target = request.input_tokens
    seq.order = pool.order
    seq.dispatched_ms = seq.first_token_ms = -1.0
    seq.produced = seq.computed = 0
    seq.replica = seq.next = seq.previous = -1
    seq.decoding = False
    return s


@jit
def _arrive(state: State, request: Any) -> None:
    pool = state.pool[0]
    s = _take_in(state, request)
    if not isnan(request.deadline_s):
        _defer(state, s)
        pool.may_fill = True
        return
    pool.interactive_arrived += 1
    pool.unfinished += 1
    target = state.load_tree[1]
    if state.load[target] < inf:
        _dispatch(state, s, target)
    else:
        _hold(state, s)


@jit
def _hold(state: State, s: int) -> None:
    pool = state.pool[0]
    if pool.held == 0:
        pool.held_head = s
    else:
        state.sequences[pool.held_tail].next = s
    pool.held_tail = s
    pool.held += 1


@jit
def route_held(state: State) -> None:
    """Hand requests that found no replica to those there are now."""
    pool = state.pool[0]
    while pool.held > 0 and state.load[state.load_tree[1]] < inf:
        s = pool.held_head
        pool.held_head = state.sequences[s].next
        pool.held -= 1
        state.sequences[s].next = -1
        _dispatch(state, s, state.load_tree[1])


@jit
def _fill(state: State) -> None:
    """Send deferrable requests where there is less to do than `fill_to`."""
    pool = state.pool[0]
    pool.may_fill = False
    while pool.deferred > 0 and state.load[state.load_tree[1]] < pool.fill_to:
        pool.unfinished += 1
        _dispatch(state, _pop_deferred(state), state.load_tree[1])


@jit
def _dispatch(state: State, s: int, r: int) -> None:
    rep, seq = state.replicas[r], state.sequences[s]
    first = rep.waiting == 0  # behind others it changes nothing before they are admitted
    if first:
        _catch_up(state, r)
        rep.wait_head = s
    else:
        state.sequences[rep.wait_tail].next = s
    rep.wait_tail = s
    rep.waiting += 1
    rep.arrived += 1
    seq.replica = r
    seq.dispatched_ms = state.pool[0].now_ms
    set_load(state, r)
    if first:
        _end_run_early(state, r)


@jit
def _plan_all(state: State) -> None:
    for index in range(state.pool[0].unplanned):
        _plan(state, state.unplanned[index])
    state.pool[0].unplanned = 0


# -- what Python calls


@jit
def check(arrivals: Records, count: int, now_s: float, until_s: float, most_kv_tokens: int) -> tuple[int, int]:
    """What is wrong with which of the first `count` arrivals, before any is taken in."""
    at_s = now_s
    for index in range(count):
        request = arrivals[index]
        if not at_s <= request.at_s <= until_s:
            return OUT_OF_ORDER, index
        if request.input_tokens < 1 or request.output_tokens < 1:
            return EMPTY, index
        if not 0 <= request.cached_tokens < request.input_tokens:
            return ALL_CACHED, index
        if request.input_tokens + request.output_tokens - 1 > most_kv_tokens:
            return TOO_LARGE, index
        at_s = request.at_s
    return ACCEPTED, -1


@jit
def advance(state: State, arrivals: int, until_ms: float) -> int:
    """Run to `until_ms` with the first `arrivals` of the buffer; how many requests finished."""
    pool = state.pool[0]
    pool.finished = 0
    index = 0
    while True:
        end_ms = max(state.next_ms[state.next_tree[1]], pool.now_ms)  # a rounding error may put it a hair before
        if pool.may_fill and end_ms > pool.now_ms:
            _fill(state)
            continue
        arrival_ms = state.arrivals[index].at_s * 1000 if index < arrivals else inf
        at_ms = min(end_ms, arrival_ms)
        if at_ms > pool.now_ms and pool.unplanned > 0 and until_ms > pool.now_ms:
            _plan_all(state)
            continue
        if at_ms > until_ms:
            break
        _move_to(pool, at_ms)
        if end_ms <= arrival_ms:
            r = state.next_tree[1]
            _carry_out(state, r, state.replicas[r].run_steps)
            _await_plan(state, r)
        else:
            _arrive(state, state.arrivals[index])
            index += 1
    _move_to(pool, until_ms)
    return pool.finished


@jit
def _move_to(pool: Any, at_ms: float) -> None:
    pool.unfinished_integral_ms += pool.unfinished * (at_ms - pool.now_ms)
    pool.now_ms = at_ms


@jit
def drop_all(state: State, r: int, lost: Records) -> int:
    """Lose what a replica had; it is left empty and out of every queue. `lost` gets the requests."""
    rep = state.replicas[r]
    _catch_up(state, r)
    if rep.run_steps > 0:
        rep.busy_ms += state.pool[0].now_ms - rep.run_start_ms
    count = 0
    for head, by_next in ((rep.last_admitted, False), (rep.wait_head, True)):
        s = head
        while s >= 0:
            seq = state.sequences[s]
            lost[count].at_s = seq.at_s
            lost[count].deadline_s = seq.deadline_s
            lost[count].input_tokens = seq.input_tokens
            lost[count].output_tokens = seq.output_tokens
            lost[count].cached_tokens = seq.cached_tokens
            count += 1
            _release(state, s)
            s = seq.next if by_next else seq.previous
    state.pool[0].unfinished -= count
    rep.routable = False
    rep.running = rep.waiting = rep.decoding = rep.kv_tokens = rep.context_tokens = rep.run_steps = 0
    rep.wait_head = rep.wait_tail = rep.last_admitted = rep.prefilling = rep.first_chunk = -1
    set_load(state, r)
    _set_next(state, r, inf)
    return count


@jit
def in_flight(state: State, tokens: Counts, busy_ms: Floats) -> None:
    """What each run under way has produced, and how long it has been busy, beyond the replicas' totals."""
    now_ms = state.pool[0].now_ms
    for r in range(len(tokens)):
        rep = state.replicas[r]
        if rep.alive and rep.run_steps > 0:
            busy_ms[r] = now_ms - rep.run_start_ms
            if rep.first_chunk < 0:
                tokens[r] = rep.decoding * _steps_done(rep, now_ms)
