"""AcceleratorClass: what one kind of accelerator offers and costs. Cluster-scoped, short name `accel`."""

from __future__ import annotations

from enum import StrEnum

from tokenservice.api.base import REQUIRED, ApiModel, field
from tokenservice.api.quantity import NUMBER_OR_TEXT, amount_rule


class Vendor(StrEnum):
    NVIDIA = "NVIDIA"
    AMD = "AMD"


class DenseTeraflops(ApiModel):
    """Peak dense arithmetic by number format; a format the accelerator lacks is absent."""

    bf16: float = field(REQUIRED, "Peak dense bfloat16 throughput", unit="TFLOPS", gt=0, le=1e6)
    fp8: float | None = field(
        None,
        "Peak dense FP8 throughput",
        unit="TFLOPS",
        default_text="the accelerator has no FP8",
        gt=0,
        le=1e6,
    )
    fp4: float | None = field(
        None,
        "Peak dense FP4 throughput",
        unit="TFLOPS",
        default_text="the accelerator has no FP4",
        gt=0,
        le=1e6,
    )


class Source(ApiModel):
    """Where a figure comes from."""

    figure: str = field(REQUIRED, "Name of the field that this source supports", max_length=64)
    source: str = field(REQUIRED, "Data sheet, price list or measurement", max_length=512)
    date: str = field(REQUIRED, "When it was read, as YYYY-MM or YYYY-MM-DD", max_length=10)


class AcceleratorClassSpec(ApiModel):
    """One kind of accelerator as the planner sees it."""

    vendor: Vendor = field(REQUIRED, "Who makes it; decides engine image, resource name and environment")
    node_labels: dict[str, str] = field(
        REQUIRED,
        "Labels that a node of this class carries, all of them; for example"
        " nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3",
        min_length=1,
        max_length=16,
        schema={"additionalProperties": {"type": "string", "maxLength": 63}},
    )
    resource_name: str = field(
        REQUIRED, "Extended resource that pods request; for example nvidia.com/gpu", max_length=128
    )
    memory: str = field(
        REQUIRED,
        "Memory of one accelerator",
        unit="bytes, as a quantity such as 80Gi",
        max_length=16,
        schema=NUMBER_OR_TEXT,
        rules=(amount_rule("80Gi"),),
    )
    bandwidth_gigabytes_per_second: float = field(
        REQUIRED, "Peak memory bandwidth of one accelerator", unit="GB/s", gt=0, le=1e6
    )
    dense_teraflops: DenseTeraflops = field(REQUIRED, "Peak dense arithmetic by number format", unit="TFLOPS")
    accelerators_per_node: int = field(8, "Accelerators in one node", unit="accelerators", ge=1, le=1024)
    interconnect_domain: int = field(
        8,
        "Accelerators joined by the fast interconnect; bounds tensor parallelism",
        unit="accelerators",
        ge=1,
        le=1024,
    )
    price_per_hour: float = field(
        REQUIRED,
        "Price of one accelerator; set your own, the catalogue's comes from the source named in sources",
        unit="US dollars per accelerator-hour",
        ge=0,
        le=10000,
    )
    idle_watts: float = field(REQUIRED, "Power drawn when idle", unit="watts", ge=0, le=100000)
    busy_watts: float = field(REQUIRED, "Power drawn at full load", unit="watts", ge=0, le=100000)
    sources: tuple[Source, ...] = field(
        (), "Where the figures come from", max_length=32, schema={"x-kubernetes-list-type": "atomic"}
    )


class AcceleratorClassStatus(ApiModel):
    """What the operator sees of this class."""

    nodes: int | None = field(None, "Nodes that match", unit="nodes", ge=0)
    accelerators: int | None = field(None, "Accelerators that exist", unit="accelerators", ge=0)
    allocated: int | None = field(None, "Accelerators that pods hold", unit="accelerators", ge=0)
