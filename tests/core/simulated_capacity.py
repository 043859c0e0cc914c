"""The rate that eight simulated replicas sustain, for comparison with the closed form.

`python -m tests.core.simulated_capacity [FIT...]` prints the table that `test_capacity` holds; it takes minutes.
Poisson arrivals, least-loaded routing with random ties, lengths spread as in Azure's 2023 conversation trace
(CC-BY-4.0, quantiles below), 99 % of requests within both targets, the first quarter left out as warm-up.
"""

from __future__ import annotations

import sys
from itertools import product
from math import inf

import numpy as np

from tests.support.build import H100
from tokenservice.api.capacity_profile import Provenance
from tokenservice.core.capacity import Targets, Workload
from tokenservice.core.model import Variant
from tokenservice.core.step import StepModel
from tokenservice.simulate.engine import Engine, Finished, Request
from tokenservice.simulate.reference import limits_of

# fmt: off
LEVELS = (
    0, .01, .02, .05, .1, .2, .3, .4, .5, .6, .65, .7, .8, .9, .95, .98, .99, .995, .999, 1,
)
INPUTS = (
    .002, .025, .079, .157, .179, .335, .349, .609, .883, .928, .95, .979, 1.139, 2.368, 3.536, 3.549, 3.587, 4.184,
    5.351, 12.168,
)
OUTPUTS = (
    .033, .076, .114, .194, .256, .365, .431, .488, .611, .838, 1.028, 1.819, 1.895, 2.008, 2.136, 2.558, 2.847, 3.046,
    4.519, 4.737,
)
# fmt: on
"""Lengths at the levels, as multiples of their mean."""

FITS = {
    "8b-tp1": (StepModel(6.42, 0.0, 0.050, 0.0196), 438_000),
    "32b-tp2": (StepModel(13.96, 0.057, 0.054, 0.0490), 311_000),
    "70b-fp8-tp2": (StepModel(16.55, 0.041, 0.058, 0.0687), 232_000),
    "70b-fp8-tp4": (StepModel(11.02, 0.055, 0.028, 0.0446), 682_000),
    "gpt-oss-120b-tp2": (StepModel(4.59, 0.152, 0.002, 0.0230), 1_000_000),
}
"""Step models of H100 variants and what their KV cache holds; research behind the shipped profiles."""

SHAPES = {
    "chat": Workload(),
    "cached": Workload(1155, 211, 0.5),
    "code": Workload(2048, 28),
    "even": Workload(1024, 1024),
    "short": Workload(512, 256),
    "long": Workload(8192, 1024),
}
TARGETS = {
    "2s/200ms": Targets(2.0, 0.99, 0.2, 0.99),
    "2s/50ms": Targets(2.0, 0.99, 0.05, 0.99),
    "500ms/40ms": Targets(0.5, 0.99, 0.04, 0.99),
    "450ms/20ms": Targets(0.45, 0.99, 0.02, 0.99),
}


def variant(fit: str) -> Variant:
    step, kv_capacity_tokens = FITS[fit]
    return Variant(
        name=fit,
        accelerator=H100,
        engine="vLLM",
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        precision="bf16",
        profile=None,
        step=step,
        kv_capacity_tokens=kv_capacity_tokens,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        cold_start_seconds=60,
        weight_bytes=1e10,
        provenance=Provenance.MEASURED,
    )


class _Pool:
    """Replicas behind a least-loaded router, which notes the requests that kept within their targets."""

    def __init__(self, variant: Variant, targets: Targets, replicas: int) -> None:
        limits = limits_of(variant)
        self.engines = [Engine(variant.step, limits) for _ in range(replicas)]
        self.load = [0] * replicas
        self.due = [inf] * replicas
        self.met: set[int] = set()
        self._targets = targets

    def advance(self, now: float, *, all_of_them: bool = False) -> None:
        for number, at in enumerate(self.due):
            if at <= now or all_of_them:
                self._collect(number, now)

    def submit(self, request: Request, tie: float) -> None:
        least = [number for number, load in enumerate(self.load) if load == min(self.load)]
        chosen = least[int(tie * len(least))]
        self.engines[chosen].submit(request)
        self.load[chosen] += 1
        self._collect(chosen, request.arrived_ms)

    def _collect(self, number: int, now: float) -> None:
        for event in self.engines[number].advance(now):
            if isinstance(event, Finished):
                self.load[number] -= 1
                self._note(event)
        at = self.engines[number].next_event_ms()
        self.due[number] = inf if at is None else at

    def _note(self, done: Finished) -> None:
        goal = self._targets
        if done.ttft_ms <= goal.ttft_seconds * 1000 and done.tpot_ms <= goal.tpot_seconds * 1000:
            self.met.add(int(done.request.id))


def joint_attainment(
    variant: Variant, work: Workload, targets: Targets, rate: float, *, replicas: int = 8, requests: int = 10_000
) -> float:
    """Share of requests within both targets at `rate` requests per second and replica."""
    random = np.random.default_rng(1)
    arrivals = np.cumsum(random.exponential(1000 / (rate * replicas), requests)).tolist()
    inputs = np.minimum(_lengths(random, INPUTS, work.input_tokens, requests), variant.kv_capacity_tokens // 2)
    outputs = _lengths(random, OUTPUTS, work.output_tokens, requests)
    ties = random.random(requests)
    pool = _Pool(variant, targets, replicas)
    for number, now in enumerate(arrivals):
        pool.advance(now)
        prompt = int(inputs[number])
        cached = int(prompt * work.hit_rate)
        pool.submit(Request(number, now, prompt, int(outputs[number]), cached), ties[number])
    pool.advance(arrivals[-1] + 600_000, all_of_them=True)
    warm = requests // 4
    return sum(number >= warm for number in pool.met) / (requests - warm)


def _lengths(random: np.random.Generator, table: tuple[float, ...], mean: float, count: int) -> np.ndarray:
    middle = np.interp(np.linspace(0, 1, 2001), LEVELS, table).mean()
    return np.maximum(1, np.round(np.interp(random.random(count), LEVELS, table) * mean / middle))


def sustained_rate(variant: Variant, work: Workload, targets: Targets) -> float:
    """The highest rate per replica with 99 % of requests within both targets, to 2 %; 0 when there is none."""
    low, high = 0.0, 1.0
    while joint_attainment(variant, work, targets, high) >= 0.99 and high < 1000:
        low, high = high, high * 2
    while high - low > 0.02 * high and high > 0.01:
        middle = (low + high) / 2
        met = joint_attainment(variant, work, targets, middle) >= 0.99
        low, high = (middle, high) if met else (low, middle)
    return (low + high) / 2 if low > 0 else 0.0


def main() -> None:
    for fit, shape, goal in product(sys.argv[1:] or FITS, SHAPES, TARGETS):
        rate = sustained_rate(variant(fit), SHAPES[shape], TARGETS[goal])
        print(f'    ("{fit}", "{shape}", "{goal}"): {rate:.3g},', flush=True)


if __name__ == "__main__":
    main()
