"""Events: said once, counted when they hold on, and never in the way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.edge.fakes import Clock, Server
from tokenservice.core.model import Event, ObjectKey, Reason
from tokenservice.edge.events import SERIES_SECONDS, Events
from tokenservice.errors import Retryable

EVENT = Event(
    regarding=ObjectKey("TokenService", "team", "chat"),
    uid="u1",
    type="Normal",
    reason=Reason.SCALED_UP,
    message="1 -> 2 replicas",
)


def make_events(server: Server, clock: Clock) -> Events:
    return Events(server, "operator-1", wall_clock=clock)


def verbs(server: Server) -> list[str]:
    return [verb for verb, _, _ in server.calls]


async def test_an_event_says_what_happened_to_what_and_why() -> None:
    server = Server()
    await make_events(server, Clock()).emit(EVENT)
    (_, key, body), *_ = server.calls
    assert key.namespace == "team"
    assert key.name.startswith("chat.")
    assert body["regarding"] == {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenService",
        "namespace": "team",
        "name": "chat",
        "uid": "u1",
    }
    assert (body["type"], body["reason"], body["action"], body["note"]) == (
        "Normal",
        "ScaledUp",
        "ScaledUp",
        "1 -> 2 replicas",
    )
    assert body["eventTime"].endswith("Z")


async def test_the_same_words_are_one_event() -> None:
    server, clock = Server(), Clock()
    events = make_events(server, clock)
    for _ in range(100):
        await events.emit(EVENT)
        clock.now += 5
    assert verbs(server) == ["create"]


async def test_words_that_hold_on_are_counted_every_ten_minutes() -> None:
    server, clock = Server(), Clock()
    events = make_events(server, clock)
    for _ in range(241):
        await events.emit(EVENT)
        clock.now += 5
    assert verbs(server) == ["create", "patch", "patch"]
    assert [detail["body"]["series"]["count"] for _, _, detail in server.calls[1:]] == [121, 241]


DIFFERENT = {
    "another object": replace(EVENT, regarding=ObjectKey("TokenService", "team", "code")),
    "an object made anew under the name": replace(EVENT, uid="u2"),
    "another reason": replace(EVENT, reason=Reason.SCALED_DOWN),
    "other words": replace(EVENT, message="2 -> 3 replicas"),
}


@pytest.mark.parametrize("name", DIFFERENT)
async def test_what_differs_is_another_event(name: str) -> None:
    server = Server()
    events = make_events(server, Clock())
    await events.emit(EVENT)
    await events.emit(DIFFERENT[name])
    assert verbs(server) == ["create", "create"]


async def test_a_restart_does_not_say_it_again() -> None:
    server, clock = Server(), Clock(SERIES_SECONDS * 1000)
    await make_events(server, clock).emit(EVENT)
    clock.now += 60
    await make_events(server, clock).emit(EVENT)
    assert len(server.objects) == 1


async def test_an_event_that_has_expired_is_written_anew() -> None:
    server, clock = Server(), Clock()
    events = make_events(server, clock)
    await events.emit(EVENT)
    server.objects.clear()
    clock.now += SERIES_SECONDS + 1
    await events.emit(EVENT)
    assert verbs(server) == ["create", "patch", "create"]
    assert len(server.objects) == 1


async def test_an_event_that_could_not_be_written_is_tried_again() -> None:
    server = Server()
    events = make_events(server, Clock())
    server.failures = [Retryable("busy")]
    with pytest.raises(Retryable):
        await events.emit(EVENT)
    await events.emit(EVENT)
    assert len(server.objects) == 1


async def test_events_of_cluster_wide_objects_are_kept_in_default() -> None:
    server = Server()
    await make_events(server, Clock()).emit(replace(EVENT, regarding=ObjectKey("TokenFleet", "", "default")))
    assert server.calls[0][1].namespace == "default"


async def test_a_long_note_is_cut_at_the_limit_in_bytes() -> None:
    server = Server()
    await make_events(server, Clock()).emit(replace(EVENT, message="é" * 2000))
    note = server.calls[0][2]["note"]
    assert len(note.encode()) <= 1024
    assert note.endswith("...")


async def test_what_is_remembered_is_bounded() -> None:
    events = make_events(Server(), Clock())
    for number in range(5000):
        await events.emit(replace(EVENT, message=f"{number}"))
    assert len(events._series) == 4096
