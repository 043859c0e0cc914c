"""Crash at every write: an operator killed at any write, or that never hears of one, ends where it would have.

Every write that counts is tried: all but renewals of the Lease, and Events, on which nothing is decided. A process that
dies right after a write cannot know whether it was answered; so the answer is also lost to one that lives on.

The steps of the scenario are tried together: run k is disturbed at write k of each step that has so many.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from e2e.faults.conftest import Stage, Try
from e2e.faults.faults import AtWrite, dying, lost
from e2e.faults.instance import Instance, Log
from e2e.faults.oracle import difference, misdeeds, named
from e2e.faults.record import Ledger
from e2e.faults.rig import Rig
from e2e.faults.scenario import STEPS, Play, Reference, undisturbed
from e2e.tests.support.api import Json, eventually
from tokenservice.catalogue import accelerator_class_objects, capacity_profile_objects

pytestmark = pytest.mark.cluster

SLICE = (2, 9, 17)
"""Writes at which the slice in `make e2e` kills: of a child, of a status, of a placement."""


# --- the undisturbed run ---------------------------------------------------------------------------------------------


@pytest.mark.slice
@pytest.mark.timeout(600)
def test_two_undisturbed_runs_are_equal(faulty: Rig, stage: Stage, reference: Reference, log: Log) -> None:
    """What they differed by would have to be masked below, and could hide a fault."""
    with stage("undisturbed") as play:
        second = undisturbed(faulty, play)
    assert (wrong := difference(reference.outcomes, second.outcomes)) == [], wrong
    assert log.errors() == []


# --- disturbed -------------------------------------------------------------------------------------------------------


@pytest.mark.slice
@pytest.mark.timeout(600)
def test_killed_at_some_writes(
    faulty: Rig, stage: Stage, reference: Reference, log: Log, tried: Try, request: pytest.FixtureRequest
) -> None:
    if any(item.name == "test_killed_at_every_write" for item in request.session.items):
        pytest.skip("all of them are tried below")
    _campaign(faulty, stage, reference, log, tried, SLICE, killed=True)


@pytest.mark.timeout(3000)
def test_killed_at_every_write(
    faulty: Rig, stage: Stage, reference: Reference, log: Log, tried: Try, ledger: Ledger
) -> None:
    most = max(reference.writes.values())
    ledger.count("test_crash", writes=sum(reference.writes.values()))
    _campaign(faulty, stage, reference, log, tried, range(1, most + 1), killed=True)


@pytest.mark.timeout(3000)
def test_the_answer_to_every_write_is_lost(
    faulty: Rig, stage: Stage, reference: Reference, log: Log, tried: Try
) -> None:
    _campaign(faulty, stage, reference, log, tried, range(1, max(reference.writes.values()) + 1), killed=False)


def _campaign(
    rig: Rig, stage: Stage, found: Reference, log: Log, tried: Try, numbers: Iterable[int], *, killed: bool
) -> None:
    for number in numbers:
        with stage(f"{'killed' if killed else 'lost'}-at-{number}") as play:
            _Run(rig, play, found, log, tried, number, killed).go()
            rig.end()


@dataclass
class _Run:
    """The scenario, disturbed at one write of each step."""

    rig: Rig
    play: Play
    found: Reference
    log: Log
    tried: Try
    number: int
    killed: bool

    def go(self) -> None:
        """Until the last step that has so many writes; what follows a failed step says nothing."""
        self.door = self.rig.door()
        self.life = self._start()
        steps = [name for name, count in self.found.writes.items() if count >= self.number]
        for name in list(STEPS)[: list(STEPS).index(steps[-1]) + 1] if steps else ():
            if name in steps:
                self.held = False
                with self.tried(f"{name}: {'killed at' if self.killed else 'no answer to'} write {self.number}"):
                    self._disturbed(name)
                    self.held = True
                if not self.held:
                    return
            else:
                STEPS[name](self.play)
                self.play.rest(self.life)
                self.play.outcome()

    def _disturbed(self, name: str) -> None:
        fault = AtWrite(self.number, dying(self.door) if self.killed else lost)
        self.door.fault = fault
        since = len(self.log.records)
        began = time.monotonic()
        STEPS[name](self.play)
        while self.killed and not fault.reached.wait(0.02):
            # One write fewer than the undisturbed run, when two statuses became one: there is nothing left to kill at.
            if not self.play.missing() and self.life.idle_since(began):
                break
        if self.killed and fault.reached.is_set():
            self.life.kill()
            self._check_writes()
            self.rig.clear_lease()
            self.door = self.rig.door()
            self.life = self._start()
        self.play.rest(self.life)
        self.door.clear()
        self._check_writes()
        at = named(fault.hit, self.play.site.namespace) if fault.hit else "which did not come"
        wrong = self.found.differs(name, self.play.outcome())
        assert not wrong, f"{at}: {wrong}"
        assert not (said := Log(self.log.records[since:]).errors()), f"{at}: {said}"

    def _check_writes(self) -> None:
        wrong = misdeeds(self.door.writes(), [self.play.site.namespace])
        assert not wrong, wrong

    def _start(self) -> Instance:
        return self.rig.start(self.door, watchNamespaces=[self.play.site.namespace])


# --- the catalogue ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(1200)
def test_killed_while_the_catalogue_is_applied(faulty: Rig, tried: Try, log: Log) -> None:
    """What ships is applied at every start: whatever the first process got done, the next completes it."""
    objects = [*accelerator_class_objects(), *capacity_profile_objects()]
    for number in (1, 2, 7, 8, 9, len(objects) // 2, len(objects) - 1, len(objects)):
        with tried(f"catalogue: killed at write {number} of {len(objects)}"):
            _catalogue(faulty, objects, number, log)


def _catalogue(rig: Rig, objects: list[Json], number: int, log: Log) -> None:
    for kind in ("capacityprofiles", "acceleratorclasses"):
        for thing in rig.api.list(kind):
            if "steady" not in thing["metadata"]["name"]:
                rig.api.delete(kind, thing["metadata"]["name"])
    since, door = len(log.records), rig.door()
    fault = AtWrite(number, dying(door))
    door.fault = fault
    life = rig.begin(door, catalogue=True)
    assert fault.reached.wait(30)
    life.kill()
    rig.clear_lease()
    second = rig.start(rig.door(), catalogue=True)
    wanted = {(thing["kind"], thing["metadata"]["name"]) for thing in objects}
    kinds = {"AcceleratorClass": "acceleratorclasses", "CapacityProfile": "capacityprofiles"}

    def there() -> set[tuple[str, str]]:
        return {(kind, thing["metadata"]["name"]) for kind, plural in kinds.items() for thing in rig.api.list(plural)}

    eventually(lambda: wanted <= there(), "the whole catalogue is there", 30, 0.1)
    second.stop()
    assert Log(log.records[since:]).errors() == []
