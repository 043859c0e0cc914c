"""NVIDIA Dynamo's planner with `optimization_target=sla`: a forecast over what an engine model says a replica takes.

From the `ai-dynamo` 1.6.1 package, `planner/config/planner_config.py` and `planner/core`. The throughput loop asks
every 180 s for predicted requests over the requests per second of an aggregated engine: the largest batch whose mean
inter-token latency is within the target and that KV cache, sequence slots and prefill leave room for. The load loop
(off unless enabled, every 5 s) adds one when every engine's estimated latency is above its target, and takes one away
when the others would stay below 80 % of it, never below the throughput loop's count and never while scaling.

Its predictors (ARIMA by default) fit on its own history; ours is the true rate of the next interval, which no fit
beats, or `constant`, its simplest. Its engine model is a regression on forward passes; ours is the fleet's own step
model, hence exact. At most 8 replicas a decision. Nothing is decided on missing metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, inf

from tokenservice.core.capacity import Targets, Workload
from tokenservice.core.model import Missing, ServiceMetrics, Variant
from tokenservice.simulate.policies.base import EachService, Moment, Peer, choices, whole
from tokenservice.simulate.policy import EngineView, ServiceView

_INTERVAL_SECONDS = 180.0
_LOAD_INTERVAL_SECONDS = 5.0
_MOST_CHANGE = 8
_DOWN_SENSITIVITY = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sla:
    """`margin` scales the targets, which the planner applies to means; `perfect` forecasts, else the last rate."""

    margin: float = 1.0
    perfect: bool = True
    load_loop: bool = False


def requests_per_second(variant: Variant, work: Workload, targets: Targets, margin: float = 1.0) -> float:
    """What the planner takes one aggregated engine for; 0 when a lone request misses a target."""
    if _prefill_ms(variant, work) > targets.ttft_seconds * margin * 1000:
        return 0.0
    batch = _largest(_batch_limit(variant, work), partial(_keeps, variant, work, targets.tpot_seconds * margin * 1000))
    if batch == 0:
        return 0.0
    decode = batch / (work.output_tokens * _tpot_ms(variant, work, batch))
    return 1000 * min(decode, 1 / _prefill_ms(variant, work))


def _batch_limit(variant: Variant, work: Workload) -> int:
    """Sequences that slots, KV cache and a balance of prefill and decode tokens in an iteration allow."""
    by_kv = variant.kv_capacity_tokens / (work.input_tokens + work.output_tokens / 2)
    by_tokens = variant.max_num_batched_tokens / (1 + work.input_tokens * (1 - work.hit_rate) / work.output_tokens)
    return int(min(variant.max_num_seqs, by_kv, by_tokens))


def _largest(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest of 1..limit for which `holds`, which fails from some number on; 0 if it fails at once."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _keeps(variant: Variant, work: Workload, limit_ms: float, batch: int) -> bool:
    return _tpot_ms(variant, work, batch) <= limit_ms


def _tpot_ms(variant: Variant, work: Workload, batch: float) -> float:
    return variant.step.tpot_ms(batch, work.input_tokens, work.output_tokens, work.hit_rate)


def _prefill_ms(variant: Variant, work: Workload) -> float:
    """One prompt by itself, in as many iterations as its chunks need."""
    computed = work.input_tokens * (1 - work.hit_rate)
    return max(1, ceil(computed / variant.max_num_batched_tokens)) * variant.step.alpha_ms + (
        variant.step.delta_ms * computed
    )


@dataclass(slots=True)
class _Planner:
    setting: Sla
    planned_at: float = -inf
    bound: int = 0

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        each = requests_per_second(seen.variant, seen.workload, seen.targets, self.setting.margin)
        if isinstance(seen.metrics, Missing) or each <= 0:
            return None
        due = at.now - self.planned_at >= _INTERVAL_SECONDS
        if due:
            self.bound, self.planned_at = whole(self._predicted(seen.metrics, at) / each), at.now
        if not self.setting.load_loop:
            return _stepwise(self.bound, seen.replicas) if due else None
        return _stepwise(max(self.bound, seen.replicas + correction(seen, self.setting.margin)), seen.replicas)

    def _predicted(self, metrics: ServiceMetrics, at: Moment) -> float:
        if self.setting.perfect:
            return at.expected(at.now, at.now + _INTERVAL_SECONDS)
        return metrics.requests_per_second


def _stepwise(count: int, current: int) -> int:
    return min(max(count, current - _MOST_CHANGE), current + _MOST_CHANGE)


def correction(seen: ServiceView, margin: float) -> int:
    """The load loop: one more, one less or none, from what each engine is seen to hold."""
    if len(seen.engines) != seen.replicas or not seen.engines:  # some still start: scaling is under way
        return 0
    ttft, itl = seen.targets.ttft_seconds * margin * 1000, seen.targets.tpot_seconds * margin * 1000
    if all(_queue_ms(seen, it) + _own_ms(seen) > ttft for it in seen.engines):
        return 1
    if all(_iteration_ms(seen, it) > itl for it in seen.engines):
        return 1
    return -1 if seen.replicas > 1 and all(_spare(seen, it, ttft, itl) for it in seen.engines) else 0


def _spare(seen: ServiceView, engine: EngineView, ttft: float, itl: float) -> bool:
    """Whether an engine would do well with its share of one engine's load on top."""
    grown = seen.replicas / (seen.replicas - 1)
    more = EngineView(running=engine.running * grown, waiting=engine.waiting * grown, kv_usage=engine.kv_usage * grown)
    return (
        _queue_ms(seen, more) < _DOWN_SENSITIVITY * (ttft - _own_ms(seen))
        and _iteration_ms(seen, more) < _DOWN_SENSITIVITY * itl
        and more.kv_usage < 1
    )


def _own_ms(seen: ServiceView) -> float:
    return _prefill_ms(seen.variant, seen.workload)


def _queue_ms(seen: ServiceView, engine: EngineView) -> float:
    return engine.waiting * _prefill_ms(seen.variant, seen.workload)


def _iteration_ms(seen: ServiceView, engine: EngineView) -> float:
    work = seen.workload
    prefill = engine.running * work.input_tokens * (1 - work.hit_rate) / work.output_tokens
    return seen.variant.step.step_ms(engine.running, engine.kv_usage * seen.variant.kv_capacity_tokens, prefill)


def dynamo(setting: Sla) -> EachService:
    period = _LOAD_INTERVAL_SECONDS if setting.load_loop else _INTERVAL_SECONDS
    return EachService("dynamo-sla", period, partial(_Planner, setting))


PEERS = (
    Peer(
        name="dynamo-sla",
        scales_on="predicted rate over an engine model; optionally estimated latency",
        description="throughput loop on a perfect forecast, load loop on top where enabled",
        citation="ai-dynamo 1.6.1 planner/config/planner_config.py, planner/core",
        sweep=choices(
            dynamo,
            Sla(),
            Sla(load_loop=True),
            Sla(margin=0.8),
            Sla(margin=0.6),
            Sla(margin=0.6, load_loop=True),
            Sla(margin=0.6, perfect=False),
            foresight=lambda setting: setting.perfect,
        ),
    ),
)
