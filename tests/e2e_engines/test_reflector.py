"""Keeping up with an API server, against a scripted one: what it shows must reach the fleet, whatever goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from e2e.engines import reflector
from e2e.engines.contract import Json, PodKey
from e2e.engines.fake_engine import State
from e2e.engines.fleet import Fleet
from e2e.engines.reflector import ApiError, GoneError, PodReports, follow
from e2e.engines.sinks import NodeSink, PodSink, ProfileSink
from tests.e2e_engines.builders import FAST, ManualTimers, Notes, pod
from tests.e2e_engines.test_contract import pod_object

Step = list[Json] | list[tuple[str, Json]] | ApiError


def item(name: str, version: int) -> Json:
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


class Script:
    """A `Source` that plays lists, watches and errors in turn, and then blocks."""

    def __init__(self, *steps: tuple[str, Any]) -> None:
        self.steps = list(steps)
        self.watched_from: list[str] = []

    async def list(self, path: str, **query: str) -> tuple[list[Json], str]:
        items = self._next("list")
        return items, f"list-{len(self.steps)}"

    async def watch(self, path: str, resource_version: str, **query: str) -> AsyncIterator[tuple[str, Json]]:
        self.watched_from.append(resource_version)
        if not self.steps:
            await asyncio.Event().wait()
        for event in self._next("watch"):
            yield event

    def _next(self, kind: str) -> Any:
        expected, step = self.steps.pop(0)
        assert expected == kind
        if isinstance(step, ApiError):
            raise step
        return step


class Heard:
    """A `Sink` that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def seen(self, item: Json) -> None:
        self.calls.append(("seen", item["metadata"]["name"]))

    def gone(self, item: Json) -> None:
        self.calls.append(("gone", item["metadata"]["name"]))

    def listed(self, items: list[Json]) -> None:
        self.calls.append(("listed", [i["metadata"]["name"] for i in items]))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "RETRY_SECONDS", 0.0)


async def play(script: Script) -> Heard:
    heard = Heard()
    task = asyncio.create_task(follow(script, "/api/v1/pods", heard))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    return heard


async def test_changes_are_followed_across_watches() -> None:
    bookmark = ("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    script = Script(
        ("list", [item("a", 1)]),
        ("watch", [("ADDED", item("b", 5)), bookmark]),
        ("watch", [("MODIFIED", item("b", 10)), ("DELETED", item("a", 11))]),
    )
    heard = await play(script)
    assert heard.calls == [("listed", ["a"]), ("seen", "b"), ("seen", "b"), ("gone", "a")]
    assert script.watched_from == ["list-2", "9", "11"]


@pytest.mark.parametrize("error", [GoneError(410, "too old"), ApiError(0, "reset"), ApiError(500, "ill")])
async def test_after_any_error_everything_is_listed_again(error: ApiError) -> None:
    script = Script(
        ("list", error), ("list", [item("a", 1)]), ("watch", error), ("list", [item("b", 7)]), ("watch", [])
    )
    assert (await play(script)).calls == [("listed", ["a"]), ("listed", ["b"])]


class Patches:
    """A `Patcher` with errors in store."""

    def __init__(self, *errors: ApiError) -> None:
        self.errors = list(errors)
        self.done: list[tuple[str, Json]] = []

    async def merge_patch(self, path: str, patch: Json) -> Json:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.done.append((path, patch["metadata"]["annotations"]))
        assert patch["metadata"]["uid"] == "uid-chat-0"
        return {}


async def reported(patches: Patches) -> list[tuple[str, Json]]:
    reports = PodReports(patches)
    reports.ready(pod(), True)
    reports.ready(pod(), False)
    reports.drained(pod())
    for _ in range(40):
        await asyncio.sleep(0)
    return patches.done


async def test_reports_are_written_in_order_and_until_they_are_taken() -> None:
    path = "/api/v1/namespaces/team/pods/chat-0"
    assert await reported(Patches(ApiError(0, "reset"), ApiError(500, "ill"))) == [
        (path, {"testbed.taas.dev/ready": "true"}),
        (path, {"testbed.taas.dev/ready": "false"}),
        (path, {"testbed.taas.dev/drained": "true"}),
    ]


@pytest.mark.parametrize("status", [404, 409, 422])
async def test_a_report_for_a_pod_that_is_gone_or_another_one_is_dropped(status: int) -> None:
    assert len(await reported(Patches(ApiError(status, "no")))) == 2


def fleet() -> Fleet:
    timers = ManualTimers()
    made = Fleet(timers, Notes(), wall_clock=timers.time)
    made.profile_seen("qwen3-32b-h100-tp2", FAST)
    return made


KEY = PodKey("team", "chat-h100-abc")


def test_pods_come_and_go_with_what_is_shown() -> None:
    shown = fleet()
    sink = PodSink(shown)
    sink.seen(pod_object())
    assert shown.get(KEY) is not None
    sink.listed([])
    assert shown.get(KEY) is None
    sink.listed([pod_object()])
    assert shown.get(KEY) is not None
    sink.gone(pod_object())
    assert shown.get(KEY) is None


def test_pods_of_others_and_pods_that_make_no_sense_are_left_alone() -> None:
    shown = fleet()
    foreign, odd = pod_object(), pod_object(args=["--max-num-seqs", "many"])
    foreign["metadata"]["labels"] = {}
    PodSink(shown).listed([foreign, odd])
    assert list(shown) == []


def test_a_node_that_is_deleted_or_silent_takes_its_engines_with_it() -> None:
    def node(name: str, ready: str) -> Json:
        return {"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}

    for take_away in ("gone", "silent", "unlisted"):
        shown = fleet()
        nodes = NodeSink(shown)
        nodes.listed([node("node-1", "True")])
        PodSink(shown).seen(pod_object())
        engine = shown.get(KEY)
        assert engine is not None
        match take_away:
            case "gone":
                nodes.gone(node("node-1", "True"))
            case "silent":
                nodes.seen(node("node-1", "Unknown"))
            case _:
                nodes.listed([])
        assert engine.state == State.GONE, take_away


def test_profiles_are_taken_and_broken_ones_skipped() -> None:
    shown = fleet()
    spec = {
        "step": {"alphaMs": 1, "betaMs": 0.1, "kappaMs": 0.1, "deltaMs": 0.1},
        "kvCapacityTokens": 10_000,
        "coldStartSeconds": 5,
    }
    sink = ProfileSink(shown)
    sink.listed([{"metadata": {"name": "broken"}, "spec": {}}, {"metadata": {"name": "other"}, "spec": spec}])
    shown.pod_seen(pod(profile="other"))
    assert shown.get(pod().key) is not None
    sink.gone({"metadata": {"name": "other"}})
