"""Reads Prometheus: one round gives `ServiceMetrics` or `Missing` for every service asked about.

No data is never zero. Whatever is wrong (no answer, no right, not Prometheus, no series, old samples, NaN) becomes a
`Missing` whose message names the place and the fix, and nothing is scaled down on it. The client is synchronous, so a
round runs in a thread; the first failing query ends the round, so that a dead server costs one timeout and not many.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import requests
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect
from urllib3.util.retry import Retry

from tokenservice.core.model import (
    NO_MEANS,
    LoadedAdapter,
    Means,
    Missing,
    Pace,
    PodAdapters,
    ServiceKey,
    ServiceMetrics,
)
from tokenservice.core.windows import Highest, Windows
from tokenservice.edge import promql

TIMEOUT_SECONDS = 5

MEANS_SECONDS = 60.0
"""Means over hours are asked for this often: they hardly move, and a user's query runs hundreds of times for them."""

Row = tuple[str, str]
"""Namespace and served model name, as the engines' series carry them."""

Series = tuple[Mapping[str, str], float]
"""Labels and value."""

Buckets = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to ask, and where; of `adapters` only where some service loads them while it runs."""

    address: str | None
    services: Mapping[Row, ServiceKey]
    windows: Windows
    utilization_query: str | None = None
    adapters: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Prometheus says; `utilization` is that of the user's own query, `means` are of that or the operator's."""

    services: Mapping[ServiceKey, ServiceMetrics | Missing]
    utilization: float | Missing
    means: Means = NO_MEANS
    adapters: PodAdapters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Round:
    """Raw results of one round."""

    figures: Mapping[str, Mapping[Row, float]]
    ttft: Mapping[Row, Buckets]
    tpot: Mapping[Row, Buckets]
    paces: Mapping[Row, tuple[Pace, ...]]
    utilization: float | Missing
    means: Means
    adapters: PodAdapters


class _NoAnswer(Exception):  # noqa: N818 - carries a value, never leaves this module
    def __init__(self, missing: Missing) -> None:
        super().__init__(missing.message)
        self.missing = missing


NO_QUERY = Missing("NoQuery", "no utilizationQuery is set: the operator's own figure counts")
_NO_ADDRESS = Missing(
    "NoAddress", "no Prometheus address is set: give prometheus.address in the chart's values or in the TokenFleet"
)


class PrometheusReader:
    """Asks one Prometheus at a time; the address may change between rounds."""

    def __init__(
        self,
        *,
        bearer_token_file: str | None = None,
        timeout_seconds: int = TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token_file = bearer_token_file
        self._timeout = timeout_seconds
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "prometheus")  # its own: in a pool each thread's heap would grow as large
        self._peaks = _Peaks(clock)
        self._means: tuple[float, str | None, Means] = (-math.inf, None, NO_MEANS)

    async def read(self, question: Question) -> Answer:
        """One round."""
        if not question.address:
            return nothing(question, _NO_ADDRESS)
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._thread, self._ask, question, question.address)
        except _NoAnswer as error:
            return nothing(question, error.missing)
        read = {key: _metrics(row, found, question) for row, key in sorted(question.services.items())}
        services = self._peaks.held(read, question.windows.peak)
        return Answer(services=services, utilization=found.utilization, means=found.means, adapters=found.adapters)

    def _ask(self, question: Question, address: str) -> _Round:
        with _Client(address, self._headers(), self._timeout) as client:

            def asked(text: str) -> list[Series]:
                return [one for one in client.query(text) if _row(one[0]) in question.services]

            figures = {name: _by_row(asked(text)) for name, text in promql.figures(question.windows).items()}
            ttft, tpot = (
                _histograms(asked(promql.buckets(histogram, question.windows)))
                for histogram in (promql.TTFT, promql.TPOT)
            )
            paces, query = _paces(asked(promql.paces(question.windows))), question.utilization_query
            adapters = _adapters(client) if question.adapters else {}
            own, means = self._utilization(client, query), self._recent_means(client, query)
            return _Round(figures, ttft, tpot, paces, own, means, adapters)

    def _utilization(self, client: _Client, query: str | None) -> float | Missing:
        """A user's query that fails spoils only its own figure."""
        if query is None:
            return NO_QUERY
        try:
            return _share(client.query(query))
        except _NoAnswer as error:
            return Missing(error.missing.reason, f"prometheus.utilizationQuery: {error.missing.message}")

    def _recent_means(self, client: _Client, query: str | None) -> Means:
        asked_at, of, _ = self._means
        if of != query or self._clock() - asked_at >= MEANS_SECONDS:
            self._means = (self._clock(), query, _means(client, query))
        return self._means[-1]

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            return {"Authorization": f"Bearer {Path(self._token_file).read_text(encoding='utf-8').strip()}"}
        except (OSError, UnicodeDecodeError) as error:
            raise _NoAnswer(Missing("NoToken", f"the bearer token for Prometheus cannot be read: {error}")) from error


class _Client:
    """`PrometheusConnect` without its retries, and with one kind of error, that shows no password of the address."""

    def __init__(self, address: str, headers: dict[str, str], timeout: int) -> None:
        self._shown = address.rpartition("@")[2].rstrip("/")
        try:
            self._connect = PrometheusConnect(
                url=address.rstrip("/"), headers=headers, retry=Retry(0, read=False), timeout=timeout
            )
        except ValueError as error:  # an address that is no URL
            raise _NoAnswer(self._not_prometheus()) from error

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connect.close()

    def query(self, text: str) -> list[Series]:
        """What an instant query gives. Raises _NoAnswer with what to tell the user."""
        try:
            return _series(self._connect.custom_query(text))
        except PrometheusApiClientException as error:
            raise _NoAnswer(self._refused(str(error))) from error
        except (KeyError, TypeError, ValueError) as error:  # no JSON, other JSON, or an address that is no URL
            raise _NoAnswer(self._not_prometheus()) from error
        except requests.exceptions.RequestException as error:
            raise _NoAnswer(self._unreachable(error)) from error

    def _refused(self, text: str) -> Missing:
        match = re.match(r"HTTP Status Code (\d+)", text)
        code = match.group(1) if match else "?"
        if code in ("401", "403"):
            fix = "give the operator a token that may query it (prometheus.bearerTokenFile)"
            return Missing("Unauthorized", f"Prometheus at {self._shown} answers {code}: {fix}")
        if code == "404":
            return self._not_prometheus()
        return Missing("QueryFailed", f"Prometheus at {self._shown} answers {text[:300]}")

    def _not_prometheus(self) -> Missing:
        fix = "check prometheus.address, it must be the base URL of a Prometheus HTTP API"
        return Missing("NotPrometheus", f"what answers at {self._shown} is not a Prometheus API: {fix}")

    def _unreachable(self, error: Exception) -> Missing:
        what = "did not answer in time" if isinstance(error, requests.exceptions.Timeout) else "cannot be reached"
        fix = "check prometheus.address, that Prometheus runs, and that network policies allow it"
        return Missing("Unreachable", f"Prometheus at {self._shown} {what}: {fix}")


# --- from results to metrics ---------------------------------------------------------------------------------------


def nothing(question: Question, missing: Missing) -> Answer:
    """The answer to all of it where there is none."""
    utilization = NO_QUERY if question.utilization_query is None else missing
    services = dict.fromkeys(question.services.values(), missing)
    return Answer(services=services, utilization=utilization, means=Means(hour=missing, day=missing))


def _metrics(row: Row, found: _Round, question: Question) -> ServiceMetrics | Missing:
    own = {name: values[row] for name, values in found.figures.items() if row in values}
    namespace, model = row
    if "running" not in own:
        fix = "check that Prometheus scrapes its pods and keeps their namespace as a label"
        fix += ", and that no NetworkPolicy keeps it out (access.prometheus of the chart)"
        return Missing("NoSeries", f"no engine that serves {model} in {namespace} has reported: {fix}")
    age, limit = own.get("age_seconds", math.inf), question.windows.staleness
    if not age <= limit:
        return Missing(
            "Stale", f"the newest sample of {model} in {namespace} is {age:.0f} s old, {limit} s are allowed"
        )
    if own.get("scraped_again", 0.0) > 0:
        fix = "leave one PodMonitor, ServiceMonitor or scrape job for them, and query where replicas are deduplicated"
        return Missing("ScrapedTwice", f"engines of {model} in {namespace} are scraped more than once: {fix}")
    if "requests_per_second" not in own and own["running"] > 0 and "output_tokens_per_second" in own:
        fix = "check that their version names its metrics as `tokenservice engine check` expects"
        return Missing("NoCounters", f"engines of {model} in {namespace} run requests and count none: {fix}")
    if not own.keys() >= _RATES:
        fix = "scrape four times in prometheus.windowSeconds of the TokenFleet, or raise that"
        found_in = f"{model} in {namespace} was scraped less than twice in {question.windows.rate} s"
        return Missing("TooFewSamples", f"{found_in}, and a rate needs two samples: {fix}")
    if (resets := own.get("counter_resets", 0.0)) >= _RESETS:
        fix = "check that its engines do not restart, and that each of them is scraped at an address of its own"
        return Missing("CounterResets", f"counters of {model} in {namespace} began anew {resets:.0f} times: {fix}")
    return _checked(own, found, row)


_RESETS = 2
"""Within the window of rates: a restart is seen once and counted rightly, what begins anew all the time is not."""

_RATES = {"requests_per_second", "output_tokens_per_second", "input_tokens_per_second"}

_REQUIRED = (
    "requests_per_second",
    "output_tokens_per_second",
    "input_tokens_per_second",
    "running",
    "waiting",
    "kv_usage",
    "engines_reporting",
)


def _checked(own: Mapping[str, float], found: _Round, row: Row) -> ServiceMetrics | Missing:
    """Every figure that decisions rest on is a number that can be one.

    A peak that is not known is infinite: it may have been anything, so nothing is removed, and nothing is added for it.
    """
    for name in _REQUIRED:
        value = own.get(name)
        if value is None or not math.isfinite(value) or value < 0:
            shown = "absent" if value is None else f"{value:g}"
            return Missing("NotANumber", f"{name} of {row[1]} in {row[0]} is {shown}")
    arrivals = own["requests_per_second"]
    return ServiceMetrics(
        requests_per_second=arrivals,
        peak_requests_per_second=max(arrivals, _finite(own.get("peak_requests_per_second"), math.inf)),
        output_tokens_per_second=own["output_tokens_per_second"],
        input_tokens_per_second=own["input_tokens_per_second"],
        mean_input_tokens=_length(own.get("mean_input_tokens"), "prompts"),
        mean_output_tokens=_length(own.get("mean_output_tokens"), "answers"),
        prefix_hit_rate=min(1.0, _finite(own.get("prefix_hit_rate"), 0.0)),
        running=own["running"],
        waiting=own["waiting"],
        kv_usage=own["kv_usage"],
        engines_reporting=round(own["engines_reporting"]),
        engines_heard=_count(own.get("engines_heard")),
        mean_tpot_seconds=_mean_tpot(own.get("mean_tpot_seconds")),
        ttft_buckets=found.ttft.get(row, ()),
        tpot_buckets=found.tpot.get(row, ()),
        paces=found.paces.get(row, ()),
    )


def _finite(value: float | None, default: float) -> float:
    return value if value is not None and math.isfinite(value) and value >= 0 else default


def _count(value: float | None) -> int | None:
    return round(value) if value is not None and math.isfinite(value) else None


def _mean_tpot(value: float | None) -> float | Missing:
    if value is None or not math.isfinite(value) or value <= 0:
        return Missing("NothingFinished", "no request finished lately: the mean time per output token is not known")
    return value


def _length(value: float | None, what: str) -> float | Missing:
    """A mean length; 0/0 is NaN and means that nothing finished."""
    if value is None or not math.isfinite(value) or value <= 0:
        return Missing("NothingFinished", f"no request finished lately: the mean length of {what} is not known")
    return value


def _share(result: Sequence[Series]) -> float | Missing:
    """One number between 0 and 1, from a scalar or a vector of one."""
    if len(result) != 1:
        fix = "aggregate to one, for example with avg() or sum()"
        return Missing("NotOneNumber", f"prometheus.utilizationQuery gives {len(result)} numbers: {fix}")
    (_, value), *_ = result
    if not 0.0 <= value <= 1.0:
        fix = "it must be a share between 0 and 1"
        return Missing("OutOfRange", f"prometheus.utilizationQuery gives {value:g}: {fix}")
    return value


def _means(client: _Client, query: str | None) -> Means:
    """What fails here spoils only the means."""
    try:
        found = client.query(promql.means(query))
    except _NoAnswer as error:
        return Means(hour=error.missing, day=error.missing)
    return Means(hour=_mean(found, "1h", query), day=_mean(found, "24h", query))


def _mean(result: Sequence[Series], window: str, query: str | None) -> float | Missing:
    values = [value for labels, value in result if labels.get("window") == window]
    if len(values) == 1 and 0.0 <= values[0] <= 1.0:
        return values[0]
    if values:
        return Missing("NotOneNumber", f"prometheus.utilizationQuery gives no share between 0 and 1 over {window}")
    if query is not None:
        return Missing("TooFewSamples", f"prometheus.utilizationQuery has a value in less than half of {window}")
    fix = "let it scrape the operator's /metrics and wait"
    return Missing("TooFewSamples", f"Prometheus has {promql.OWN_UTILIZATION} for less than half of {window}: {fix}")


def _series(result: Any) -> list[Series]:
    """A vector, a scalar as a series without labels; ranges and text hold no number and are left out."""
    if len(result) == 2 and not isinstance(result[0], dict):
        return [({}, _figure(result[1]))]
    return [(found["metric"], _figure(found["value"][1])) for found in result if "value" in found]


def _figure(text: str) -> float:
    """A number, NaN where no engine can have counted so much: its squares would be beyond what floats hold."""
    value = float(text)
    return math.nan if _NONSENSE < abs(value) < math.inf else value


_NONSENSE = 1e12


def _adapters(client: _Client) -> PodAdapters:
    """What fails here spoils only what is said of adapters."""
    try:
        result = client.query(promql.ADAPTERS)
    except _NoAnswer:
        return {}
    found: dict[tuple[str, str], dict[str, LoadedAdapter]] = {}
    for labels, value in result:
        said = LoadedAdapter(labels.get("uri", ""), value == 1, labels.get("error", ""))
        pod = labels.get("namespace", ""), labels.get("pod", "")
        found.setdefault(pod, {})[labels.get("adapter", "")] = said
    return found


def _by_row(result: Iterable[Series]) -> dict[Row, float]:
    """One figure a service; NaN where two servers that answer as one disagree, since nobody knows which is right."""
    found: dict[Row, float] = {}
    for labels, value in result:
        row = _row(labels)
        found[row] = value if found.get(row, value) == value else math.nan
    return found


def _row(labels: Mapping[str, str]) -> Row:
    return labels.get("namespace", ""), labels.get("model_name", "")


def _paces(result: Iterable[Series]) -> dict[Row, tuple[Pace, ...]]:
    """By service; engines of which not both figures are known, or whose pod is not, are left out."""
    figures: dict[tuple[Row, str], dict[str, float]] = {}
    for labels, value in result:
        if labels.get("pod") and math.isfinite(value):
            figures.setdefault((_row(labels), labels["pod"]), {})[labels.get("figure", "")] = value
    found: dict[Row, tuple[Pace, ...]] = {}
    for (row, pod), own in sorted(figures.items()):
        if own.get("running", 0.0) > 0 and "tokens" in own:
            pace = Pace(pod=pod, tokens_per_second=own["tokens"], running=own["running"])
            found[row] = (*found.get(row, ()), pace)
    return found


def _histograms(result: Iterable[Series]) -> dict[Row, Buckets]:
    """Cumulative buckets by service, over both dialects."""
    by_dialect: dict[tuple[Row, str], dict[float, float]] = {}
    for labels, value in result:
        bound = _bound(labels)
        if bound is not None:
            bounds = by_dialect.setdefault((_row(labels), labels.get("dialect", "")), {})
            bounds[bound] = value if math.isfinite(value) else 0.0
    rows: dict[Row, Buckets] = {}
    for (row, _), bounds in sorted(by_dialect.items()):
        rows[row] = _merged(rows.get(row, ()), _rising(bounds))
    return rows


def _bound(labels: Mapping[str, str]) -> float | None:
    """The upper bound of a bucket; a series without one is none."""
    try:
        return float(labels["le"])
    except (KeyError, ValueError):
        return None


def _rising(bounds: Mapping[float, float]) -> Buckets:
    """Ascending bounds with counts that never fall: rates of neighbouring buckets may differ by a sample."""
    rising: list[tuple[float, float]] = []
    for bound, count in sorted(bounds.items()):
        rising.append((bound, max(count, rising[-1][1] if rising else 0.0)))
    return tuple(rising)


def _merged(left: Buckets, right: Buckets) -> Buckets:
    """The sum of two histograms with different bounds, each taken as even within a bucket."""
    if not left or not right:
        return left or right
    bounds = sorted({bound for bound, _ in (*left, *right)})
    return tuple((bound, _at(left, bound) + _at(right, bound)) for bound in bounds)


def _at(buckets: Buckets, bound: float) -> float:
    lower, below = 0.0, 0.0
    for upper, count in buckets:
        if bound == upper:
            return count
        if bound < upper:
            share = 0.0 if math.isinf(upper) else (bound - lower) / (upper - lower)
            return below + (count - below) * share
        lower, below = upper, count
    return below


@dataclass(slots=True)
class _Peaks:
    """Arrival rates that this process saw itself.

    A Prometheus that comes back without its data would show a peak of nothing and let replicas go; what was seen
    here within the window still counts.
    """

    clock: Callable[[], float]
    seen: dict[ServiceKey, Highest] = field(default_factory=dict)

    def held(
        self, read: Mapping[ServiceKey, ServiceMetrics | Missing], window: float
    ) -> dict[ServiceKey, ServiceMetrics | Missing]:
        self.seen = {key: rates for key, rates in self.seen.items() if key in read}
        return {key: self._held(key, metrics, window) for key, metrics in read.items()}

    def _held(self, key: ServiceKey, metrics: ServiceMetrics | Missing, window: float) -> ServiceMetrics | Missing:
        if isinstance(metrics, Missing):
            return metrics
        rates = self.seen.setdefault(key, Highest())
        rates.push(self.clock(), metrics.requests_per_second, window)
        return replace(metrics, peak_requests_per_second=max(metrics.peak_requests_per_second, rates.value))
