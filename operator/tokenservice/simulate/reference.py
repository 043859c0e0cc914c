"""What a request is worth: the yardstick of utilization, fixed for a service whatever serves it.

A request is worth the accelerator-seconds that it takes on its service's reference variant at the reference rate:
`TP / lambda*` for the mean request, and for others in proportion to the step model's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tokenservice.core.capacity import Targets, Workload, latency_at
from tokenservice.core.model import Variant
from tokenservice.core.step import StepModel
from tokenservice.errors import InputError
from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.engine import EngineLimits
from tokenservice.simulate.steady import Lengths, reference_rate
from tokenservice.simulate.traffic import Floats

Tokens = TypeVar("Tokens", float, Floats)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Yardstick of a service: its reference variant, the rate it holds (requests/s per replica), its mean request."""

    model: StepModel
    tensor_parallel_size: int
    requests_per_second: float
    batch: float
    mean_input_tokens: float
    mean_output_tokens: float

    def accelerator_seconds(self, computed_tokens: Tokens, output_tokens: Tokens, input_tokens: Tokens) -> Tokens:
        """What requests are worth: TP / lambda*, times their share of the mean request's work.

        `computed_tokens` are those of the prompt that no prefix cache held; `input_tokens` is the whole prompt.
        """
        mean = self._work_ms(self.mean_input_tokens, self.mean_output_tokens, self.mean_input_tokens)
        share = self._work_ms(computed_tokens, output_tokens, input_tokens) / mean
        return self.tensor_parallel_size / self.requests_per_second * share

    def _work_ms(self, computed: Tokens, outputs: Tokens, inputs: Tokens) -> Tokens:
        context = inputs + outputs / 2
        per_token = self.model.alpha_ms / self.batch + self.model.beta_ms + self.model.kappa_ms * context / 1000
        return self.model.delta_ms * computed + outputs * per_token


def bounds_of(targets: Targets) -> Bounds:
    """Both targets, kept jointly by the larger of the two shares."""
    return Bounds(
        ttft_seconds=targets.ttft_seconds,
        tpot_seconds=targets.tpot_seconds,
        attainment=max(targets.ttft_fraction, targets.tpot_fraction),
    )


def limits_of(variant: Variant) -> EngineLimits:
    """What an engine of this variant may hold."""
    return EngineLimits(variant.max_num_seqs, variant.max_num_batched_tokens, variant.kv_capacity_tokens)


def sustained(variant: Variant, lengths: Lengths, targets: Targets) -> float:
    """lambda* of a variant, requests per second per replica. InputError when none holds."""
    rate = reference_rate(variant.step, limits_of(variant), lengths, bounds_of(targets))
    if rate <= 0:
        raise InputError(f"{variant.name} keeps no request within the objectives: choose another reference variant")
    return rate


def reference(variant: Variant, lengths: Sequence[tuple[int, int]], targets: Targets) -> Reference:
    """The yardstick on a variant, its rate found by simulation with these lengths. InputError when none holds."""
    rate = sustained(variant, lengths, targets)
    inputs, outputs = np.array(lengths, dtype=float).mean(axis=0)
    mean = Workload(float(inputs), float(outputs))
    return Reference(
        model=variant.step,
        tensor_parallel_size=variant.accelerators,
        requests_per_second=rate,
        batch=latency_at(variant, mean, rate).batch,
        mean_input_tokens=mean.input_tokens,
        mean_output_tokens=mean.output_tokens,
    )
