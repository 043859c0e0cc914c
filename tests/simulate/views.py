"""What a policy sees, built from what matters to a test."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tests.support.build import H100, make_metrics, make_spec
from tokenservice.api.capacity_profile import Provenance
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.capacity import Targets, Workload
from tokenservice.core.model import Missing, ServiceKey, ServiceMetrics, Variant
from tokenservice.core.step import StepModel
from tokenservice.simulate.policy import EngineView, FleetView, Policy, ServiceView

CHAT = ServiceKey("default", "chat")
GONE = Missing("NoData", "Prometheus did not answer")

SIMPLE_STEP = StepModel(alpha_ms=10.0, beta_ms=0.1, kappa_ms=0.0, delta_ms=0.01)
"""Coefficients that a hand can reckon with."""

LENGTHS = Workload(input_tokens=1000.0, output_tokens=100.0)
TARGETS = Targets(ttft_seconds=2.0, ttft_fraction=0.99, tpot_seconds=0.05, tpot_fraction=0.99)


def make_variant(step: StepModel = SIMPLE_STEP, **changes: Any) -> Variant:
    facts: dict[str, Any] = {
        "name": "h100-vllm-tp1-bf16",
        "accelerator": H100,
        "engine": "vLLM",
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "precision": "bf16",
        "profile": "llama",
        "step": step,
        "kv_capacity_tokens": 400_000,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "cold_start_seconds": 60.0,
        "weight_bytes": 16e9,
        "provenance": Provenance.MEASURED,
    }
    return Variant(**(facts | changes))


@cache
def _spec(most: int) -> TokenServiceSpec:
    """Built once: views are made by the thousand."""
    return make_spec(scaling={"minReplicas": 1, "maxReplicas": most})


def make_view(replicas: int = 1, *, most: int = 64, **changes: Any) -> ServiceView:
    """A service whose replicas are all Ready and idle, unless told otherwise."""
    facts: dict[str, Any] = {
        "key": CHAT,
        "spec": _spec(most),
        "variant": make_variant(),
        "targets": TARGETS,
        "workload": LENGTHS,
        "usual": LENGTHS,
        "reference_rate": 10.0,
        "replicas": replicas,
        "ready": replicas,
        "engines": (EngineView(running=0.0, waiting=0.0, kv_usage=0.0),) * changes.get("ready", replicas),
        "metrics": make_metrics(),
        "duty_cycle": 0.0,
        "concurrency": 0.0,
        "cold_start_seconds": 60.0,
    }
    return ServiceView(**(facts | changes))


def metrics(**changes: Any) -> ServiceMetrics:
    """Nothing runs and nothing arrives, unless told otherwise."""
    return make_metrics(**({"requests_per_second": 0.0, "running": 0.0, "kv_usage": 0.0} | changes))


def ask(policy: Policy, now: float, seen: ServiceView, expected: Callable[[float, float], float] | None = None) -> int:
    """The count after the policy was asked: its answer, or the count there is when it holds."""
    view = FleetView(
        now=now,
        services={seen.key: seen},
        expected=lambda _, start, end: expected(start, end) if expected else 0.0,
    )
    return policy.replicas(view).get(seen.key, seen.replicas)
