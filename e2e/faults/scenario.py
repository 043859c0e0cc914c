"""The life of two services, step by step: created, moved, scaled, changed, deleted. Each step ends in rest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from e2e.faults.instance import Instance
from e2e.faults.oracle import Births, difference, state
from e2e.faults.proxy import Call, Door
from e2e.faults.rig import Rig
from e2e.tests.support.api import Json, eventually, is_true
from e2e.tests.support.site import Site

REST_SECONDS = 60.0
"""Within which every step must come to rest, faults included: a quiet one takes two."""


@dataclass(frozen=True, slots=True)
class Service:
    """What a user asks for, and how many replicas that must give."""

    replicas: int
    spec: Json


@dataclass
class Play:
    """One run of the scenario in a namespace of its own."""

    rig: Rig
    site: Site
    births: Births
    services: dict[str, Service] = field(default_factory=dict)
    cordoned: str = ""
    _before: Counter[str] = field(default_factory=Counter)

    def ask(self, name: str, count: int, /, **spec: object) -> None:
        """The user writes a service, or writes it anew."""
        self.services[name] = Service(count, dict(spec))
        self.site.apply(name, **spec)

    def done(self) -> bool:
        """Whether what was asked for is there, and nothing else."""
        return not self.missing()

    def missing(self) -> list[str]:
        """What is not yet as it should be."""
        found = [f"{name}: {why}" for name, service in self.services.items() for why in self._missing(name, service)]
        known = {thing["metadata"]["name"] for thing in self.rig.api.list("tokenservices", self.site.namespace)}
        found += [f"{name} is still there" for name in known - self.services.keys()]
        for pod in self.site.pods(None, deleting=True):
            if pod["metadata"]["labels"]["taas.dev/service"] not in self.services:
                found.append(f"{pod['metadata']['name']} has no service")
        for kind in ("deployments", "services", "poddisruptionbudgets"):
            for child in self.rig.api.list(kind, self.site.namespace, "taas.dev/service"):
                if child["metadata"]["labels"]["taas.dev/service"] not in self.services:
                    found.append(f"{kind}/{child['metadata']['name']} has no service")
        return found

    def _missing(self, name: str, service: Service) -> list[str]:
        found = self.rig.api.get("tokenservices", name, self.site.namespace)
        if found is None:
            return ["not there"]
        conditions = {c["type"]: c for c in (found.get("status") or {}).get("conditions", [])}
        ready, metrics = conditions.get("Ready", {}), conditions.get("MetricsAvailable", {})
        pods = self.site.pods(name, deleting=True)
        asked = sum(d["spec"]["replicas"] for d in self.site.deployments(name))
        wrong = []
        if ready.get("status") != "True" or ready.get("observedGeneration") != found["metadata"]["generation"]:
            wrong.append(f"not Ready: {ready.get('message')}")
        if metrics.get("status") != "True":
            wrong.append(f"no metrics: {metrics.get('message')}")
        told, all_ready = (found.get("status") or {}).get("replicaSummary"), f"{service.replicas}/{service.replicas}"
        if told != all_ready:  # a watch that is behind may show the last replica's readiness after all else is quiet
            wrong.append(f"{told} are told to be ready, not {all_ready}")
        if len(pods) != service.replicas or not all(is_true(pod, "Ready") for pod in pods):
            wrong.append(f"{len(pods)} pods, {sum(is_true(p, 'Ready') for p in pods)} ready, not {service.replicas}")
        if asked != service.replicas:
            wrong.append(f"{asked} replicas are asked for, not {service.replicas}")
        if any(pod["spec"].get("nodeName") == self.cordoned for pod in pods):
            wrong.append("on a cordoned node")
        if any(not _rolled_out(deployment) for deployment in self.site.deployments(name)):
            wrong.append("a rollout runs")
        return wrong

    def rest(self, life: Instance, seconds: float = REST_SECONDS) -> float:
        """Waits until a step is done and the operator has nothing left to do; the seconds that took."""
        began = time.monotonic()
        since = None
        while True:
            now = time.monotonic()
            missing = self.missing()
            since = None if missing or not life.informed else since or now
            if since is not None and life.idle_since(since):
                self.births.settle()
                return now - began
            assert now - began < seconds, f"no rest in {seconds:.0f} s: {missing or _busy(life)}"
            time.sleep(0.15)

    def outcome(self) -> Json:
        """The state at rest, and what was created and deleted since the last call."""
        (found,) = eventually(self._state_at_rest, "a state in which nothing is missing", pause=0.15)
        self.births.settle()
        counts = self.births.counts()
        fresh, self._before = counts - self._before, counts
        return {"state": found, "counts": dict(sorted(fresh.items()))}

    def _state_at_rest(self) -> tuple[Json] | None:
        """On a busy machine a scrape may be late since it came to rest: that blip is not what it came to.

        Nothing at all may be what it came to.
        """
        if self.missing():
            return None
        found = state(self.rig.api, self.site.namespace)
        return None if self.missing() else (found,)


def _rolled_out(deployment: Json) -> bool:
    status, wanted = deployment.get("status") or {}, deployment["spec"]["replicas"]
    seen = status.get("observedGeneration") == deployment["metadata"]["generation"]
    return bool(seen and status.get("updatedReplicas", 0) == wanted and status.get("replicas", 0) == wanted)


def _busy(life: Instance) -> str:
    if not life.is_alive:
        return f"the operator ended: {life.error!r}"
    recent = [[action.id for action in plan.actions] + [str(s.key) for s in plan.statuses] for _, _, plan in life.plans]
    return f"the operator is not at rest: {recent[-3:]}"


# --- steps -----------------------------------------------------------------------------------------------------------

Step = Callable[[Play], None]


def create(play: Play) -> None:
    """Two services: one whose count is automatic, one whose count is fixed."""
    play.ask("auto", 1)
    play.ask("fixed", 2, replicas=2, tier="Spot")


def move(play: Play) -> None:
    """The node is cordoned: its replicas get successors elsewhere, then go."""
    play.site.node()
    play.cordoned = play.site.nodes[0]
    play.site.kubectl("cordon", play.cordoned)


def scale(play: Play) -> None:
    """One up, one down."""
    play.ask("auto", 2, scaling={"minReplicas": 2})
    play.ask("fixed", 1, replicas=1, tier="Spot")


def change(play: Play) -> None:
    """A setting of the engine: every replica is replaced."""
    play.ask("fixed", 1, replicas=1, tier="Spot", engine={"name": "vLLM", "maxNumSeqs": 4})


def delete(play: Play) -> None:
    """A service goes, with all that is its."""
    del play.services["fixed"]
    play.site.kubectl("delete", "tokenservice", "fixed", "--wait=false")


STEPS: dict[str, Step] = {"create": create, "move": move, "scale": scale, "change": change, "delete": delete}
"""The longest first: what is disturbed at a late write need not run those that have fewer."""


# --- undisturbed -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference:
    """What the undisturbed run came to, and how many writes that count each step took."""

    outcomes: dict[str, Json]
    writes: dict[str, int]

    def differs(self, step: str, outcome: Json) -> list[str]:
        """What another run came to instead."""
        return difference(self.outcomes[step], outcome)


def undisturbed(rig: Rig, play: Play) -> Reference:
    """Every step, with nothing going wrong."""
    door, outcomes, writes = rig.door(), {}, {}
    life = rig.start(door, watchNamespaces=[play.site.namespace])
    for name, step in STEPS.items():
        before = len(_counted(door))
        step(play)
        play.rest(life)
        outcomes[name], writes[name] = play.outcome(), len(_counted(door)) - before
    rig.end()
    return Reference(outcomes, writes)


def _counted(door: Door) -> list[Call]:
    return [call for call in door.writes() if call.kind != "events"]
