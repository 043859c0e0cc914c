"""What became of every request, per service: the client's side of the books."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np


class Outcome(StrEnum):
    """How a request ended. All but OK count as a miss of both objectives."""

    OK = "ok"
    REFUSED = "refused"
    """Every endpoint that was tried had no engine that takes requests."""
    FAILED = "failed"
    """No connection to the engines at all, or an error of another kind."""
    CUT = "cut"
    """The engine had taken the request, and went before the last token."""
    MISSED = "missed"
    """No endpoint became ready in time."""


@dataclass(frozen=True, slots=True)
class Objectives:
    """Targets of one service, in seconds; a request meets them when it is within both."""

    ttft_s: float
    tpot_s: float

    def are_met(self, ttft_s: float | None, tpot_s: float | None) -> bool:
        """A request that never got its tokens met nothing."""
        return ttft_s is not None and tpot_s is not None and ttft_s <= self.ttft_s and tpot_s <= self.tpot_s


@dataclass(frozen=True, slots=True)
class Result:
    """One request, over. Times in seconds; `ttft_s` counts from the arrival, waiting for an endpoint included."""

    service: str
    arrived_epoch_s: float
    outcome: Outcome
    input_tokens: int
    output_tokens: int
    delivered_tokens: int
    attempts: int
    pod: str
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    met: bool


@dataclass(slots=True)
class Account:
    """One service's totals since the start, and its last minute."""

    objectives: Objectives
    arrived: int = 0
    attempts: int = 0
    arrived_output_tokens: int = 0
    delivered_input_tokens: int = 0
    delivered_output_tokens: int = 0
    met: int = 0
    met_ttft: int = 0
    met_tpot: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    _recent: deque[tuple[float, Result]] = field(default_factory=deque)
    _recent_arrivals: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def finished(self) -> int:
        return sum(self.outcomes.values())

    @property
    def in_flight(self) -> int:
        return self.arrived - self.finished

    @property
    def attainment(self) -> float:
        """Share of the requests that are over and met both objectives; 1 before the first."""
        return self.met / self.finished if self.finished else 1.0

    def count_arrival(self, output_tokens: int, now_s: float) -> None:
        """A request is due."""
        self.arrived += 1
        self.arrived_output_tokens += output_tokens
        self._recent_arrivals.append((now_s, output_tokens))
        while self._recent_arrivals[0][0] < now_s - RECENT_SECONDS:
            self._recent_arrivals.popleft()

    def count(self, result: Result, now_s: float) -> None:
        """A request is over."""
        self.outcomes[result.outcome] += 1
        self.attempts += result.attempts
        self.delivered_output_tokens += result.delivered_tokens
        if result.outcome == Outcome.OK:
            self.delivered_input_tokens += result.input_tokens
            self.met += result.met
            self.met_ttft += result.ttft_s is not None and result.ttft_s <= self.objectives.ttft_s
            self.met_tpot += result.tpot_s is not None and result.tpot_s <= self.objectives.tpot_s
        self._recent.append((now_s, result))
        while self._recent[0][0] < now_s - RECENT_SECONDS:
            self._recent.popleft()

    def recent(self, now_s: float, seconds: float) -> Recent:
        """The last `seconds` (at most 60)."""
        results = [result for at, result in self._recent if at >= now_s - seconds]
        asked = [tokens for at, tokens in self._recent_arrivals if at >= now_s - seconds]
        return Recent(
            requests_per_second=len(asked) / seconds,
            demand_tokens_per_second=sum(asked) / seconds,
            delivered_tokens_per_second=sum(result.delivered_tokens for result in results) / seconds,
            attainment=sum(result.met for result in results) / len(results) if results else None,
            ttft_p95_s=_p95([result.ttft_s for result in results if result.ttft_s is not None]),
            tpot_p95_s=_p95([result.tpot_s for result in results if result.tpot_s is not None]),
        )


RECENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Recent:
    """A service over the last seconds; None where nothing finished."""

    requests_per_second: float
    demand_tokens_per_second: float
    delivered_tokens_per_second: float
    attainment: float | None
    ttft_p95_s: float | None
    tpot_p95_s: float | None


def _p95(values: list[float]) -> float | None:
    return float(np.quantile(values, 0.95)) if values else None
