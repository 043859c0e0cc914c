"""One rig for the whole run, one namespace for each case that needs one, one ledger of what was tried."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from e2e.faults.instance import Log, logged, quick
from e2e.faults.oracle import births
from e2e.faults.record import PATTERNS, Ledger
from e2e.faults.rig import Rig, rig
from e2e.faults.scenario import Play, Reference, undisturbed
from e2e.tests.conftest import make_site

_numbers = itertools.count(1)
_ledger = Ledger()
_known: list[Reference] = []

Stage = Callable[[str], AbstractContextManager[Play]]
Try = Callable[[str], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def whole_rig() -> Iterator[Rig]:
    if os.environ.get("CLUSTER") == "existing":
        pytest.skip("faults are put before an API server of the tests' own")
    with rig() as made, quick():
        yield made


@pytest.fixture
def faulty(whole_rig: Rig) -> Iterator[Rig]:
    """The rig without faults and without an operator, whatever the test before left."""
    whole_rig.mend()
    yield whole_rig
    whole_rig.end()


@pytest.fixture
def log() -> Iterator[Log]:
    """What the operator logs in this process."""
    with logged() as found:
        yield found


@pytest.fixture
def stage(faulty: Rig) -> Stage:
    """A context for one run of the scenario: a namespace with a node, gone afterwards."""

    @contextmanager
    def play(name: str) -> Iterator[Play]:
        sites = make_site(faulty.bed, faulty.api, f"{name}-{next(_numbers)}")
        site = next(sites)
        try:
            site.node()
            with births(faulty.api, faulty.bed.cluster, site.namespace) as counted:
                yield Play(faulty, site, counted)
        finally:
            next(sites, None)

    return play


@pytest.fixture
def reference(faulty: Rig, stage: Stage) -> Reference:
    """The undisturbed run of the scenario, once for all."""
    if not _known:
        with stage("reference") as play:
            _known.append(undisturbed(faulty, play))
    return _known[0]


@pytest.fixture
def ledger() -> Ledger:
    return _ledger


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Iterator[Try]:
    """A context for one of many cases of a test, which goes on after a failure and fails at its end."""
    module, before = _module(request.node.nodeid), len(_ledger.cases)

    def case(name: str) -> AbstractContextManager[None]:
        return _ledger.case(request.node.nodeid, module, name)

    yield case
    failures = _ledger.failures(before)
    assert not failures, f"{len(failures)} failed:\n" + "\n".join(failures[:20])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test that does not list cases is one."""
    module = _module(report.nodeid)
    if module not in PATTERNS or report.nodeid in _ledger.itemized or report.skipped:
        return
    if report.when == "call" or report.failed:
        _ledger.add(module, _words(report.nodeid), report.duration, _why(report))


def pytest_runtest_teardown() -> None:
    """Writes what is known so far."""
    if _ledger.cases:
        _ledger.write()


def _why(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return "" if not report.failed else crash.message if crash is not None else str(report.longrepr)


def _module(nodeid: str) -> str:
    return nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py")


def _words(nodeid: str) -> str:
    """`test_a_thing_happens[case]` as a sentence."""
    test, _, case = nodeid.partition("::")[2].removesuffix("]").partition("[")
    words = test.removeprefix("test_").replace("_", " ")
    return f"{words}: {case.replace('_', ' ')}" if case else words
