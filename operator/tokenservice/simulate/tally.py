"""Requests counted as they come and go: the upper line of utilization, and attainment.

Joint attainment is the share of all requests that arrived: what was refused, lost or not finished is a miss. A
deferrable request is met when it is finished by its deadline; its latencies count for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.reference import Reference
from tokenservice.simulate.traffic import Floats, Outcomes, Requests

BIN_SECONDS = 600.0


@dataclass
class Tally:
    """One service's requests; `work` is in accelerator-seconds of the reference variant."""

    reference: Reference
    bounds: Bounds
    seconds: float
    arrived: int = 0
    finished: int = 0
    met: int = 0
    ttft_met: int = 0
    tpot_met: int = 0
    deferrable_arrived: int = 0
    deferrable_met: int = 0
    work_offered: float = 0.0
    work_met: float = 0.0
    work_missed: float = 0.0
    output_tokens: int = 0
    output_tokens_met: int = 0
    tokens_owed: int = 0
    offered: Floats = field(init=False)
    delivered: Floats = field(init=False)

    def __post_init__(self) -> None:
        bins = int(np.ceil(self.seconds / BIN_SECONDS)) + 1
        self.offered, self.delivered = np.zeros(bins), np.zeros(bins)

    @property
    def attainment(self) -> float:
        """Share of the interactive requests within both objectives; 1 when none came."""
        return self.met / self.arrived if self.arrived else 1.0

    @property
    def deferrable_attainment(self) -> float:
        """Share of the deferrable requests done in time; 1 when none came."""
        return self.deferrable_met / self.deferrable_arrived if self.deferrable_arrived else 1.0

    def came(self, requests: Requests) -> None:
        """A stretch of arrivals."""
        if not len(requests):
            return
        deferrable = int(np.count_nonzero(~np.isnan(requests.deadline_s)))
        self.deferrable_arrived += deferrable
        self.arrived += len(requests) - deferrable
        worth = self._worth(requests)
        self.work_offered += float(worth.sum())
        self.tokens_owed += int(requests.output_tokens.sum())
        self._bin(self.offered, requests.at_s, worth)

    def went(self, outcomes: Outcomes) -> None:
        """A stretch of finished requests."""
        if not len(outcomes):
            return
        interactive = np.isnan(outcomes.deadline_s)
        first = outcomes.ttft_s <= self.bounds.ttft_seconds
        rest = outcomes.tpot_s <= self.bounds.tpot_seconds
        in_time = outcomes.finished_s <= outcomes.deadline_s  # False for NaN
        met = np.where(interactive, first & rest, in_time)
        worth = self._worth(outcomes)
        self.finished += len(outcomes)
        self.met += int(np.count_nonzero(met & interactive))
        self.ttft_met += int(np.count_nonzero(first & interactive))
        self.tpot_met += int(np.count_nonzero(rest & interactive))
        self.deferrable_met += int(np.count_nonzero(in_time))
        self.work_met += float(worth[met].sum())
        self.work_missed += float(worth[~met].sum())
        delivered = int(outcomes.output_tokens.sum())
        self.output_tokens += delivered
        self.output_tokens_met += int(outcomes.output_tokens[met].sum())
        self.tokens_owed -= delivered
        self._bin(self.delivered, outcomes.finished_s[met], worth[met])

    def _worth(self, requests: Requests | Outcomes) -> Floats:
        computed = (requests.input_tokens - requests.cached_tokens).astype(np.float64)
        inputs, outputs = requests.input_tokens.astype(np.float64), requests.output_tokens.astype(np.float64)
        return self.reference.accelerator_seconds(computed, outputs, inputs)

    def _bin(self, into: Floats, at: Floats, worth: Floats) -> None:
        bins = np.minimum((at / BIN_SECONDS).astype(np.int64), len(into) - 1)
        into += np.bincount(bins, weights=worth, minlength=len(into))
