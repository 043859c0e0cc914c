"""What the objects of the API show of themselves: from the facts of a report to a status.

A report holds exactly what is shown. A figure is a number or Missing, and what is missing is absent from the status,
never 0. Whether a status is worth writing is decided in `status_changes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, isfinite, log10

from tokenservice.api.conditions import ConditionType
from tokenservice.api.token_service import Latency, Mode, ModelSource, Objectives, TokenServiceSpec
from tokenservice.core.adapters import AdapterReport
from tokenservice.core.capacity import DEFAULT, Workload
from tokenservice.core.conditions import FALSE, TRUE, UNKNOWN, Verdict, rendered, shortened, stalled
from tokenservice.core.model import (
    Accelerator,
    Json,
    Missing,
    Node,
    Problem,
    Reason,
    Service,
    Variant,
)
from tokenservice.core.names import SERVICE_LABEL
from tokenservice.core.network import endpoint
from tokenservice.core.room import NOBODY, Tenancy
from tokenservice.core.utilization import Waterfall
from tokenservice.core.verification import promise

NOT_MEASURED = Missing("NotMeasured", "nothing was measured yet")
_SIGNIFICANT_DIGITS = 3
_LARGEST_SHOWN = 1e6
_SLOW_SHOWN = 3
"""Replicas that are named as slow."""

Figure = float | Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantReport:
    """Replicas of one variant: wanted and serving."""

    variant: Variant
    replicas: int
    ready: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingReport:
    """Replicas that have a node and start; `trouble` is what is said of one that has some."""

    replicas: int
    oldest_seconds: float
    expected_seconds: float
    trouble: str = ""

    @property
    def aside(self) -> str:
        return f" ({self.trouble})" if self.trouble else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionReport:
    """The last decision: the words of condition, event and `explain`."""

    reason: Reason
    message: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    rejected: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceReport:
    """Everything that a TokenService's status shows.

    `floor` replicas must serve before the service is Ready. `acting` is False where the operator only looks: mode
    Observe or Recommend, paused, or a namespace that it must not touch. `changing` says that Deployments are to be
    applied or exchange pods. `without_room` replicas are wanted and fit no node; `room_message` says why. `limited`
    says why no more are asked for, where the namespace may hold no more. `metrics` is None when they are fresh.
    `exchange` says how replicas are exchanged while `changing`. `failure` is of engines that do not come up and of
    children that cannot be made: everything else goes on. `contradiction` is of a spec that is carried out for all
    that. `refused` says why the cluster lets there be no more replicas. `held_to` is what the models of replicas that
    serve were held to; `doubted` is what the verifier says of the model since. `slow` names replicas that hold up their
    requests. Latencies are at the percentiles of the objectives.
    """

    service: Service
    floor: int
    desired: int
    existing: int
    ready: int
    cluster_domain: str
    held_to: frozenset[str | None] = frozenset()
    doubted: str = ""
    problems: tuple[Problem, ...] = ()
    acting: bool = True
    changing: bool = False
    exchange: str = "changes are being rolled out"
    failure: Problem | None = None
    contradiction: Problem | None = None
    variants: tuple[VariantReport, ...] = ()
    loading: LoadingReport | None = None
    without_room: int = 0
    room_message: str = "no node that the service may use has room"
    limited: Problem | None = None
    refused: str = ""
    slow: Sequence[str] = ()
    metrics: Missing | None = None
    tokens_per_second: Figure = NOT_MEASURED
    requests_per_second: Figure = NOT_MEASURED
    utilization: Figure = NOT_MEASURED
    ttft_seconds: Figure = NOT_MEASURED
    tpot_seconds: Figure = NOT_MEASURED
    cost_per_million_tokens: Figure = NOT_MEASURED
    joules_per_token: Figure = NOT_MEASURED
    workload: Workload = DEFAULT
    capacity_factor: float | None = None
    overrun_share: float | None = None
    forecast: str | None = None
    decision: DecisionReport | None = None
    adapters: tuple[AdapterReport, ...] = ()
    warm_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """Everything that a TokenFleet's status shows. `previous` is the status that stands there."""

    generation: int
    previous: Json
    services: int
    accelerators: int
    accelerators_in_use: int
    accelerators_fragmented: int
    cost_per_hour: float
    problems: tuple[Problem, ...] = ()
    metrics: Missing | None = None
    utilization: Figure = NOT_MEASURED
    utilization_1h: Figure = NOT_MEASURED
    utilization_24h: Figure = NOT_MEASURED
    waterfall: Waterfall | Missing = NOT_MEASURED
    cost_per_million_tokens: Figure = NOT_MEASURED
    joules_per_token: Figure = NOT_MEASURED


# --- TokenService --------------------------------------------------------------------------------------------------


def service_status(report: ServiceReport, now: float) -> Json:
    """The status of a TokenService."""
    service = report.service
    status = {
        **at_once(report),
        "conditions": rendered(verdicts(report), service.status, service.generation, now),
        "forecast": shortened(report.forecast, 256) if report.forecast else None,
        "workload": workload_status(report.workload),
        "capacityFactor": report.capacity_factor,
        "overrunShare": report.overrun_share,
        "loading": _loading(report.loading),
        "decision": _decision(report.decision),
    }
    return _present(status | _measured(report))


def at_once(report: ServiceReport) -> Json:
    """The fields that are written at once when they differ; None for what is to be absent."""
    service = report.service
    return {
        "observedGeneration": service.generation,
        "endpoint": endpoint(service.key, report.cluster_domain) if report.existing else None,
        "replicas": report.existing,
        "readyReplicas": report.ready,
        "desiredReplicas": report.desired,
        "replicaSummary": f"{report.ready}/{report.desired}",
        "variantSummary": shortened(", ".join(v.variant.name for v in report.variants), 256) or None,
        "selector": f"{SERVICE_LABEL}={service.key.name}",
        "variants": [_variant(variant) for variant in report.variants] or None,
        "adapters": [_adapter(adapter) for adapter in report.adapters] or None,
        "warmNodes": list(report.warm_nodes) or None,
    }


def _measured(report: ServiceReport) -> Json:
    return {
        "tokensPerSecond": rounded(report.tokens_per_second),
        "requestsPerSecond": rounded(report.requests_per_second),
        "utilization": rounded(report.utilization),
        "objectives": _objectives(report),
        "costPerMillionTokens": rounded(report.cost_per_million_tokens),
        "joulesPerToken": rounded(report.joules_per_token),
    }


def verdicts(report: ServiceReport) -> dict[ConditionType, Verdict]:
    """What each condition says."""
    return {
        ConditionType.READY: _ready(report),
        ConditionType.RECONCILING: _reconciling(report),
        ConditionType.STALLED: _stalled(report),
        ConditionType.OBJECTIVES_MET: _objectives_met(report),
        ConditionType.CAPACITY_AVAILABLE: _capacity_available(report),
        ConditionType.METRICS_AVAILABLE: _metrics_available(report),
        ConditionType.MODEL_VERIFIED: _model_verified(report),
    }


def _stalled(report: ServiceReport) -> Verdict:
    """True for what only a user can mend; a contradiction that was settled is told, and stops nothing."""
    if report.failure is not None and not report.problems:
        return Verdict(TRUE, report.failure.reason, _failed(report, report.failure))
    if report.contradiction is not None and not report.problems:
        said = f"{report.contradiction.field}: {report.contradiction.message}"
        return Verdict(FALSE, report.contradiction.reason, shortened(said))
    return stalled(report.problems)


def _failed(report: ServiceReport, failure: Problem) -> str:
    """The end is what to do; what the engine said gives way to it."""
    version = "" if failure.reason in (Reason.REFUSED, Reason.NAME_TAKEN) else " of the last good version"
    still = f"; {report.ready} replicas{version} serve on" if report.ready else ""
    words = shortened(f"{failure.field}: {failure.message}", 1024 - len(still))
    return f"{words}{still}"


def _ready(report: ServiceReport) -> Verdict:
    """True only while at least the replicas of the floor serve what the spec says now."""
    serving = f"{report.ready} of {max(report.desired, report.floor)} replicas serve"
    if report.problems:
        first = report.problems[0]
        still = f"; {report.ready} replicas of the last valid spec serve on" if report.ready else ""
        return Verdict(FALSE, first.reason, shortened(f"{first.field}: {first.message}{still}"))
    if report.failure is not None:
        return Verdict(FALSE, report.failure.reason, _failed(report, report.failure))
    if report.ready >= max(1, report.floor):
        return Verdict(TRUE, Reason.SERVING, serving)
    if not report.acting:
        return Verdict(FALSE, _idle_reason(report), f"{serving}, and the operator only looks on")
    if report.desired == 0 and report.limited is None:
        return Verdict(FALSE, Reason.NOT_SERVING, "no replicas are asked for")
    return Verdict(FALSE, *_on_the_way(report, serving))


def _on_the_way(report: ServiceReport, serving: str) -> tuple[Reason, str]:
    """Why fewer replicas serve than must."""
    if report.loading is not None:
        return Reason.STARTING, shortened(f"{serving}, {report.loading.replicas} start{report.loading.aside}")
    if report.without_room:
        return Reason.INSUFFICIENT, f"{serving}: {report.room_message}"
    if report.limited is not None:
        return report.limited.reason, f"{serving}: {report.limited.message}"
    if report.existing == 0:
        return Reason.PENDING, f"{serving}: they are being created"
    return Reason.NOT_SERVING, serving


def _reconciling(report: ServiceReport) -> Verdict:
    """True while something is on its way that ends by itself.

    Replicas beyond the floor that wait for room are not: they may wait for days, while the service keeps its promise.
    """
    if report.problems:
        return Verdict(FALSE, Reason.HOLDING, "nothing is changed until the spec is mended")
    if report.failure is not None:
        return Verdict(FALSE, report.failure.reason, "what the spec asks for does not come about; see Stalled")
    if not report.acting:
        return Verdict(FALSE, _idle_reason(report), "the operator only looks on")
    if report.changing:
        return Verdict(TRUE, Reason.ROLLING_OUT, report.exchange)
    if report.loading is not None:
        return Verdict(
            TRUE, Reason.STARTING, shortened(f"{report.loading.replicas} replicas start{report.loading.aside}")
        )
    if report.ready < max(1, report.floor) and report.desired:
        return Verdict(TRUE, *_on_the_way(report, f"{report.ready} of {report.floor} replicas serve"))
    return Verdict(FALSE, Reason.STEADY, "everything is as decided")


def _idle_reason(report: ServiceReport) -> Reason:
    spec = report.service.spec
    if spec is not None and spec.paused:
        return Reason.PAUSED
    return Reason.RECOMMENDED if spec is not None and spec.mode is Mode.RECOMMEND else Reason.OBSERVING


def _objectives_met(report: ServiceReport) -> Verdict:
    """Where a replica is slow that is the reason, whether the objectives are met for all that or not."""
    found = _latencies_met(report)
    if report.slow:
        named = "; ".join(report.slow[:_SLOW_SHOWN])
        return Verdict(found.status, Reason.SLOW_REPLICA, shortened(f"{named}; {found.message}"))
    return found


def _latencies_met(report: ServiceReport) -> Verdict:
    spec = report.service.spec
    if spec is None:
        return Verdict(UNKNOWN, Reason.UNKNOWN, "the objectives could not be read")
    ttft, tpot = report.ttft_seconds, report.tpot_seconds
    missing = next((figure for figure in (ttft, tpot) if isinstance(figure, Missing)), None)
    if isinstance(ttft, Missing) or isinstance(tpot, Missing):
        return Verdict(UNKNOWN, Reason.UNKNOWN, missing.message if missing else "")
    goals = spec.objectives
    met = ttft <= goals.time_to_first_token.seconds and tpot <= goals.time_per_output_token.seconds
    words = objectives_summary(goals, ttft, tpot)
    return Verdict(TRUE, Reason.MET, words) if met else Verdict(FALSE, Reason.MISSED, words)


def _capacity_available(report: ServiceReport) -> Verdict:
    if report.problems:
        return Verdict(UNKNOWN, Reason.NOT_CHECKED, "the spec must be mended first")
    if report.without_room:
        return Verdict(
            FALSE, Reason.INSUFFICIENT, shortened(f"{report.without_room} replicas wait: {report.room_message}")
        )
    if report.refused:
        return Verdict(FALSE, Reason.REFUSED, shortened(f"not every replica can be created: {report.refused}"))
    if (limit := report.limited) is not None:
        return Verdict(FALSE, limit.reason, shortened(f"not every replica is asked for: {limit.message}"))
    return Verdict(TRUE, Reason.AVAILABLE, "every replica that is wanted has room")


def _metrics_available(report: ServiceReport) -> Verdict:
    """Unknown before an engine serves: there is nothing yet that could be measured."""
    if report.metrics is None:
        return Verdict(TRUE, Reason.METRICS_FRESH, "metrics are fresh")
    if report.ready == 0:
        return Verdict(UNKNOWN, Reason.PENDING, "no replica serves that could be measured")
    held = f"{report.metrics.message}; replicas are held, none is removed"
    return Verdict(FALSE, Reason.METRICS_MISSING, shortened(held))


def _model_verified(report: ServiceReport) -> Verdict:
    """True only while every replica that serves has a model that was held to what the spec says now."""
    spec = report.service.spec
    promised = promise(spec.model) if spec is not None else None
    if spec is None or promised is None:
        return Verdict(UNKNOWN, Reason.NOT_CHECKED, _not_checked(spec))
    if report.failure is not None and report.failure.reason is Reason.VERIFICATION_FAILED:
        return Verdict(FALSE, Reason.VERIFICATION_FAILED, _failed(report, report.failure))
    if report.doubted:
        still = f"; {report.ready} replicas that started before serve on"
        return Verdict(FALSE, Reason.VERIFICATION_FAILED, shortened(report.doubted, 1024 - len(still)) + still)
    if report.ready and report.held_to == {promised}:
        return Verdict(TRUE, Reason.VERIFIED, shortened(_vouched(spec.model, promised)))
    if report.failure is not None and report.failure.reason is Reason.ROLLED_BACK:
        return Verdict(FALSE, Reason.ROLLED_BACK, _failed(report, report.failure))
    if report.ready:
        return Verdict(UNKNOWN, Reason.PENDING, shortened(f"some replicas started before it was asked for: {promised}"))
    return Verdict(UNKNOWN, Reason.PENDING, "checked when the first replica has it")


def _not_checked(spec: TokenServiceSpec | None) -> str:
    if spec is None:
        return "the source could not be read"
    scheme = spec.model.uri.partition("://")[0]
    return f"{scheme}:// sources are not checked unless spec.model.verification asks for it"


def _vouched(model: ModelSource, promised: str) -> str:
    return f"mounted by its digest {promised}" if model.verification is None else promised


def _variant(report: VariantReport) -> Json:
    variant = report.variant
    return {
        "name": variant.name,
        "accelerator": variant.accelerator.name,
        "engine": variant.engine,
        "tensorParallelSize": variant.tensor_parallel_size,
        "precision": variant.precision,
        "replicas": report.replicas,
        "readyReplicas": report.ready,
        "provenance": str(variant.provenance),
    }


def _adapter(report: AdapterReport) -> Json:
    shown = {"name": report.name, "state": report.state, "readyReplicas": report.ready}
    return shown | ({"message": report.message} if report.message else {})


def workload_status(work: Workload) -> Json:
    """What `demand.remembered` reads again: three digits tell the steps of 5 % apart."""
    return {
        "inputTokens": rounded(work.input_tokens),
        "outputTokens": rounded(work.output_tokens),
        "cachedShare": rounded(work.hit_rate),
    }


def _loading(report: LoadingReport | None) -> Json | None:
    if report is None:
        return None
    return {
        "replicas": report.replicas,
        "oldestSeconds": rounded(report.oldest_seconds),
        "expectedSeconds": rounded(report.expected_seconds),
    }


def _decision(report: DecisionReport | None) -> Json | None:
    """Within the bounds of the schema, or the whole status would be refused.

    An empty map is left out: applied over entries that were there before, the server makes it null and refuses it.
    """
    if report is None:
        return None
    decision = {
        "reason": report.reason.value,
        "message": shortened(report.message),
        "inputs": {name: shortened(text, 256) for name, text in sorted(report.inputs.items())[:32]} or None,
        "rejected": [shortened(text, 512) for text in report.rejected[:16]],
    }
    return _present(decision)


# --- Objectives in words -------------------------------------------------------------------------------------------


def _objectives(report: ServiceReport) -> Json | None:
    spec = report.service.spec
    if spec is None:
        return None
    measured = {
        "timeToFirstTokenSeconds": rounded(report.ttft_seconds),
        "timePerOutputTokenSeconds": rounded(report.tpot_seconds),
        "summary": objectives_summary(spec.objectives, report.ttft_seconds, report.tpot_seconds),
    }
    return _present(measured)


def objectives_summary(objectives: Objectives, ttft: Figure, tpot: Figure) -> str:
    """`TTFT 0.41s/2s, TPOT 48ms/200ms`: measured against target, in the target's unit."""
    first, each = objectives.time_to_first_token, objectives.time_per_output_token
    return f"TTFT {_against(ttft, first)}, TPOT {_against(tpot, each)}"


def _against(figure: Figure, goal: Latency) -> str:
    if isinstance(figure, Missing) or not isfinite(figure):
        return f"-/{goal.target}"
    unit, factor = ("ms", 1000) if goal.target.endswith("ms") else ("s", 1)
    return f"{_short(figure * factor)}{unit}/{goal.target}"


def _short(number: float) -> str:
    """Two significant digits and every digit before the point, at most four behind it; a column must stay one."""
    if abs(number) >= _LARGEST_SHOWN:
        return f"{number:.1e}"
    decimals = min(4, max(0, 1 - floor(log10(abs(number))))) if number else 0
    text = f"{number:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# --- TokenFleet and AcceleratorClass -------------------------------------------------------------------------------


def fleet_status(report: FleetReport, now: float) -> Json:
    """The status of a TokenFleet."""
    status = {
        "observedGeneration": report.generation,
        "conditions": rendered(_fleet_verdicts(report), report.previous, report.generation, now),
        "utilization": rounded(report.utilization),
        "utilization1h": rounded(report.utilization_1h),
        "utilization24h": rounded(report.utilization_24h),
        "waterfall": _waterfall(report.waterfall),
        "accelerators": report.accelerators,
        "acceleratorsInUse": report.accelerators_in_use,
        "acceleratorsFragmented": report.accelerators_fragmented,
        "costPerHour": rounded(report.cost_per_hour),
        "costPerMillionTokens": rounded(report.cost_per_million_tokens),
        "joulesPerToken": rounded(report.joules_per_token),
    }
    return _present(status)


def _fleet_verdicts(report: FleetReport) -> dict[ConditionType, Verdict]:
    if report.problems:
        ready = Verdict(FALSE, report.problems[0].reason, shortened(report.problems[0].message))
    else:
        ready = Verdict(TRUE, Reason.ACCEPTED, "the policy is in force")
    if report.metrics is None:
        metrics = Verdict(TRUE, Reason.METRICS_FRESH, shortened(f"metrics are fresh{_left_out(report)}"))
    elif report.services == 0:
        metrics = Verdict(UNKNOWN, Reason.PENDING, "there is no TokenService that could be measured")
    else:
        metrics = Verdict(FALSE, Reason.METRICS_MISSING, shortened(report.metrics.message))
    return {
        ConditionType.READY: ready,
        ConditionType.RECONCILING: Verdict(FALSE, Reason.STEADY, "a policy needs no rollout"),
        ConditionType.STALLED: stalled(report.problems),
        ConditionType.METRICS_AVAILABLE: metrics,
    }


def _left_out(report: FleetReport) -> str:
    """Why utilization is not shown, or a mean of it; what keeps one away does so to those after it."""
    named = {
        "utilization": report.utilization,
        "utilization1h": report.utilization_1h,
        "utilization24h": report.utilization_24h,
    }
    missing = ((name, mean) for name, mean in named.items() if isinstance(mean, Missing))
    return next((f"; no {name}: {mean.message}" for name, mean in missing), "")


def _waterfall(parts: Waterfall | Missing) -> Json | None:
    if isinstance(parts, Missing):
        return None
    return _present(
        {
            "headroom": rounded(parts.headroom),
            "coldStart": rounded(parts.cold_start),
            "draining": rounded(parts.draining),
            "fragmentation": rounded(parts.fragmentation),
            "idleNodes": rounded(parts.idle_nodes),
            "sloMisses": rounded(parts.slo_misses),
        }
    )


def accelerator_status(accelerator: Accelerator, nodes: Sequence[Node], tenancies: Mapping[str, Tenancy]) -> Json:
    """The status of an AcceleratorClass: what exists of it on its nodes, and what any pod holds there."""
    name = accelerator.spec.resource_name
    return {
        "nodes": len(nodes),
        "accelerators": sum([node.allocatable.get(name, 0) for node in nodes]),
        "allocated": sum([tenancies.get(node.name, NOBODY).held.get(name, 0) for node in nodes]),
    }


# --- Figures -------------------------------------------------------------------------------------------------------


def rounded(figure: Figure) -> float | None:
    """Three significant digits: more would be noise, and would be written for ever. None for what is not known."""
    if isinstance(figure, Missing):
        return None
    short = float(f"{figure:.{_SIGNIFICANT_DIGITS}g}")
    return short if isfinite(short) else None


def _present(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}
