"""The loop: when a pass happens, what it hands on, and what it does with trouble."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import pytest

from tests.core.test_learning import slow_engines
from tests.support.build import SETTINGS, make_service
from tokenservice.app import loop
from tokenservice.app.loop import Planner
from tokenservice.core.model import (
    Action,
    Apply,
    Event,
    ObjectKey,
    Plan,
    Problem,
    Proposal,
    Reason,
    ServiceKey,
    Snapshot,
    StatusWrite,
)
from tokenservice.core.refinement import LEAST_SAMPLES, WINDOW_SECONDS
from tokenservice.edge.apply import Outcome, Report, Result
from tokenservice.edge.projections import Unreadable

SERVICE = make_service()
SNAPSHOT = Snapshot(
    services=(SERVICE,),
    nodes=(),
    pods=(),
    children={},
    accelerators=(),
    profiles=(),
    architectures={},
    metrics={},
    settings=SETTINGS,
)
KEY = ObjectKey("TokenService", *SERVICE.key)


def applied(id_: str = "apply/chat", service: ServiceKey | None = SERVICE.key) -> Apply:
    manifest = {"kind": "Deployment", "metadata": {"name": "chat-h100"}}
    return Apply(id=id_, reason=Reason.SCALED_UP, message="1 -> 2", service=service, manifest=manifest)


class Stop(Exception):  # noqa: N818
    """Ends a loop that has no end."""


@dataclass
class World:
    """Everything around the planner, and what it was asked."""

    plan: Plan = field(default_factory=Plan)
    snapshot: Snapshot | None = SNAPSHOT
    results: dict[str, Outcome] = field(default_factory=dict)
    unreadables: list[Unreadable] = field(default_factory=list)
    lagging: tuple[str, ...] = ()
    error: Exception | None = None
    now: float = 1000.0
    seen: list[str] = field(default_factory=list)
    observed: list[tuple[tuple[str, ...], tuple[Proposal, ...]]] = field(default_factory=list)
    reported: list[Plan] = field(default_factory=list)
    decided_on: list[Snapshot] = field(default_factory=list)
    expected: list[Any] = field(default_factory=list)
    applied: list[list[str]] = field(default_factory=list)
    counted: list[tuple[str, str]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    passes_left: int = 10**6

    def planner(self) -> Planner:
        return Planner(
            observes=_Observes(self),
            decide=self.decide,
            applies=_Applies(self),
            reports=_Reports(self),
            expects=_Expects(self),
            measures=_Measures(self),
            interval_seconds=5.0,
            clock=lambda: self.now,
            wall_clock=lambda: self.now,
            sleep=self.sleep,
            jitter=lambda: 1.0,
        )

    def decide(self, snapshot: Snapshot, now: float) -> Plan:
        self.seen.append("decide")
        self.decided_on.append(snapshot)
        if self.error is not None:
            raise self.error
        return self.plan

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.passes_left -= 1
        if self.passes_left <= 0:
            raise Stop


@dataclass
class _Observes:
    world: World

    def snapshot(self, lagging: Iterable[str], previous: Plan) -> Snapshot | None:
        self.world.seen.append("observe")
        self.world.observed.append((tuple(lagging), previous.proposals))
        return self.world.snapshot

    def unreadable(self) -> list[Unreadable]:
        return self.world.unreadables


@dataclass
class _Applies:
    world: World

    async def apply(self, actions: Sequence[Action]) -> Report:
        self.world.seen.append("apply")
        self.world.applied.append([action.id for action in actions])
        done = [self.world.results.get(a.id, Outcome(action=a, result=Result.DONE)) for a in actions]
        return Report(tuple(replace(outcome, written=((KEY, "7"),)) for outcome in done))


@dataclass
class _Reports:
    world: World

    async def report(self, plan: Plan) -> tuple[tuple[ObjectKey, str], ...]:
        self.world.seen.append("report")
        self.world.reported.append(plan)
        return tuple((status.key, "8") for status in plan.statuses)


@dataclass
class _Expects:
    world: World

    def add(self, written: Any) -> None:
        self.world.expected += list(written)

    async def settle(self) -> tuple[str, ...]:
        self.world.seen.append("settle")
        return self.world.lagging


@dataclass
class _Measures:
    world: World

    def time(self, stage: str, seconds: float) -> None: ...

    def count_action(self, reason: str, result: str) -> None:
        self.world.counted.append((reason, result))

    def count_error(self, error: str) -> None:
        self.world.counted.append(("error", error))

    def show(self, plan: Plan) -> None:
        self.world.seen.append("show")


async def test_a_pass_waits_observes_decides_applies_and_reports() -> None:
    world = World(plan=Plan(actions=(applied(),), statuses=(StatusWrite(key=KEY, uid="u", status={}),)))
    await world.planner().turn()
    assert world.seen == ["settle", "observe", "decide", "apply", "report", "show"]
    assert world.expected == [(KEY, "7"), (KEY, "8")]
    assert world.counted == [("ScaledUp", "Done")]


async def test_nothing_is_decided_before_every_kind_was_listed() -> None:
    world = World(snapshot=None)
    planner = world.planner()
    await planner.turn()
    assert world.seen == ["settle", "observe"]
    assert not planner.healthy


async def test_what_lags_and_what_was_proposed_reach_the_next_snapshot() -> None:
    proposals = (Proposal(node="n", pods=("p",), since=1.0),)
    world = World(plan=Plan(proposals=proposals), lagging=("Pod",))
    planner = world.planner()
    await planner.turn()
    await planner.turn()
    assert world.observed == [(("Pod",), ()), (("Pod",), proposals)]


async def test_a_failed_action_is_told_to_its_service() -> None:
    action, ownerless = applied(), applied("other", service=None)
    results = {
        action.id: Outcome(action=action, result=Result.FAILED, message="Forbidden: quota exceeded"),
        ownerless.id: Outcome(action=ownerless, result=Result.FAILED, message="no"),
    }
    said = Event(regarding=KEY, uid="u", type="Normal", reason=Reason.SCALED_UP, message="as decided")
    world = World(plan=Plan(actions=(action, ownerless), events=(said,)), results=results)
    await world.planner().turn()
    first, second = world.reported[0].events
    assert first == said
    assert (second.regarding, second.uid, second.type) == (KEY, SERVICE.uid, "Warning")
    assert second.message == "not done: 1 -> 2: Forbidden: quota exceeded"


async def test_an_object_that_nobody_can_read_is_told_about() -> None:
    key = ObjectKey("AcceleratorClass", "", "h100")
    world = World(unreadables=[Unreadable(key, "u9", "spec.vendor: wrong")])
    await world.planner().turn()
    (event,) = world.reported[0].events
    assert (event.regarding, event.reason, event.type) == (key, Reason.INVALID_SPEC, "Warning")


@pytest.mark.parametrize("result", [Result.CONFLICT, Result.GONE, Result.SKIPPED, Result.FENCED, Result.RETRYABLE])
async def test_what_the_next_plan_mends_by_itself_is_not_told(result: Result) -> None:
    action = applied()
    world = World(plan=Plan(actions=(action,)), results={action.id: Outcome(action=action, result=result)})
    await world.planner().turn()
    assert world.reported[0].events == ()


REFUSALS: dict[Result, tuple[Reason, str]] = {
    Result.FAILED: (Reason.REFUSED, "have the ResourceQuota of the namespace raised"),
    Result.TAKEN: (Reason.NAME_TAKEN, ""),
}


@pytest.mark.parametrize("result", REFUSALS)
async def test_a_child_that_cannot_be_is_known_to_the_next_decision_until_it_is_made(result: Result) -> None:
    action, words = applied(), 'Forbidden: deployments.apps "chat-h100" is forbidden: exceeded quota: small'
    world = World(plan=Plan(actions=(action,)), results={action.id: Outcome(action=action, result=result)})
    world.results[action.id] = replace(world.results[action.id], message=words)
    planner, (reason, fix) = world.planner(), REFUSALS[result]
    await planner.turn()
    await planner.turn()
    world.results = {}
    await planner.turn()
    await planner.turn()
    first, second, third, fourth = (snapshot.refusals for snapshot in world.decided_on)
    assert first == fourth == {}
    assert second == third
    assert (second[SERVICE.key].reason, second[SERVICE.key].field) == (reason, "Deployment chat-h100")
    assert "exceeded quota: small" in second[SERVICE.key].message
    assert fix in second[SERVICE.key].message


async def test_the_first_decision_knows_what_the_last_leader_said() -> None:
    said = {"type": "Stalled", "status": "True", "reason": "NameTaken", "message": "Service chat: it is there already"}
    told = replace(SERVICE, status={"conditions": [said]})
    world = World(snapshot=replace(SNAPSHOT, services=(told,)))
    planner = world.planner()
    await planner.turn()
    await planner.turn()
    first, second = (snapshot.refusals for snapshot in world.decided_on)
    assert first == {SERVICE.key: Problem(Reason.NAME_TAKEN, "Service chat", "it is there already")}
    assert second == {}


async def test_a_race_is_no_refusal() -> None:
    action = applied()
    world = World(plan=Plan(actions=(action,)), results={action.id: Outcome(action=action, result=Result.CONFLICT)})
    planner = world.planner()
    await planner.turn()
    await planner.turn()
    assert world.decided_on[1].refusals == {}


@pytest.mark.parametrize("result", [Result.DONE, Result.TAKEN, Result.SKIPPED, Result.CONFLICT])
async def test_what_was_not_done_is_not_told_as_done(result: Result) -> None:
    action = applied()
    told = Event(regarding=KEY, uid="u", type="Normal", reason=action.reason, message=action.message)
    world = World(plan=Plan(actions=(action,), events=(told,)))
    world.results[action.id] = Outcome(action=action, result=result)
    await world.planner().turn()
    assert (told in world.reported[0].events) == (result is Result.DONE)


async def test_a_failure_that_stays_the_same_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    action = applied()
    failed = Outcome(action=action, result=Result.FAILED, message="quota exceeded")
    world = World(plan=Plan(actions=(action,)), results={action.id: failed})
    planner = world.planner()
    for _ in range(3):
        await planner.turn()
    world.results[action.id] = replace(failed, message="another reason")
    await planner.turn()
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 2


# --- pace ------------------------------------------------------------------------------------------------------------


async def run(world: World, planner: Planner, passes: int, wake: Callable[[], None]) -> None:
    """Runs until so many passes are over; `wake` makes each of them due."""
    world.passes_left = passes
    wait = planner._wait

    async def woken() -> None:
        wake()
        await wait()

    planner._wait = woken  # type: ignore[method-assign]
    with pytest.raises(Stop):
        await planner.run()


async def test_an_error_is_survived_counted_and_followed_by_pauses_that_double() -> None:
    world = World(error=ValueError("defect"))
    planner = world.planner()
    await run(world, planner, 8, planner.tick)
    assert world.slept == [1, 2, 4, 8, 16, 32, 60, 60]
    assert world.counted == [("error", "ValueError")] * 8
    assert not planner.healthy


async def test_what_no_decision_rests_on_fails_without_ending_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> NoReturn:
        raise KeyError("factors")

    monkeypatch.setattr(loop, "learn", defect)
    monkeypatch.setattr(_Measures, "show", defect)
    world = World(plan=Plan(actions=(applied(),)))
    planner = world.planner()
    await planner.turn()
    assert world.seen == ["settle", "observe", "decide", "apply", "report"]
    assert world.counted[-2:] == [("error", "KeyError")] * 2
    assert planner.healthy


async def test_a_good_pass_ends_the_pauses() -> None:
    world = World(error=ValueError("defect"))
    planner = world.planner()
    await run(world, planner, 3, planner.tick)
    world.error = None
    await run(world, planner, 2, planner.tick)
    assert world.slept == [1, 2, 4, 0, 0]
    assert planner.healthy


async def test_a_server_in_trouble_is_given_the_rest_that_it_asks_for() -> None:
    action = applied()
    busy = Outcome(action=action, result=Result.RETRYABLE, after_seconds=7.0)
    world = World(plan=Plan(actions=(action,)), results={action.id: busy})
    planner = world.planner()
    await run(world, planner, 2, planner.tick)
    assert world.slept == [14, 28]


async def test_what_is_refused_for_good_does_not_slow_the_others_down() -> None:
    action = applied()
    refused = Outcome(action=action, result=Result.FAILED, message="quota")
    world = World(plan=Plan(actions=(action,)), results={action.id: refused})
    planner = world.planner()
    await run(world, planner, 3, planner.tick)
    assert world.slept == [0, 0, 0]


async def test_what_cannot_be_written_for_now_rests_longer_and_longer_and_slows_no_other_down() -> None:
    """A webhook of one tenant that fails answers each write with 500, for as long as it is broken."""
    theirs, other = applied("apply/theirs"), applied("apply/other")
    broken = Outcome(action=theirs, result=Result.RETRYABLE, message="failed calling webhook")
    world = World(plan=Plan(actions=(theirs, other)), results={theirs.id: broken})
    planner = world.planner()
    await run(world, planner, 1, planner.tick)
    assert world.slept == [0]
    tried = []
    for second in range(200):
        await planner.turn()
        assert world.applied[-1][-1] == other.id
        tried += [second] if theirs.id in world.applied[-1] else []
        world.now += 1
    assert tried == [1, 3, 7, 15, 31, 63, 123, 183]


async def test_what_rests_is_tried_from_the_start_once_it_succeeded() -> None:
    action = applied()
    world = World(plan=Plan(actions=(action,)), results={action.id: Outcome(action=action, result=Result.RETRYABLE)})
    planner = world.planner()
    for _ in range(4):
        await planner.turn()
        world.now += 60
    broken = world.results.pop(action.id)
    await planner.turn()
    world.results[action.id] = broken
    await planner.turn()
    world.now += 1
    await planner.turn()
    assert world.applied[-3:] == [[action.id]] * 3


async def test_an_action_that_rests_is_not_told_as_done_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    action = applied()
    event = Event(regarding=KEY, uid=SERVICE.uid, type="Normal", reason=action.reason, message=action.message)
    broken = Outcome(action=action, result=Result.RETRYABLE, message="failed calling webhook")
    world = World(plan=Plan(actions=(action,), events=(event,)), results={action.id: broken})
    planner = world.planner()
    for _ in range(8):
        await planner.turn()
        world.now += 0.5
    assert [told for plan in world.reported for told in plan.events] == []
    assert caplog.text.count("failed calling webhook") == 1


async def passes_within(planner: Planner, world: World, seconds: float) -> int:
    task = asyncio.create_task(planner.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return world.seen.count("decide")


async def test_a_burst_of_changes_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "DEBOUNCE_SECONDS", 0.05)
    world = World()
    planner = world.planner()
    for _ in range(100):
        planner.mark_dirty()
    assert await passes_within(planner, world, 0.3) == 1


async def test_fresh_metrics_do_not_wait_for_a_burst_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "DEBOUNCE_SECONDS", 60.0)
    world = World()
    planner = world.planner()
    planner.mark_dirty()
    asyncio.get_running_loop().call_later(0.05, planner.tick)
    assert await passes_within(planner, world, 0.3) == 1


async def test_without_any_word_a_pass_happens_all_the_same() -> None:
    world = World()
    planner = world.planner()
    planner.interval_seconds = 0.01
    assert await passes_within(planner, world, 0.3) >= 3


async def test_passes_never_overlap() -> None:
    world, running, most = World(), 0, 0
    planner = world.planner()
    turn = planner.turn

    async def counted() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        await turn()
        running -= 1

    planner.turn = counted  # type: ignore[method-assign]
    task = asyncio.create_task(planner.run())
    for _ in range(30):
        planner.tick()
        planner.mark_dirty()
        await asyncio.sleep(0.002)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert most == 1


async def test_all_decisions_are_made_in_one_thread() -> None:
    """Each thread has a heap, and all of those that take turns would grow as large as one."""
    world, threads = World(), set[int]()
    planner = world.planner()
    planner.decide = lambda _snapshot, _now: threads.add(threading.get_ident()) or Plan()
    together = threading.Barrier(3)
    await asyncio.gather(*(asyncio.to_thread(together.wait) for _ in range(3)))  # a pool of three that are idle
    for _ in range(3):
        await planner.turn()
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_health_ends_with_passes() -> None:
    world = World()
    planner = world.planner()
    await planner.turn()
    assert planner.healthy
    world.now += 29
    assert planner.healthy
    world.now += 2
    assert not planner.healthy


async def test_what_engines_teach_is_published_and_kept_from_pass_to_pass() -> None:
    world = World(snapshot=slow_engines())
    planner = world.planner()
    for _ in range(LEAST_SAMPLES):
        assert not any(plan.statuses for plan in world.reported)
        await planner.turn()
        world.now += WINDOW_SECONDS
    (write,) = world.reported[-1].statuses
    assert write.key.kind == "CapacityProfile"
    assert write.status["samples"] == LEAST_SAMPLES
