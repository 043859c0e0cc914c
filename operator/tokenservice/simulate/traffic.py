"""Requests as parallel arrays: the form in which a workload hands them to the replicas, and gets them back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

MOST_TOKENS = 1e9
"""Of a prompt or an answer: more fits no array of 32 bits, and no model."""

LONGEST_SECONDS = 1e8
"""Three years: what seems to cover more is in another unit."""


@dataclass(frozen=True, slots=True)
class Requests:
    """A stretch of n arrivals in order of time.

    `deadline_s` is NaN for an interactive request; a deferrable one may wait and must be finished by then.
    """

    at_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    deadline_s: Floats

    def __len__(self) -> int:
        return len(self.at_s)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """n requests that finished, in the order in which they did. TPOT is (last - first token) / (output - 1)."""

    at_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    deadline_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    finished_s: Floats

    def __len__(self) -> int:
        return len(self.at_s)
