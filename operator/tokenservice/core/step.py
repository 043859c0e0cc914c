"""How long one engine iteration takes: the four-term step model.

An iteration with B running sequences, contexts c_i and p prefill tokens takes
`alpha + beta*B + kappa*sum(c_i)/1000 + delta*p` milliseconds. alpha is the weight read and the launch
overhead, beta the per-sequence work, kappa the KV-cache read, delta the prefill compute.

The form and the fits of the shipped profiles come from aiconfigurator's `silicon_sample.csv` (Apache-2.0);
docs/capacity.md has the errors on shapes that were held out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepModel:
    """Coefficients of one (model, engine, accelerator, tensor parallel size, precision).

    Units: `alpha_ms` per iteration, `beta_ms` per running sequence, `kappa_ms` per 1,000 context tokens,
    `delta_ms` per prefill token.
    """

    alpha_ms: float
    beta_ms: float
    kappa_ms: float
    delta_ms: float

    def step_ms(self, sequences: float, context_tokens: float, prefill_tokens: float) -> float:
        """Duration of one iteration; `context_tokens` is the sum over the running sequences."""
        return (
            self.alpha_ms
            + self.beta_ms * sequences
            + self.kappa_ms * context_tokens / 1000
            + self.delta_ms * prefill_tokens
        )

    def tpot_ms(self, batch: float, input_tokens: float, output_tokens: float, hit_rate: float = 0.0) -> float:
        """Mean time per output token in steady state at a batch of `batch` sequences.

        Prompts of `input_tokens` with a prefix-cache hit rate in [0, 1], outputs of `output_tokens`.
        """
        context = batch * (input_tokens + output_tokens / 2)
        prefill = batch * input_tokens * (1 - hit_rate) / output_tokens
        return self.step_ms(batch, context, prefill)
