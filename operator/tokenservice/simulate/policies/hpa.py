"""The Kubernetes HorizontalPodAutoscaler (autoscaling/v2), the part that most peers end in.

From kubernetes/kubernetes `pkg/controller/podautoscaler/replica_calculator.go` (metrics to a count) and
`horizontal.go` (stabilization and rates). Asked every 15 s (`--horizontal-pod-autoscaler-sync-period`), tolerance 0.1.

Three ways from a metric to a count:
- AverageValue of an external metric, which is what KEDA makes: a total over the replicas there are.
- Value of an external metric: a ratio times the *ready* replicas.
- Pods: a mean over the replicas that report. Those that do not are taken to be at the target when the count would
  fall and at zero when it would rise, and nothing happens when that turns the direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from tokenservice.simulate.policies.base import Window, whole
from tokenservice.simulate.policy import ServiceView

SYNC_SECONDS = 15.0
TOLERANCE = 0.1


def average_value(total: float, target: float, replicas: int) -> int:
    """Count for a total that should be `target` per replica."""
    if replicas > 0 and abs(1 - total / (target * replicas)) <= TOLERANCE:
        return replicas
    return whole(total / target)


def value(metric: float, target: float, replicas: int, ready: int) -> int:
    """Count for a metric that should be `target` whatever the count."""
    ratio = metric / target
    if replicas == 0:
        return whole(ratio)
    return replicas if abs(1 - ratio) <= TOLERANCE else whole(ratio * ready)


def per_pod(mean: float, target: float, replicas: int, reporting: int) -> int | None:
    """Count for a mean over the `reporting` replicas that should be `target`; None when none reports."""
    if reporting <= 0:
        return None
    ratio, silent = mean / target, max(0, replicas - reporting)
    if silent == 0:
        return replicas if abs(1 - ratio) <= TOLERANCE else whole(ratio * reporting)
    assumed = silent if ratio < 1 else 0
    cautious = (ratio * reporting + assumed) / replicas
    if abs(1 - cautious) <= TOLERANCE or (ratio - 1) * (cautious - 1) < 0:
        return replicas
    return whole(cautious * replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How much may change within a period: a number of pods, a percentage of the count at its start, or the more."""

    period_seconds: float
    pods: int = 0
    percent: float = 0.0

    def up(self, start: int) -> int:
        return max(start + self.pods, ceil(start * (1 + self.percent / 100) - 1e-9))

    def down(self, start: int) -> int:
        return max(0, min(start - self.pods, int(start * (1 - self.percent / 100) + 1e-9)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """`spec.behavior` under a name; the defaults are those of the API. Windows in seconds."""

    name: str = "HPA's"
    up_window: float = 0.0
    up: Rate = Rate(period_seconds=15, pods=4, percent=100)
    down_window: float = 300.0
    down: Rate = Rate(period_seconds=15, percent=100)

    def __str__(self) -> str:
        return self.name


DEFAULT_BEHAVIOUR = Behaviour()


@dataclass(slots=True)
class Hpa:
    """The memory of one HPA object: recent recommendations, and how much it changed when.

    The count that it first finds is the first of them (`recordInitialRecommendation`): a controller that knows of
    nothing takes nothing away at once.
    """

    behaviour: Behaviour = DEFAULT_BEHAVIOUR
    _for_up: Window = field(init=False)
    _for_down: Window = field(init=False)
    _added: Window = field(init=False)
    _removed: Window = field(init=False)
    _began: bool = False

    def __post_init__(self) -> None:
        self._for_up = Window(self.behaviour.up_window)
        self._for_down = Window(self.behaviour.down_window)
        self._added = Window(max(self.behaviour.up.period_seconds, self.behaviour.down.period_seconds))
        self._removed = Window(self._added.seconds)

    def decide(self, now: float, seen: ServiceView, *wanted: int | None) -> int | None:
        """The count to set for what each metric wants: the highest; while one is missing there is no scale-down."""
        current = seen.replicas
        self._begin(now, current)
        known = [count for count in wanted if count is not None]
        if not known or (len(known) < len(wanted) and max(known) < current):
            return None
        scaling = seen.spec.scaling
        calm = self._stabilized(now, current, max(known))
        count = min(max(self._limited(now, current, calm), scaling.min_replicas), scaling.max_replicas)
        self._remember(now, count - current)
        return count

    def _begin(self, now: float, current: int) -> None:
        if not self._began:
            self._began = True
            self._recommend(now, current)

    def _recommend(self, now: float, count: int) -> None:
        self._for_up.add(now, count)
        self._for_down.add(now, count)

    def _stabilized(self, now: float, current: int, recommendation: int) -> int:
        """Up to the lowest recommendation of the window for up, down to the highest of the window for down."""
        self._recommend(now, recommendation)
        up = min([recommendation, *self._for_up.since(now - self.behaviour.up_window)])
        down = max([recommendation, *self._for_down.since(now - self.behaviour.down_window)])
        return int(min(max(current, up), down))

    def _limited(self, now: float, current: int, wanted: int) -> int:
        if wanted > current:
            rate = self.behaviour.up
            return max(current, min(wanted, rate.up(self._at_start(now, current, rate))))
        rate = self.behaviour.down
        return min(current, max(wanted, rate.down(self._at_start(now, current, rate))))

    def _at_start(self, now: float, current: int, rate: Rate) -> int:
        """The count at the start of the rate's period."""
        added, removed = (sum(events.since(now - rate.period_seconds)) for events in (self._added, self._removed))
        return current - int(added) + int(removed)

    def _remember(self, now: float, change: int) -> None:
        (self._added if change > 0 else self._removed).add(now, abs(change))
