"""llm-d's Workload Variant Autoscaler, version 2 of its saturation analyzer: a budget of KV tokens.

From llm-d's workload-variant-autoscaler v0.9 (fork at 2976e4ee; deprecated by its owner since) `internal/engines` and
`docs/saturation-scaling-config.md`. A replica is worth the smaller of 80 % of its KV cache (k1) and the tokens that it
held when its queue was seen at 5 or more (k2, mean of the last ten such sightings for the class of output lengths);
without a sighting k2 comes from the engine's arguments. Demand is tokens in use and those that queued prompts, and
requests held at the router, will need. Scale up when demand over 0.85 exceeds what is ready and pending, down when what
is ready exceeds demand over 0.70. Every 15 s, carried out by an HPA with AverageValue 1, whose sample windows are 240 s
both ways in the current guide and 0 in `config/samples/hpa-integration.yaml`.

Of several variants it would take the cheapest by cost per capacity; the simulated fleet gives each service one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from math import floor
from statistics import median

from tokenservice.core.capacity import Workload
from tokenservice.core.model import Missing, Variant
from tokenservice.simulate.policies.base import (
    EachService,
    Moment,
    Peer,
    choices,
    held_at_router,
    kv_at_capacity,
    whole,
)
from tokenservice.simulate.policies.hpa import SYNC_SECONDS, Behaviour, Hpa, Rate, average_value
from tokenservice.simulate.policy import EngineView, ServiceView

_SATURATED_QUEUE = 5
_SIGHTINGS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """Shares of the KV cache and of the budget (0 to 1), and the HPA's windows in seconds.

    `tuned` takes `kv_share` of what one replica holds at the limit of its objectives, instead of its whole KV cache.
    """

    kv_share: float = 0.80
    tuned: bool = False
    scale_up: float = 0.85
    scale_down: float = 0.70
    up_window: float = 240.0
    down_window: float = 240.0

    def behaviour(self) -> Behaviour:
        rate = Rate(period_seconds=15, pods=10)
        return Behaviour(up_window=self.up_window, up=rate, down_window=self.down_window, down=rate)


def change(demand: float, per_replica: float, ready: int, pending: int, setting: TokenBudget) -> int:
    """Replicas to add (or, negative, to take away) for a demand, in tokens as `per_replica` is."""
    short = demand / setting.scale_up - (ready + pending) * per_replica
    if short > 0:
        return whole(short / per_replica)
    return -floor(max(0.0, ready * per_replica - demand / setting.scale_down) / per_replica)


def from_arguments(variant: Variant, work: Workload) -> float:
    """Tokens of a full engine as its arguments tell: k2 while no saturated engine was seen."""
    total = work.input_tokens + work.output_tokens
    sequences = min(variant.max_num_batched_tokens * work.output_tokens / total, variant.max_num_seqs)
    return sequences * (work.input_tokens + work.output_tokens / 2)


@dataclass(slots=True)
class _OnTokens:
    setting: TokenBudget
    sightings: dict[int, deque[float]] = field(default_factory=dict)
    hpa: Hpa = field(init=False)

    def __post_init__(self) -> None:
        self.hpa = Hpa(self.setting.behaviour())

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        """Without metrics it publishes what it published: the HPA holds."""
        if isinstance(seen.metrics, Missing) or not seen.engines:
            return None
        per_replica = self._per_replica(seen)
        if per_replica < 1:
            return None
        pending = max(0, seen.replicas - seen.ready)
        count = seen.replicas + change(_demand(seen), per_replica, seen.ready, pending, self.setting)
        return self.hpa.decide(at.now, seen, average_value(max(1, count), 1.0, seen.replicas))

    def _per_replica(self, seen: ServiceView) -> float:
        share = self.setting.kv_share * (kv_at_capacity(seen) if self.setting.tuned else 1.0)
        return median(min(share * seen.variant.kv_capacity_tokens, self._full(seen, it)) for it in seen.engines)

    def _full(self, seen: ServiceView, engine: EngineView) -> float:
        """Tokens that a saturated engine holds, this one's included if it is one."""
        known = self.sightings.setdefault(_length_class(seen.workload.output_tokens), deque(maxlen=_SIGHTINGS))
        if engine.waiting >= _SATURATED_QUEUE and engine.kv_usage > 0:
            known.append(engine.kv_usage * seen.variant.kv_capacity_tokens)
        return sum(known) / len(known) if known else from_arguments(seen.variant, seen.workload)


def _length_class(output_tokens: float) -> int:
    return 0 if output_tokens < 100 else 1 if output_tokens < 500 else 2


def _demand(seen: ServiceView) -> float:
    """Tokens held, and tokens that the queues will need."""
    work = seen.workload
    waiting = sum(engine.waiting for engine in seen.engines)
    used = sum(engine.kv_usage for engine in seen.engines) * seen.variant.kv_capacity_tokens
    held = held_at_router(seen)
    return used + waiting * work.input_tokens + held * (work.input_tokens * (1 - work.hit_rate) + work.output_tokens)


def wva(setting: TokenBudget) -> EachService:
    return EachService("llm-d-wva", SYNC_SECONDS, partial(_OnTokens, setting))


PEERS = (
    Peer(
        name="llm-d-wva",
        scales_on="KV tokens in use and queued",
        description="token budget against measured or derived capacity, through HPA",
        citation="llm-d workload-variant-autoscaler v0.9 (2976e4ee) internal/engines,"
        " docs/saturation-scaling-config.md",
        sweep=choices(
            wva,
            TokenBudget(),
            TokenBudget(up_window=0, down_window=0),
            TokenBudget(tuned=True, up_window=0),
            TokenBudget(kv_share=1.0, tuned=True, scale_down=0.4, up_window=0),
            TokenBudget(kv_share=0.7, tuned=True, scale_down=0.4, up_window=0),
        ),
    ),
)
