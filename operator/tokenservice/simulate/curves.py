"""Rates over time: piecewise linear curves that can be shifted, cut, integrated and inverted.

Two knots at the same time are a step. Integrals are exact, so the mean rate that a perfect forecaster is told and the
arrivals that are drawn come from one function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenservice.simulate.traffic import Floats


@dataclass(frozen=True, slots=True)
class Curve:
    """`rate` (requests per second, n >= 2 values >= 0) at `t_s` (seconds, never falling, the first 0)."""

    t_s: Floats
    rate: Floats
    integral: Floats

    @classmethod
    def through(cls, t_s: Floats, rate: Floats) -> Curve:
        """The curve through the knots."""
        areas = np.diff(t_s) * (rate[1:] + rate[:-1]) / 2
        return cls(t_s, rate, np.concatenate(([0.0], np.cumsum(areas))))

    @property
    def length_s(self) -> float:
        return float(self.t_s[-1])

    @property
    def total(self) -> float:
        """Requests expected over the whole curve."""
        return float(self.integral[-1])

    def scaled(self, factor: float) -> Curve:
        return Curve(self.t_s, self.rate * factor, self.integral * factor)

    def lasting(self, length_s: float) -> Curve:
        """The curve until `length_s`; beyond its last knot, the last rate holds."""
        if length_s <= self.length_s:
            return self.cut(0.0, length_s)
        return Curve.through(np.append(self.t_s, length_s), np.append(self.rate, self.rate[-1]))

    def shifted(self, later_s: float) -> Curve:
        """The curve moved later by `later_s`, around: what leaves at the end comes in at the start."""
        seam = self.length_s - later_s % self.length_s
        if seam == self.length_s:
            return self
        tail, head = self.cut(seam, self.length_s), self.cut(0.0, seam)
        t_s = np.concatenate((tail.t_s, head.t_s + tail.length_s))
        return Curve.through(t_s, np.concatenate((tail.rate, head.rate)))

    def cut(self, start_s: float, end_s: float) -> Curve:
        """The part from `start_s` to `end_s`, moved to begin at 0."""
        inside = (self.t_s > start_s) & (self.t_s < end_s)
        t_s = np.concatenate(([start_s], self.t_s[inside], [end_s])) - start_s
        rate = np.concatenate(([self._after(start_s)], self.rate[inside], [self._before(end_s)]))
        return Curve.through(t_s, rate)

    def expected(self, start_s: float, end_s: float) -> float:
        """Requests expected between two times on the curve."""
        return self._area(end_s) - self._area(start_s)

    def time_of(self, area: Floats) -> Floats:
        """When the integral reaches `area`; infinite beyond the end."""
        at = np.minimum(np.searchsorted(self.integral, area, side="right") - 1, len(self.t_s) - 2)
        missing = area - self.integral[at]
        first, slope = self.rate[at], self._slopes()[at]
        divisor = first + np.sqrt(np.maximum(first * first + 2 * slope * missing, 0.0))
        ahead = np.divide(2 * missing, divisor, out=np.zeros_like(missing), where=divisor > 0)
        return np.where(area < self.integral[-1], np.minimum(self.t_s[at] + ahead, self.t_s[at + 1]), np.inf)

    def _slopes(self) -> Floats:
        steps = np.diff(self.t_s)
        return np.divide(np.diff(self.rate), steps, out=np.zeros_like(steps), where=steps > 0)

    def _area(self, t_s: float) -> float:
        t_s = min(max(t_s, 0.0), self.length_s)
        at = self._segment(t_s, "right")
        return float(self.integral[at] + (t_s - self.t_s[at]) * (self.rate[at] + self._on(at, t_s)) / 2)

    def _after(self, t_s: float) -> float:
        return self._on(self._segment(t_s, "right"), t_s)

    def _before(self, t_s: float) -> float:
        return self._on(self._segment(t_s, "left"), t_s)

    def _segment(self, t_s: float, side: str) -> int:
        found = np.searchsorted(self.t_s, t_s, side=side)  # type: ignore[call-overload]
        return int(min(max(found - 1, 0), len(self.t_s) - 2))

    def _on(self, at: int, t_s: float) -> float:
        width = self.t_s[at + 1] - self.t_s[at]
        share = (t_s - self.t_s[at]) / width if width > 0 else 1.0
        return float(self.rate[at] + share * (self.rate[at + 1] - self.rate[at]))


def on_off(
    *,
    rate: float,
    mean_on_s: float,
    mean_off_s: float,
    length_s: float,
    rng: np.random.Generator,
    idle_rate: float = 0.0,
) -> Curve:
    """A service that is used now and then: on and off for exponential times, beginning off as often as not."""
    t_s, rates = [0.0], list[float]()
    on = bool(rng.random() < mean_on_s / (mean_on_s + mean_off_s))
    while t_s[-1] < length_s:
        rates.append(rate if on else idle_rate)
        t_s.append(min(t_s[-1] + rng.exponential(mean_on_s if on else mean_off_s), length_s))
        on = not on
    knots = np.repeat(np.array(t_s), 2)[1:-1]
    return Curve.through(knots, np.repeat(np.array(rates), 2))
