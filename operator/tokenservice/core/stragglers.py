"""Replicas that take several times as long for a token as their siblings do at their load.

A throttled, shared or failing accelerator is no error to anybody: its replica serves on, slowly, and with requests
spread evenly it holds up one of so many. What a replica takes for a token is divided by what the step model expects at
the number of sequences that it runs, so a longer queue alone makes none slow; and it is compared with the median of the
others of its variant, so what the model gets wrong for all of them does not either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tokenservice.core.capacity import Workload
from tokenservice.core.facts import Facts
from tokenservice.core.model import Missing, Pace, Pod, ServiceKey
from tokenservice.core.outlook import Outlook
from tokenservice.core.step import StepModel

SLOW = 3.0
"""Times as long as the others: twice as long may be long prompts that happened to go to one replica."""

LOOKS = 3.0
"""Windows of metrics, one after the other, in which a replica must have been slow."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """A replica that is `times` as slow as its siblings."""

    pod: Pod
    times: float

    @property
    def words(self) -> str:
        return f"{self.pod.name} on {self.pod.node} takes {self.times:.0f} times as long for a token as its siblings"


def stragglers(facts: Facts, outlooks: Iterable[Outlook]) -> dict[ServiceKey, tuple[Straggler, ...]]:
    """Those of every service that has some, the slowest first."""
    found = {seen.service.key: _of_service(facts, seen) for seen in outlooks if _told(seen)}
    return {service: slow for service, slow in found.items() if slow}


def since(facts: Facts, slow: Mapping[ServiceKey, Sequence[Straggler]], now: float) -> dict[str, float]:
    """Since when each of them is slow, seconds since the epoch, by the pod's uid: what the next decision must know."""
    known = facts.snapshot.slow_since
    return {one.pod.uid: known.get(one.pod.uid, now) for mine in slow.values() for one in mine}


def lasting(
    facts: Facts, slow: Mapping[ServiceKey, tuple[Straggler, ...]], began: Mapping[str, float], now: float
) -> dict[ServiceKey, tuple[Straggler, ...]]:
    """Those that were slow for long enough to be told of."""
    patience = LOOKS * facts.snapshot.fleet.prometheus.window_seconds
    found = {key: tuple(one for one in mine if now - began[one.pod.uid] >= patience) for key, mine in slow.items()}
    return {key: mine for key, mine in found.items() if mine}


def _told(seen: Outlook) -> bool:
    return not isinstance(seen.metrics, Missing) and bool(seen.metrics.paces)


def _of_service(facts: Facts, seen: Outlook) -> tuple[Straggler, ...]:
    """One that gave no token at all is left out: SGLang counts those of a long answer when it ends."""
    told = () if isinstance(seen.metrics, Missing) else seen.metrics.paces
    paces = {pace.pod: pace for pace in told if pace.tokens_per_second > 0}
    found = list[Straggler]()
    for variant, _ in seen.ranked:
        pods = [pod for pod in facts.pods.get((seen.service.key, variant.name), ()) if pod.ready and pod.name in paces]
        excess = [_excess(paces[pod.name], variant.step, seen.workload) for pod in pods]
        for index, pod in enumerate(pods):
            others = excess[:index] + excess[index + 1 :]
            times = excess[index] / median(others) if others else 1.0
            if times >= SLOW:
                found.append(Straggler(pod, times))
    return tuple(sorted(found, key=lambda one: (-one.times, one.pod.name)))


def _excess(pace: Pace, step: StepModel, work: Workload) -> float:
    """Time per token as a multiple of what is expected of so many sequences."""
    expected = step.tpot_ms(pace.running, work.input_tokens, work.output_tokens, work.hit_rate)
    return 1000 * pace.running / pace.tokens_per_second / expected
