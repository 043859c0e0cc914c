"""What a fake engine tells its metrics page, whichever dialect that page speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tokenservice.simulate.engine import Request


@dataclass(frozen=True, slots=True)
class Timing:
    """One request's times in seconds on one clock: arrival, admission to the batch, first and last token."""

    arrived_s: float
    admitted_s: float
    first_token_s: float
    last_token_s: float

    @property
    def queued_s(self) -> float:
        return self.admitted_s - self.arrived_s

    @property
    def prefill_s(self) -> float:
        return self.first_token_s - self.admitted_s

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrived_s

    @property
    def decode_s(self) -> float:
        return self.last_token_s - self.first_token_s

    @property
    def inference_s(self) -> float:
        return self.last_token_s - self.admitted_s

    @property
    def e2e_s(self) -> float:
        return self.last_token_s - self.arrived_s

    def tpot_s(self, output_tokens: int) -> float:
        return self.decode_s / (output_tokens - 1) if output_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """The engine's state at a scrape."""

    running: int
    waiting: int
    kv_used_tokens: int
    generated_tokens: int
    preemptions: int


class EngineMetrics(Protocol):
    """The metrics of one engine process, from its start."""

    def ran(self, first_ms: float, slope_ms: float, steps: int, decoding: int, prefill_tokens: int) -> None:
        """Iterations were carried out; as `tokenservice.simulate.engine.StepObserver`."""

    def first_token(self, request: Request, ttft_s: float) -> None:
        """A prefill is done."""

    def finished(self, request: Request, timing: Timing, preemptions: int) -> None:
        """All tokens are out."""

    def aborted(self, request: Request, produced_tokens: int) -> None:
        """The client left, or the engine had to go."""

    def render(self, load: Load) -> str:
        """The page for Prometheus."""
