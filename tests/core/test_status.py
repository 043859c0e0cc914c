from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.rendering import DIGEST, MI300X, make_variant, spec_of
from tests.support.build import H100, NOW, make_node, make_pod, make_service
from tests.support.kstatus import CURRENT, FAILED, IN_PROGRESS, TERMINATING, kstatus
from tokenservice.api.accelerator_class import AcceleratorClassStatus
from tokenservice.api.conditions import ConditionType, initial_conditions
from tokenservice.api.token_fleet import TokenFleetStatus
from tokenservice.api.token_service import TokenServiceStatus
from tokenservice.core.adapters import AdapterReport
from tokenservice.core.capacity import Workload
from tokenservice.core.conditions import by_type
from tokenservice.core.model import (
    Action,
    Apply,
    Json,
    Missing,
    Place,
    Problem,
    Reason,
    Service,
    ServiceKey,
    SetDeletionCost,
)
from tokenservice.core.model import ObjectKey as Key
from tokenservice.core.room import residents, tenancy
from tokenservice.core.status import (
    DecisionReport,
    FleetReport,
    LoadingReport,
    ServiceReport,
    VariantReport,
    accelerator_status,
    fleet_status,
    objectives_summary,
    rounded,
    service_status,
)
from tokenservice.core.status_changes import changed, events, rests, urgent, urgent_of
from tokenservice.core.utilization import Waterfall

PROBLEM = Problem(Reason.UNKNOWN_ACCELERATOR, "spec.placement.accelerators[0]", "there is no AcceleratorClass 'h900'")
STALE = Missing("Stale", "the newest sample is 90 s old")
LOADING = LoadingReport(replicas=1, oldest_seconds=12.0, expected_seconds=60.0)
BORN = make_service(objectives={"timeToFirstToken": {"target": "2s"}, "timePerOutputToken": {"target": "200ms"}})


def report(service: Service = BORN, **changes: Any) -> ServiceReport:
    """A service with two replicas that serve all they should."""
    facts: dict[str, Any] = {
        "service": service,
        "floor": 2,
        "desired": 2,
        "existing": 2,
        "ready": 2,
        "cluster_domain": "cluster.local",
        "variants": (VariantReport(variant=make_variant(), replicas=2, ready=2),),
        "tokens_per_second": 1234.567,
        "requests_per_second": 6.1728,
        "utilization": 0.68123,
        "ttft_seconds": 0.41234,
        "tpot_seconds": 0.0481,
        "cost_per_million_tokens": 1.35,
        "joules_per_token": 0.44,
    }
    return ServiceReport(**(facts | changes))


def of(status: Json, kind: ConditionType) -> tuple[str, str]:
    condition = by_type(status)[kind]
    return condition["status"], condition["reason"]


def judged(given_report: ServiceReport) -> str:
    service = given_report.service
    return kstatus({"metadata": {"generation": service.generation}, "status": service_status(given_report, NOW)})


# --- the shape


def test_a_full_status_fits_the_schema() -> None:
    full = report(
        loading=LOADING,
        forecast="7 requests/s in 60 s",
        capacity_factor=0.93,
        overrun_share=0.2,
        decision=DecisionReport(
            reason=Reason.SCALED_UP, message="demand", inputs={"demand": "6.2"}, rejected=("l40s: too slow",)
        ),
        adapters=(AdapterReport("legal", "Loading", 1, "1 of 2 replicas that serve have it"),),
        warm_nodes=("node-1", "node-2"),
    )
    status = service_status(full, NOW)
    parsed = TokenServiceStatus.model_validate(status)
    assert parsed.model_dump(mode="json", by_alias=True, exclude_none=True) == status
    assert set(status) == set(TokenServiceStatus.model_json_schema(by_alias=True)["properties"])


def test_what_a_reader_sees_first() -> None:
    status = service_status(report(ready=1), NOW)
    assert status["endpoint"] == "http://chat.default.svc.cluster.local/v1"
    assert status["replicaSummary"] == "1/2"
    assert status["variantSummary"] == "h100-vllm-tp1-bf16"
    assert status["selector"] == "taas.dev/service=chat"
    assert status["objectives"]["summary"] == "TTFT 0.41s/2s, TPOT 48ms/200ms"


def test_figures_have_three_digits_and_missing_ones_are_absent() -> None:
    status = service_status(report(utilization=STALE, joules_per_token=float("inf")), NOW)
    assert status["tokensPerSecond"] == 1230.0
    assert status["requestsPerSecond"] == 6.17
    assert "utilization" not in status
    assert "joulesPerToken" not in status


def test_zero_is_a_figure_and_missing_is_not_zero() -> None:
    assert service_status(report(tokens_per_second=0.0), NOW)["tokensPerSecond"] == 0.0
    assert rounded(Missing("NoData", "")) is None
    assert rounded(float("nan")) is None


def test_without_pods_there_is_no_endpoint_that_works() -> None:
    assert "endpoint" not in service_status(report(existing=0, ready=0), NOW)


@pytest.mark.parametrize(
    ("ttft", "tpot", "want"),
    [
        (0.41, 0.048, "TTFT 0.41s/2s, TPOT 48ms/200ms"),
        (12.34, 1.2345, "TTFT 12s/2s, TPOT 1234ms/200ms"),
        (0.0004, 0.0, "TTFT 0.0004s/2s, TPOT 0ms/200ms"),
        (1.0, 0.1004, "TTFT 1s/2s, TPOT 100ms/200ms"),
        (STALE, 0.048, "TTFT -/2s, TPOT 48ms/200ms"),
        (float("nan"), 0.048, "TTFT -/2s, TPOT 48ms/200ms"),
    ],
)
def test_latency_is_shown_in_the_unit_of_its_target(ttft: Any, tpot: Any, want: str) -> None:
    assert BORN.spec is not None
    assert objectives_summary(BORN.spec.objectives, ttft, tpot) == want


def test_a_long_decision_never_makes_the_status_invalid() -> None:
    decision = DecisionReport(
        reason=Reason.STEADY,
        message="m" * 5000,
        inputs={f"input{i}": "i" * 999 for i in range(99)},
        rejected=["r" * 999] * 99,
    )
    shown = service_status(report(decision=decision, forecast="f" * 999), NOW)
    assert len(shown["decision"]["message"]) <= 1024
    assert len(shown["decision"]["inputs"]) <= 32
    assert max(map(len, shown["decision"]["inputs"].values())) <= 256
    assert len(shown["decision"]["rejected"]) <= 16
    TokenServiceStatus.model_validate(shown)


def test_a_decision_without_inputs_has_no_empty_map() -> None:
    """Applied over a map with entries, the server would make it null, and refuse the status."""
    shown = service_status(report(decision=DecisionReport(reason=Reason.HOLDING, message="held")), NOW)
    assert "inputs" not in shown["decision"]


# --- conditions

READY, RECONCILING, STALLED = ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED
OBJECTIVES, CAPACITY = ConditionType.OBJECTIVES_MET, ConditionType.CAPACITY_AVAILABLE
METRICS, VERIFIED = ConditionType.METRICS_AVAILABLE, ConditionType.MODEL_VERIFIED


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, {READY: ("True", "Serving"), RECONCILING: ("False", "Steady"), STALLED: ("False", "Accepted")}),
        ({"ready": 1}, {READY: ("False", "NotServing"), RECONCILING: ("True", "NotServing")}),
        ({"ready": 1, "loading": LOADING}, {READY: ("False", "Starting"), RECONCILING: ("True", "Starting")}),
        ({"desired": 3, "loading": LOADING}, {READY: ("True", "Serving"), RECONCILING: ("True", "Starting")}),
        ({"changing": True}, {READY: ("True", "Serving"), RECONCILING: ("True", "RollingOut")}),
        ({"existing": 0, "ready": 0}, {READY: ("False", "Pending"), RECONCILING: ("True", "Pending")}),
        (
            {"ready": 1, "without_room": 1},
            {
                READY: ("False", "InsufficientCapacity"),
                RECONCILING: ("True", "InsufficientCapacity"),
                CAPACITY: ("False", "InsufficientCapacity"),
            },
        ),
        (
            {"desired": 5, "without_room": 3},
            {READY: ("True", "Serving"), RECONCILING: ("False", "Steady"), CAPACITY: ("False", "InsufficientCapacity")},
        ),
        (
            {"problems": (PROBLEM,)},
            {
                READY: ("False", "UnknownAccelerator"),
                RECONCILING: ("False", "Holding"),
                STALLED: ("True", "UnknownAccelerator"),
                CAPACITY: ("Unknown", "NotChecked"),
            },
        ),
        ({"floor": 0, "desired": 0, "existing": 0, "ready": 0}, {READY: ("False", "NotServing")}),
        ({"ttft_seconds": 2.5}, {OBJECTIVES: ("False", "Missed"), READY: ("True", "Serving")}),
        ({"tpot_seconds": 0.2}, {OBJECTIVES: ("True", "Met")}),
        ({"tpot_seconds": STALE}, {OBJECTIVES: ("Unknown", "Unknown")}),
        ({"metrics": STALE}, {METRICS: ("False", "MetricsMissing")}),
        ({"metrics": STALE, "ready": 0}, {METRICS: ("Unknown", "Pending")}),
        ({}, {METRICS: ("True", "MetricsFresh"), VERIFIED: ("Unknown", "NotChecked")}),
    ],
)
def test_conditions_say_what_is_so(changes: dict[str, Any], want: dict[ConditionType, tuple[str, str]]) -> None:
    status = service_status(report(**changes), NOW)
    assert {kind: of(status, kind) for kind in want} == want


@pytest.mark.parametrize(
    ("spec", "reason"),
    [({"mode": "Observe"}, "Observing"), ({"mode": "Recommend"}, "Recommended"), ({"paused": True}, "Paused")],
)
def test_where_the_operator_only_looks_on_it_says_so(spec: dict[str, Any], reason: str) -> None:
    status = service_status(report(make_service(**spec), acting=False, ready=0, existing=0), NOW)
    assert of(status, READY) == ("False", reason)
    assert of(status, RECONCILING) == ("False", reason)


def test_only_an_image_by_digest_is_verified_and_only_once_it_is_there() -> None:
    pinned = replace(make_service(), spec=spec_of("an image by digest"))
    assert of(service_status(report(pinned, held_to=frozenset({DIGEST})), NOW), VERIFIED) == ("True", "Verified")
    assert of(service_status(report(pinned, held_to=frozenset({None})), NOW), VERIFIED) == ("Unknown", "Pending")
    assert of(service_status(report(pinned, ready=0), NOW), VERIFIED) == ("Unknown", "Pending")


def test_a_stalled_service_tells_every_problem_and_that_the_old_engines_serve_on() -> None:
    image = Problem(Reason.IMAGE_NOT_ALLOWED, "spec.engine.image", "not allowed")
    status = by_type(service_status(report(problems=(PROBLEM, image)), NOW))
    assert "h900" in status[STALLED]["message"]
    assert "spec.engine.image: not allowed" in status[STALLED]["message"]
    assert "2 replicas of the last valid spec serve on" in status[READY]["message"]


def test_a_service_that_could_not_be_read_has_a_status_all_the_same() -> None:
    broken = replace(make_service(), spec=None, error="spec.tier: Gold")
    problem = Problem(Reason.INVALID_SPEC, "spec", "spec.tier: Gold")
    status = service_status(report(broken, problems=(problem,), floor=0), NOW)
    assert of(status, STALLED) == ("True", "InvalidSpec")
    assert len(status["conditions"]) == len(ConditionType)


# --- transitions


def test_every_condition_is_there_from_the_first_write_on_with_its_generation() -> None:
    fresh = replace(BORN, generation=7, status={"conditions": initial_conditions()})
    conditions = service_status(report(fresh, existing=0, ready=0), NOW)["conditions"]
    assert [condition["type"] for condition in conditions] == [kind.value for kind in ConditionType]
    assert {condition["observedGeneration"] for condition in conditions} == {7}
    assert all(condition["reason"] and condition["message"] for condition in conditions)


def test_the_time_of_transition_moves_with_the_status_alone() -> None:
    starting = service_status(report(ready=0, loading=LOADING), NOW)
    waiting = service_status(report(replace(BORN, status=starting), ready=0, without_room=1), NOW + 100)
    serving = service_status(report(replace(BORN, status=waiting)), NOW + 200)
    times = [by_type(status)[READY]["lastTransitionTime"] for status in (starting, waiting, serving)]
    assert times == ["2027-01-15T08:00:00Z", "2027-01-15T08:00:00Z", "2027-01-15T08:03:20Z"]


# --- kstatus


def test_the_port_of_kstatus_follows_the_published_rules() -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    assert kstatus({"metadata": {"deletionTimestamp": "x"}, "status": ready}) == TERMINATING
    assert kstatus({"metadata": {"generation": 2}, "status": ready | {"observedGeneration": 1}}) == IN_PROGRESS
    assert kstatus({"status": {"conditions": initial_conditions()}}) == IN_PROGRESS
    assert kstatus({"status": ready}) == CURRENT
    assert kstatus({}) == CURRENT


def test_the_life_of_a_service_as_gitops_tools_see_it() -> None:
    life = [
        ({"existing": 0, "ready": 0, "changing": True}, IN_PROGRESS),
        ({"ready": 0, "loading": LOADING}, IN_PROGRESS),
        ({"ready": 1, "loading": LOADING}, IN_PROGRESS),
        ({}, CURRENT),
        ({"desired": 4, "loading": LOADING}, IN_PROGRESS),
        ({"desired": 4, "ready": 4}, CURRENT),
        ({"problems": (PROBLEM,)}, FAILED),
        ({"metrics": STALE}, CURRENT),
    ]
    assert [judged(report(**changes)) for changes, _ in life] == [want for _, want in life]


counts = st.integers(0, 4)
reports = st.builds(
    lambda **changes: report(**changes),
    floor=counts,
    desired=counts,
    existing=counts,
    ready=counts,
    acting=st.booleans(),
    changing=st.booleans(),
    without_room=counts,
    problems=st.sampled_from([(), (PROBLEM,)]),
    loading=st.sampled_from([None, LOADING]),
    metrics=st.sampled_from([None, STALE]),
    ttft_seconds=st.floats(0, 10) | st.just(STALE),
    utilization=st.floats() | st.just(STALE),
)


@settings(deadline=None)  # a busy machine is no failure
@given(reports)
def test_never_current_before_it_serves_and_failed_exactly_when_only_a_user_can_help(
    given_report: ServiceReport,
) -> None:
    seen = judged(given_report)
    assert (seen == FAILED) == bool(given_report.problems)
    if seen == CURRENT:
        assert given_report.ready >= max(1, given_report.floor)
        assert not given_report.changing or not given_report.acting


@settings(deadline=None)  # a busy machine is no failure
@given(reports)
def test_any_report_makes_a_valid_status_and_writing_it_once_is_enough(given_report: ServiceReport) -> None:
    status = service_status(given_report, NOW)
    TokenServiceStatus.model_validate(status)
    again = service_status(replace(given_report, service=replace(BORN, status=status)), NOW + 3600)
    assert changed(status, again, NOW, NOW + 3600, PAUSE) is None


# --- when to write

PAUSE = 60.0
LATER = NOW + 61


def write(before: ServiceReport, after: ServiceReport, now: float = LATER) -> bool:
    first = service_status(before, NOW)
    second = service_status(replace(after, service=replace(after.service, status=first)), now)
    return changed(first, second, NOW, now, PAUSE) is not None


@pytest.mark.parametrize(
    ("changes", "at_once", "later"),
    [
        ({}, False, False),
        ({"utilization": 0.70}, False, False),
        ({"utilization": 0.72}, False, True),
        ({"tokens_per_second": STALE}, False, True),
        ({"ttft_seconds": 0.5}, False, True),
        ({"ttft_seconds": 2.1}, True, True),
        ({"ready": 1}, True, True),
        ({"desired": 3}, True, True),
        ({"metrics": STALE}, True, True),
        ({"forecast": "7 requests/s in 60 s"}, False, True),
        ({"variants": (VariantReport(variant=make_variant(tp=2), replicas=2, ready=2),)}, True, True),
        ({"service": replace(BORN, generation=2)}, True, True),
    ],
    ids=[
        "nothing",
        "3 % more",
        "6 % more",
        "figure lost",
        "latency within its objective",
        "objective missed",
        "replica lost",
        "replica wanted",
        "metrics lost",
        "forecast",
        "variant",
        "generation",
    ],
)
def test_conditions_and_counts_at_once_figures_by_5_percent_and_60_seconds(
    changes: dict[str, Any], at_once: bool, later: bool
) -> None:
    assert write(report(), report(**changes), NOW + 1) is at_once
    assert write(report(), report(**changes)) is later


def test_figures_in_sentences_are_held_to_the_same_rule() -> None:
    def decided(demand: float, reason: Reason = Reason.STEADY) -> ServiceReport:
        inputs = {"demand": f"{demand} requests/s"}
        return report(decision=DecisionReport(reason=reason, message=f"{demand} requests/s", inputs=inputs))

    assert not write(decided(100.0), decided(103.0))
    assert write(decided(100.0), decided(106.0))
    assert not write(decided(100.0), decided(106.0), NOW + 1)
    assert write(decided(100.0), decided(100.0, Reason.SCALED_UP), NOW + 1)


def test_what_was_never_written_is_written() -> None:
    status = service_status(report(), NOW)
    assert changed({}, status, None, NOW, PAUSE) == status
    assert changed({"conditions": initial_conditions()}, status, None, NOW, PAUSE) == status


URGENT: dict[str, dict[str, Any]] = {
    "serves": {},
    "stands still": {"problems": (PROBLEM,)},
    "starts": {"ready": 0, "loading": LOADING, "existing": 1},
    "only looks on": {"acting": False, "ready": 0, "existing": 0},
    "finds no room": {"without_room": 1, "ready": 1},
    "knows nothing": {"metrics": STALE, "tokens_per_second": STALE, "ttft_seconds": STALE, "variants": ()},
    "misses": {"ttft_seconds": 2.1},
    "was decided on": {"decision": DecisionReport(reason=Reason.SCALED_UP, message="more")},
    "was changed": {"service": replace(BORN, generation=7)},
}


@pytest.mark.parametrize("changes", URGENT.values(), ids=URGENT)
def test_what_is_urgent_is_known_without_the_status(changes: dict[str, Any]) -> None:
    made = report(**changes)
    assert urgent_of(made) == urgent(json.loads(json.dumps(service_status(made, NOW))))


def test_statuses_that_were_written_together_are_not_written_together_again() -> None:
    after = [61.0, 70.0, 80.0, 89.0]
    waiting = [sum(rests(NOW, NOW + seconds, PAUSE, f"uid-{number}") for number in range(1000)) for seconds in after]
    assert waiting == sorted(waiting, reverse=True)
    assert waiting[0] > 900
    assert 500 < waiting[1] < 800
    assert waiting[-1] < 100
    assert not any(rests(NOW, NOW + 90, PAUSE, f"uid-{number}") for number in range(1000))
    assert not any(rests(NOW, NOW + 6, PAUSE / 15, f"uid-{number}") for number in range(1000)), "a shorter pause"


def test_slow_drift_is_written_when_it_adds_up() -> None:
    first = service_status(report(utilization=0.50), NOW)
    shown = [u for u in (0.51, 0.52, 0.53) if changed(first, first | {"utilization": u}, NOW, LATER, PAUSE)]
    assert shown == [0.53]


# --- events


def told(before: ServiceReport, after: ServiceReport, *actions: Action) -> list[tuple[str, str]]:
    first = service_status(before, NOW)
    service = replace(after.service, status=first)
    status = service_status(replace(after, service=service), LATER)
    return [(event.type, event.reason.value) for event in events(service, status, actions)]


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [
        ({}, {}, []),
        ({}, {"problems": (PROBLEM,)}, [("Warning", "UnknownAccelerator")]),
        ({"problems": (PROBLEM,)}, {"problems": (PROBLEM,)}, []),
        (
            {"problems": (PROBLEM,)},
            {"problems": (Problem(Reason.IMAGE_NOT_ALLOWED, "f", "m"),)},
            [("Warning", "ImageNotAllowed")],
        ),
        ({"problems": (PROBLEM,)}, {}, [("Normal", "Accepted"), ("Normal", "Serving")]),
        ({}, {"metrics": STALE}, [("Warning", "MetricsMissing")]),
        ({"metrics": STALE}, {}, [("Normal", "MetricsFresh")]),
        ({}, {"without_room": 1}, [("Warning", "InsufficientCapacity")]),
        ({"without_room": 1}, {}, [("Normal", "Available")]),
        ({"without_room": 1}, {"without_room": 2}, []),
        ({"ready": 0}, {}, [("Normal", "Serving")]),
        ({}, {"ready": 1}, [("Warning", "NotServing")]),
        ({"ready": 1}, {"ready": 1, "loading": LOADING}, []),
    ],
)
def test_transitions_are_told_once(before: dict[str, Any], after: dict[str, Any], want: list[tuple[str, str]]) -> None:
    assert told(report(**before), report(**after)) == want


def test_a_new_service_brings_no_warnings() -> None:
    fresh = replace(BORN, status={"conditions": initial_conditions()})
    status = service_status(report(fresh, existing=0, ready=0, metrics=STALE), NOW)
    assert events(fresh, status, ()) == ()


def deployment(reason: Reason, message: str, kind: str = "Deployment") -> Apply:
    return Apply(
        id=f"apply/{message}",
        reason=reason,
        message=message,
        service=ServiceKey("default", "chat"),
        manifest={"kind": kind},
    )


def test_what_is_done_is_told_with_the_same_reason_and_words() -> None:
    status = service_status(report(), NOW)
    service = replace(BORN, status=status)
    found = events(service, status, [deployment(Reason.SCALED_UP, "2 to 3 replicas: demand rose")])
    (event,) = found
    assert (event.type, event.reason, event.message) == ("Normal", Reason.SCALED_UP, "2 to 3 replicas: demand rose")
    assert event.regarding == Key("TokenService", "default", "chat")
    assert event.uid == service.uid


def test_of_many_writes_only_what_matters_to_people_is_told() -> None:
    pod = Key("Pod", "default", "a")
    quiet = [
        deployment(Reason.CREATED, "Service chat created", kind="Service"),
        Place(id="p", reason=Reason.PLACED, message="", service=BORN.key, pod=pod, uid="", node="n1"),
        SetDeletionCost(id="c", reason=Reason.VICTIM_CHOSEN, message="", service=BORN.key, pod=pod, uid="", cost=-1),
        replace(deployment(Reason.SCALED_UP, "another's"), service=ServiceKey("default", "other")),
    ]
    loud = deployment(Reason.CREATED, "Deployment created")
    assert told(report(), report(), *quiet, loud, loud) == [("Normal", "Created")]


# --- fleet and accelerators


def fleet(**changes: Any) -> FleetReport:
    facts: dict[str, Any] = {
        "generation": 3,
        "previous": {},
        "services": 4,
        "accelerators": 96,
        "accelerators_in_use": 61,
        "accelerators_fragmented": 11,
        "cost_per_hour": 288.0,
        "utilization": 0.6512,
        "utilization_1h": 0.6,
        "utilization_24h": 0.5,
        "waterfall": Waterfall(
            utilization=0.65,
            headroom=0.1,
            cold_start=0.05,
            draining=0.0,
            fragmentation=0.1,
            idle_nodes=0.1,
            slo_misses=0.0,
        ),
        "cost_per_million_tokens": 1.2,
        "joules_per_token": 0.4,
    }
    return FleetReport(**(facts | changes))


def test_the_fleets_status_fits_the_schema() -> None:
    status = fleet_status(fleet(), NOW)
    parsed = TokenFleetStatus.model_validate(status)
    assert parsed.model_dump(mode="json", by_alias=True, exclude_none=True) == status
    assert set(status) == set(TokenFleetStatus.model_json_schema(by_alias=True)["properties"])
    assert kstatus({"metadata": {"generation": 3}, "status": status}) == CURRENT


def test_the_fleet_says_when_its_metrics_are_missing_and_shows_no_zero() -> None:
    status = fleet_status(fleet(metrics=STALE, utilization=STALE, waterfall=STALE), NOW)
    assert of(status, METRICS) == ("False", "MetricsMissing")
    assert "utilization" not in status
    assert "waterfall" not in status
    assert of(fleet_status(fleet(metrics=STALE, services=0), NOW), METRICS) == ("Unknown", "Pending")


@pytest.mark.parametrize(("field", "shown"), [("utilization", "utilization"), ("utilization_24h", "utilization24h")])
def test_utilization_that_is_not_known_is_left_out_and_the_reason_is_told(field: str, shown: str) -> None:
    """The user's own query gave two numbers, and the mean of it one: the condition said nothing."""
    status = fleet_status(fleet(**{field: Missing("NotOneNumber", "it gives 2 numbers")}), NOW)
    assert status["utilization1h"] == 0.6
    assert shown not in status
    assert of(status, METRICS) == ("True", "MetricsFresh")
    message = next(c["message"] for c in status["conditions"] if c["type"] == METRICS)
    assert message == f"metrics are fresh; no {shown}: it gives 2 numbers"


def test_a_wrong_policy_stalls_the_fleet() -> None:
    status = fleet_status(fleet(problems=(Problem(Reason.INVALID_SPEC, "spec.x", "y"),)), NOW)
    assert kstatus({"metadata": {"generation": 3}, "status": status}) == FAILED


def test_counts_of_accelerators_are_exact_however_small_the_change() -> None:
    before = fleet_status(fleet(), NOW)
    after = fleet_status(fleet(previous=before, accelerators_in_use=62), LATER)
    assert changed(before, after, NOW, LATER, PAUSE) == after
    assert changed(before, after, NOW, NOW + 1, PAUSE) is None


def test_what_is_planned_with_is_written_exactly_but_not_each_time() -> None:
    before = service_status(report(workload=Workload(1000.0, 200.0, 0.5)), NOW)
    after = service_status(report(workload=Workload(1000.0, 201.0, 0.5)), NOW)
    assert changed(before, after, NOW, NOW + 59, PAUSE) is None
    assert changed(before, after, NOW, NOW + 61, PAUSE) == after


def test_an_accelerator_class_counts_what_exists_and_what_anyone_holds() -> None:
    nodes = (make_node("n1"), make_node("n2", accelerators=4))
    pods = (
        make_pod("ours", node="n1", gpus=2),
        make_pod("foreign", node="n2", service=None, gpus=1),
        make_pod("waiting", node=None),
    )
    held = {name: tenancy(mine) for name, mine in residents(pods).items()}
    status = accelerator_status(H100, nodes, held)
    assert status == {"nodes": 2, "accelerators": 12, "allocated": 3}
    AcceleratorClassStatus.model_validate(status)
    assert accelerator_status(MI300X, (), held) == {"nodes": 0, "accelerators": 0, "allocated": 0}
