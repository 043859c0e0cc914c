"""Aegaeon's pool: accelerators that many models share token by token.

"Aegaeon: Effective GPU Pooling for Concurrent LLM Serving on the Market" (SOSP 2025). Models are switched between
tokens, so a pool needs accelerators for the work, and a place for every model that has a request at the time: with
Poisson arrivals at rate L and requests that stay T seconds a model is active with probability 1 - exp(-L T), and one
accelerator holds up to seven.

Engines shared by services do not fit an interface that counts replicas of one service, so this is no policy but an
estimate of the accelerators over time, and an optimistic one: no time for switching, no loss from the latency targets
of different models on one engine, resizing at once. What it saves on is the long tail; a busy model gains nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenservice.simulate.traffic import Floats

MODELS_PER_ACCELERATOR = 7


def pooled_accelerators(
    rates: Floats,
    reference_rates: Floats,
    accelerators_per_replica: Floats,
    residence_seconds: Floats,
    models_per_accelerator: int = MODELS_PER_ACCELERATOR,
) -> NDArray[np.int64]:
    """Fewest accelerators of a shared pool, bin by bin.

    `rates` is (services, bins), requests per second; the others are (services,): requests per second that one replica
    takes, its accelerators, and how long a request stays. Never fewer than the widest model in use needs.
    Raises ValueError for a reference rate that is not positive.
    """
    if np.any(reference_rates <= 0):
        raise ValueError("reference_rates must be positive: leave out services that no replica can serve")
    width = accelerators_per_replica[:, None]
    work = np.sum(rates / reference_rates[:, None] * width, axis=0)
    places = np.sum((1 - np.exp(-rates * residence_seconds[:, None])) * width, axis=0) / models_per_accelerator
    widest = np.max(np.where(rates > 0, width, 0), axis=0)
    needed: NDArray[np.int64] = np.ceil(np.maximum(np.maximum(work, places), widest) - 1e-9).astype(np.int64)
    return needed
