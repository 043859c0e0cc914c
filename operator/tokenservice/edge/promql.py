"""The PromQL of one round: a constant number of queries, each grouped by service, whatever the size of the fleet.

vLLM and SGLang name the same things differently; both names are read. Functions forget the name of a series, and an
engine that spoke both dialects would then make two that are equal, at which Prometheus refuses the query, everybody's.
So each is taken of one name at a time, and `or` keeps the first of two.

Arrivals are counted when a request gets its first token, plus what the queue grew by: the sum is exact in the window
whether or not the engine keeps up, and it moves long before requests finish. (SGLang counts the first token of a
request that is not streamed when it finishes; such traffic is seen later, through the queue first.) A service whose
gauges were scraped twice but that has no first token yet had no arrivals; one scrape says nothing. What a new engine
took before its first scrape is in the rate from the second one on, for `rate` goes back from the first sample to where
the counter was zero, for half a scrape at most: so nothing is taken away until its share is whole, a window later.
Adding the first sample itself would count that twice, and would take all that engines ever served for new whenever
Prometheus has missed a window. What came at once and waits is no rate, but is seen as the queue that it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenservice.core.windows import Windows

BY = "namespace, model_name"

OWN_UTILIZATION = "tokenservice_fleet_utilization_ratio"
"""The operator's own export: its mean outlives the operator in whatever scrapes it."""

ADAPTERS = 'max by (namespace, pod, adapter, uri, error) (tokenservice_adapter_loaded{namespace!=""})'
"""What the loaders of adapters say, each of its own pod: 1 where its engine has the adapter."""

_MEANS = {"1h": 60, "24h": 300}
"""Window -> seconds between the points that a mean is taken of."""


@dataclass(frozen=True, slots=True)
class Dialects:
    """One thing under the names of both engines; `suffix` is `_sum`, `_bucket`, ... of a histogram.

    `before` is what older engines of SGLang have in its place: asked of services that have no series of the first name.
    """

    vllm: str
    sglang: str
    before: str = ""

    def selector(self, suffix: str = "") -> str:
        return f'{{__name__=~"vllm:{self.vllm}{suffix}|sglang:{self.sglang}{suffix}",namespace!=""}}'

    def of(self, function: str, window: str = "", suffix: str = "") -> str:
        """A function of each series, of a window of it where one is given."""
        names = (f"vllm:{self.vllm}{suffix}", f"sglang:{self.sglang}{suffix}")
        return "(" + " or ".join(f'{function}({name}{{namespace!=""}}{window})' for name in names) + ")"


RUNNING = Dialects("num_requests_running", "num_running_reqs")
WAITING = Dialects("num_requests_waiting", "num_queue_reqs")
KV_USAGE = Dialects("kv_cache_usage_perc", "token_usage")
PROMPT_TOKENS = Dialects("prompt_tokens_total", "prompt_tokens_total")
OUTPUT_TOKENS = Dialects("generation_tokens_total", "generation_tokens_total")
CACHED_TOKENS = Dialects("prefix_cache_hits_total", "cached_tokens_total")
LOOKED_UP_TOKENS = Dialects("prefix_cache_queries_total", "prompt_tokens_total")
PROMPT_LENGTH = Dialects("request_prompt_tokens", "prompt_tokens_histogram")
OUTPUT_LENGTH = Dialects("request_generation_tokens", "generation_tokens_histogram")
TTFT = Dialects("time_to_first_token_seconds", "time_to_first_token_seconds")
TPOT = Dialects(
    "request_time_per_output_token_seconds",
    "request_time_per_output_token_seconds",  # since 0.5.22
    before="inter_token_latency_seconds",  # of gaps, not of requests: the same mean, a longer tail
)


def figures(windows: Windows) -> dict[str, str]:
    """Query by figure; every result has one series a service."""
    rate, mean = f"[{windows.rate}s]", f"[{windows.mean}s]"
    arrivals = _arrivals(rate, windows.rate)
    return {
        "requests_per_second": arrivals,
        "peak_requests_per_second": f"max_over_time(({arrivals})[{max(windows.peak, 1)}s:{windows.peak_step}s])",
        "output_tokens_per_second": f"{_rate(OUTPUT_TOKENS, rate)} or {_silent(rate)}",
        "input_tokens_per_second": f"{_rate(PROMPT_TOKENS, rate)} or {_silent(rate)}",
        "mean_input_tokens": _mean_of(PROMPT_LENGTH, mean),
        "mean_output_tokens": _mean_of(OUTPUT_LENGTH, mean),
        "mean_tpot_seconds": _mean_of(TPOT, rate),
        "prefix_hit_rate": f"{_rate(CACHED_TOKENS, mean)} / {_rate(LOOKED_UP_TOKENS, mean)}",
        "running": f"sum by ({BY}) ({RUNNING.selector()})",
        "waiting": f"sum by ({BY}) ({WAITING.selector()})",
        "kv_usage": f"max by ({BY}) ({KV_USAGE.selector()})",
        "engines_reporting": _engines(windows),
        "engines_heard": _heard(mean),
        "scraped_again": _scraped_again(rate),
        "counter_resets": f"max by ({BY}) {TTFT.of('resets', rate, '_count')}",
        "age_seconds": f"time() - max by ({BY}) {RUNNING.of('timestamp')}",
    }


def buckets(histogram: Dialects, windows: Windows) -> str:
    """Rates of a histogram's buckets by service, engine and bound; the engines' bounds differ.

    Summing comes before labelling, so that few series are labelled. Services that nobody asks have none: what is sent
    and read grows with those that are used, of which a large fleet has few at a time.
    """
    now = [
        _buckets_of(dialect, name, windows)
        for dialect, name in (("vllm", histogram.vllm), ("sglang", histogram.sglang))
    ]
    if histogram.before:  # bound by bound the two could be mixed: all of one service's, or none
        now.append(f"({_buckets_of('sglang', histogram.before, windows)} unless on ({BY}) {now[-1]})")
    return " or ".join(now)


def _buckets_of(dialect: str, name: str, windows: Windows) -> str:
    name = f'__name__="{dialect}:{name}_bucket",namespace!=""'
    summed = f"sum by ({BY}, le) (rate({{{name}}}[{windows.rate}s]))"
    used = f'sum by ({BY}) (rate({{{name},le="+Inf"}}[{windows.rate}s])) > 0'
    return f'label_replace({summed} and on ({BY}) ({used}), "dialect", "{dialect}", "", "")'


def paces(windows: Windows) -> str:
    """What each busy engine gives, where one of a service gives far less for a sequence than the middle of them.

    Two series an engine, of `figure` tokens and running; none at all while engines are alike, so that it costs a
    fleet of thousands nothing to send and to read.
    """
    rate, by = f"[{windows.rate}s]", f"{BY}, pod"
    tokens = f"sum by ({by}) {OUTPUT_TOKENS.of('rate', rate)}"
    busy = f"({_busy(by, rate)})"
    pace = f"({tokens} / {busy})"
    uneven = f"({_UNEVEN} * min by ({BY}) ({pace}) < quantile by ({BY}) (0.5, {pace}))"
    parts = {"tokens": tokens, "running": busy}
    return " or ".join(
        f'label_replace({text} and on ({BY}) {uneven}, "figure", "{figure}", "", "")' for figure, text in parts.items()
    )


_BUSY = 0.5
"""Sequences that run, in the mean: what an engine gives that is idle half the time says little."""

_UNEVEN = 2
"""Less than the factor that is acted on, since this knows neither variants nor load."""


def means(utilization: str | None) -> str:
    """Mean utilization by `window`; left out where less than half of the window has data. None: the operator's own."""
    now = f"({utilization}\n)" if utilization else f"avg({OWN_UTILIZATION})"
    return " or ".join(_mean(now, window, step) for window, step in _MEANS.items())


def _mean(now: str, window: str, step: int) -> str:
    past = f"({now}[{window}:{step}s])"
    half = int(window.removesuffix("h")) * 3600 // step // 2
    return f'label_replace(avg_over_time{past} and count_over_time{past} >= {half}, "window", "{window}", "", "")'


def _arrivals(rate: str, seconds: int) -> str:
    first_tokens = f"({_rate(TTFT, rate, '_count')} or ({_silent(rate)} unless {_busy(BY, rate)}))"
    growth = f"sum by ({BY}) {WAITING.of('delta', rate)} / {seconds}"
    return f"clamp_min({first_tokens} + {growth}, 0)"


def _rate(counter: Dialects, window: str, suffix: str = "") -> str:
    return f"sum by ({BY}) {counter.of('rate', window, suffix)}"


def _mean_of(histogram: Dialects, window: str) -> str:
    now = f"{_rate(histogram, window, '_sum')} / {_rate(histogram, window, '_count')}"
    if not histogram.before:
        return now
    return f"{now} or {_mean_of(Dialects(histogram.vllm, histogram.before), window)}"


def _silent(rate: str) -> str:
    """Zero for services whose engines were scraped at least twice in the window."""
    return f"0 * sum by ({BY}) {RUNNING.of('delta', rate)}"


def _busy(by: str, rate: str) -> str:
    """What runs in the mean, where something does: without a first token all that time it is not silent, but mute."""
    return f"sum by ({by}) {RUNNING.of('avg_over_time', rate)} >= {_BUSY}"


def _heard(mean: str) -> str:
    """All that spoke within the longest window that anything is taken of: a few figures count as much as all.

    Prometheus says from which target and pod a figure is, unless its scrape configuration lets the target say it.
    """
    names = (dialect + of for one in _COUNTED for dialect, of in (("vllm:", one.vllm), ("sglang:", one.sglang)))
    pattern = "|".join(sorted({*names, f"sglang:{TPOT.before}"}))
    told = f'last_over_time({{__name__=~"({pattern})(_sum|_count)?",namespace!=""}}{mean})'
    return _groups(told, "instance, pod, job")


def _scraped_again(rate: str) -> str:
    """Series beyond the first of each rank of each engine, and jobs beyond the first of each pod: sums count them all.

    Two jobs may call one engine's address by two names, so jobs are counted by pods; targets of which no pod is known
    are told apart by their addresses alone. Replicas of one Prometheus have the same jobs and addresses.
    """
    told = f"last_over_time({RUNNING.selector()}{rate})"
    of_pods = told.replace('namespace!=""', 'namespace!="",pod!=""')
    series = f"(count by ({BY}) ({told}) - {_groups(told, f'__name__, instance, pod, {_RANKS}')})"
    jobs = f"({_groups(of_pods, 'pod, job')} - {_groups(of_pods, 'pod')})"
    return f"{series} + {jobs} or {series}"


def _groups(series: str, by: str) -> str:
    return f"count by ({BY}) (count by ({BY}, {by}) ({series}))"


_RANKS = "engine, engine_type, dp_rank, tp_rank, pp_rank, moe_ep_rank, priority, pid"
"""Labels by which one engine has several series: `engine` is vLLM's rank of data parallelism, most are SGLang's."""


_COUNTED = (
    *(RUNNING, WAITING, KV_USAGE, PROMPT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS, LOOKED_UP_TOKENS),
    *(PROMPT_LENGTH, OUTPUT_LENGTH, TTFT, TPOT),
)
"""What any figure rests on."""


def _engines(windows: Windows) -> str:
    """Engines with a fresh sample whose share in the rates is whole: all was there before the window of rates already.

    What an engine took before its first scrape is in no rate, nor what it took before one that ended a gap. Counters
    that appear later than the gauges, some with the first request, begin anew by this. An engine with data parallelism
    reports several series under one instance and pod.
    """
    gauge, counter, before = RUNNING.selector(), TTFT.selector("_count"), f"offset {windows.rate}s"
    fresh = f"(time() - {RUNNING.of('timestamp')}) < {windows.staleness}"
    young = f"({counter} unless {counter} {before})"
    whole = f"{fresh} and ({gauge} {before}) unless on ({BY}, instance, pod) {young}"
    return f"count by ({BY}) (count by ({BY}, instance, pod) ({whole})) or 0 * count by ({BY}) ({fresh})"
