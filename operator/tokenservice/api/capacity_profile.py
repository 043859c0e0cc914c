"""CapacityProfile: what one (model, engine, accelerator, TP, precision) delivers.

Cluster-scoped, short name `cprof`.
"""

from __future__ import annotations

from enum import StrEnum

from tokenservice.api.base import REQUIRED, ApiModel, Rule, field


class Provenance(StrEnum):
    """How far a profile can be trusted, best first."""

    MEASURED = "Measured"
    CALIBRATED = "Calibrated"
    ROOFLINE = "Roofline"


_REPOSITORY = Rule(
    "!self.startsWith('hf://')",
    "matches no TokenService: write the repository alone, ORGANISATION/MODEL without hf://",
    check=lambda model: not model.startswith("hf://"),
)
_TAKES_TIME = Rule(
    "self.alphaMs > 0.0",
    "an iteration takes time even with nothing to do: give the measured alphaMs, it is above 0",
    ".alphaMs",
    check=lambda step: step["alphaMs"] > 0,
)


class StepCoefficients(ApiModel):
    """`alpha + beta*B + kappa*sum(context)/1000 + delta*prefill`, the duration of one engine iteration."""

    alpha_ms: float = field(REQUIRED, "Time of an iteration before any sequence", unit="ms", ge=0, le=10000)
    beta_ms: float = field(REQUIRED, "Added by each running sequence", unit="ms", ge=0, le=1000)
    kappa_ms: float = field(REQUIRED, "Added by each 1,000 tokens of context", unit="ms", ge=0, le=1000)
    delta_ms: float = field(REQUIRED, "Added by each prefill token", unit="ms", ge=0, le=1000)


class CapacityProfileSpec(ApiModel):
    """One measured or estimated capacity."""

    model: str = field(
        REQUIRED,
        "Model repository as in hf://REPOSITORY; for example Qwen/Qwen3-32B",
        max_length=253,
        min_length=1,
        rules=(_REPOSITORY,),
    )
    engine: str = field(REQUIRED, "Engine, vLLM or SGLang", schema={"enum": ["vLLM", "SGLang"]}, max_length=16)
    engine_version: str = field(REQUIRED, "Engine version that it was measured with; used with any", max_length=64)
    accelerator: str = field(REQUIRED, "Name of the AcceleratorClass", max_length=63)
    tensor_parallel_size: int = field(REQUIRED, "Accelerators of one replica", unit="accelerators", ge=1, le=1024)
    precision: str = field(
        REQUIRED,
        "Number format of the weights",
        max_length=16,
        schema={"enum": ["bf16", "fp8", "int8", "int4", "mxfp4"]},
    )
    step: StepCoefficients = field(REQUIRED, "Duration of an engine iteration", unit="ms", rules=(_TAKES_TIME,))
    kv_capacity_tokens: int = field(
        REQUIRED, "Tokens the KV cache of one replica holds", unit="tokens", ge=1, le=10**12
    )
    max_num_seqs: int = field(256, "Sequences that may run at once", unit="sequences", ge=1, le=65536)
    max_num_batched_tokens: int = field(8192, "Tokens that one iteration may process", unit="tokens", ge=1, le=10**7)
    cold_start_seconds: float = field(
        REQUIRED,
        "From the container's start to the first token, weights in the node's page cache or on local disk",
        unit="seconds",
        ge=0,
        le=86400,
    )
    provenance: Provenance = field(REQUIRED, "How the figures were found: Measured, Calibrated or Roofline")
    error_fraction: float | None = field(
        None,
        "Mean absolute error of TPOT, as a share of it",
        unit="ratio",
        default_text="not known",
        ge=0,
        le=10,
    )
    source: str = field("", "Where the figures come from", max_length=1024)


class RefinementFactors(ApiModel):
    """What the profile's coefficients are multiplied with, by what production has shown."""

    alpha: float = field(REQUIRED, "Of alphaMs", unit="ratio", ge=0, le=3)
    load: float = field(REQUIRED, "Of betaMs and kappaMs", unit="ratio", ge=0, le=3)
    prefill: float = field(REQUIRED, "Of deltaMs", unit="ratio", ge=0, le=3)


class CapacityProfileStatus(ApiModel):
    """What production taught about this profile; steers decisions, never the utilization figure."""

    observed_generation: int | None = field(
        None, "Generation of the spec that this refines; another one starts anew", unit="generation", ge=0
    )
    factors: RefinementFactors | None = field(
        None, "Refined over the profile's own coefficients, 0.5 to 2", unit="ratio"
    )
    covariance: tuple[float, ...] | None = field(
        None,
        "Of the factors' logarithms, upper triangle row by row: how sure each of them is",
        max_length=6,
        schema={"x-kubernetes-list-type": "atomic"},
    )
    step: StepCoefficients | None = field(None, "Coefficients refined from the engines' own metrics", unit="ms")
    error_fraction: float | None = field(
        None,
        "Mean absolute error of the refined coefficients on the next observation, as a share of TPOT",
        unit="ratio",
        ge=0,
    )
    samples: int | None = field(None, "Observations behind the refinement", unit="observations", ge=0)
