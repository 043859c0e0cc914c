"""From metrics to a profile's status and back into decisions; utilization stays where the profile pins it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import (
    H100_8B,
    MODEL,
    NOW,
    make_deployment,
    make_metrics,
    make_pod,
    make_service,
    make_snapshot,
)
from tokenservice.core.decide import decide
from tokenservice.core.learning import learn, pinned_step, published, refined_step
from tokenservice.core.model import Json, Missing, ObjectKey, Profile, Snapshot, StatusWrite
from tokenservice.core.refinement import LEAST_SAMPLES, WINDOW_SECONDS, Refinement

PROFILE = replace(H100_8B, uid="uid-profile", generation=3)
KEY = ObjectKey("CapacityProfile", "", PROFILE.name)
CHAT = make_service()
NOTHING = {"alpha_ms": 0.0, "beta_ms": 0.0, "kappa_ms": 0.0, "delta_ms": 0.0}


def slow_engines(times: float = 1.5, **changes: Any) -> Snapshot:
    """Two engines whose steps take `times` as long as the profile says, at a batch of 20 each."""
    tpot = times * pinned_step(PROFILE).tpot_ms(20, 1000.0, 200.0) / 1000
    rate = 2 * 20 / tpot
    facts: dict[str, Any] = {
        "output_tokens_per_second": rate,
        "mean_tpot_seconds": tpot,
        "engines_reporting": 2,
        "engines_heard": 2,
    }
    pods = changes.pop("pods", (make_pod("a"), make_pod("b", node="n2")))
    profile = changes.pop("profile", PROFILE)
    metrics = make_metrics(rate / 200, **(facts | changes))
    return make_snapshot(
        CHAT,
        pods=pods,
        profiles=(profile,),
        metrics={CHAT.key: metrics},
        deployments=(make_deployment(CHAT, 2, readyReplicas=2),),
    )


def taught(
    snapshot: Snapshot, windows: int, known: dict[str, Refinement] | None = None
) -> tuple[dict[str, Refinement], Json]:
    """What is known after so many windows, and the last status that was written."""
    states, status = known or {}, dict[str, Any]()
    for number in range(windows):
        now = NOW + number * WINDOW_SECONDS
        states, writes = learn(states, snapshot, now)
        for write in writes:
            assert write.key == KEY
            status = write.status
            profiles = tuple(replace(one, status=status) for one in snapshot.profiles)
            snapshot = replace(snapshot, profiles=profiles, status_written_at={KEY: now})
    return states, status


def test_engines_slower_than_their_profile_are_found_and_published() -> None:
    states, status = taught(slow_engines(), 30)
    refined = states[PROFILE.name].applied(pinned_step(PROFILE))
    wanted = 1.5 * pinned_step(PROFILE).tpot_ms(20, 1000.0, 200.0)
    assert refined.tpot_ms(20, 1000.0, 200.0) == pytest.approx(wanted, rel=0.05)
    assert status["observedGeneration"] == 3
    assert status["samples"] >= LEAST_SAMPLES
    assert status["step"].keys() == {"alphaMs", "betaMs", "kappaMs", "deltaMs"}


def test_nothing_is_published_before_enough_was_seen() -> None:
    assert taught(slow_engines(), LEAST_SAMPLES - 1)[1] == {}
    assert taught(slow_engines(), LEAST_SAMPLES)[1] != {}


def test_a_window_is_learned_from_once() -> None:
    states, _ = learn({}, slow_engines(), NOW)
    again, _ = learn(states, slow_engines(), NOW + 5)
    assert again == states
    assert learn(states, slow_engines(), NOW + WINDOW_SECONDS)[0] != states


def test_steady_engines_are_written_about_less_and_less() -> None:
    snapshot, states, written = slow_engines(1.0), dict[str, Refinement](), 0
    for number in range(600):
        now = NOW + number * WINDOW_SECONDS
        states, writes = learn(states, snapshot, now)
        for write in writes:
            written += 1
            profile = replace(PROFILE, status=write.status)
            snapshot = replace(snapshot, profiles=(profile,), status_written_at={KEY: now})
    assert written < 18


def test_a_restart_goes_on_from_the_status() -> None:
    states, status = taught(slow_engines(), 30)
    resumed = published(replace(PROFILE, status=status))
    assert resumed is not None
    assert resumed.factors == pytest.approx(states[PROFILE.name].factors, rel=0.06)
    afresh, writes = learn({}, slow_engines(profile=replace(PROFILE, status=status)), NOW + 3600)
    assert afresh[PROFILE.name].samples == resumed.samples + 1
    assert not writes


def test_another_generation_of_the_profile_starts_anew() -> None:
    states, status = taught(slow_engines(), 30)
    edited = replace(PROFILE, generation=4, status=status)
    assert refined_step(edited) is None
    assert learn(states, slow_engines(profile=edited), NOW + 3600)[0][PROFILE.name].samples == 1


TEACHES_NOTHING: dict[str, dict[str, Any]] = {
    "an engine starts": {"pods": (make_pod("a"), make_pod("b", ready=False))},
    "two variants serve": {"pods": (make_pod("a"), make_pod("b", variant="h100-vllm-tp2-bf16"))},
    "one engine is silent": {"engines_reporting": 1},
    "somebody else speaks in its name": {"engines_heard": 3},
    "who speaks in its name is not known": {"engines_heard": None},
    "requests queue": {"waiting": 12.0},
    "nothing finished": {"mean_tpot_seconds": Missing("NothingFinished", "no request finished")},
    "lengths are not known": {"mean_output_tokens": Missing("NothingFinished", "no request finished")},
}


EXTREME = st.sampled_from([1e-12, 1e-3, 1.0, 1e6, 1e12])


@given(st.lists(EXTREME, min_size=5, max_size=5), st.sampled_from([0.0, 0.5, 1.0]))
def test_whatever_engines_export_what_is_learned_stays_within_its_bounds(figures: list[float], hits: float) -> None:
    names = (
        "output_tokens_per_second",
        "mean_tpot_seconds",
        "mean_input_tokens",
        "mean_output_tokens",
        "input_tokens_per_second",
    )
    seen = slow_engines(**dict(zip(names, figures, strict=True)), prefix_hit_rate=hits)
    states, _ = taught(seen, LEAST_SAMPLES + 1)
    for state in states.values():
        assert all(0.5 <= factor <= 2 for factor in state.factors)


OTHER_ENGINES: dict[str, dict[str, Any]] = {
    "an argument of its own": {"engine": {"name": "vLLM", "extraArgs": ["--enforce-eager"]}},
    "a variable of its own": {"engine": {"env": [{"name": "NCCL_DEBUG", "value": "WARN"}]}},
    "an image of its own": {"engine": {"name": "vLLM", "image": f"example.org/vllm@sha256:{'a' * 64}"}},
    "adapters": {"model": {"uri": f"hf://{MODEL}", "adapters": [{"name": "legal", "uri": "hf://a/b"}]}},
}


@pytest.mark.parametrize("case", OTHER_ENGINES)
def test_who_runs_something_else_teaches_nobody(case: str) -> None:
    """All who use the profile decide by what it says: a tenant whose engine is slow on purpose would make them pay."""
    seen = slow_engines()
    service = make_service(**OTHER_ENGINES[case])
    states, writes = learn({}, replace(seen, services=(service,)), NOW)
    assert not writes
    assert all(state.samples == 0 for state in states.values())
    assert any(state.samples for state in learn({}, seen, NOW)[0].values())


@pytest.mark.parametrize("case", TEACHES_NOTHING)
def test_what_cannot_be_told_apart_teaches_nothing(case: str) -> None:
    states, writes = learn({}, slow_engines(**TEACHES_NOTHING[case]), NOW)
    assert not writes
    assert all(state.samples == 0 for state in states.values())


BROKEN: dict[str, Json] = {
    "empty": {},
    "text": {"observedGeneration": 3, "factors": "fast"},
    "a short covariance": {
        "observedGeneration": 3,
        "factors": {"alpha": 1, "load": 1, "prefill": 1},
        "covariance": [1],
    },
    "out of bounds": {
        "observedGeneration": 3,
        "factors": {"alpha": 40, "load": 1, "prefill": 1},
        "covariance": [0.01, 0, 0, 0.01, 0, 0.01],
        "samples": 99,
        "errorFraction": 0.0,
    },
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_status_that_makes_no_sense_is_as_none(case: str) -> None:
    assert published(replace(PROFILE, status=BROKEN[case])) is None
    assert learn({}, slow_engines(profile=replace(PROFILE, status=BROKEN[case])), NOW)[0][PROFILE.name].samples == 1


def refined_profile(times: float) -> Profile:
    _, status = taught(slow_engines(times), 60)
    return replace(PROFILE, status=status)


def test_decisions_follow_what_was_learned() -> None:
    busy = asked(60.0)
    wanted = [
        status(decide(replace(busy, profiles=(profile,)), NOW), "TokenService")["desiredReplicas"]
        for profile in (PROFILE, refined_profile(1.6))
    ]
    assert wanted[0] < wanted[1]


def asked(rate: float) -> Snapshot:
    """Two engines of which so many requests per second are asked; all of them meet their objectives."""
    buckets = ((0.001, rate), (float("inf"), rate))
    metrics = make_metrics(rate, engines_reporting=2, ttft_buckets=buckets, tpot_buckets=buckets)
    return replace(slow_engines(), metrics={CHAT.key: metrics})


@pytest.mark.parametrize("times", [0.6, 1.6])
@pytest.mark.parametrize("figure", ["fleet_utilization_ratio", "service_utilization_ratio"])
def test_utilization_is_counted_in_the_pinned_profile(figure: str, times: float) -> None:
    fleet = {"metadata": {"name": "default", "uid": "uid-fleet", "generation": 1}}
    busy = replace(asked(5.0), fleet_object=fleet)
    figures = [
        decide(replace(busy, profiles=(profile,)), NOW).metrics[figure] for profile in (PROFILE, refined_profile(times))
    ]
    assert figures[0] == figures[1]
    assert min(figures[0].values()) > 0.01


def status(plan: Any, kind: str) -> Json:
    writes: list[StatusWrite] = [write for write in plan.statuses if write.key.kind == kind]
    return writes[0].status


@pytest.mark.parametrize("delta_ms", [0.0, 0.05])
def test_a_stored_profile_whose_steps_take_no_time_stops_nobody(delta_ms: float) -> None:
    step = PROFILE.spec.step.model_copy(update=NOTHING | {"delta_ms": delta_ms})
    profile = replace(PROFILE, spec=PROFILE.spec.model_copy(update={"step": step}))
    plan = decide(slow_engines(profile=profile), NOW)
    assert CHAT.key.name in {status.key.name for status in plan.statuses}
