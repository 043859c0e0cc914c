"""Leaders that are killed, frozen, cut off from the Lease, or two at once: conflicts, and never a second effect.

A frozen leader's write is kept on its way by the proxy: it has passed the question whether the Lease is held, its
process is stopped and cut off, another leads and does the work, the user asks for more, and only then it arrives.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from e2e.faults.conftest import Stage
from e2e.faults.faults import Chosen, only, reset
from e2e.faults.instance import Instance, Log
from e2e.faults.oracle import difference, misdeeds
from e2e.faults.proxy import Answer, Broken, Call, Door, Forward
from e2e.faults.rig import Rig
from e2e.faults.scenario import STEPS, Play
from e2e.testbed.operator import NAMESPACE, RELEASE
from e2e.tests.support.api import Json, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

LEASE_SECONDS = 3.0


@dataclass
class Kept:
    """The first write that is chosen is kept until `arrives` is set; its sender is frozen: nothing else gets out."""

    chosen: Chosen
    caught: threading.Event = field(default_factory=threading.Event)
    arrives: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    call: Call | None = None
    answer: Answer | None = None

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        if self.caught.is_set():
            raise Broken
        if not self.chosen(call):
            return await forward(call)
        self.call = call
        self.caught.set()
        await asyncio.to_thread(self.arrives.wait)
        self.answer = await forward(call)
        self.done.set()
        return self.answer


# --- a frozen leader -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Freeze:
    """`begins` brings the first leader to write what is `chosen`; `then` is what the user asks of the second."""

    chosen: Chosen
    begins: Callable[[Play], None]
    then: Callable[[Play], None]
    first: Callable[[Play], None] | None = None


def to(method: str, kind: str, contains: str = "", subresource: str | None = None) -> Chosen:
    """Writes of a kind whose body has that in it."""

    def chosen(call: Call) -> bool:
        fits = subresource is None or call.subresource == subresource
        return call.method == method and call.kind == kind and fits and contains.encode() in call.body

    return chosen


def one(play: Play) -> None:
    play.ask("auto", 1)


def two(play: Play) -> None:
    play.ask("auto", 2, scaling={"minReplicas": 2})


def three(play: Play) -> None:
    play.ask("auto", 3, scaling={"minReplicas": 3})


def fixed(count: int) -> Callable[[Play], None]:
    return lambda play: play.ask("auto", count, replicas=count)


def cordon(play: Play) -> None:
    play.site.node()
    play.cordoned = play.site.nodes[0]
    play.site.kubectl("cordon", play.cordoned)


def gone(play: Play) -> None:
    play.services.clear()
    play.site.kubectl("delete", "tokenservice", "auto", "--wait=false")


FREEZES = {
    "creates a ServiceAccount": Freeze(to("PATCH", "serviceaccounts"), one, three),
    "creates a Service": Freeze(to("PATCH", "services"), one, three),
    "creates a PodDisruptionBudget": Freeze(to("PATCH", "poddisruptionbudgets"), two, fixed(1)),
    "creates a NetworkPolicy": Freeze(to("PATCH", "networkpolicies"), one, three),
    "creates a Deployment, more are asked for": Freeze(to("PATCH", "deployments"), one, three),
    "creates a Deployment, fewer are asked for": Freeze(to("PATCH", "deployments"), fixed(3), fixed(1)),
    "scales up": Freeze(to("PATCH", "deployments"), fixed(2), fixed(3), fixed(1)),
    "scales down": Freeze(to("PATCH", "deployments"), fixed(1), fixed(2), fixed(2)),
    "chooses a victim": Freeze(to("PATCH", "pods", "deletion-cost"), fixed(1), fixed(2), fixed(2)),
    "nominates a node": Freeze(to("PATCH", "pods", "nominatedNodeName"), one, three),
    "lifts a gate": Freeze(to("PATCH", "pods", "schedulingGates"), one, three),
    "takes a replica out of the endpoints": Freeze(to("PATCH", "pods", '"False"', "status"), cordon, three, fixed(1)),
    "writes a status": Freeze(to("PATCH", "tokenservices"), one, three),
    "writes an Event": Freeze(to("POST", "events"), one, three),
}


@pytest.mark.parametrize("case", FREEZES)
def test_a_leader_frozen_while_it(faulty: Rig, stage: Stage, log: Log, case: str) -> None:
    """The late write changes nothing: it conflicts, or it says what is there already."""
    freeze = FREEZES[case]
    with stage("frozen") as play:
        first, second = faulty.door(), faulty.door()
        life = _leading(faulty, first, play)
        if freeze.first is not None:
            freeze.first(play)
            play.rest(life)
        kept = Kept(freeze.chosen)
        first.fault = kept
        freeze.begins(play)
        assert kept.caught.wait(20), "the write was never sent"
        eventually(lambda: not life.is_alive, "it notices that it leads no more", 20, 0.05)
        faulty.clear_lease()
        successor = _leading(faulty, second, play)
        play.rest(successor)
        freeze.then(play)
        play.rest(successor)
        before, revisions = play.outcome()["state"], _revisions(faulty, play)
        kept.arrives.set()
        assert kept.done.wait(10)
        assert kept.answer is not None
        after = _revisions(faulty, play)
        effect = {name: (revisions.get(name), after.get(name)) for name in {*revisions, *after}}
        changed = [name for name, (old, new) in effect.items() if old != new]
        assert changed == [], f"{kept.call} came late, was answered {kept.answer.status}, and changed {changed}"
        play.rest(successor)
        assert (wrong := difference(before, play.outcome()["state"])) == [], wrong
        assert not (wrong := misdeeds([*first.writes(), *second.writes()], [play.site.namespace])), wrong
        assert log.errors() == []
        faulty.end()


def test_a_leader_frozen_while_it_creates_a_deployment_whose_service_is_deleted(faulty: Rig, stage: Stage) -> None:
    """No precondition can say that an owner must still exist: what was made for nobody is collected."""
    with stage("frozen-owner") as play:
        door = faulty.door()
        life = _leading(faulty, door, play)
        kept = Kept(to("PATCH", "deployments"))
        door.fault = kept
        one(play)
        assert kept.caught.wait(20)
        eventually(lambda: not life.is_alive, "it notices that it leads no more", 20, 0.05)
        gone(play)
        eventually(lambda: not play.missing(), "everything is gone", 30)
        kept.arrives.set()
        assert kept.done.wait(10)
        eventually(lambda: not play.site.deployments(None), "the orphan is collected", 30)
        eventually(lambda: not play.site.pods(None, deleting=True), "and its pods", 30)


def _leading(rig: Rig, door: Door, play: Play, **over: Any) -> Instance:
    return rig.start(door, lasts=LEASE_SECONDS, watchNamespaces=[play.site.namespace], **over)


def _revisions(rig: Rig, play: Play) -> dict[str, str]:
    """resourceVersion of everything that the operator may write, but for Events that it told meanwhile."""
    kinds = ("tokenservices", "deployments", "services", "poddisruptionbudgets", "networkpolicies", "serviceaccounts")
    return {
        f"{kind}/{thing['metadata']['name']}": thing["metadata"]["resourceVersion"]
        for kind in (*kinds, "pods")
        for thing in rig.api.list(kind, play.site.namespace)
    }


# --- two at once -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(400)
def test_two_that_both_believe_they_lead(faulty: Rig, stage: Stage, log: Log) -> None:
    """Each holds a Lease of another name: nothing but preconditions keeps them apart, through the whole scenario."""
    _may_hold(faulty, "twin")
    outcomes: list[dict[str, Json]] = []
    for twins in (False, True):
        with stage("twins" if twins else "alone") as play:
            watched = [play.site.namespace]
            life = faulty.start(faulty.door(), watchNamespaces=watched)
            if twins:
                twin: dict[str, Any] = {
                    "lease": {"name": "twin", "namespace": NAMESPACE},
                    "webhook": {"enabled": False},
                }
                other = faulty.start(faulty.door(), watchNamespaces=watched, **twin)
            found: dict[str, Json] = {}
            for name, step in STEPS.items():
                step(play)
                play.rest(life)
                if twins:
                    play.rest(other)
                found[name] = play.outcome()
            outcomes.append(found)
            faulty.end()
    assert (wrong := difference(outcomes[0], outcomes[1])) == [], wrong
    assert log.errors() == []


def _may_hold(rig: Rig, lease: str) -> None:
    """Of Leases the chart grants the release's own alone."""
    role = ("role", f"{lease}-lease", "--verb=get,patch", "--resource=leases", f"--resource-name={lease}")
    to = (f"--role={lease}-lease", f"--serviceaccount={NAMESPACE}:{RELEASE}")
    rig.bed.cluster.kubectl("create", *role, f"--namespace={NAMESPACE}")
    rig.bed.cluster.kubectl("create", "rolebinding", f"{lease}-lease", *to, f"--namespace={NAMESPACE}")


# --- cut off from the Lease alone ------------------------------------------------------------------------------------


def test_cut_off_from_the_lease_alone(faulty: Rig, stage: Stage) -> None:
    """It can do everything but renew: it stops by itself, and before the other one begins."""
    with stage("partitioned") as play:
        cut, other = faulty.door(), faulty.door()
        life = _leading(faulty, cut, play)
        one(play)
        play.rest(life)
        standby = faulty.begin(
            other, lasts=LEASE_SECONDS, watchNamespaces=[play.site.namespace], webhook={"enabled": False}
        )
        cut.fault = only(lambda call: call.kind == "leases", reset)
        eventually(lambda: not life.is_alive, "it gives up", 20, 0.02)
        assert "leads no more" in str(life.error)
        two(play)
        eventually(lambda: standby.leads, "the other one leads", 20, 0.02)
        play.rest(standby)
        last = max((call.at for call in cut.writes()), default=0.0)
        first = min(call.at for call in other.writes())
        assert last < first
        faulty.end()


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.slice
@pytest.mark.parametrize("how", ["killed", "stopped and continued"])
def test_the_process_of_the_leader_is(faulty: Rig, stage: Stage, how: str) -> None:
    """In the middle of its work; the standby finishes it. One that comes back writes nothing more and ends."""
    with stage("process") as play:
        leader, standby = faulty.door(), faulty.door()
        processes = faulty.bed.processes
        faulty.process("leader", leader, LEASE_SECONDS, play.site.namespace)
        eventually(lambda: _holder(faulty).startswith("leader"), "it leads", 30, 0.05)
        faulty.process("standby", standby, LEASE_SECONDS, play.site.namespace)
        STEPS["create"](play)
        eventually(lambda: leader.writes(), "it writes", 20, 0.005)
        processes.signal("leader", signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        stopped = time.monotonic()
        eventually(lambda: _holder(faulty).startswith("standby"), "the standby leads", 30, 0.05)
        eventually(play.done, "the standby finishes it", 60)
        if how != "killed":
            processes.signal("leader", signal.SIGCONT)
            eventually(lambda: "leads no more" in faulty.log_of("leader"), "who lost the Lease ends", 20)
            assert [str(call) for call in leader.writes() if call.at > stopped + 1] == []
        counts = play.outcome()["counts"]
        assert counts["added pods/auto/h100-vllm-tp1-bf16"] == 1
        assert counts["added pods/fixed/h100-vllm-tp1-bf16"] == 2
        assert not [name for name in counts if name.startswith("deleted")]
        for name in ("leader", "standby"):
            processes.stop_one(name)
            assert "Traceback" not in faulty.log_of(name)
        faulty.end()


@pytest.mark.parametrize("seconds", [-60.0, 60.0])
def test_the_clock_of_the_process_is_off(faulty: Rig, stage: Stage, seconds: float) -> None:
    """A minute ahead or behind: services start, scale up and down, and come to rest."""
    with stage("clock") as play:
        door = faulty.door()
        faulty.process("skewed", door, LEASE_SECONDS, play.site.namespace, clock=seconds)
        for name in ("create", "scale"):
            STEPS[name](play)
            eventually(play.done, f"{name} is done", 60)
        faulty.bed.processes.stop_one("skewed")
        assert "Traceback" not in faulty.log_of("skewed")
        faulty.end()


def _holder(rig: Rig) -> str:
    found = rig.api.get("leases", "tokenservice", "tokenservice-system") or {}
    return str((found.get("spec") or {}).get("holderIdentity") or "")
