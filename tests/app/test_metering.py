"""Metrics at hand: asked at a steady pace, trusted only while fresh."""

from __future__ import annotations

import pytest

from tests.edge.fakes import Clock
from tests.support.build import make_metrics, make_service
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.app.metering import Facts, Metering, served_names
from tokenservice.core.model import Missing, ServiceKey, ServiceMetrics
from tokenservice.edge.prometheus import NO_QUERY, Answer, Question

SERVICE = make_service()


class Reader:
    """Answers with the same figures, and keeps what it was asked."""

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.error: Exception | None = None

    async def read(self, question: Question) -> Answer:
        self.questions.append(question)
        if self.error is not None:
            raise self.error
        return Answer(services=dict.fromkeys(question.services.values(), make_metrics()), utilization=0.5)


def make_metering(clock: Clock) -> tuple[Metering, Reader]:
    reader = Reader()
    return Metering(reader, default_address="http://chart:9090", interval_seconds=5, clock=clock), reader


async def test_before_the_first_round_nothing_is_known() -> None:
    metering, _ = make_metering(Clock())
    answer = metering.answer([SERVICE], TokenFleetSpec())
    missing = answer.services[SERVICE.key]
    assert isinstance(missing, Missing)
    assert missing.reason == "NotRead"
    assert answer.utilization == NO_QUERY


async def test_a_round_is_good_until_it_is_stale() -> None:
    clock = Clock()
    metering, _ = make_metering(clock)
    await metering.round([SERVICE], TokenFleetSpec())
    clock.now += 29
    assert isinstance(metering.answer([SERVICE], TokenFleetSpec()).services[SERVICE.key], ServiceMetrics)
    clock.now += 2
    answer = metering.answer([SERVICE], TokenFleetSpec())
    missing = answer.services[SERVICE.key]
    assert isinstance(missing, Missing)
    assert missing.reason == "Stale"
    assert isinstance(answer.utilization, Missing)


async def test_a_reading_that_fails_leaves_all_missing_and_says_why_and_the_next_counts() -> None:
    metering, reader = make_metering(Clock())
    reader.error = AttributeError("'str' object has no attribute 'get'")
    await metering.round([SERVICE], TokenFleetSpec())
    missing = metering.answer([SERVICE], TokenFleetSpec()).services[SERVICE.key]
    assert metering.answered
    assert missing == Missing("NotRead", "reading failed: AttributeError: 'str' object has no attribute 'get'")
    reader.error = None
    await metering.round([SERVICE], TokenFleetSpec())
    assert isinstance(metering.answer([SERVICE], TokenFleetSpec()).services[SERVICE.key], ServiceMetrics)


async def test_nobody_is_asked_before_it_is_known_for_whom_and_by_which_policy() -> None:
    metering, reader = make_metering(Clock())
    fleet = TokenFleetSpec.model_validate({"prometheus": {"windowSeconds": 60}})
    views: list[Facts | None] = [None, None, ((SERVICE,), fleet)]

    def enough() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await metering.run(lambda: views.pop(0), enough)
    assert [question.windows.rate for question in reader.questions] == [60]
    assert metering.answered


async def test_the_question_follows_the_fleet() -> None:
    metering, reader = make_metering(Clock())
    fleet = TokenFleetSpec.model_validate(
        {
            "prometheus": {"address": "http://mine:9090", "windowSeconds": 60, "utilizationQuery": "avg(u)"},
            "consolidation": {"scaleDownWindowSeconds": 240},
        }
    )
    await metering.round([SERVICE], TokenFleetSpec())
    await metering.round([SERVICE], fleet)
    default, own = reader.questions
    assert (default.address, own.address) == ("http://chart:9090", "http://mine:9090")
    assert (own.windows.rate, own.windows.peak, own.windows.staleness) == (60, 240, 30)
    assert own.utilization_query == "avg(u)"


def test_models_are_known_by_their_served_names() -> None:
    named = make_service("code", model={"uri": "hf://a/b", "servedName": "coder"})
    assert served_names([SERVICE, named]) == {
        ("default", "chat"): ServiceKey("default", "chat"),
        ("default", "coder"): ServiceKey("default", "code"),
    }


def test_of_two_that_claim_a_name_the_older_has_it() -> None:
    older = make_service("old", created_at=1.0, model={"uri": "hf://a/b", "servedName": "m"})
    younger = make_service("new", created_at=2.0, model={"uri": "hf://a/b", "servedName": "m"})
    for order in ([older, younger], [younger, older]):
        assert served_names(order) == {("default", "m"): older.key}
