"""Watches that repeat, delay, join or skip events, stand still or break: nothing is removed on an old view.

What an API server promises is kept: the last state of each object is shown in the end, and never an older one after a
newer one. Everything else may happen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import requests

from e2e.faults.conftest import Stage
from e2e.faults.faults import Frozen, additions_unseen, answering, coalesced, every, late, repeated
from e2e.faults.instance import Log, removed_on_stale_views
from e2e.faults.oracle import misdeeds
from e2e.faults.proxy import Answer, Call, Door, Forward, Lines, Stream
from e2e.faults.rig import Rig
from e2e.faults.scenario import STEPS, Play, Reference
from e2e.tests.support.api import eventually, throughout

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

TRIED = ("create", "move", "scale")
LAG_SECONDS = 0.7
FROZEN_SECONDS = 6.0

OTHERS = ("services", "serviceaccounts", "poddisruptionbudgets", "networkpolicies", "acceleratorclasses")

# --- events ----------------------------------------------------------------------------------------------------------


def mixed(*faults: tuple[str, Stream]) -> Stream:
    """A fault of its own for each kind."""
    by_kind = dict(faults)

    def pick(call: Call, lines: Lines) -> Lines:
        return by_kind[call.kind](call, lines) if call.kind in by_kind else lines

    return pick


def all_of(stream: Stream, *kinds: str) -> list[tuple[str, Stream]]:
    return [(kind, stream) for kind in kinds]


DELAYED, JOINED = late(LAG_SECONDS), coalesced(LAG_SECONDS)
UNSEEN = additions_unseen(5.0)

EVENTS: dict[str, Stream] = {
    "pods repeated, Deployments late, nodes joined, services unseen at first": mixed(
        ("pods", repeated), ("deployments", DELAYED), ("nodes", JOINED), ("tokenservices", JOINED)
    ),
    "pods late, Deployments joined, nodes repeated": mixed(
        ("pods", DELAYED), ("deployments", JOINED), ("nodes", repeated), ("tokenservices", repeated)
    ),
    "pods joined, Deployments unseen at first, TokenServices late": mixed(
        ("pods", JOINED), ("deployments", UNSEEN), ("nodes", DELAYED), ("tokenservices", DELAYED)
    ),
    "pods unseen at first, Deployments repeated, other children late": mixed(
        ("pods", UNSEEN), ("deployments", repeated), *all_of(DELAYED, *OTHERS)
    ),
    "other children joined and repeated": mixed(*all_of(JOINED, *OTHERS[:2]), *all_of(repeated, *OTHERS[2:])),
    "everything joined": lambda call, lines: JOINED(call, lines),
}


@pytest.mark.parametrize("case", EVENTS)
def test_events(faulty: Rig, stage: Stage, reference: Reference, log: Log, case: str) -> None:
    """The scenario comes to the same, object by object."""
    with stage("events") as play:
        door = faulty.door()
        door.stream = EVENTS[case]
        _scenario(faulty, play, door, reference, log)


def _scenario(rig: Rig, play: Play, door: Door, reference: Reference, log: Log) -> None:
    life = rig.start(door, watchNamespaces=[play.site.namespace])
    for name in TRIED:
        STEPS[name](play)
        play.rest(life, 90)
        assert (wrong := reference.differs(name, play.outcome())) == [], wrong
    _judge(rig, play, door, log)


def _judge(rig: Rig, play: Play, door: Door, log: Log) -> None:
    assert not (wrong := misdeeds(door.writes(), [play.site.namespace])), wrong
    assert log.errors() == []
    rig.end()


# --- revisions -------------------------------------------------------------------------------------------------------


async def compacted(call: Call, forward: Forward) -> Answer:
    """The server has forgotten the revision."""
    return await answering(410, "Expired")(call, forward)


async def compacted_midway(call: Call, lines: Lines) -> Lines:
    """A watch is opened, shows two events, and then says that its revision is too old."""
    shown = 0
    async for line in lines:
        yield line
        shown += 1
        if shown == 2:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            yield json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"
            return


async def cut_after_an_event(call: Call, lines: Lines) -> Lines:
    """A watch that ends after each event."""
    async for line in lines:
        yield line
        return


def test_every_second_watch_is_refused_with_410(faulty: Rig, stage: Stage, reference: Reference, log: Log) -> None:
    with stage("gone") as play:
        door = faulty.door()
        door.fault = every(2, lambda call: call.is_watch, compacted)
        _scenario(faulty, play, door, reference, log)


@pytest.mark.parametrize("stream", [compacted_midway, cut_after_an_event])
def test_watches_end(faulty: Rig, stage: Stage, reference: Reference, log: Log, stream: Stream) -> None:
    with stage("cut") as play:
        door = faulty.door()
        door.stream = stream
        _scenario(faulty, play, door, reference, log)


def test_every_list_asks_for_the_newest_state(faulty: Rig, stage: Stage, log: Log) -> None:
    """A revision of 0 would let any API server answer from a cache of any age: time would go backwards at a restart."""
    with stage("newest") as play:
        door = faulty.door()
        faulty.start(door, watchNamespaces=[play.site.namespace])
        lists = [done.call for done in door.handled if done.call.is_list]
        assert len({call.kind for call in lists}) >= 10
        asked = {
            call.kind: call.query.get("resourceVersion") or call.query.get("resourceVersionMatch") for call in lists
        }
        assert not any(asked.values()), asked
        _judge(faulty, play, door, log)


# --- a view that stands still ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Still:
    """While watches of `kinds` stand still, `happens`; as many endpoints of `auto` as `least` must serve throughout."""

    kinds: tuple[str, ...]
    happens: Callable[[Play], None]
    least: int
    before: int = 3


def crash_and_fewer(play: Play) -> None:
    """An engine crashes unseen, and one replica fewer is asked for: the count must not take one that serves."""
    pod = min(pod["metadata"]["name"] for pod in play.site.pods("auto"))
    address = f"{play.rig.bed.farm_url}/admin/pods/{play.site.namespace}/{pod}/crash"
    requests.post(address, timeout=10).raise_for_status()
    play.ask("auto", 2, replicas=2)


def up_and_down(play: Play) -> None:
    """The user changes his mind while the operator does not see what it has written."""
    for count in (2, 4, 3):
        play.ask("auto", count, replicas=count)
        time.sleep(1.2)


def more(play: Play) -> None:
    play.ask("auto", 4, replicas=4)


def cordon(play: Play) -> None:
    play.site.node()
    play.cordoned = play.site.nodes[0]
    play.site.kubectl("cordon", play.cordoned)


def scaled_by_hand(play: Play) -> None:
    """Somebody scales the Deployment up unseen, and the user asks for fewer than there were."""
    (found,) = play.site.deployments("auto")
    play.site.kubectl("scale", f"deployment/{found['metadata']['name']}", "--replicas=4")
    play.ask("auto", 2, replicas=2)


def renamed_pods(play: Play) -> None:
    """A pod dies and another takes its place unseen; then one fewer is asked for."""
    pod = min(pod["metadata"]["name"] for pod in play.site.pods("auto"))
    play.site.kubectl("delete", "pod", pod, "--wait=false")
    play.ask("auto", 2, replicas=2)


STILL: dict[str, Still] = {
    "pods, and one crashes before fewer are asked for": Still(("pods",), crash_and_fewer, least=1),
    "pods, and one is replaced before fewer are asked for": Still(("pods",), renamed_pods, least=1),
    "pods, and a node is cordoned": Still(("pods",), cordon, least=3),
    "pods, and the count goes up and down": Still(("pods",), up_and_down, least=2),
    "Deployments, and the count goes up and down": Still(("deployments",), up_and_down, least=2),
    "Deployments, and one is scaled by hand": Still(("deployments",), scaled_by_hand, least=2),
    "Deployments, and a node is cordoned": Still(("deployments",), cordon, least=3),
    "nodes, and one is cordoned": Still(("nodes",), cordon, least=3),
    "TokenServices, and more are asked for": Still(("tokenservices",), more, least=3),
    "TokenServices and Deployments, and the count changes": Still(
        ("tokenservices", "deployments"), up_and_down, least=2
    ),
    "pods and Deployments, and a node is cordoned": Still(("pods", "deployments"), cordon, least=3),
    "everything, and a node is cordoned": Still(
        ("pods", "deployments", "nodes", "tokenservices", *OTHERS), cordon, least=3
    ),
}


@pytest.mark.parametrize("case", STILL)
def test_still(faulty: Rig, stage: Stage, log: Log, case: str) -> None:
    """Serving replicas stay, as many as the user asked for at the least, and all comes right once the view moves."""
    trouble = STILL[case]
    with stage("still") as play:
        door = faulty.door()
        frozen = Frozen(trouble.kinds)
        door.stream = frozen
        life = faulty.start(door, watchNamespaces=[play.site.namespace])
        play.ask("auto", trouble.before, replicas=trouble.before)
        play.rest(life)
        eventually(lambda: len(play.site.endpoints("auto")) == trouble.before, "all are endpoints", 20)
        frozen.on = True
        trouble.happens(play)
        throughout(lambda: len(play.site.endpoints("auto")) >= trouble.least, "they serve", FROZEN_SECONDS, 0.1)
        frozen.on = False
        play.rest(life, 90)
        assert (removed := removed_on_stale_views(life)) == [], removed
        _judge(faulty, play, door, log)


def test_a_service_is_deleted_and_its_deletion_is_not_seen(faulty: Rig, stage: Stage, log: Log) -> None:
    """Its children go, which is seen: they must not be made again for an owner that is gone."""
    with stage("deleted") as play:
        door = faulty.door()
        frozen = Frozen(("tokenservices",))
        door.stream = frozen
        life = faulty.start(door, watchNamespaces=[play.site.namespace])
        play.ask("auto", 2, replicas=2)
        play.rest(life)
        play.outcome()
        frozen.on = True
        play.services.clear()
        play.site.kubectl("delete", "tokenservice", "auto", "--wait=false")
        time.sleep(FROZEN_SECONDS)
        frozen.on = False
        play.rest(life, 60)
        again = {name: n for name, n in play.outcome()["counts"].items() if name.startswith("added")}
        assert again == {}, f"made again for nobody: {again}"
        _judge(faulty, play, door, log)
