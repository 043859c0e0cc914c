"""What a simulation is fed with: a fleet, services as they would be applied, and the requests they get.

Everything that policies are compared on stands in the scenario, the reference variant of each service included, so
that no policy's choice can move the yardstick. `scenario.load` reads one from a file; this module is its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from tokenservice.api.base import REQUIRED, field
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.api.validation import stored
from tokenservice.catalogue import accelerator_classes, architectures, capacity_profiles
from tokenservice.core.engines.sources import DISK_BYTES_PER_SECOND, REMOTE_BYTES_PER_SECOND
from tokenservice.core.model import Accelerator, Problem, Profile, ServiceKey, Variant
from tokenservice.core.variants import candidates
from tokenservice.simulate.traffic import LONGEST_SECONDS
from tokenservice.simulate.workload import Workload
from tokenservice.simulate.workload_spec import ScenarioModel, WorkloadSpec, one_of, wrong

Json = dict[str, Any]
Count = Annotated[int, Field(ge=0, le=100_000)]


class Billing(StrEnum):
    WHOLE_NODE = "WholeNode"
    ACCELERATOR = "Accelerator"


class Pool(ScenarioModel):
    """Nodes of one class."""

    accelerator_class: str = field(REQUIRED, "AcceleratorClass of the catalogue")
    initial_nodes: int = field(0, "Nodes that are there at the start, beside those the first replicas need", ge=0)
    max_nodes: int = field(10000, "Most nodes that can be had", ge=0)
    accelerators_per_node: int | None = field(
        None, "Accelerators in one node", unit="accelerators", default_text="the class's", ge=1, le=1024
    )
    billing: Billing = field(
        Billing.WHOLE_NODE,
        "WholeNode counts every accelerator of a node from its start to its release. Accelerator makes a node of each"
        " replica, as large as the replica: it compares policies by their counts alone",
    )


class BySource(ScenarioModel):
    """Cold starts by the scheme of the model's uri."""

    hf: float | None = field(None, "From Hugging Face", unit="seconds", gt=0)
    oci: float | None = field(None, "From an image registry", unit="seconds", gt=0)
    s3: float | None = field(None, "From object storage", unit="seconds", gt=0)
    pvc: float | None = field(None, "From a volume", unit="seconds", gt=0)


class Bandwidths(ScenarioModel):
    """How fast weights are read, by the scheme of the model's uri, and where the node has read them before."""

    hf: float = field(REMOTE_BYTES_PER_SECOND, "From Hugging Face", unit="bytes per second", gt=0)
    oci: float = field(DISK_BYTES_PER_SECOND, "From an image volume on the node", unit="bytes per second", gt=0)
    s3: float = field(REMOTE_BYTES_PER_SECOND, "From object storage", unit="bytes per second", gt=0)
    pvc: float = field(DISK_BYTES_PER_SECOND, "From a volume", unit="bytes per second", gt=0)
    cached: float | None = field(
        None, "From the node's own cache", unit="bytes per second", default_text="nodes keep nothing", gt=0
    )


class Stages(ScenarioModel):
    """A start by its parts: the process, the weights, the graphs."""

    bootstrap_seconds: float = field(15.0, "Until weights are read", unit="seconds", ge=0)
    bytes_per_second: Bandwidths = field(Bandwidths(), "How fast they are read", default_text="as sources usually are")
    compile_seconds: float = field(30.0, "Compilation and graph capture", unit="seconds", ge=0)

    def of(self, source: str, variant: Variant, *, cached: bool) -> float:
        """Seconds for these weights from this source; `cached` where the node has read them before."""
        speeds = self.bytes_per_second
        speed: float = getattr(speeds, source)
        if cached and speeds.cached is not None:
            speed = max(speed, speeds.cached)
        return self.bootstrap_seconds + variant.weight_bytes / speed + self.compile_seconds


class ColdStart(ScenarioModel):
    """How long a replica takes from its place on a node to serving."""

    seconds: float | None = field(None, "The same for all", unit="seconds", default_text="the variant's", gt=0)
    by_source: BySource = field(BySource(), "By where the model comes from", default_text="seconds")
    stages: Stages | None = field(None, "By its parts, from the bytes of the weights", default_text="seconds")

    @model_validator(mode="after")
    def _one_way(self) -> ColdStart:
        if self.stages is not None and (self.seconds is not None or self.by_source != BySource()):
            raise wrong("stages", "says it all: leave out seconds and bySource")
        return self

    def of(self, spec: TokenServiceSpec, variant: Variant, *, cached: bool = False) -> float:
        """Seconds for one service on one variant, on a node that has read its weights before or not."""
        source = spec.model.uri.partition("://")[0]
        if self.stages is not None:
            return self.stages.of(source, variant, cached=cached)
        return getattr(self.by_source, source) or self.seconds or variant.cold_start_seconds


class Failure(ScenarioModel):
    """Something breaks."""

    at_seconds: float = field(REQUIRED, "When", unit="seconds", ge=0)
    node: str | None = field(None, "AcceleratorClass of a node that is lost: the one with most replicas")
    service: str | None = field(None, "Service of which one replica crashes: the oldest")

    @model_validator(mode="after")
    def _one_victim(self) -> Failure:
        one_of(self, "node", "service")
        return self


class ScenarioService(ScenarioModel):
    """One service and what is asked of it."""

    service: Json = field(REQUIRED, "A TokenService as it would be applied, or {file: PATH} of one")
    reference_variant: str = field(
        REQUIRED,
        "The variant by which the worth of its requests is measured, the same for every policy; for example"
        " h100-vllm-tp2-fp8",
    )
    workload: WorkloadSpec = field(REQUIRED, "The requests")

    @cached_property
    def key(self) -> ServiceKey:
        metadata = self.service["metadata"]
        return ServiceKey(metadata.get("namespace", "default"), metadata["name"])

    @cached_property
    def spec(self) -> TokenServiceSpec:
        """The contract, with the server's defaults."""
        return TokenServiceSpec.model_validate(stored(self.service)["spec"])


def _replicas(value: Any) -> Any:
    if isinstance(value, str) and value != "Static":
        raise wrong("", f"must be Static or replicas by service, not {value!r}")
    return {} if value == "Static" else value


def _seconds(value: Any) -> Any:
    return {"seconds": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Scenario(ScenarioModel):
    """A simulation's input. Times are in seconds since its start."""

    name: str = field(REQUIRED, "Name, for results", min_length=1, max_length=63)
    description: str = field("", "What it is for")
    seed: int = field(0, "Seed of all that is drawn; runs may be given another", ge=0)
    duration_seconds: float | None = field(
        None, "Time simulated", unit="seconds", default_text="the longest workload's", gt=0, le=LONGEST_SECONDS
    )
    control_period_seconds: float = field(5.0, "Time between decisions of the operator", unit="seconds", gt=0)
    scrape_interval_seconds: float = field(5.0, "Time between scrapes of the engines", unit="seconds", gt=0)
    rate_window_seconds: float = field(15.0, "Window over which rates are taken", unit="seconds", gt=0)
    node_start_seconds: float = field(90.0, "From asking for a node to having it", unit="seconds", ge=0)
    node_idle_seconds: float = field(30.0, "Time after which an empty node is released", unit="seconds", ge=0)
    cold_start: Annotated[ColdStart, BeforeValidator(_seconds)] = field(
        ColdStart(), "A number for all, or bySource", default_text="the variant's own"
    )
    failures: tuple[Failure, ...] = field((), "What breaks, and when")
    fleet: tuple[Pool, ...] = field(REQUIRED, "Nodes by AcceleratorClass", min_length=1)
    initial_replicas: Annotated[dict[str, Count], BeforeValidator(_replicas)] = field(
        {},
        "Replicas at the start by name of the service; a service without a number starts at the size of a static"
        " fleet, warm. Static says so for all",
        default_text="Static",
    )
    token_fleet: TokenFleetSpec = field(TokenFleetSpec(), "Spec of the TokenFleet", default_text="the defaults")
    services: tuple[ScenarioService, ...] = field(REQUIRED, "Services and their requests", min_length=1)

    @cached_property
    def accelerators(self) -> tuple[Accelerator, ...]:
        """The fleet's classes, with the scenario's accelerators per node, by name."""
        return tuple(sorted((_accelerator(pool) for pool in self.fleet), key=lambda it: it.name))

    def variants(self, service: ScenarioService) -> tuple[Variant, ...]:
        """Ways to run the service on this fleet."""
        return ways(service.spec, self.accelerators)[0]

    def may_run(self, service: ScenarioService) -> tuple[Variant, ...]:
        """All ways that the operator may come to choose: estimates too, for classes without a profile.

        It looks only at the classes that have nodes and that the namespace may use, and where no class of these has a
        profile an estimate has to do.
        """
        some = [self.accelerators, *((one,) for one in self.accelerators)]
        return tuple({way.name: way for classes in some for way in ways(service.spec, classes)[0]}.values())

    def reference(self, service: ScenarioService) -> Variant:
        """The variant that its requests are measured by; the fleet need not have its class."""
        found, _ = reference_ways(service.spec)
        return next(variant for variant in found if variant.name == service.reference_variant)

    def duration_s(self, workloads: Mapping[ServiceKey, Workload]) -> float:
        """Time to simulate."""
        return self.duration_seconds or max(workload.duration_s for workload in workloads.values())

    def workloads(self, seed: int | None = None) -> Mapping[ServiceKey, Workload]:
        """Every service's requests, for the scenario's seed or another. Reads files; raises InputError."""
        chosen = self.seed if seed is None else seed
        return {
            service.key: Workload.build(service.workload, seed=chosen, service=number)
            for number, service in enumerate(self.services)
        }


def ways(
    spec: TokenServiceSpec, accelerators: tuple[Accelerator, ...]
) -> tuple[tuple[Variant, ...], tuple[Problem, ...]]:
    """Variants of the catalogue's profiles on these accelerators, and what stands against any."""
    profiles = tuple(Profile(name=name, spec=known) for name, known in sorted(capacity_profiles().items()))
    return candidates(spec, accelerators, profiles, architectures())


def reference_ways(spec: TokenServiceSpec) -> tuple[tuple[Variant, ...], tuple[Problem, ...]]:
    """Variants on any accelerator of the catalogue."""
    return ways(
        spec, tuple(Accelerator(name=name, spec=known) for name, known in sorted(accelerator_classes().items()))
    )


def _accelerator(pool: Pool) -> Accelerator:
    known = accelerator_classes()[pool.accelerator_class]
    count = pool.accelerators_per_node or known.accelerators_per_node
    return Accelerator(name=pool.accelerator_class, spec=known.model_copy(update={"accelerators_per_node": count}))
