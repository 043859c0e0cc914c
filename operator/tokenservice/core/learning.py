"""From what Prometheus says of services to what is learned about CapacityProfiles, and back into decisions.

What steers is what the profile's status says, never something in memory: a decision can be explained from the cluster
alone, and a restart changes none. Between two writes the refinement is kept by the caller; a process that starts goes
on from the status. Only services that run one variant, all of it ready and all of it reporting, teach anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenservice.api.token_service import KVCacheDtype
from tokenservice.core.model import (
    Json,
    Missing,
    ObjectKey,
    Pod,
    Profile,
    Service,
    ServiceKey,
    ServiceMetrics,
    Snapshot,
    StatusWrite,
)
from tokenservice.core.names import variant_name
from tokenservice.core.refinement import (
    WINDOW_SECONDS,
    Matrix,
    Observation,
    Refinement,
    learned,
)
from tokenservice.core.step import StepModel

NOTABLE_FACTOR = 0.05
"""Change of a factor that is published, and so changes decisions."""

_LEAST_ALPHA_MS = 0.01
"""Below any engine's. At 0 a capacity would be without bound, and a division by the iteration without an answer."""

_NOTABLE_ERROR = 0.02
_NOTABLE_SAMPLES = 1.5
_WAITING_PER_ENGINE = 1.0
"""Queued requests of an engine from which it is beyond the knee: TPOT is then not a matter of load alone."""


def pinned_step(profile: Profile) -> StepModel:
    """The profile's own step model. Profiles stored before the schema refused it may say that a step takes no time."""
    step = profile.spec.step
    return StepModel(max(step.alpha_ms, _LEAST_ALPHA_MS), step.beta_ms, step.kappa_ms, step.delta_ms)


def refined_step(profile: Profile) -> StepModel | None:
    """The step model that production has taught, as published; None while there is none for this spec."""
    found = published(profile)
    return found.applied(pinned_step(profile)) if found is not None and found.steers else None


def published(profile: Profile) -> Refinement | None:
    """What the status says of this generation of the profile; None where it says nothing that can be used."""
    status = profile.status
    try:
        if int(status["observedGeneration"]) != profile.generation:
            return None
        factors, upper = status["factors"], [float(value) for value in status["covariance"]]
        return Refinement.resumed(
            generation=profile.generation,
            factors=(float(factors["alpha"]), float(factors["load"]), float(factors["prefill"])),
            covariance=_square(upper),
            samples=int(status["samples"]),
            error_fraction=float(status["errorFraction"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def learn(
    known: Mapping[str, Refinement], snapshot: Snapshot, now: float
) -> tuple[dict[str, Refinement], tuple[StatusWrite, ...]]:
    """What is known of each profile, by name, after what the snapshot shows; and the statuses worth writing."""
    seen = _observations(snapshot)
    profiles = {profile.name: profile for profile in snapshot.profiles}
    after = {
        name: _advanced(_current(known, profile), profile, seen.get(name, ()), now)
        for name, profile in profiles.items()
        if name in seen or name in known
    }
    writes = (
        write
        for name, refinement in sorted(after.items())
        for write in _write(profiles[name], refinement, snapshot, now)
    )
    return after, tuple(writes)


def _current(known: Mapping[str, Refinement], profile: Profile) -> Refinement:
    held = known.get(profile.name)
    if held is not None and held.generation == profile.generation:
        return held
    return published(profile) or Refinement(generation=profile.generation)


def _advanced(
    before: Refinement, profile: Profile, seen: tuple[Observation, ...] | list[Observation], now: float
) -> Refinement:
    """After this moment's observations; those of less than a window ago repeat what was learned."""
    if before.samples and 0 <= now - before.at < WINDOW_SECONDS:
        return before
    step, after = pinned_step(profile), before
    for observation in seen:
        after = learned(after, step, observation, now)
    return after


# --- What services show --------------------------------------------------------------------------------------------


def _observations(snapshot: Snapshot) -> dict[str, list[Observation]]:
    """By profile name, in the order of the services."""
    pods: dict[ServiceKey, list[Pod]] = {}
    for pod in snapshot.pods:
        if pod.service is not None:
            pods.setdefault(pod.service, []).append(pod)
    by_use = {(p.spec.model, _variant(p)): p.name for p in snapshot.profiles}
    found: dict[str, list[Observation]] = {}
    for service in snapshot.services:
        mine = pods.get(service.key, [])
        observation = _observation(service, mine, snapshot.metrics.get(service.key))
        name = by_use.get((_repository(service), mine[0].variant)) if mine else None
        if name is not None and observation is not None:
            found.setdefault(name, []).append(observation)
    return found


def _variant(profile: Profile) -> str:
    spec = profile.spec
    return variant_name(spec.accelerator, spec.engine, spec.tensor_parallel_size, spec.precision)


def _repository(service: Service) -> str:
    uri = service.spec.model.uri if service.spec is not None else ""
    return uri.partition("://")[2].partition("@")[0].rstrip("/") if uri.startswith("hf://") else uri


def _observation(service: Service, pods: list[Pod], metrics: Any) -> Observation | None:
    """What a service's last window teaches; None when it cannot be told from what."""
    if not isinstance(metrics, ServiceMetrics) or not _plain(service) or not _even(pods, metrics):
        return None
    means = (metrics.mean_tpot_seconds, metrics.mean_input_tokens, metrics.mean_output_tokens)
    tpot, prompt, answer = means
    if isinstance(tpot, Missing) or isinstance(prompt, Missing) or isinstance(answer, Missing):
        return None
    rate = metrics.output_tokens_per_second / len(pods)
    return Observation(tpot, rate, prompt, answer, metrics.prefix_hit_rate)


def _plain(service: Service) -> bool:
    """Runs what the profile describes, which all who use it learn from.

    Another cache format, a draft model, adapters, or arguments of the user's own make another engine of it.
    """
    spec = service.spec
    if spec is None or service.deleting:
        return False
    engine = spec.engine
    plain_cache = engine.kv_cache_dtype != KVCacheDtype.FP8
    own = engine.image is not None or engine.extra_args or engine.env
    adapted = spec.model.adapters or spec.model.runtime_adapters is not None
    plain = plain_cache and engine.speculative is None and engine.pipeline_parallel_size == 1
    return plain and not own and not adapted


def _even(pods: list[Pod], metrics: ServiceMetrics) -> bool:
    """One variant, every replica ready and heard of, nobody else, and no queue that would hide the load."""
    return (
        len(pods) > 0
        and len({pod.variant for pod in pods}) == 1
        and all(pod.ready and not pod.deleting for pod in pods)
        and metrics.engines_reporting == metrics.engines_heard == len(pods)
        and metrics.waiting < _WAITING_PER_ENGINE * len(pods)
    )


# --- What is published ---------------------------------------------------------------------------------------------


def _write(profile: Profile, found: Refinement, snapshot: Snapshot, now: float) -> Iterator[StatusWrite]:
    key = ObjectKey("CapacityProfile", "", profile.name)
    written_at = snapshot.status_written_at.get(key)
    recent = written_at is not None and now - written_at < WINDOW_SECONDS
    if found.steers and profile.uid and not recent and _notable(published(profile), found):
        yield StatusWrite(key=key, uid=profile.uid, status=_status(profile, found))


def _notable(before: Refinement | None, after: Refinement) -> bool:
    """Whether it would change decisions, or what is said of their trustworthiness."""
    if before is None:
        return True
    moved = max(abs(new / old - 1) for new, old in zip(after.factors, before.factors, strict=True))
    surer = after.samples >= _NOTABLE_SAMPLES * before.samples
    return moved >= NOTABLE_FACTOR or surer or abs(after.error_fraction - before.error_fraction) >= _NOTABLE_ERROR


def _status(profile: Profile, found: Refinement) -> Json:
    alpha, load, prefill = found.factors
    step = found.applied(pinned_step(profile))
    return {
        "observedGeneration": profile.generation,
        "factors": {"alpha": round(alpha, 4), "load": round(load, 4), "prefill": round(prefill, 4)},
        "covariance": [_short(found.covariance[i][j]) for i in range(3) for j in range(i, 3)],
        "step": {
            "alphaMs": _short(step.alpha_ms),
            "betaMs": _short(step.beta_ms),
            "kappaMs": _short(step.kappa_ms),
            "deltaMs": _short(step.delta_ms),
        },
        "errorFraction": round(found.error_fraction, 4),
        "samples": found.samples,
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _square(upper: list[float]) -> Matrix:
    """The matrix of an upper triangle, row by row. ValueError for another number of values."""
    aa, ab, ac, bb, bc, cc = upper
    return ((aa, ab, ac), (ab, bb, bc), (ac, bc, cc))
