"""How many tokens go in and come out: drawn from published quantiles, or from the pairs of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tokenservice.simulate.traffic import Floats, Ints


class Lengths(Protocol):
    """A distribution of (input, output) tokens, each at least 1."""

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]: ...

    def mean(self) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Tokens by share of requests (0 to 1, never falling), linear in between."""

    share: Floats
    tokens: Floats

    def at(self, share: Floats) -> Ints:
        return np.maximum(np.rint(np.interp(share, self.share, self.tokens)), 1).astype(np.int32)

    def mean(self) -> float:
        tokens = np.maximum(self.tokens, 1)  # as they are drawn
        return float(np.sum(np.diff(self.share) * (tokens[1:] + tokens[:-1]) / 2))


@dataclass(frozen=True, slots=True)
class Marginals:
    """Input and output drawn independently: published quantiles do not say how they go together."""

    inputs: Quantiles
    outputs: Quantiles

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        uniform = rng.random((n, 2))
        return self.inputs.at(uniform[:, 0]), self.outputs.at(uniform[:, 1])

    def mean(self) -> tuple[float, float]:
        return self.inputs.mean(), self.outputs.mean()


@dataclass(frozen=True, slots=True)
class Pairs:
    """Whole requests of a trace, drawn with replacement."""

    inputs: Ints
    outputs: Ints

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        at = (rng.random(n) * len(self.inputs)).astype(np.intp)
        return self.inputs[at], self.outputs[at]

    def mean(self) -> tuple[float, float]:
        return float(self.inputs.mean()), float(self.outputs.mean())
