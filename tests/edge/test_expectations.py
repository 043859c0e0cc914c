"""Our own writes: the next plan waits for them, but not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from tests.edge.fakes import Clock
from tokenservice.core.model import ObjectKey
from tokenservice.edge import expectations
from tokenservice.edge.expectations import FORGET_SECONDS, Expectations

DEPLOYMENT = ObjectKey("Deployment", "team", "chat")
POD = ObjectKey("Pod", "team", "chat-1")


class View:
    """Stores at a revision each."""

    def __init__(self) -> None:
        self.at: dict[str, int] = {}
        self._moved = asyncio.Event()

    def has_seen(self, kind: str, namespace: str, revision: str) -> bool:
        return self.at.get(kind, 0) >= int(revision)

    async def moved(self, kinds: Iterable[str]) -> None:
        self._moved.clear()
        await self._moved.wait()

    def arrive(self, kind: str, revision: int) -> None:
        self.at[kind] = revision
        self._moved.set()


async def test_nothing_written_is_nothing_to_wait_for() -> None:
    assert await Expectations(View()).settle() == ()


async def test_a_write_is_waited_for() -> None:
    view = View()
    expected = Expectations(view, clock=Clock())
    expected.add([(DEPLOYMENT, "7"), (POD, "8")])
    assert expected.unseen_kinds() == ("Deployment", "Pod")
    settling = asyncio.create_task(expected.settle())
    await asyncio.sleep(0)
    view.arrive("Deployment", 7)
    await asyncio.sleep(0)
    assert not settling.done()
    view.arrive("Pod", 9)
    assert await settling == ()


async def test_a_store_that_lags_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectations, "WAIT_SECONDS", 0.01)
    expected = Expectations(View(), clock=Clock())
    expected.add([(DEPLOYMENT, "7")])
    assert await expected.settle() == ("Deployment",)


async def test_only_the_last_write_of_an_object_counts() -> None:
    view = View()
    expected = Expectations(view, clock=Clock())
    expected.add([(DEPLOYMENT, "7")])
    expected.add([(DEPLOYMENT, "9")])
    view.arrive("Deployment", 8)
    assert expected.unseen_kinds() == ("Deployment",)


async def test_a_write_that_is_never_seen_is_forgotten() -> None:
    clock = Clock()
    expected = Expectations(View(), clock=clock)
    expected.add([(DEPLOYMENT, "7")])
    clock.now += FORGET_SECONDS + 1
    assert await expected.settle() == ()
