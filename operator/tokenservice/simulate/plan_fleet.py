"""A large fleet for timing decisions, and the cluster that carries plans out in no time.

Every figure is drawn from a seed, so two runs time the same fleet. Models and accelerators are the caller's (the
catalogue's, for the command); each model has exactly two ways to run on each class, written down as profiles, so that
a service has six variants. Demand is spread log-normally and scaled until a share of the accelerators is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.capacity_profile import CapacityProfileSpec
from tokenservice.api.token_service import Architecture, TokenServiceSpec
from tokenservice.core.allocation import Want
from tokenservice.core.capacity import DEFAULT, Targets, capacity, targets
from tokenservice.core.demand import workload_of
from tokenservice.core.facts import Facts
from tokenservice.core.model import (
    Accelerator,
    Apply,
    Child,
    Delete,
    EngineImages,
    Json,
    Missing,
    Node,
    ObjectKey,
    Place,
    Plan,
    Pod,
    Profile,
    Service,
    ServiceKey,
    ServiceMetrics,
    Settings,
    Snapshot,
    Variant,
)
from tokenservice.core.names import REGION_LABEL, SERVICE_LABEL, VARIANT_LABEL
from tokenservice.core.outlook import outlook
from tokenservice.core.variants import candidates

NOW = 1_800_000_000.0
SHARES = {"h100": 0.4, "mi300x": 0.3, "l40s": 0.3}
"""Classes of the fleet, and which share of its nodes each has."""

REGIONS = ("eu-1", "us-1")
PER_NODE = 8
_SIZES_PER_CLASS = 2
_TIERS = ("Guaranteed", "Elastic", "Elastic", "Elastic", "Spot")
_ASKED = 0.80
"""Share of the accelerators that the cheapest variants would take; the scarce classes' substitutes take more."""

_FITTINGS = 4

_TARGET_UTILIZATION = 0.70
_SPREAD = 0.8
_LEAST_RATE, _MOST_ACCELERATORS = 1.0, 64.0
_USUAL = Targets(2.0, 0.99, 0.2, 0.99)
_IMAGE = "registry.example/engine@sha256:" + "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What the fleet is made from."""

    classes: Mapping[str, AcceleratorClassSpec]
    architectures: Mapping[str, Architecture]


def new_fleet(catalogue: Catalogue, *, services: int, accelerators: int, seed: int = 1) -> Snapshot:
    """Services that ask for most of `accelerators`, on empty nodes."""
    chance = np.random.default_rng(seed)
    classes = tuple(Accelerator(name=name, spec=catalogue.classes[name]) for name in sorted(SHARES))
    models = _models(classes, catalogue.architectures)
    profiles = tuple(profile for made in models.values() for profile in made)
    found = [_service(index, model, chance) for index, model in enumerate(_drawn(sorted(models), services, chance))]
    nodes = tuple(_nodes(classes, accelerators))
    lengths = {service.key: _lengths(chance) for service in found}
    weights = np.exp(chance.normal(0.0, _SPREAD, services))
    share = _ASKED * PER_NODE * len(nodes) * weights / weights.sum()
    asked = dict(zip(lengths, np.minimum(share, _MOST_ACCELERATORS).tolist(), strict=True))
    drawn = Snapshot(
        services=tuple(found),
        nodes=nodes,
        pods=(),
        children={},
        accelerators=classes,
        profiles=profiles,
        architectures={},
        metrics={s.key: _metrics(s, classes, profiles, lengths[s.key], asked[s.key]) for s in found},
        settings=Settings(images=EngineImages(defaults={("vLLM", "NVIDIA"): _IMAGE, ("vLLM", "AMD"): _IMAGE})),
        fleet_object={"metadata": {"name": "default", "uid": "fleet", "generation": 1}},
    )
    for _ in range(_FITTINGS):
        drawn = _fitted(drawn, _ASKED * PER_NODE * len(nodes))
    return drawn


def _fitted(drawn: Snapshot, accelerators: float) -> Snapshot:
    """The demand scaled so that the counts that the operator's own rules give take about so many accelerators."""
    facts = Facts(drawn)
    wants = [want for service in drawn.services if (want := outlook(facts, service).want) is not None]
    taken = sum(min(_ways(want))[1] for want in wants)
    by = accelerators / taken
    return replace(drawn, metrics={key: moved(seen, by) for key, seen in drawn.metrics.items()})


def _ways(want: Want) -> list[tuple[float, int]]:
    """Price per hour and accelerators of every way to serve."""
    ways = zip(want.ranked, want.options, strict=True)
    return [(count * variant.price_per_hour, count * variant.accelerators) for (variant, _), count in ways if count]


def moved(seen: ServiceMetrics | Missing, by: float) -> ServiceMetrics:
    """The same service with another rate of requests."""
    assert isinstance(seen, ServiceMetrics)
    return replace(
        seen,
        requests_per_second=seen.requests_per_second * by,
        peak_requests_per_second=seen.peak_requests_per_second * by,
        output_tokens_per_second=seen.output_tokens_per_second * by,
        input_tokens_per_second=seen.input_tokens_per_second * by,
    )


def _drawn(models: Sequence[str], count: int, chance: np.random.Generator) -> list[str]:
    return [models[index] for index in chance.integers(0, len(models), count)]


def _models(
    classes: tuple[Accelerator, ...], architectures: Mapping[str, Architecture]
) -> dict[str, tuple[Profile, ...]]:
    """Models with two useful sizes on every class, as profiles."""
    made = {model: _profiles(model, classes, architectures) for model in sorted(architectures)}
    return {model: profiles for model, profiles in made.items() if len(profiles) == _SIZES_PER_CLASS * len(classes)}


def _profiles(
    model: str, classes: tuple[Accelerator, ...], architectures: Mapping[str, Architecture]
) -> tuple[Profile, ...]:
    spec = TokenServiceSpec.model_validate({"model": {"uri": f"hf://{model}"}, "engine": {"name": "vLLM"}})
    found, _ = candidates(spec, classes, (), architectures)
    useful = [variant for variant in found if capacity(variant, DEFAULT, _USUAL).requests_per_second > _LEAST_RATE]
    kept = [v for one in classes for v in [u for u in useful if u.accelerator.name == one.name][:_SIZES_PER_CLASS]]
    return tuple(_profile(model, variant) for variant in kept)


def _profile(model: str, variant: Variant) -> Profile:
    step = variant.step
    fields = {
        "model": model,
        "engine": variant.engine,
        "engineVersion": "0.32",
        "accelerator": variant.accelerator.name,
        "tensorParallelSize": variant.tensor_parallel_size,
        "precision": variant.precision,
        "step": {
            "alphaMs": step.alpha_ms,
            "betaMs": step.beta_ms,
            "kappaMs": step.kappa_ms,
            "deltaMs": step.delta_ms,
        },
        "kvCapacityTokens": variant.kv_capacity_tokens,
        "maxNumSeqs": variant.max_num_seqs,
        "maxNumBatchedTokens": variant.max_num_batched_tokens,
        "coldStartSeconds": variant.cold_start_seconds,
        "provenance": "Roofline",
    }
    name = f"{model.rpartition('/')[2].lower()}-{variant.name}"
    return Profile(name=name, spec=CapacityProfileSpec.model_validate(fields))


def _service(index: int, model: str, chance: np.random.Generator) -> Service:
    """One in ten must stay in a region; spot services are one in five, as are guaranteed ones."""
    name, namespace = f"service-{index:05}", f"team-{index % 25:02}"
    spec: Json = {
        "model": {"uri": f"hf://{model}", "servedName": name},
        "engine": {"name": "vLLM"},
        "tier": _TIERS[int(chance.integers(0, len(_TIERS)))],
        "scaling": {"maxReplicas": 1000, "targetUtilization": _TARGET_UTILIZATION},
    }
    if chance.random() < 0.1:
        spec["placement"] = {"residency": {"regions": [REGIONS[int(chance.integers(0, len(REGIONS)))]]}}
    return Service(
        key=ServiceKey(namespace, name),
        uid=f"uid-{name}",
        generation=1,
        resource_version="1",
        created_at=float(index),
        spec=TokenServiceSpec.model_validate(spec),
    )


def _nodes(classes: tuple[Accelerator, ...], accelerators: int) -> Iterator[Node]:
    count = accelerators // PER_NODE
    owners = [one for one in classes for _ in range(round(SHARES[one.name] * count))]
    owners += [classes[0]] * (count - len(owners))
    for index, one in enumerate(owners[:count]):
        yield Node(
            name=f"node-{index:05}",
            labels=dict(one.spec.node_labels) | {REGION_LABEL: REGIONS[index % len(REGIONS)]},
            allocatable={one.spec.resource_name: PER_NODE},
            cpu_cores=192.0,
            memory_bytes=2e12,
            ready=True,
            schedulable=True,
            created_at=0.0,
        )


def _lengths(chance: np.random.Generator) -> tuple[float, float, float]:
    """Mean prompt and answer in tokens, and share of prompts found in the cache; every service has its own."""
    return (
        float(np.exp(chance.uniform(np.log(300), np.log(3000)))),
        float(np.exp(chance.uniform(np.log(60), np.log(600)))),
        float(chance.uniform(0.0, 0.6)),
    )


def _metrics(
    service: Service,
    classes: tuple[Accelerator, ...],
    profiles: tuple[Profile, ...],
    lengths: tuple[float, float, float],
    accelerators: float,
) -> ServiceMetrics:
    """The rate that fills so many accelerators of the service's cheapest variant to the target."""
    assert service.spec is not None
    seen = measured(1000.0, lengths)
    work, goals = workload_of(seen), targets(service.spec.objectives)
    found, _ = candidates(service.spec, classes, profiles, {})
    rated = [(variant, capacity(variant, work, goals).requests_per_second) for variant in found]
    best, rate = min((pair for pair in rated if pair[1] > 0), key=lambda pair: pair[0].price_per_hour / pair[1])
    return measured(_TARGET_UTILIZATION * rate * accelerators / best.accelerators, lengths)


def measured(rate: float, lengths: tuple[float, float, float]) -> ServiceMetrics:
    """What Prometheus would say at `rate` requests per second."""
    prompt, answer, cached = lengths
    return ServiceMetrics(
        requests_per_second=rate,
        peak_requests_per_second=rate,
        output_tokens_per_second=rate * answer,
        input_tokens_per_second=rate * prompt,
        mean_input_tokens=prompt,
        mean_output_tokens=answer,
        prefix_hit_rate=cached,
        running=1.0,
        waiting=0.0,
        kv_usage=0.3,
        engines_reporting=10_000,
        ttft_buckets=((0.5, rate * 0.9), (2.0, rate), (float("inf"), rate)),
        tpot_buckets=((0.05, rate * 0.9), (0.2, rate), (float("inf"), rate)),
    )


_CARRIED = {one.name for one in fields(Plan)} & {one.name for one in fields(Snapshot)} - {"metrics"}
"""What one plan leaves for the next decision; `metrics` means another thing in each."""


# --- The cluster ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Cluster:
    """Carries plans out at once: children stand, pods start where they were placed and serve. Mutable by design."""

    snapshot: Snapshot
    _serial: int = field(default=0)

    def carry_out(self, plan: Plan, now: float) -> None:
        """The snapshot after every action of the plan, and after its statuses were written."""
        children, pods = dict(self.snapshot.children), {pod.name: pod for pod in self.snapshot.pods}
        for action in plan.actions:
            if isinstance(action, Apply):
                child = self._child(action)
                children[child.key] = child
                pods |= self._missing(child, pods)
            elif isinstance(action, Delete):
                children.pop(action.key, None)
            elif isinstance(action, Place):
                pods[action.pod.name] = _started(pods[action.pod.name], action.node)
        self.snapshot = replace(
            self.snapshot,
            children=children,
            pods=tuple(sorted(pods.values(), key=lambda pod: (pod.namespace, pod.name))),
            **{name: getattr(plan, name) for name in _CARRIED},
        )
        self._write_statuses(plan, now)

    def _child(self, action: Apply) -> Child:
        """As a server gives it back: equal in content, no object shared."""
        self._serial += 1
        body, metadata = json.loads(json.dumps(action.manifest)), action.manifest["metadata"]
        if body["kind"] == "Deployment":
            count = body["spec"]["replicas"]
            body["status"] = {"observedGeneration": 1, "replicas": count, "updatedReplicas": count}
        return Child(
            key=ObjectKey(body["kind"], metadata["namespace"], metadata["name"]),
            uid=f"uid-{self._serial}",
            resource_version=str(self._serial),
            owner=ServiceKey(metadata["namespace"], metadata["labels"][SERVICE_LABEL]),
            body=body,
        )

    def _missing(self, child: Child, pods: Mapping[str, Pod]) -> dict[str, Pod]:
        """Gated pods of a Deployment that asks for more."""
        if child.key.kind != "Deployment":
            return {}
        names = [f"{child.key.name}-{number:03}" for number in range(child.body["spec"]["replicas"])]
        return {name: _gated(child, name) for name in names if name not in pods}

    def _write_statuses(self, plan: Plan, now: float) -> None:
        written = {status.key: status.status for status in plan.statuses}
        services = tuple(
            replace(service, status=json.loads(json.dumps(written[key]))) if key in written else service
            for service in self.snapshot.services
            for key in [ObjectKey("TokenService", service.key.namespace, service.key.name)]
        )
        classes = tuple(
            replace(one, status=written.get(ObjectKey("AcceleratorClass", "", one.name), one.status))
            for one in self.snapshot.accelerators
        )
        times = dict(self.snapshot.status_written_at) | dict.fromkeys(written, now)
        fleet = ObjectKey("TokenFleet", "", "default")
        found = dict(self.snapshot.fleet_object or {}) | ({"status": written[fleet]} if fleet in written else {})
        self.snapshot = replace(
            self.snapshot, services=services, accelerators=classes, status_written_at=times, fleet_object=found
        )


def _gated(child: Child, name: str) -> Pod:
    container = child.body["spec"]["template"]["spec"]["containers"][0]
    limits: Mapping[str, str] = container["resources"]["limits"]
    return Pod(
        namespace=child.key.namespace,
        name=name,
        uid=f"uid-{name}",
        resource_version="1",
        created_at=NOW,
        accelerators={key: int(value) for key, value in limits.items() if key != "memory"},
        service=child.owner,
        variant=child.body["metadata"]["labels"][VARIANT_LABEL],
        gated=True,
    )


def _started(pod: Pod, node: str | None) -> Pod:
    if node is None:
        return replace(pod, gated=False, unschedulable=True, serving=True)
    return replace(
        pod,
        gated=False,
        node=node,
        containers_ready=True,
        ready=True,
        serving=True,
        resource_version="2",
    )
