"""Stateful exploration: hypothesis chooses what happens next, and after each step the invariants must hold.

One control plane for all of it, so a step takes a second or so, and what is found is not shrunk: the steps that led to
a failure are printed, and become a named test. A state is what the user can see (services, counts, nodes, faults), and
two that look the same are one.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from e2e.faults.faults import answering, beside_lease, every, lost, only, reset, slow
from e2e.faults.instance import Log, logged, removed_on_stale_views
from e2e.faults.oracle import births, misdeeds
from e2e.faults.record import Ledger
from e2e.faults.rig import Rig
from e2e.faults.scenario import Play
from e2e.faults.test_nodes import overcommitted
from e2e.tests.conftest import make_site
from e2e.tests.support.api import Json

pytestmark = pytest.mark.cluster

BUDGET_SECONDS = float(os.environ.get("TAAS_EXPLORE_SECONDS", "300"))
STEPS_A_RUN = 25
NAMES = ("one", "two", "three")
REST_SECONDS = 90.0

_numbers = itertools.count(1)


class Findings:
    """What was explored, over all runs."""

    def __init__(self) -> None:
        self.steps = self.runs = 0
        self.states: set[tuple[Any, ...]] = set()
        self.failures: list[str] = []
        self.until = 0.0

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until


class _BudgetUsedUp(Exception):  # noqa: N818 - ends the exploration, and is no failure
    """No further run is begun."""


FOUND = Findings()
STAGE: dict[str, Rig] = {}


@contextmanager
def _stage(rig: Rig) -> Iterator[tuple[Play, Log]]:
    with ExitStack() as stack:
        sites = make_site(rig.bed, rig.api, f"explore-{next(_numbers)}")
        site = next(sites)
        stack.callback(lambda: next(sites, None))
        counted = stack.enter_context(births(rig.api, rig.bed.cluster, site.namespace))
        yield Play(rig, site, counted), stack.enter_context(logged())


class Cluster(RuleBasedStateMachine):
    """What users, nodes, neighbours and crashes do to a namespace of services."""

    def __init__(self) -> None:
        super().__init__()
        if FOUND.over:
            raise _BudgetUsedUp
        self._stack = ExitStack()
        self.rig = STAGE["rig"]
        self.play, self.log = self._stack.enter_context(_stage(self.rig))
        self.door = self.rig.door()
        self.cordoned: set[str] = set()
        self.fault = "none"
        self.metrics = "healthy"
        self.trail: list[str] = []
        FOUND.runs += 1

    @initialize()
    def begins(self) -> None:
        for _ in range(2):
            self.play.site.node()
        self.life = self._start()

    # -- users

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 3), tier=st.sampled_from(["Elastic", "Spot"]))
    def user_writes(self, name: str, count: int, tier: str) -> None:
        before = self.play.services.get(name)
        tier = before.spec["tier"] if before else tier
        self._say(f"{name} is to have {count}, {tier}")
        self.play.ask(name, count, replicas=count, tier=tier)

    @precondition(lambda self: self.play.services)
    @rule(data=st.data())
    def user_changes_the_engine(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.play.services)))
        service, seqs = self.play.services[name], data.draw(st.sampled_from([2, 4, 8]))
        self._say(f"{name} is to take {seqs} at once")
        self.play.ask(name, service.replicas, **{**service.spec, "engine": {"name": "vLLM", "maxNumSeqs": seqs}})

    @precondition(lambda self: self.play.services)
    @rule(data=st.data())
    def user_deletes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.play.services)))
        self._say(f"{name} is deleted")
        del self.play.services[name]
        self.play.site.kubectl("delete", "tokenservice", name, "--wait=false")

    # -- nodes and pods

    @precondition(lambda self: len(self.play.site.nodes) < 4)
    @rule()
    def node_comes(self) -> None:
        self._say("a node comes")
        self.play.site.node()

    @precondition(lambda self: len(self.cordoned) < len(self.play.site.nodes) - 1)
    @rule(data=st.data())
    def node_cordoned(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(set(self.play.site.nodes) - self.cordoned)))
        self._say(f"{name} is cordoned")
        self.cordoned.add(name)
        self.play.site.kubectl("cordon", name)

    @precondition(lambda self: self.cordoned)
    @rule(data=st.data())
    def node_uncordoned(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.cordoned)))
        self._say(f"{name} is uncordoned")
        self.cordoned.remove(name)
        self.play.site.kubectl("uncordon", name)

    @precondition(lambda self: len(self.play.site.nodes) - len(self.cordoned) > 1)
    @rule(data=st.data())
    def node_vanishes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(set(self.play.site.nodes) - self.cordoned)))
        self._say(f"{name} vanishes")
        self.play.site.nodes.remove(name)
        self.rig.api.delete("nodes", name)

    @rule()
    def pod_deleted(self) -> None:
        for pod in self.play.site.pods(None)[:1]:
            self._say("a pod is deleted")
            self.play.site.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false", check=False)

    @rule()
    def engine_crashes(self) -> None:
        for pod in self.play.site.ready_pods(None)[:1]:
            self._say("an engine crashes")
            path = f"/admin/pods/{self.play.site.namespace}/{pod['metadata']['name']}/crash"
            requests.post(self.rig.bed.farm_url + path, timeout=10)

    # -- neighbours

    @rule(fault=st.sampled_from(["none", "500s", "resets", "lost answers", "slow", "429s"]))
    def api_server(self, fault: str) -> None:
        self._say(f"API server: {fault}")
        self.fault = fault
        writes = lambda call: call.is_write and call.kind != "leases"  # noqa: E731
        self.door.fault = {
            "none": only(lambda call: False, reset),
            "500s": every(3, beside_lease, answering(500)),
            "resets": every(3, beside_lease, reset),
            "lost answers": every(3, writes, lost),
            "slow": only(beside_lease, slow(0.3)),
            "429s": every(3, beside_lease, answering(429, retry_after=1)),
        }[fault]

    @rule(metrics=st.sampled_from(["healthy", "absent", "nonsense"]))
    def prometheus(self, metrics: str) -> None:
        self._say(f"Prometheus: {metrics}")
        self.metrics = metrics
        faults = {"absent": reset, "nonsense": answering(500)}
        self.rig.to_metrics.clear()
        if metrics in faults:
            self.rig.to_metrics.fault = faults[metrics]

    # -- the operator

    @rule()
    def operator_killed(self) -> None:
        self._say("the operator is killed")
        self.door.shut()
        self.life.kill()
        self._judge_writes()
        self.rig.clear_lease()
        fault, self.door = self.door.fault, self.rig.door()
        self.life = self._start()
        self.door.fault = fault

    @precondition(lambda self: self.play.services)
    @rule()
    def time_passes(self) -> None:
        self._say("a while passes")
        time.sleep(1.5)

    @rule()
    def all_comes_right(self) -> None:
        """Faults end: what was asked for is there within the bound, and the operator has nothing left to do."""
        self._say("faults end")
        self._heal()

    # -- what must hold after each step

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "life"):
            return
        FOUND.steps += 1
        FOUND.states.add(self._state())
        assert self.life.is_alive, self._told(f"the operator ended: {self.life.error!r}")
        assert (twice := overcommitted(self.play)) == [], self._told(f"promised twice: {twice}")
        self._judge_writes()
        for service in self.rig.api.list("tokenservices", self.play.site.namespace):
            seen = (service.get("status") or {}).get("observedGeneration") or 0
            assert seen <= service["metadata"]["generation"], self._told("a status ahead of its spec")
        tracebacks = [line for line in self.log.errors() if "Traceback" in line]
        assert tracebacks == [], self._told(tracebacks[0] if tracebacks else "")
        for pod in self.play.site.pods(None):
            node = pod["spec"].get("nodeName")
            assert not node or self._region(node) in (self.play.site.region, None), self._told("residency broken")
        self._judge_plans()

    def teardown(self) -> None:
        try:
            if hasattr(self, "life") and not FOUND.over:
                self._heal()
        finally:
            self.rig.mend()
            self.rig.end()
            self._stack.close()

    def _start(self) -> Any:
        over: dict[str, Any] = {"watchNamespaces": [self.play.site.namespace], "prometheus": self.rig.prometheus()}
        return self.rig.start(self.door, **over)

    def _heal(self) -> None:
        self.door.clear()
        self.rig.mend()
        self.fault = self.metrics = "none"
        for node in sorted(self.cordoned):
            self.play.site.kubectl("uncordon", node)
        self.cordoned.clear()
        try:
            self.play.rest(self.life, REST_SECONDS)
        except AssertionError as error:
            raise AssertionError(self._told(str(error))) from None

    def _judge_writes(self) -> None:
        wrong = misdeeds(self.door.writes(), [self.play.site.namespace])
        assert wrong == [], self._told(str(wrong))

    def _judge_plans(self) -> None:
        """No plan removes anything on a stale view."""
        assert (removed := removed_on_stale_views(self.life)) == [], self._told(str(removed))
        self.life.plans[:] = self.life.plans[-5:]

    def _region(self, node: str) -> str | None:
        found: Json | None = self.rig.api.get("nodes", node)
        return found["metadata"]["labels"].get("topology.kubernetes.io/region") if found else None

    def _state(self) -> tuple[Any, ...]:
        services = tuple(sorted((name, service.replicas) for name, service in self.play.services.items()))
        pods = self.play.site.pods(None, deleting=True)
        shape = (len(pods), len(self.play.site.ready_pods(None)))
        nodes = (len(self.play.site.nodes), len(self.cordoned))
        return services, shape, nodes, self.fault, self.metrics

    def _say(self, what: str) -> None:
        self.trail.append(what)

    def _told(self, what: str) -> str:
        told = f"{what}\nafter: " + "; ".join(self.trail)
        FOUND.failures.append(told)  # hypothesis repeats a run that failed, which here need not fail again
        return told


@pytest.mark.timeout(1500)
def test_whatever_happens_next_the_invariants_hold(faulty: Rig, ledger: Ledger) -> None:
    """Runs of 25 steps until the budget of time is used up."""
    STAGE["rig"] = faulty
    FOUND.until = time.monotonic() + BUDGET_SECONDS
    chosen = settings(
        max_examples=10**6,
        stateful_step_count=STEPS_A_RUN,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
    )
    try:
        run_state_machine_as_test(Cluster, settings=chosen)
    except (_BudgetUsedUp, Flaky):
        # A run that is not begun draws nothing, which hypothesis may take for inconsistent; what failed has said so.
        assert FOUND.over or FOUND.failures
    finally:
        ledger.count("test_explore", runs=FOUND.runs, steps=FOUND.steps, states=len(FOUND.states))
    assert FOUND.failures == []
