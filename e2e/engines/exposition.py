"""Prometheus text, laid out once per engine and filled in per scrape.

Why not prometheus_client: forty engines of four hundred series each are scraped every few seconds by one busy event
loop, and a run of a hundred equal decode steps must be one observation and not a hundred. The text is what its
`generate_latest` writes: labels in alphabetical order, floats, counters and histograms with `_created` twins.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from math import inf

Labels = Mapping[str, str]


class Value:
    """A counter or gauge; whoever owns it sets `value`."""

    __slots__ = ("value",)

    def __init__(self, value: float = 0.0) -> None:
        self.value = value


class Histogram:
    """Counts per bucket; `bounds` are the upper ones, without +Inf."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = (*bounds, inf)
        self.counts = [0] * len(self.bounds)
        self.total = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def observe_run(self, first: float, slope: float, steps: int, times: int) -> None:
        """Observe `first + j * slope` for j < steps, each `times` times."""
        self.total += times * (steps * first + slope * steps * (steps - 1) / 2)
        index, done = bisect_left(self.bounds, first), 0
        while first + slope * (steps - 1) > self.bounds[index]:
            within = int((self.bounds[index] - first) / slope) + 1
            self.counts[index] += times * (within - done)
            done = within
            index = bisect_left(self.bounds, first + slope * done, lo=index + 1)
        self.counts[index] += times * (steps - done)


class Exposition:
    """One engine's metrics page, families in the order in which they are declared.

    `created_s` (epoch) adds the `_created` twins that single-process servers show; None leaves them out, as servers
    in multiprocess mode do. There, too, a labelled series first appears when it is first used: `lazy`.
    """

    def __init__(self, created_s: float | None) -> None:
        self._created_s = created_s
        self._parts: list[_Samples | _Buckets] = []

    def counter(self, name: str, text: str, *labels: Labels, lazy: bool = False) -> list[Value]:
        """One series per label set. `name` is without `_total`."""
        return self._values(f"{name}_total", "counter", text, labels, name, lazy)

    def gauge(self, name: str, text: str, *labels: Labels) -> list[Value]:
        """One series per label set."""
        return self._values(name, "gauge", text, labels, None, lazy=False)

    def histogram(
        self, name: str, text: str, labels: Labels, bounds: tuple[float, ...], *, lazy: bool = False
    ) -> Histogram:
        """One series."""
        histogram = Histogram(bounds)
        les = [*(repr(float(bound)) for bound in bounds), "+Inf"]
        self._parts.append(
            _Buckets(
                _head(name, "histogram", text),
                [f"{name}_bucket{_braces({**labels, 'le': le})} " for le in les],
                f"{name}_count{_braces(labels)} ",
                f"{name}_sum{_braces(labels)} ",
                self._created(name, text, (labels,)),
                histogram,
                lazy,
            )
        )
        return histogram

    def render(self) -> str:
        """The page as of now."""
        lines: list[str] = []
        for part in self._parts:
            part.render(lines)
        return "".join(lines)

    def _values(
        self, name: str, kind: str, text: str, labels: tuple[Labels, ...], created: str | None, lazy: bool
    ) -> list[Value]:
        values = [Value() for _ in labels]
        heads = [f"{name}{_braces(label)} " for label in labels]
        twin = self._created(created, text, labels) if created else ""
        self._parts.append(_Samples(_head(name, kind, text), list(zip(heads, values, strict=True)), twin, lazy))
        return values

    def _created(self, name: str, text: str, labels: tuple[Labels, ...]) -> str:
        if self._created_s is None:
            return ""
        stamp = f"{self._created_s!r}\n"
        return _head(f"{name}_created", "gauge", text) + "".join(
            f"{name}_created{_braces(label)} {stamp}" for label in labels
        )


class _Samples:
    __slots__ = ("_head", "_lazy", "_series", "_twin")

    def __init__(self, head: str, series: list[tuple[str, Value]], twin: str, lazy: bool) -> None:
        self._head, self._series, self._twin, self._lazy = head, series, twin, lazy

    def render(self, lines: list[str]) -> None:
        series = [pair for pair in self._series if pair[1].value] if self._lazy else self._series
        if not series:
            return
        lines.append(self._head)
        lines += [f"{head}{float(value.value)!r}\n" for head, value in series]
        lines.append(self._twin)


class _Buckets:
    __slots__ = ("_buckets", "_count", "_head", "_histogram", "_lazy", "_sum", "_twin")

    def __init__(
        self, head: str, buckets: list[str], count: str, total: str, twin: str, histogram: Histogram, lazy: bool
    ) -> None:
        self._head, self._buckets, self._count, self._sum = head, buckets, count, total
        self._twin, self._histogram, self._lazy = twin, histogram, lazy

    def render(self, lines: list[str]) -> None:
        if self._lazy and not any(self._histogram.counts):
            return
        lines.append(self._head)
        running = 0
        for head, count in zip(self._buckets, self._histogram.counts, strict=True):
            running += count
            lines.append(f"{head}{running}.0\n")
        lines.append(f"{self._count}{running}.0\n{self._sum}{float(self._histogram.total)!r}\n{self._twin}")


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(labels[name])}"' for name in sorted(labels)) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
