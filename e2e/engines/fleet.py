"""All fake engines: which pods have one, what their profiles are, and what tests do to them."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from math import prod

from e2e.engines.contract import EnginePod, PodKey, Profile
from e2e.engines.fake_engine import FakeEngine, Reports, State
from e2e.engines.process import Timers
from tokenservice.core.step import StepModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """`time_scale` divides cold starts, never the engines' steps. A `cold_start_spread` of 0.2 is ±20 %, per pod."""

    time_scale: float = 1.0
    cold_start_spread: float = 0.0
    default_profile: str = ""
    """Of pods that name none: variants that nobody measured."""


@dataclass(frozen=True, slots=True)
class StartRule:
    """Trouble for engines that start from now on: of one namespace or service, or of all (empty)."""

    namespace: str = ""
    service: str = ""
    slow_factor: float = 1.0
    fails: bool = False
    step_factor: float = 1.0
    """How much longer each of their iterations takes, for as long as they live: a throttled accelerator."""

    def matches(self, pod: EnginePod) -> bool:
        return self.namespace in ("", pod.key.namespace) and self.service in ("", pod.service)


class Fleet:
    """Engines by pod. Fed with what the API server shows; safe to feed the same thing twice."""

    def __init__(
        self,
        timers: Timers,
        reports: Reports,
        *,
        options: FleetOptions | None = None,
        wall_clock: Callable[[], float],
    ) -> None:
        self._timers = timers
        self._reports = reports
        self._options = options or FleetOptions()
        self._wall_clock = wall_clock
        self._engines: dict[PodKey, FakeEngine] = {}
        self._waiting: dict[PodKey, EnginePod] = {}
        self._profiles: dict[str, Profile] = {}
        self._lost_nodes: set[str] = set()
        self._start_rules: list[StartRule] = []
        self.adapter_pages: dict[PodKey, str] = {}
        """What the loader of adapters in each pod says to Prometheus."""

    # -- looking

    def __iter__(self) -> Iterator[FakeEngine]:
        return iter(self._engines.values())

    def get(self, key: PodKey) -> FakeEngine | None:
        return self._engines.get(key)

    def scrape_targets(self) -> list[PodKey]:
        """The engines whose port is open."""
        return [engine.pod.key for engine in self if engine.listens and engine.pod.serves]

    # -- what the API server shows

    def pod_seen(self, pod: EnginePod) -> None:
        """A pod was added or changed."""
        engine = self._engines.get(pod.key)
        if engine is not None and engine.pod.uid != pod.uid:
            self.pod_gone(pod.key)
            engine = None
        if engine is not None and engine.state != State.GONE:
            engine.pod = pod
            if pod.finished:
                engine.kill()
            engine.terminate()
        elif pod.deletion is not None:
            self._let_go(pod)
        elif engine is None and pod.running and pod.node not in self._lost_nodes:
            self._start(pod)

    def pod_gone(self, key: PodKey) -> None:
        """A pod vanished from the API server: its process cannot outlive it."""
        self._waiting.pop(key, None)
        engine = self._engines.pop(key, None)
        if engine is not None:
            engine.pod = replace(engine.pod, deletion=None)  # nobody is left to report to
            engine.kill()

    def only_pods(self, keys: set[PodKey]) -> None:
        """After a fresh list: whatever is not on it is gone."""
        for key in [*self._engines, *self._waiting]:
            if key not in keys:
                self.pod_gone(key)

    def profile_seen(self, name: str, profile: Profile) -> None:
        """Engines that wait for it start; running ones keep the figures they started with."""
        self._profiles[name] = profile
        self._start_waiting()

    def node_lost(self, node: str) -> None:
        """A machine is gone or silent: its engines die without a word."""
        self._lost_nodes.add(node)
        for engine in [engine for engine in self if engine.pod.node == node]:
            engine.kill()

    def node_present(self, node: str) -> None:
        """A machine is there (again): pods that it still has start from cold."""
        if node not in self._lost_nodes:
            return
        self._lost_nodes.discard(node)
        for engine in [engine for engine in self if engine.pod.node == node and engine.state == State.GONE]:
            del self._engines[engine.pod.key]
            if engine.pod.deletion is None:
                self._reports.ready(engine.pod, False)
            self.pod_seen(replace(engine.pod, ready_reported=False))

    # -- what tests do

    def set_start_rules(self, rules: list[StartRule]) -> None:
        """Replace them all; a failing start is retried until its rule is gone."""
        self._start_rules = rules

    def _let_go(self, pod: EnginePod) -> None:
        """A deleted pod that has no process; on a lost node nobody is there to say so."""
        self._waiting.pop(pod.key, None)
        if (engine := self._engines.get(pod.key)) is not None:
            engine.pod = pod
        if pod.node not in self._lost_nodes and not pod.drained_reported:
            self._reports.drained(pod)

    def _start_waiting(self) -> None:
        for pod in list(self._waiting.values()):
            self._start(pod)

    def _start(self, pod: EnginePod) -> None:
        """Not before its profile is known, nor, of a replica of several pods the one that serves, before the others."""
        name = pod.profile or self._options.default_profile
        profile = self._profiles.get(name)
        if profile is None or self._lacks_workers(pod):
            if profile is None and pod.key not in self._waiting:
                log.warning("pod %s/%s waits for profile %r", pod.key.namespace, pod.key.name, name)
            self._waiting[pod.key] = pod
            return
        self._waiting.pop(pod.key, None)
        self._engines[pod.key] = FakeEngine(
            pod,
            self._throttled(pod, profile),
            self._timers,
            self._reports,
            cold_start_seconds=self._cold_start_seconds(pod, profile),
            wall_clock=self._wall_clock,
            start_fails=lambda: any(rule.fails for rule in self._start_rules if rule.matches(pod)),
        )
        if not pod.serves:
            self._start_waiting()

    def _lacks_workers(self, pod: EnginePod) -> bool:
        if not pod.serves or pod.group_size == 1:
            return False
        others = (it.pod for it in self if it.state != State.GONE and it.pod.key.namespace == pod.key.namespace)
        return sum(other.group == pod.group and not other.serves for other in others) < pod.group_size - 1

    def _throttled(self, pod: EnginePod, profile: Profile) -> Profile:
        factor = prod(rule.step_factor for rule in self._start_rules if rule.matches(pod))
        slower = {name: value * factor for name, value in asdict(profile.step).items()}
        return replace(profile, step=StepModel(**slower))

    def _cold_start_seconds(self, pod: EnginePod, profile: Profile) -> float:
        spread = self._options.cold_start_spread
        factor = random.Random(pod.uid).uniform(1 - spread, 1 + spread)
        for rule in self._start_rules:
            if rule.matches(pod):
                factor *= rule.slow_factor
        return profile.cold_start_seconds * factor / self._options.time_scale
