"""What Prometheus would say of simulated replicas: scrapes, rates over windows, staleness.

The figures are those of `edge/promql.py`, formed from scraped counters in the same way. A rate is the difference of
the last and the first sample in its window, per second between them: what `rate()` amounts to where samples are evenly
spaced. A window leaves out its own first instant, as Prometheus 3 does, so one of 15 s holds three scrapes 5 s apart.
Arrivals are first tokens plus what the queues grew by; requests held where no replica serves are seen by nobody.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokenservice.core.model import Missing, ServiceMetrics
from tokenservice.core.windows import Highest, Windows
from tokenservice.simulate.policy import EngineView
from tokenservice.simulate.pool import Pool, Stats

Counts = NDArray[np.int64]

_OF_DEADLINE = 0.4
"""What waits is to be started within this share of its time: so long a steady flow then waits."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """Totals of one service at one time. Counters never fall; gauges are as they stood; buckets are cumulative.

    `deferred_sent` counts requests that may wait and were sent to engines, `deferred` those that still wait: the
    queue in front of the engines tells. Where all are sent as they come there is no queue, and they are like others.
    """

    at: float
    finished: float
    prompt_tokens: float
    cached_tokens: float
    output_tokens: float
    busy_seconds: float
    request_seconds: float
    deferred_sent: float
    deferred: float
    ttft_counts: Counts
    tpot_counts: Counts
    engines: tuple[EngineView, ...]

    @property
    def first_tokens(self) -> float:
        """Requests that got their first token."""
        return float(self.ttft_counts[-1])

    @property
    def waiting(self) -> float:
        """Requests in the engines' queues."""
        return sum(engine.waiting for engine in self.engines)


@dataclass
class Meter:
    """Scrapes of one service, and what they amount to."""

    windows: Windows
    ttft_edges: Sequence[float]
    tpot_edges: Sequence[float]
    deadline_seconds: float = math.inf
    _scrapes: deque[Scrape] = field(default_factory=deque)
    _rates: Highest = field(default_factory=Highest)

    def scraped(self, scrape: Scrape) -> None:
        """One more sample."""
        self._scrapes.append(scrape)
        while self._scrapes[0].at < scrape.at - self.windows.mean:
            self._scrapes.popleft()
        first = self._since(scrape.at - self.windows.rate)
        if first is not scrape:
            self._rates.push(scrape.at, _arrivals(first, scrape), self.windows.peak)

    def metrics(self, now: float) -> ServiceMetrics | Missing:
        """What a query at `now` gives."""
        if not self.engines:
            return Missing("NoSeries", "no engine was there to be scraped")
        last = self._scrapes[-1]
        if now - last.at > self.windows.staleness:
            return Missing("Stale", f"the newest sample is {now - last.at:.0f} s old")
        first = self._since(now - self.windows.rate)
        if first is last:
            return Missing("TooFewSamples", "a rate needs two samples")
        return self._metrics(first, last)

    def duty_cycle(self) -> float | Missing:
        """Share of time (0 to 1) in which an engine had work, over the rate window."""
        window = self._window()
        if window is None or not window[1].engines:
            return Missing("NoSeries", "no engine serves")
        first, last = window
        return min(1.0, (last.busy_seconds - first.busy_seconds) / (last.at - first.at) / len(last.engines))

    def concurrency(self) -> float | Missing:
        """Unfinished requests, meaned since the last scrape but one: who counts in a proxy needs no window of rates."""
        if len(self._scrapes) < 2:
            return Missing("TooFewSamples", "a mean needs two samples")
        first, last = self._scrapes[-2], self._scrapes[-1]
        return (last.request_seconds - first.request_seconds) / (last.at - first.at)

    @property
    def engines(self) -> tuple[EngineView, ...]:
        """Engines at the last scrape."""
        return self._scrapes[-1].engines if self._scrapes else ()

    def _window(self) -> tuple[Scrape, Scrape] | None:
        if len(self._scrapes) < 2:
            return None
        last = self._scrapes[-1]
        first = self._since(last.at - self.windows.rate)
        return None if first is last else (first, last)

    def _since(self, start: float) -> Scrape:
        """The oldest sample after `start`; the newest where there is none."""
        found = self._scrapes[-1]
        for scrape in reversed(self._scrapes):
            if scrape.at <= start + 1e-9:
                break
            found = scrape
        return found

    def _metrics(self, first: Scrape, last: Scrape) -> ServiceMetrics:
        seconds, oldest = last.at - first.at, self._scrapes[0]
        arrivals = _arrivals(first, last)
        finished = last.finished - oldest.finished
        prompts = last.prompt_tokens - oldest.prompt_tokens
        return ServiceMetrics(
            requests_per_second=arrivals,
            peak_requests_per_second=max(arrivals, self._rates.value),
            output_tokens_per_second=(last.output_tokens - first.output_tokens) / seconds,
            input_tokens_per_second=(last.prompt_tokens - first.prompt_tokens) / seconds,
            mean_input_tokens=_mean(prompts, last.first_tokens - oldest.first_tokens),
            mean_output_tokens=_mean(last.output_tokens - oldest.output_tokens, finished),
            prefix_hit_rate=(last.cached_tokens - oldest.cached_tokens) / prompts if prompts > 0 else 0.0,
            running=sum(engine.running for engine in last.engines),
            waiting=last.waiting,
            kv_usage=max((engine.kv_usage for engine in last.engines), default=0.0),
            engines_reporting=len(last.engines),
            engines_heard=len(last.engines),
            owed_requests_per_second=last.deferred / (self.deadline_seconds * _OF_DEADLINE),
            ttft_buckets=_buckets(self.ttft_edges, (last.ttft_counts - first.ttft_counts) / seconds),
            tpot_buckets=_buckets(self.tpot_edges, (last.tpot_counts - first.tpot_counts) / seconds),
        )


def _arrivals(first: Scrape, last: Scrape) -> float:
    grown = last.first_tokens - first.first_tokens + last.waiting - first.waiting
    grown -= last.deferred_sent - first.deferred_sent
    return max(0.0, grown / (last.at - first.at))


def _mean(total: float, count: float) -> float | Missing:
    return total / count if count > 0 else Missing("NothingFinished", "no request finished lately")


def _buckets(edges: Sequence[float], rates: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    return tuple(zip(edges, rates.tolist(), strict=True))


def scrape(pool: Pool) -> Scrape:
    """What the engines' metrics say now."""
    stats = pool.stats()
    alive = stats.alive
    gauges = zip(
        stats.running[alive].tolist(), stats.waiting[alive].tolist(), stats.kv_usage[alive].tolist(), strict=True
    )
    return Scrape(
        at=stats.now_s,
        finished=stats.totals.finished,
        prompt_tokens=stats.totals.prompt_tokens,
        cached_tokens=stats.totals.cached_tokens,
        output_tokens=stats.totals.generation_tokens,
        busy_seconds=stats.totals.busy_seconds,
        request_seconds=stats.unfinished_request_seconds,
        deferred_sent=_deferred_sent(pool, stats),
        deferred=stats.deferred,
        ttft_counts=stats.ttft_counts,
        tpot_counts=stats.tpot_counts,
        engines=tuple(EngineView(running=r, waiting=w, kv_usage=k) for r, w, k in gauges),
    )


def _deferred_sent(pool: Pool, stats: Stats) -> float:
    if math.isinf(pool.fill_to):
        return 0.0
    return stats.totals.arrived - (stats.interactive_arrived - stats.held)
