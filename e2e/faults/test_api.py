"""A slow and failing API server: the operator gets there all the same, and asks less often meanwhile.

Each fault lasts through steps of the scenario, whose outcome must equal that of the undisturbed run: same state, and
every object created and deleted as often.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
import requests

from e2e.faults.conftest import Stage
from e2e.faults.faults import answering, beside_lease, every, lost, only, page, reset, slow
from e2e.faults.instance import Instance, Log
from e2e.faults.oracle import misdeeds
from e2e.faults.proxy import Answer, Call, Door, Fault, Forward
from e2e.faults.rig import Rig
from e2e.faults.scenario import STEPS, Play, Reference
from e2e.tests.support.api import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

PATIENCE_SECONDS = 120.0
TRIED = ("create", "move")


def write(call: Call) -> bool:
    return call.is_write and call.kind != "leases"


def read(call: Call) -> bool:
    return call.method == "GET" and call.kind != "leases"


FAULTS: dict[str, Callable[[], Fault]] = {
    "409 to every third write": lambda: every(3, write, answering(409, "Conflict")),
    "429 with Retry-After to every third write": lambda: every(3, write, answering(429, retry_after=1)),
    "500 to every third write": lambda: every(3, write, answering(500)),
    "503 in HTML to every third write": lambda: every(3, write, page),
    "504 to every third write that is carried out": lambda: every(3, write, _late_504),
    "every third write is reset": lambda: every(3, write, reset),
    "every third write is carried out and not answered": lambda: every(3, write, lost),
    "429 to every second read": lambda: every(2, read, answering(429, retry_after=1)),
    "500 to every second read": lambda: every(2, read, answering(500)),
    "every second read is reset": lambda: every(2, read, reset),
    "every answer is half a second late": lambda: only(beside_lease, slow(0.5)),
    "every fifth write is six seconds late": lambda: every(5, write, slow(6)),
}


async def _late_504(call: Call, forward: Forward) -> Answer:
    """The API server gives up waiting for what etcd does all the same."""
    await forward(call)
    return await answering(504, "Timeout")(call, forward)


@pytest.mark.parametrize("case", FAULTS)
def test_gets_there(faulty: Rig, stage: Stage, reference: Reference, log: Log, case: str) -> None:
    with stage("api") as play:
        door = faulty.door()
        life = faulty.start(door, watchNamespaces=[play.site.namespace])
        door.fault = FAULTS[case]()
        for name in TRIED:
            STEPS[name](play)
            play.rest(life, PATIENCE_SECONDS)
            assert (wrong := reference.differs(name, play.outcome())) == [], wrong
        _judge(door, play, log)
        faulty.end()


def _judge(door: Door, play: Play, log: Log) -> None:
    assert not (wrong := misdeeds(door.writes(), [play.site.namespace])), wrong
    assert not (said := [line for line in log.errors() if "Traceback" in line]), said


# --- nothing works for a while ---------------------------------------------------------------------------------------

OUTAGE_SECONDS = 9.0
MOST_REQUESTS_A_SECOND = 12.0
"""Of a process with a dozen watches, all failing: each tries again within half a second, then less and less often."""

OUTAGES: dict[str, Fault] = {
    "every connection is reset": reset,
    "everything is answered 500": answering(500),
    "everything is answered 429": answering(429, retry_after=2),
    "the token has expired (401)": answering(401, "Unauthorized"),
    "the rights are gone (403)": answering(403, "Forbidden"),
}


@pytest.mark.parametrize("case", OUTAGES)
def test_backs_off_and_comes_back(faulty: Rig, stage: Stage, reference: Reference, log: Log, case: str) -> None:
    """The Lease alone is still renewed: else the process ends, which is another case."""
    with stage("outage") as play:
        door, life = _created(faulty, play)
        door.fault = only(beside_lease, OUTAGES[case])
        door.reset()
        before = len(door.handled)
        STEPS["move"](play)
        time.sleep(OUTAGE_SECONDS)
        during = len(door.handled) - before
        assert during / OUTAGE_SECONDS < MOST_REQUESTS_A_SECOND, f"{during} requests in {OUTAGE_SECONDS:.0f} s"
        assert life.is_alive, f"the operator ended: {life.error!r}"
        door.clear()
        play.rest(life, PATIENCE_SECONDS)
        assert (wrong := reference.differs("move", play.outcome())) == [], wrong
        _judge(door, play, log)
        faulty.end()


# --- one object does not work for a while -----------------------------------------------------------------------------


def test_who_cannot_be_written_slows_no_other(faulty: Rig, stage: Stage, log: Log) -> None:
    """As where a webhook of one tenant fails: with five tries behind it, the next comes after eight seconds or more."""
    with stage("webhook") as play:
        door, life = _created(faulty, play)
        theirs = lambda call: call.is_write and call.kind == "deployments" and call.name.startswith("fixed-")  # noqa: E731
        door.fault = only(theirs, answering(500))
        before = len(door.writes())
        play.ask("fixed", 3, replicas=3, tier="Spot")
        eventually(lambda: sum(map(theirs, door.writes()[before:])) >= 5, "it is tried again and again", 60, 0.05)
        play.ask("auto", 2, scaling={"minReplicas": 2})
        asked = lambda: [d["spec"]["replicas"] for d in play.site.deployments("auto")]  # noqa: E731
        eventually(lambda: asked() == [2], "the other one is scaled all the same", 6, 0.1)
        door.clear()
        play.rest(life, PATIENCE_SECONDS)
        _judge(door, play, log)
        faulty.end()


# --- the server itself -----------------------------------------------------------------------------------------------


def test_the_api_server_restarts(faulty: Rig, stage: Stage, reference: Reference, log: Log) -> None:
    """Killed in the middle of a move. Who loses the Lease meanwhile ends, and is started again as a kubelet would."""
    with stage("restart") as play:
        door, life = _created(faulty, play)
        STEPS["move"](play)
        eventually(lambda: len(play.site.pods(None)) > 3, "a successor was started", 20, 0.05)
        play.births.records.clear()  # the tests' own watches break with the server: only the state is compared
        faulty.bed.cluster.restart_api_server()
        eventually(lambda: _serves_ours(faulty), "kinds of CRDs are served again", 30)
        _revived(faulty, life, door, play)
        assert (
            wrong := reference.differs("move", {**play.outcome(), "counts": reference.outcomes["move"]["counts"]})
        ) == [], wrong
        _judge(door, play, log)
        faulty.end()


def test_etcd_hangs(faulty: Rig, stage: Stage, reference: Reference, log: Log) -> None:
    """For longer than a Lease is trusted."""
    with stage("etcd") as play:
        door, life = _created(faulty, play)
        processes = faulty.bed.cluster.processes
        processes.signal("etcd", signal.SIGSTOP)
        try:
            time.sleep(12)
        finally:
            processes.signal("etcd", signal.SIGCONT)
        STEPS["move"](play)
        _revived(faulty, life, door, play)
        assert (wrong := reference.differs("move", play.outcome())) == [], wrong
        _judge(door, play, log)
        faulty.end()


def _serves_ours(rig: Rig) -> bool:
    """Later than the API server calls itself ready."""
    try:
        return rig.api.list("tokenservices") is not None
    except requests.HTTPError:
        return False


def _created(rig: Rig, play: Play) -> tuple[Door, Instance]:
    """The first step of the scenario, done and at rest; what it came to is forgotten."""
    door = rig.door()
    life = rig.start(door, watchNamespaces=[play.site.namespace])
    STEPS["create"](play)
    play.rest(life)
    play.outcome()
    return door, life


def _revived(rig: Rig, life: Instance, door: Door, play: Play) -> None:
    """At rest again, the operator started anew if it lost its Lease; nothing else may have ended it."""
    deadline = time.monotonic() + 15
    while life.is_alive and time.monotonic() < deadline and not life.leads:
        time.sleep(0.1)
    if not life.is_alive:
        assert "leads no more" in str(life.error), repr(life.error)
        rig.clear_lease()
        life = rig.start(door, watchNamespaces=[play.site.namespace])
    play.rest(life, PATIENCE_SECONDS)
