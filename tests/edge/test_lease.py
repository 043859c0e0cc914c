"""Leadership on two virtual clocks: never two that think they lead, whatever the order of things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.edge.fakes import Clock, Server
from tokenservice.core.model import ObjectKey
from tokenservice.edge.lease import PLANNING_ANNOTATION, Lease, Terms
from tokenservice.errors import LeaseLost, Retryable

KEY = ObjectKey("Lease", "system", "operator")


def make_lease(server: Server, clock: Clock, identity: str) -> Lease:
    return Lease(
        server, KEY, identity, terms=Terms(), clock=clock, wall_clock=clock.wall, sleep=clock.sleep, jitter=lambda: 0.0
    )


async def test_the_first_to_come_leads() -> None:
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    assert not lease.held()
    await lease.acquire()
    assert lease.held()
    assert server.objects[KEY]["spec"]["holderIdentity"] == "a"


async def test_leadership_is_not_believed_beyond_ten_seconds() -> None:
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    await lease.acquire()
    clock.now += 9.9
    assert lease.held()
    clock.now += 0.2
    assert not lease.held()


async def test_validity_counts_from_before_the_request_was_sent() -> None:
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    create = server.create

    async def slow(*arguments: object, **more: object) -> object:
        clock.now += 4
        return await create(*arguments, **more)  # type: ignore[arg-type]

    server.create = slow  # type: ignore[assignment, method-assign]
    await lease.acquire()
    clock.now += 6.1
    assert not lease.held()


async def test_a_dead_leader_is_replaced_after_the_duration_that_we_saw_it_idle() -> None:
    server, clock = Server(), Clock()
    await make_lease(server, clock, "dead").acquire()
    clock.now += 3600  # its times are its own; what counts is how long we watched
    began = clock.now
    await make_lease(server, clock, "b").acquire()
    assert 15 <= clock.now - began <= 18
    assert server.objects[KEY]["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_renews_is_left_alone() -> None:
    server, clock = Server(), Clock()
    first, second = make_lease(server, clock, "a"), make_lease(server, clock, "b")
    await first.acquire()
    for _ in range(30):
        assert not await second._try()
        clock.now += 2
        assert await first._try()
    assert server.objects[KEY]["spec"]["leaseTransitions"] == 0


async def test_who_was_replaced_stops() -> None:
    server, clock = Server(), Clock()
    first, second = make_lease(server, clock, "a"), make_lease(server, clock, "b")
    await first.acquire()
    await second.acquire()
    with pytest.raises(LeaseLost, match="b does"):
        await first.hold()
    assert not first.held()


async def test_a_silent_api_server_ends_leadership_before_anyone_may_take_over() -> None:
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    await lease.acquire()
    began = clock.now
    server.failures = [Retryable("no answer")] * 100
    with pytest.raises(LeaseLost):
        await lease.hold()
    assert 10 <= clock.now - began < 15


async def test_a_short_outage_is_survived() -> None:
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    await lease.acquire()
    server.failures = [Retryable("no answer")] * 3
    for _ in range(4):
        await clock.sleep(2)
        await lease._try()
    assert lease.held()


async def test_renewing_is_one_request() -> None:
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    await lease.acquire()
    server.calls.clear()
    for _ in range(3):
        await lease._try()
    assert [verb for verb, _, _ in server.calls] == ["patch"] * 3


async def test_a_lease_that_somebody_touched_is_read_again_and_kept() -> None:
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    await lease.acquire()
    server.put({**server.objects[KEY], "metadata": {**server.objects[KEY]["metadata"], "labels": {"seen": "yes"}}})
    assert await lease._try()
    assert lease.held()


async def test_a_lease_that_somebody_deleted_is_made_anew() -> None:
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    await lease.acquire()
    server.objects.clear()
    assert await lease._try()
    assert server.objects[KEY]["spec"]["holderIdentity"] == "a"


async def test_a_clean_exit_hands_over_at_once() -> None:
    server, clock = Server(), Clock()
    first, second = make_lease(server, clock, "a"), make_lease(server, clock, "b")
    await first.acquire()
    await first.release()
    assert not first.held()
    assert await second._try()


async def test_releasing_what_another_holds_does_nothing() -> None:
    server, clock = Server(), Clock()
    first, second = make_lease(server, clock, "a"), make_lease(server, clock, "b")
    await first.acquire()
    await second.acquire()
    await first.release()
    assert server.objects[KEY]["spec"]["holderIdentity"] == "b"


async def test_releasing_a_lease_that_was_taken_meanwhile_does_nothing() -> None:
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    await lease.acquire()
    server.objects[KEY]["spec"]["holderIdentity"] = "b"
    await lease.release()
    assert server.objects[KEY]["spec"]["holderIdentity"] == "b"


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.1, 8.0), st.booleans()), max_size=60))
async def test_there_is_never_more_than_one_leader(steps: list[tuple[int, float, bool]]) -> None:
    server, clock = Server(), Clock()
    leases = [make_lease(server, clock, name) for name in "abc"]
    for who, pause, fails in steps:
        server.failures = [Retryable("no answer")] if fails else []
        await leases[who]._try()
        assert sum(lease.held() for lease in leases) <= 1
        clock.now += pause
        assert sum(lease.held() for lease in leases) <= 1


# --- whether someone plans -------------------------------------------------------------------------------------------


async def test_a_standby_knows_from_renewals_whether_the_leader_plans() -> None:
    server, clock, healthy = Server(), Clock(), [True]
    first = Lease(server, KEY, "a", plans=lambda: healthy[0], clock=clock, wall_clock=clock.wall, sleep=clock.sleep)
    second = make_lease(server, clock, "b")

    async def heard() -> bool:
        clock.now += 2
        assert await first._try()
        assert not await second._try()
        return second.planned()

    await first.acquire()
    assert [first.planned(), second.planned()] == [True, False]
    assert [await heard(), await heard()] == [False, True], "the first record may be an old one"
    healthy[0] = False
    assert [first.planned(), await heard()] == [False, False]
    healthy[0] = True
    assert await heard()


async def test_a_leader_that_falls_silent_is_not_believed_to_plan() -> None:
    server, clock = Server(), Clock()
    first, second = make_lease(server, clock, "a"), make_lease(server, clock, "b")
    await first.acquire()
    for _ in range(3):
        clock.now += 2
        await first._try()
        await second._try()
    assert second.planned()
    clock.now += 6
    await second._try()
    assert not second.planned()


async def test_a_leader_that_left_plans_no_more() -> None:
    server, clock = Server(), Clock()
    first, second = make_lease(server, clock, "a"), make_lease(server, clock, "b")
    await first.acquire()
    for _ in range(2):
        clock.now += 2
        await first._try()
        await second._try()
    await first.release()
    assert not first.planned()
    assert server.objects[KEY]["metadata"]["annotations"] == {PLANNING_ANNOTATION: "false"}
    second._look(server.objects[KEY], clock.now)
    assert not second.planned()


async def test_a_leader_whose_renewals_are_not_answered_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """On a machine with too much to do: it is its own last holder, and nobody else leads."""
    server, clock = Server(), Clock()
    lease = make_lease(server, clock, "a")
    await lease.acquire()

    async def late(*_: object, **__: object) -> object:
        clock.now += 5
        raise TimeoutError

    server.patch = server.get = late  # type: ignore[assignment, method-assign]
    with pytest.raises(LeaseLost, match="a leads no more: the Lease was not renewed in time"):
        await lease.hold()
    assert "Lease system/operator: no answer in time" in caplog.text
