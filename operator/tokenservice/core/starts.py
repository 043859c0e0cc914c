"""What a cold start takes here, learned from the replicas that stand.

A profile knows how long a start takes with the weights at hand; how long they take to come, over which network and past
which caches, shows in the cluster alone. What a replica that starts now will serve, and how long a mistake lasts,
hangs on it. The replicas that are there tell it of their own start, so that a restart of the operator forgets nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log
from statistics import median_low

from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.allocation import Ranked
from tokenservice.core.deployment import startup_seconds
from tokenservice.core.model import Pod, Variant

STEP = 1.25
"""Figures are told apart by steps of this: a start that takes a little longer than the last one changes nothing."""


def as_started(ways: Ranked, spec: TokenServiceSpec, pods: Sequence[Pod]) -> Ranked:
    """The ways, each with the cold start that its replicas had; the same object where that is as its profile says."""
    found = tuple(
        (_learned(variant, spec, [pod for pod in pods if pod.variant == variant.name]), able) for variant, able in ways
    )
    return ways if all(new[0] is old[0] for new, old in zip(found, ways, strict=True)) else found


def alike(seconds: float, others: float) -> bool:
    """Whether two times are no more than a step apart."""
    return max(seconds, others) <= STEP * min(seconds, others) * (1 + 1e-9)


def _learned(variant: Variant, spec: TokenServiceSpec, pods: Sequence[Pod]) -> Variant:
    """By the middle one of its replicas, on a grid through the profile's figure.

    What took longer than any start may was ready before, and not for a while: that is no start.
    """
    longest = startup_seconds(spec, variant)
    took = [pod.took_seconds for pod in pods if pod.took_seconds is not None and pod.took_seconds <= longest]
    if not took:
        return variant
    usual, known = max(1.0, median_low(took)), max(1.0, variant.cold_start_seconds)
    steps = round(log(usual / known, STEP))
    return replace(variant, cold_start_seconds=known * STEP**steps) if steps else variant
