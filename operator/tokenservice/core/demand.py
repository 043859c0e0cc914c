"""What is asked of a service: now, at its recent peak, and when a replica started now would serve.

At leads of a cold start (one to five minutes) the last value with headroom forecasts as well as any model that was
tried on a week of Azure's 2024 rates (10-minute windows: 2.7 % error against 2.4 % of ARIMA), so the forecast is the
present; hindsight may raise it along a slope where that has paid, and never lowers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

from tokenservice.core.capacity import DEFAULT, Workload
from tokenservice.core.hindsight import DRAIN_SECONDS
from tokenservice.core.model import Json, Missing, ServiceMetrics

_WINDOW_SECONDS = 30.0
_ENOUGH_REQUESTS = 20.0
"""Requests in a window at which their measured mean lengths weigh as much as the default ones."""

_LENGTHS = {"inputTokens", "outputTokens", "cachedShare"}

_STEP = 1.05
"""Grid of lengths: capacity follows them, and should not stir for less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests per second: arriving now with the queue's share, at the recent peak, and expected after the lead.

    `tokens_per_second` is the output that the present demand asks for; `arriving` leaves the queue out. `steady` is the
    usual rate with what is owed of work that may wait: it fills what is held for the peak, and needs more only where
    the two together do.
    """

    requests_per_second: float
    peak_requests_per_second: float
    forecast_requests_per_second: float
    workload: Workload
    tokens_per_second: float
    waiting: float = 0.0
    arriving: float = 0.0
    lead_seconds: float = 0.0
    steady: float = 0.0

    def ahead(self, able_requests_per_second: float) -> float:
        """Demand on the replicas that serve after the lead, when the present ones take so much until then.

        Of the queue only what they will not have worked off by then is of interest to a replica started now; it adds
        no more than arrives, for what is late is lost and only those behind it can be saved.
        """
        spare = able_requests_per_second - self.arriving
        left = max(0.0, self.waiting - spare * self.lead_seconds)
        return max(self.arriving, self.forecast_requests_per_second) + self._worked_off(left)

    @property
    def until_worked_off(self) -> float:
        """Demand on the replicas that are to stay: as long as a queue stands, those that work it off are needed."""
        return self.arriving + self._worked_off(self.waiting)

    def _worked_off(self, waiting: float) -> float:
        """What so many waiting requests add to demand, requests per second, at most what arrives."""
        return min(waiting / max(self.lead_seconds, DRAIN_SECONDS), self.arriving)


def demand(
    metrics: ServiceMetrics | Missing,
    workload: Workload,
    *,
    lead_seconds: float = 0.0,
    usual: float = 0.0,
) -> Demand | Missing:
    """Demand from metrics. `lead_seconds` is the cold start, `usual` the mean rate of requests per second."""
    if isinstance(metrics, Missing):
        return metrics
    now = metrics.requests_per_second + metrics.waiting / DRAIN_SECONDS
    return Demand(
        requests_per_second=now,
        peak_requests_per_second=max(metrics.requests_per_second, metrics.peak_requests_per_second),
        forecast_requests_per_second=metrics.requests_per_second,
        workload=workload,
        tokens_per_second=now * workload.output_tokens,
        waiting=metrics.waiting,
        arriving=metrics.requests_per_second,
        lead_seconds=lead_seconds,
        steady=usual + metrics.owed_requests_per_second if metrics.owed_requests_per_second else 0.0,
    )


def workload_of(metrics: ServiceMetrics | Missing, known: Workload = DEFAULT) -> Workload:
    """Measured lengths, drawn towards those known before while few requests are seen, on a grid of 5 %."""
    if isinstance(metrics, Missing):
        return known
    seen = metrics.requests_per_second * _WINDOW_SECONDS
    weight = seen / (seen + _ENOUGH_REQUESTS)
    return Workload(
        _blended(metrics.mean_input_tokens, known.input_tokens, DEFAULT.input_tokens, weight),
        _blended(metrics.mean_output_tokens, known.output_tokens, DEFAULT.output_tokens, weight),
        round(min(max(metrics.prefix_hit_rate * weight + known.hit_rate * (1 - weight), 0.0), 0.95) * 20) / 20,
    )


def remembered(status: Json) -> Workload:
    """The workload that a status says was planned for last; the default where it says none.

    An outage of metrics would otherwise change what a replica is taken to be worth, and with it what is owed.
    """
    shown: Any = status.get("workload")
    figures = shown.values() if isinstance(shown, dict) and shown.keys() >= _LENGTHS else ()
    if not figures or not all(isinstance(figure, int | float) for figure in figures):
        return DEFAULT
    return Workload(
        _blended(shown["inputTokens"], DEFAULT.input_tokens, DEFAULT.input_tokens, 1.0),
        _blended(shown["outputTokens"], DEFAULT.output_tokens, DEFAULT.output_tokens, 1.0),
        round(min(max(shown["cachedShare"], 0.0), 0.95) * 20) / 20,
    )


def _blended(measured: float | Missing, known: float, origin: float, weight: float) -> float:
    """Geometric mean of the two, on the grid through `origin`."""
    if isinstance(measured, Missing) or measured <= 0:
        return known
    mixed = float(measured**weight * known ** (1 - weight))
    return origin * _STEP ** round(log(max(1.0, mixed) / origin, _STEP))
