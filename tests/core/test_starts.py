"""What a cold start takes is what it took the replicas that stand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import NOW, make_deployment, make_metrics, make_node, make_pod, make_service
from tests.support.build import make_snapshot as snapshot_of
from tokenservice.core.capacity import Capacity, Limit
from tokenservice.core.decide import decide
from tokenservice.core.deployment import startup_seconds
from tokenservice.core.facts import Facts
from tokenservice.core.model import Plan, Pod, Variant
from tokenservice.core.outlook import outlook
from tokenservice.core.starts import STEP, alike, as_started

CHAT = make_service()
KNOWN_SECONDS = 60.0
ABLE = Capacity(1.0, 8.0, 0.1, 0.01, Limit.TPOT)


def served(*took: float | None) -> tuple[Pod, ...]:
    return tuple(replace(make_pod(f"p{number}"), took_seconds=one) for number, one in enumerate(took))


def planned(*took: float | None) -> Variant:
    """The variant as the service is planned with it."""
    seen = outlook(Facts(snapshot_of(CHAT, nodes=(make_node("n1"),), pods=served(*took))), CHAT)
    assert seen.want is not None
    return seen.want.variant


@pytest.mark.parametrize("took", [(), (None, None), (60.0,), (55.0, 66.0)])
def test_who_starts_as_its_profile_says_is_planned_with_that(took: tuple[float | None, ...]) -> None:
    assert planned(*took).cold_start_seconds == KNOWN_SECONDS


def test_the_middle_one_of_the_replicas_tells() -> None:
    assert planned(20.0, 240.0, 250.0).cold_start_seconds == pytest.approx(240.0, rel=0.12)
    assert planned(12.0, 15.0, None).cold_start_seconds == pytest.approx(12.0, rel=0.12)


def test_what_took_longer_than_a_start_may_was_no_start() -> None:
    """A replica that was not ready for a while and is so again, hours after it began to serve."""
    assert CHAT.spec is not None
    longest = startup_seconds(CHAT.spec, planned())
    assert planned(longest + 1, longest + 9000, 200.0).cold_start_seconds == pytest.approx(200.0, rel=0.12)
    assert planned(longest + 1).cold_start_seconds == KNOWN_SECONDS


def test_replicas_of_one_variant_say_nothing_of_another() -> None:
    other = replace(make_pod("p9"), variant="h100-vllm-tp2-bf16", took_seconds=300.0)
    seen = outlook(Facts(snapshot_of(CHAT, nodes=(make_node("n1"),), pods=(other,))), CHAT)
    assert {variant.cold_start_seconds for variant, _ in seen.ranked} == {KNOWN_SECONDS}


@given(st.lists(st.floats(1.0, 500.0), min_size=1, max_size=9))
def test_no_other_figure_of_a_variant_changes_and_the_grid_is_close(took: list[float]) -> None:
    plain = planned()
    ways = ((plain, ABLE),)
    assert CHAT.spec is not None
    ((learned, able),) = as_started(ways, CHAT.spec, served(*took))
    assert replace(learned, cold_start_seconds=plain.cold_start_seconds) == plain
    assert able is ways[0][1]
    assert min(took) / STEP <= learned.cold_start_seconds <= max(took) * STEP


def test_ways_that_start_as_they_should_are_the_same_object() -> None:
    ways = ((planned(), ABLE),)
    assert CHAT.spec is not None
    assert as_started(ways, CHAT.spec, served(61.0, 58.0)) is ways


def test_times_are_alike_within_a_step() -> None:
    assert alike(80.0, 100.0)
    assert alike(100.0, 80.0)
    assert not alike(79.0, 100.0)


def told(plan: Plan, name: str) -> str:
    return str(next(write.status for write in plan.statuses if write.key.name == CHAT.key.name)[name])


def test_slow_starts_move_the_forecast_and_the_record_and_no_engine() -> None:
    child = make_deployment(CHAT, 2, readyReplicas=2)
    plans = [
        decide(
            snapshot_of(
                CHAT,
                nodes=(make_node("n1"),),
                pods=served(took, took),
                children={child.key: child},
                metrics={CHAT.key: make_metrics(1.0, engines_reporting=2)},
            ),
            NOW,
        )
        for took in (60.0, 420.0)
    ]
    assert [told(plan, "forecast").split(" in ")[1].split(" ")[0] for plan in plans] == ["60", "447"]
    leads = [plan.hindsights[CHAT.key].lead_seconds for plan in plans]
    assert leads[1] - leads[0] == pytest.approx(447.0 - 60.0, abs=1.0)
    assert plans[0].actions == plans[1].actions
