"""What a model should take on an accelerator, from its architecture and the data sheet alone: the roofline prior.

Decoding reads all weights that are in use and the KV cache once per iteration; prefill multiplies. So alpha is weight
bytes over bandwidth plus a launch overhead per layer, kappa is KV bytes over bandwidth, delta is two operations per
parameter over arithmetic peak. Shares of peak and overheads are medians of fits of 130 measured configurations of
aiconfigurator's `silicon_sample.csv` (Apache-2.0). Dense models meet them within a tenth; a mixture of experts also
pays for routing: its layers cost 0.12 ms where dense ones cost 0.05 ms, and its prefill reaches a third of the
arithmetic share.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.token_service import Architecture
from tokenservice.core.step import StepModel

BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.56, "mxfp4": 0.53, "fp4": 0.56}
"""Bytes per weight, scales of the 4-bit formats included (one of 16 bits per 128 or of 8 bits per 16 or 32 weights)."""

BANDWIDTH_SHARE = 0.8
_ARITHMETIC_SHARE = 0.5  # measured 0.3 to 0.83, falling with tensor parallel size
_LAYER_OVERHEAD_MS = 0.05  # measured 0.02 to 0.07 per layer and iteration
_EXPERTS_ARITHMETIC_SHARE = 0.17
_EXPERTS_LAYER_OVERHEAD_MS = 0.12  # measured 0.09 to 0.15
_SEQUENCE_MS = 0.06
_EXPERTS_SPREAD = 128  # sequences until a mixture of experts has touched all: fits gpt-oss-120b (0.15 ms) well


@dataclass(frozen=True, slots=True)
class Layout:
    """How a replica is spread: shards of each layer, copies of the attention that share the sequences."""

    tensor_parallel: int
    data_parallel: int = 1

    @property
    def accelerators(self) -> int:
        """Accelerators that work on one iteration."""
        return self.tensor_parallel * self.data_parallel


def roofline(
    architecture: Architecture,
    accelerator: AcceleratorClassSpec,
    layout: Layout,
    precision: str,
    kv_element_bytes: int = 2,
) -> StepModel:
    """Step coefficients from the data sheet; `precision` is a key of BYTES. Uncalibrated: say so where it is shown."""
    count = layout.accelerators
    bytes_per_ms = count * accelerator.bandwidth_gigabytes_per_second * 1e6 * BANDWIDTH_SHARE
    active = architecture.active_parameters or architecture.parameters
    resting = architecture.parameters - active
    experts = resting > 0
    overhead = _EXPERTS_LAYER_OVERHEAD_MS if experts else _LAYER_OVERHEAD_MS
    share = _EXPERTS_ARITHMETIC_SHARE if experts else _ARITHMETIC_SHARE
    kv_bytes = kv_bytes_per_token(architecture, layout.tensor_parallel, kv_element_bytes)
    return StepModel(
        alpha_ms=active * BYTES[precision] / bytes_per_ms + architecture.layers * overhead,
        beta_ms=_SEQUENCE_MS + resting * BYTES[precision] / bytes_per_ms / _EXPERTS_SPREAD,
        kappa_ms=1000 * kv_bytes / bytes_per_ms,
        delta_ms=2 * active / (count * _teraflops(accelerator, precision) * 1e9 * share),
    )


def weight_bytes(architecture: Architecture, precision: str) -> float:
    """Size of the weights in a number format."""
    return architecture.parameters * BYTES[precision]


def kv_bytes_per_token(architecture: Architecture, tensor_parallel: int, element_bytes: int = 2) -> float:
    """Keys and values of one token over the whole replica; more shards than heads hold copies."""
    heads = max(architecture.kv_heads, tensor_parallel)
    return 2.0 * architecture.layers * heads * architecture.head_dim * element_bytes


def _teraflops(accelerator: AcceleratorClassSpec, precision: str) -> float:
    """Peak in the weights' format; where it is missing they are widened to bf16."""
    dense = accelerator.dense_teraflops
    native = {"fp8": dense.fp8, "mxfp4": dense.fp4, "fp4": dense.fp4}.get(precision)
    return native if native is not None else dense.bf16
