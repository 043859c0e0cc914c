"""Scaling on tokens: TokenScale's velocities, and llm-d's token-aware triggers that follow it.

TokenScale (arXiv 2512.03416): prefillers for the prompt tokens that arrive over what one can prefill, decoders for the
tokens that arrive over what one can release while it keeps its time per token, and convertible decoders as a buffer
for bursts. It splits prefill and decode over different engines; an engine here does both, so the two needs add up
before rounding, which is never more than the paper's own count. The velocities are profiled offline there and taken
from the step model here. The paper's text was not at hand in full: how long it waits before it scales down is our
setting (the highest need of a minute).

llm-d's `guides/workload-autoscaling/keda-epp-token-aware` (experimental): seconds of prefill that are queued, 1.5 a
replica, and KV use, 0.8 a replica; up one pod in 180 s, down one in 300 s after 300 s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from tokenservice.core.capacity import Targets, Workload
from tokenservice.core.model import Missing, Variant
from tokenservice.simulate.policies.base import (
    EachService,
    Moment,
    Peer,
    Window,
    choices,
    held_at_router,
    kv_at_capacity,
    whole,
)
from tokenservice.simulate.policies.hpa import DEFAULT_BEHAVIOUR, SYNC_SECONDS, Behaviour, Hpa, Rate, average_value
from tokenservice.simulate.policy import ServiceView

_INTERVAL_SECONDS = 5.0
_ONE_AT_A_TIME = Behaviour(
    name="one at a time",
    up=Rate(period_seconds=180, pods=1),
    down_window=300,
    down=Rate(period_seconds=300, pods=1),
)


def prefill_velocity(variant: Variant) -> float:
    """Prompt tokens per second of one engine that does nothing else: a full iteration of them."""
    tokens = variant.max_num_batched_tokens
    return 1000 * tokens / variant.step.step_ms(0, 0, tokens)


def decode_velocity(variant: Variant, work: Workload, targets: Targets) -> float:
    """Tokens of KV cache that one engine releases per second at its largest batch within the time per token.

    0 when a lone request is too slow.
    """
    context = work.input_tokens + work.output_tokens / 2
    step, allowed = variant.step, targets.tpot_seconds * 1000 - variant.step.alpha_ms
    each = step.beta_ms + step.kappa_ms * context / 1000
    by_time = allowed / each if each > 0 else float(variant.max_num_seqs)
    batch = int(min(by_time, variant.max_num_seqs, variant.kv_capacity_tokens / context))
    if batch < 1:
        return 0.0
    released = (work.input_tokens + work.output_tokens) * batch / work.output_tokens
    return 1000 * released / step.step_ms(batch, batch * context, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Velocity:
    """Engines kept as a buffer, share of the velocities that is planned with, seconds before it scales down."""

    convertible: int = 1
    share: float = 1.0
    down_window: float = 60.0


@dataclass(slots=True)
class _OnVelocity:
    setting: Velocity
    recent: Window = field(init=False)

    def __post_init__(self) -> None:
        self.recent = Window(self.setting.down_window)

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        release = decode_velocity(seen.variant, seen.workload, seen.targets)
        if isinstance(seen.metrics, Missing) or release <= 0:
            return None
        need = seen.metrics.requests_per_second * _engine_seconds(seen, release) / self.setting.share
        count = whole(need) + self.setting.convertible
        self.recent.add(at.now, count)
        return max([count, *(int(it) for it in self.recent.since(at.now - self.setting.down_window))])


def _engine_seconds(seen: ServiceView, release: float) -> float:
    """Of one request: prefill and decode each as if an engine did only that."""
    work = seen.workload
    prefill = work.input_tokens * (1 - work.hit_rate) / prefill_velocity(seen.variant)
    return prefill + (work.input_tokens + work.output_tokens) / release


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAware:
    """Seconds of queued prefill and KV use (0 to 1) per replica.

    `tuned` takes the latter as a share of what one replica has at the limit of its objectives.
    """

    backlog: float = 1.5
    kv_usage: float = 0.8
    tuned: bool = False
    behaviour: Behaviour = _ONE_AT_A_TIME


@dataclass(slots=True)
class _OnBacklog:
    setting: TokenAware
    hpa: Hpa = field(init=False)

    def __post_init__(self) -> None:
        self.hpa = Hpa(self.setting.behaviour)

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        if isinstance(seen.metrics, Missing):
            return None
        work, metrics = seen.workload, seen.metrics
        queued = metrics.waiting + held_at_router(seen)
        backlog = queued * work.input_tokens * (1 - work.hit_rate) / prefill_velocity(seen.variant)
        kv = sum(engine.kv_usage for engine in seen.engines)
        most = self.setting.kv_usage * (kv_at_capacity(seen) if self.setting.tuned else 1.0)
        return self.hpa.decide(
            at.now,
            seen,
            average_value(backlog, self.setting.backlog, seen.replicas),
            average_value(kv, most, seen.replicas),
        )


def tokenscale(setting: Velocity) -> EachService:
    return EachService("tokenscale", _INTERVAL_SECONDS, partial(_OnVelocity, setting))


def token_aware(setting: TokenAware) -> EachService:
    return EachService("llm-d-token-aware", SYNC_SECONDS, partial(_OnBacklog, setting))


PEERS = (
    Peer(
        name="tokenscale",
        scales_on="token arrival rates over token velocities",
        description="prefill and decode needs from velocities, plus convertible decoders",
        citation="arXiv 2512.03416",
        sweep=choices(
            tokenscale,
            Velocity(),
            Velocity(convertible=0),
            Velocity(share=0.85),
            Velocity(convertible=0, share=0.7),
            Velocity(share=0.7, down_window=300),
        ),
    ),
    Peer(
        name="llm-d-token-aware",
        scales_on="seconds of queued prefill, KV use",
        description="KEDA to HPA on tokens of outstanding work",
        citation="llm-d/llm-d guides/workload-autoscaling/keda-epp-token-aware (experimental)",
        sweep=choices(
            token_aware,
            TokenAware(),
            TokenAware(tuned=True),
            TokenAware(tuned=True, behaviour=DEFAULT_BEHAVIOUR),
            TokenAware(backlog=0.5, kv_usage=0.6, tuned=True, behaviour=DEFAULT_BEHAVIOUR),
            TokenAware(backlog=0.5, kv_usage=0.4, tuned=True, behaviour=DEFAULT_BEHAVIOUR),
        ),
    ),
)
