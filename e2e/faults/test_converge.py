"""Once inputs and faults have ended, what is desired is reached in a bounded time, and then nothing is written.

Ten minutes of the fleet's time are a minute here: every interval of the operator's own, as listed below, is a tenth of
what it is by default. What is not shortened only makes the minute harder: Prometheus scrapes each second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from e2e.faults.conftest import Stage
from e2e.faults.faults import answering, beside_lease, every, only, reset
from e2e.faults.instance import FACTOR, Instance, Log
from e2e.faults.proxy import Door
from e2e.faults.rig import Rig
from e2e.faults.scenario import STEPS, Play
from e2e.tests.support.api import eventually
from tokenservice.app import gatekeeper, loop, runtime
from tokenservice.edge import events, kube, prometheus, webhook

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

BOUND_SECONDS = 30.0
QUIET_SECONDS = 600.0 / FACTOR

INTERVALS: tuple[tuple[ModuleType, str], ...] = (
    (loop, "FIRST_PAUSE_SECONDS"),
    (loop, "LONGEST_PAUSE_SECONDS"),
    (gatekeeper, "_ROUND_SECONDS"),
    (runtime, "_CATALOGUE_RETRY_SECONDS"),
    (webhook, "CHECK_SECONDS"),
    (events, "SERIES_SECONDS"),
    (prometheus, "MEANS_SECONDS"),
    (kube, "WATCH_SECONDS"),
)
"""Beside the intervals that are settings: of planning, and the pause after a change, which are a tenth in all of these
tests, and of figures in statuses."""


@contextmanager
def tenfold() -> Iterator[None]:
    """Every interval of the operator's own is a tenth."""
    before = [(module, name, getattr(module, name)) for module, name in INTERVALS]
    for module, name, value in before:
        setattr(module, name, type(value)(value / FACTOR))
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def test_then_nothing_is_written(faulty: Rig, stage: Stage, log: Log) -> None:
    """After the whole scenario under faults; again after a restart; again without Prometheus.

    Beside the two services that serve there is one that cannot be right, and one that nothing has room for.
    """
    with tenfold(), stage("quiet") as play:
        door = faulty.door()
        life = _start(faulty, door, play)
        door.fault = every(4, lambda call: call.is_write and call.kind != "leases", answering(500))
        play.site.apply("invalid", placement={"accelerators": ["no-such-class"]})
        play.site.apply("unplaced", replicas=1, placement={"accelerators": ["mi300x"], "regions": [play.site.region]})
        hopeless = ("invalid", "unplaced")
        for name, step in list(STEPS.items())[:4]:
            step(play)
            eventually(lambda: not _missing(play, hopeless), name, 90, 0.2)
        door.fault = only(beside_lease, reset)
        door.reset()
        time.sleep(2)
        door.clear()
        _quiet(play, life, door, hopeless, "after faults")
        life.kill()
        faulty.clear_lease()
        life = _start(faulty, door, play)
        _quiet(play, life, door, hopeless, "after a restart")
        faulty.bed.prometheus.pause()
        eventually(
            lambda: play.site.condition("MetricsAvailable", "auto")["status"] == "False", "metrics are missed", 60
        )
        _quiet(play, life, door, (*hopeless, "auto", "fixed"), "without Prometheus")
        faulty.bed.prometheus.start()
        _quiet(play, life, door, hopeless, "with Prometheus back", seconds=QUIET_SECONDS / 4)
        assert not (said := [line for line in log.errors() if "Traceback" in line]), said
        faulty.end()


def _start(rig: Rig, door: Door, play: Play) -> Instance:
    return rig.start(
        door, watchNamespaces=[play.site.namespace], prometheus=rig.prometheus(), statusIntervalSeconds=60 / FACTOR
    )


def _missing(play: Play, but: tuple[str, ...]) -> list[str]:
    """What is not as it should be, of the services that can be helped."""
    return [line for line in play.missing() if not any(name in line for name in but)]


def _quiet(
    play: Play, life: Instance, door: Door, but: tuple[str, ...], when: str, seconds: float = QUIET_SECONDS
) -> None:
    """Within the bound all is as desired; then no write but the Lease for ten minutes of the fleet's time."""
    began = time.monotonic()
    eventually(lambda: not _missing(play, but), f"all is as desired {when}", BOUND_SECONDS, 0.2)
    eventually(lambda: life.idle_since(time.monotonic() - 2), f"nothing is left to do {when}", BOUND_SECONDS, 0.2)
    assert time.monotonic() - began < BOUND_SECONDS
    _last_figures(door)
    before = len(door.writes())
    time.sleep(seconds)
    assert life.is_alive, f"the operator ended: {life.error!r}"
    assert [str(call) for call in door.writes()[before:]] == [], f"{when}, within {seconds:.0f} s"


def _last_figures(door: Door) -> None:
    """Figures of what changed last may be a minute old, so one more write of each is owed; here, six seconds."""
    before = -1
    while before != len(door.writes()):
        before = len(door.writes())
        time.sleep(2 * 60.0 / FACTOR)
