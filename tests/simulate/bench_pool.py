"""How fast the pool is: `python -m tests.simulate.bench_pool [--most 1000000] [--cold]`.

Lengths are those of Azure's 2023 conversation trace where TAAS_DATA has it, else log-normals with its means; the
engines are Llama 3.1 8B on an H100 from the catalogue, at 70 % of the highest rate that keeps 99 % of requests within
1 s to the first token and 25 ms for each further one.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenservice.catalogue import capacity_profiles
from tokenservice.core.step import StepModel
from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.engine import EngineLimits
from tokenservice.simulate.pool import Pool
from tokenservice.simulate.traffic import Requests

ROOT = Path(__file__).parents[2]
TRACE = (
    Path(os.environ.get("TAAS_DATA", ROOT.parent / "shared" / "data")) / "azure2023" / "AzureLLMInferenceTrace_conv.csv"
)
PROFILE = capacity_profiles()["llama-3.1-8b-bf16-vllm-h100-tp1"]
STEP = StepModel(PROFILE.step.alpha_ms, PROFILE.step.beta_ms, PROFILE.step.kappa_ms, PROFILE.step.delta_ms)
LIMITS = EngineLimits(PROFILE.max_num_seqs, PROFILE.max_num_batched_tokens, PROFILE.kv_capacity_tokens)
BOUNDS = Bounds(ttft_seconds=1.0, tpot_seconds=0.025)
STRETCH_SECONDS = 5.0

Lengths = NDArray[np.int32]


def lengths(count: int) -> Lengths:
    """Rows of (input, output) tokens."""
    rng = np.random.default_rng(7)
    if TRACE.exists():
        with TRACE.open(newline="") as file:
            rows = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]
        return rng.permutation(np.maximum(np.array(rows, np.int32), 1))[np.arange(count) % len(rows)]
    drawn = rng.lognormal([6.6, 4.9], [1.0, 1.0], (count, 2)).clip(1, 8000)
    return drawn.astype(np.int32)


def stretches(rate: float, count: int, drawn: Lengths, seed: int = 0) -> Iterator[tuple[Requests, float]]:
    """Poisson arrivals in stretches of simulated time, and the end of each."""
    rng = np.random.default_rng(seed)
    end, sent = 0.0, 0
    while sent < count:
        number = min(int(rng.poisson(rate * STRETCH_SECONDS)), count - sent)
        at = np.sort(rng.uniform(end, end + STRETCH_SECONDS, number))
        own = drawn[(sent + np.arange(number)) % len(drawn)]
        end, sent = end + STRETCH_SECONDS, sent + number
        yield Requests(at, own[:, 0], own[:, 1], np.zeros(number, np.int32), np.full(number, np.nan)), end


def run(replicas: int, rate: float, count: int, drawn: Lengths) -> tuple[Pool, float]:
    """The pool after `count` requests, and the CPU seconds spent in `advance`."""
    pool = Pool(BOUNDS)
    for _ in range(replicas):
        pool.open(pool.add(STEP, LIMITS), True)
    spent = 0.0
    for requests, end in stretches(rate, count, drawn):
        begin = time.process_time()
        pool.advance(requests, end)
        spent += time.process_time() - begin
    return pool, spent


def highest_rate(drawn: Lengths, replicas: int = 8) -> float:
    """Requests per second per replica that meet the bounds for 99 %, within 1 %."""
    low, high = 0.0, 200.0
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        stats = run(replicas, middle * replicas, 20_000, drawn)[0].stats()
        low, high = (middle, high) if stats.met_targets >= 0.99 * stats.totals.finished else (low, middle)
    return low


def start_seconds(cache: Path) -> float:
    """CPU seconds of a process that imports the pool and makes it ready."""
    code = "from tokenservice.simulate.pool import prepare; prepare()"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--most", type=int, default=1_000_000, help="requests of the longest run")
    arguments.add_argument("--cold", action="store_true", help="time the compilation too")
    options = arguments.parse_args()
    drawn = lengths(20_000)
    print(f"lengths: {TRACE.name if TRACE.exists() else 'log-normal'}, means {drawn.mean(axis=0).round(1).tolist()}")
    rate = 0.7 * highest_rate(drawn)
    print(f"70 % load: {rate:.2f} requests/s per replica; CPU seconds of one core, steps of {STRETCH_SECONDS} s")
    for replicas in (1, 10, 30, 100, 200):
        report(replicas, rate, 100_000, drawn)
    count = 10_000
    while count <= options.most:
        report(30, rate, count, drawn)
        count *= 10
    if options.cold:
        with tempfile.TemporaryDirectory() as cache:
            print(
                f"import and prepare() in a new process: {start_seconds(Path(cache)):.1f} s compiling, ",
                end="",
                flush=True,
            )
            print(f"{start_seconds(Path(cache)):.1f} s from the cache")


def report(replicas: int, rate: float, count: int, drawn: Lengths) -> None:
    pool, spent = run(replicas, rate * replicas, count, drawn)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    own_mib = sum(array.nbytes for array in pool._state) / 2**20
    print(
        f"{replicas:4d} replicas {count:9,d} requests: {count / spent:9,.0f}/s, {1e6 * spent / count:5.2f} us each; "
        f"pool {own_mib:.1f} MiB, process peak {peak_mib:.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
