"""HPA and KEDA on thresholds: what most serving stacks recommend first.

`keda-queue` is llm-d's recommended autoscaling (llm-d/llm-d `guides/workload-autoscaling/keda-epp`): AverageValue
triggers on the queue (1) and on running requests (16), and production-stack's single trigger on the queue (5,
vllm-project/production-stack `helm/templates/scaledobject-vllm.yaml`). `hpa-duty-cycle` is the generic advice to scale
on `DCGM_FI_DEV_GPU_UTIL`, for which no project publishes a target that holds for engines: a batch of one shows about
100 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from tokenservice.core.model import Missing
from tokenservice.simulate.policies.base import EachService, Moment, Peer, batch_at_capacity, choices, held_at_router
from tokenservice.simulate.policies.hpa import (
    DEFAULT_BEHAVIOUR,
    SYNC_SECONDS,
    Behaviour,
    Hpa,
    Rate,
    average_value,
    per_pod,
)
from tokenservice.simulate.policy import ServiceView

_LLM_D_PROMPT = Behaviour(name="prompt", up=Rate(period_seconds=15, percent=100))
_LLM_D_WINDOWS = Behaviour(name="windows", up_window=300, up=Rate(period_seconds=15, percent=100))


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Requests that should wait, and run, per replica.

    `running_share` tunes the second for each service: the share of the batch at which one replica is at the limit of
    its objectives, as an operator measures it; `running` is then not used. Neither: the queue alone.
    """

    queue: float = 1.0
    running: float | None = 16.0
    running_share: float | None = None
    behaviour: Behaviour = _LLM_D_PROMPT

    def running_target(self, seen: ServiceView) -> float | None:
        if self.running_share is not None:
            return self.running_share * batch_at_capacity(seen)
        return self.running


@dataclass(slots=True)
class _OnQueue:
    setting: Queue
    hpa: Hpa = field(init=False)

    def __post_init__(self) -> None:
        self.hpa = Hpa(self.setting.behaviour)

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        """The higher of what queue and running want. Without metrics the HPA holds, as its conditions say."""
        if isinstance(seen.metrics, Missing):
            return None
        running, queued = seen.metrics.running, seen.metrics.waiting + held_at_router(seen)
        asked = [average_value(queued, self.setting.queue, seen.replicas)]
        target = self.setting.running_target(seen)
        if target is not None:
            asked.append(average_value(running, target, seen.replicas))
        return self.hpa.decide(at.now, seen, *asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class DutyCycle:
    """Share of time with work (0 to 1) that each replica should have."""

    target: float = 0.8


@dataclass(slots=True)
class _OnDutyCycle:
    setting: DutyCycle
    hpa: Hpa = field(default_factory=Hpa)

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        if isinstance(seen.duty_cycle, Missing):
            return None
        count = per_pod(seen.duty_cycle, self.setting.target, seen.replicas, min(seen.ready, seen.replicas))
        return self.hpa.decide(at.now, seen, count)


def keda_queue(setting: Queue) -> EachService:
    return EachService("keda-queue", SYNC_SECONDS, partial(_OnQueue, setting))


def hpa_duty_cycle(setting: DutyCycle) -> EachService:
    return EachService("hpa-duty-cycle", SYNC_SECONDS, partial(_OnDutyCycle, setting))


PEERS = (
    Peer(
        name="keda-queue",
        scales_on="requests waiting and running",
        description="KEDA to HPA, AverageValue triggers on the queue and on running requests",
        citation="llm-d/llm-d guides/workload-autoscaling/keda-epp; vllm-project/production-stack a6c01db0"
        " helm/templates/scaledobject-vllm.yaml; kubernetes pkg/controller/podautoscaler",
        sweep=choices(
            keda_queue,
            Queue(),
            Queue(behaviour=_LLM_D_WINDOWS),
            Queue(queue=5, running=None, behaviour=DEFAULT_BEHAVIOUR),
            Queue(running=64),
            Queue(running_share=0.5),
            Queue(running_share=0.7),
            Queue(running_share=0.85),
        ),
    ),
    Peer(
        name="hpa-duty-cycle",
        scales_on="GPU duty cycle (DCGM_FI_DEV_GPU_UTIL)",
        description="HPA on the mean duty cycle of the pods that report",
        citation="kubernetes pkg/controller/podautoscaler/replica_calculator.go; no published target",
        sweep=choices(hpa_duty_cycle, DutyCycle(), DutyCycle(target=0.6), DutyCycle(target=0.4), DutyCycle(target=0.9)),
    ),
)
