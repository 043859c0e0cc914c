"""What is wrong with a TokenService, as a chain of small checks over facts that were already read.

Every check looks at one `Input` and answers with Problems, each of which names the field and the way to mend it. All
checks are asked, so that a user who mends one fault does not meet the next one only then. What has a Problem is
Stalled and left as it is; other services never notice.

No nodes of a class at all are no Problem: a node autoscaler may add them. Nodes that exist, but none where the service
may run, are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenservice.api.token_fleet import NamespaceLimit
from tokenservice.api.token_service import Architecture, EngineName, TokenServiceSpec
from tokenservice.core.capacity import DEFAULT, Capacity, Workload, targets
from tokenservice.core.deployment import engine_image
from tokenservice.core.engines import engine_problems, served_name, source_problems
from tokenservice.core.facts import Facts, model_names
from tokenservice.core.images import built_for, repository
from tokenservice.core.model import (
    Accelerator,
    EngineImages,
    Node,
    Problem,
    Profile,
    Reason,
    Service,
    ServiceKey,
    Variant,
)
from tokenservice.core.names import REGION_LABEL, ZONE_LABEL
from tokenservice.core.room import of_class
from tokenservice.core.scaling import guaranteed_replicas, outranked
from tokenservice.core.variants import candidates, ranked

_SHOWN = 5
"""Names listed in a message before the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What the checks may know.

    `older` are the namespace's services that came first; `nodes` one of each site; `limit` is what the fleet's policy
    lets the namespace take.
    """

    key: ServiceKey
    spec: TokenServiceSpec
    variants: tuple[Variant, ...]
    older: tuple[Service, ...]
    nodes: tuple[Node, ...]
    images: EngineImages
    limit: NamespaceLimit | None = None


Check = Callable[[Input], Iterable[Problem]]


def problems(
    facts: Facts, service: Service, variants: Sequence[Variant], found: Sequence[Problem]
) -> tuple[Problem, ...]:
    """Everything that is wrong with a service; `found` is what choosing its variants brought to light."""
    if service.spec is None:
        return (_undecided(service) if service.undecided else _unread(service),)
    given = Input(
        key=service.key,
        spec=service.spec,
        variants=tuple(variants),
        older=older(service, facts.rivals(service.key)),
        nodes=tuple(facts.sites.values()),
        images=facts.snapshot.settings.images,
        limit=facts.limit_of(service.key.namespace),
    )
    return _unique([problem for check in CHAIN for problem in check(given)] + list(found))


def _unread(service: Service) -> Problem:
    return Problem(Reason.INVALID_SPEC, "spec", service.error or "spec could not be read")


def _undecided(service: Service) -> Problem:
    return Problem(
        Reason.DECISION_FAILED,
        "spec",
        f"the operator failed over it ({service.error}) and leaves it as it is; this is a fault of the operator's: "
        "please report it with its log. It tries again when the spec changes, and every ten minutes",
    )


def static_problems(
    spec: TokenServiceSpec,
    accelerators: Sequence[Accelerator],
    profiles: Sequence[Profile],
    architectures: Mapping[str, Architecture],
) -> tuple[Problem, ...]:
    """What can be told from the spec alone, for `tokenservice lint`: whether a cluster can span nodes cannot."""
    found, wrong = candidates(spec, accelerators, profiles, architectures, groups=True)
    nameable = EngineImages(defaults={})  # what the chart has is not known: only the image's own name can tell
    if spec.engine.image is not None and found and not with_image(spec, found, nameable):
        wrong = (*wrong, _no_image(spec, found, nameable))
    order, unreachable = ranked(spec, found, Workload(), targets(spec.objectives))
    contradiction = _beyond_maximum(spec, [capacity for _, capacity in order])
    named = (
        *source_problems(spec),
        *engine_problems(spec),
        *_unnamed_engine(spec),
        *_beyond_loader(spec, found),
        *_outside_residency(spec),
    )
    return _unique([*named, *wrong, *unreachable, *contradiction])


def with_image(spec: TokenServiceSpec, variants: Iterable[Variant], images: EngineImages) -> tuple[Variant, ...]:
    """Variants that there is an image for; the others cannot be deployed."""
    return tuple(variant for variant in variants if engine_image(spec, variant, images) is not None)


def not_allowed(spec: TokenServiceSpec, limit: NamespaceLimit | None) -> tuple[Problem, ...]:
    """What the spec names and the namespace may not use."""
    if limit is None:
        return ()
    found = list[Problem]()
    if limit.tiers and spec.tier not in limit.tiers:
        found.append(_refused("spec.tier", f"tier {spec.tier}", limit, limit.tiers))
    for index, name in enumerate(spec.placement.accelerators):
        if limit.accelerators and name not in limit.accelerators:
            found.append(_refused(f"spec.placement.accelerators[{index}]", name, limit, limit.accelerators))
    return tuple(found)


def no_class(limit: NamespaceLimit) -> Problem:
    """None of the classes that the namespace may use exists."""
    return Problem(
        Reason.NOT_ALLOWED_IN_NAMESPACE,
        "spec.placement.accelerators",
        f"namespace {limit.name} may use {listed(limit.accelerators)} only, and there is no such AcceleratorClass:"
        " have one allowed in spec.namespaces of the TokenFleet",
    )


def _refused(field: str, what: str, limit: NamespaceLimit, allowed: Sequence[str]) -> Problem:
    return Problem(
        Reason.NOT_ALLOWED_IN_NAMESPACE,
        field,
        f"{what} is not for namespace {limit.name}: use {listed([str(it) for it in allowed])},"
        " or have it allowed in spec.namespaces of the TokenFleet",
    )


def older(service: Service, services: Iterable[Service]) -> tuple[Service, ...]:
    """Services of the same namespace whose claims go first: created before, or at once and first by name."""
    mine = (service.created_at, service.key.name)
    return tuple(
        other
        for other in services
        if other.key.namespace == service.key.namespace
        and not other.deleting
        and (other.created_at, other.key.name) < mine
    )


# --- The checks ----------------------------------------------------------------------------------------------------


def check_limits(given: Input) -> Iterable[Problem]:
    """The fleet's policy lets the namespace use the tier and the accelerators."""
    return not_allowed(given.spec, given.limit)


def check_source(given: Input) -> Iterable[Problem]:
    """The model can be loaded, and is the one that was promised."""
    return source_problems(given.spec)


def check_arguments(given: Input) -> Iterable[Problem]:
    """extraArgs and env neither fight with fields nor open doors."""
    return engine_problems(given.spec)


def check_names(given: Input) -> Iterable[Problem]:
    """No older service answers to the same model name: a gateway could not tell them apart."""
    taken = {name: other.key.name for other in reversed(given.older) for name in model_names(other)}
    name = served_name(given.spec, given.key)
    if name in taken:
        yield _taken(name, "spec.model.servedName", taken[name])
    for adapter in given.spec.model.adapters:
        if adapter.name == name:
            yield Problem(
                Reason.SERVED_NAME_TAKEN,
                f"spec.model.adapters[{adapter.name}].name",
                f"the model itself answers to {name!r}: requests could not tell them apart, rename the adapter",
            )
        elif adapter.name in taken:
            yield _taken(adapter.name, f"spec.model.adapters[{adapter.name}].name", taken[adapter.name])


def check_image(given: Input) -> Iterable[Problem]:
    """The user's image is one that the administrator lets users name."""
    image = given.spec.engine.image
    if image is not None and not _allowed(image, given.images):
        yield Problem(
            Reason.IMAGE_NOT_ALLOWED,
            "spec.engine.image",
            f"{image} is not on the administrator's allow-list: leave spec.engine.image out,"
            " or have the image added to the chart's values",
        )
    yield from _unnamed_engine(given.spec)


def check_engine_image(given: Input) -> Iterable[Problem]:
    """At least one way to run the model has an image."""
    if given.variants and not with_image(given.spec, given.variants, given.images):
        yield _no_image(given.spec, given.variants, given.images)


def check_verifier(given: Input) -> Iterable[Problem]:
    """What is to verify the model has an image."""
    if given.spec.model.verification is not None and given.images.verifier is None:
        yield Problem(
            Reason.NO_VERIFIER_IMAGE,
            "spec.model.verification",
            "no image of the verifier is configured: have modelVerifier.image set in the chart's values,"
            " or remove this",
        )


def check_loader(given: Input) -> Iterable[Problem]:
    """What is to load adapters has an image, and a replica is one pod: of several the loader would reach the leader."""
    yield from _beyond_loader(given.spec, given.variants)
    if given.spec.model.runtime_adapters is not None and given.images.loader is None:
        yield Problem(
            Reason.NO_LOADER_IMAGE,
            "spec.model.runtimeAdapters",
            "no image of the loader is configured: have adapterLoader.image set in the chart's values,"
            " or remove this: adapters are then loaded when engines start",
        )


def check_location(given: Input) -> Iterable[Problem]:
    """Of the nodes that could run the model, at least one is where the service may run."""
    apart = tuple(_outside_residency(given.spec))
    if apart:
        yield from apart
        return
    classes = {variant.accelerator.name: variant.accelerator for variant in given.variants}
    left = [node for node in given.nodes if any(of_class(node, accelerator) for accelerator in classes.values())]
    for field, label, allowed in _locations(given.spec):
        there = sorted({node.labels.get(label, "") for node in left} - {""})
        kept = [node for node in left if node.labels.get(label) in allowed]
        if left and not kept:
            yield _nowhere(sorted(classes), field, label, allowed, there)
            return
        left = kept


CHAIN: tuple[Check, ...] = (
    check_limits,  # whether at all
    check_source,  # what is served
    check_names,  # under which name
    check_arguments,  # how
    check_image,  # by which software
    check_engine_image,
    check_verifier,
    check_loader,
    check_location,  # where; last, because it speaks of the variants that the rest leaves
)


# --- Their words ---------------------------------------------------------------------------------------------------


def _beyond_loader(spec: TokenServiceSpec, variants: Sequence[Variant]) -> Iterable[Problem]:
    """Adapters at run time where every replica would span nodes."""
    if spec.model.runtime_adapters is not None and variants and all(variant.pods > 1 for variant in variants):
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.model.runtimeAdapters",
            "replicas that span nodes load adapters only when they start: remove this, or lower"
            " tensorParallelSize x pipelineParallelSize to what one node holds",
        )


def _outside_residency(spec: TokenServiceSpec) -> Iterable[Problem]:
    """Regions of which residency allows none: no node will ever do."""
    wanted, residency = spec.placement.regions, spec.placement.residency
    if wanted and residency is not None and not set(wanted) & set(residency.regions):
        yield Problem(
            Reason.RESIDENCY_EXCLUDES_ALL,
            "spec.placement.regions",
            f"residency allows {listed(residency.regions)} only, and none of {listed(wanted)} is among them:"
            " name a region that spec.placement.residency.regions has, or leave spec.placement.regions out",
        )


def _locations(spec: TokenServiceSpec) -> Iterable[tuple[str, str, tuple[str, ...]]]:
    placement = spec.placement
    if placement.residency is not None:
        yield "spec.placement.residency.regions", REGION_LABEL, placement.residency.regions
    if placement.regions:
        yield "spec.placement.regions", REGION_LABEL, placement.regions
    if placement.zones:
        yield "spec.placement.zones", ZONE_LABEL, placement.zones


def _nowhere(classes: Sequence[str], field: str, label: str, allowed: Sequence[str], there: Sequence[str]) -> Problem:
    what = label.rpartition("/")[2]
    have = f"they are in {listed(there)}" if there else f"they have no label {label}"
    return Problem(
        Reason.RESIDENCY_EXCLUDES_ALL,
        field,
        f"no node with {listed(classes)} is in {what} {listed(allowed)}, {have}: allow one of these in {field},"
        f" or add nodes there",
    )


def _taken(name: str, field: str, owner: str) -> Problem:
    message = f"the model name {name!r} belongs to TokenService {owner}, which is older: choose another in {field}"
    return Problem(Reason.SERVED_NAME_TAKEN, field, message)


def _no_image(spec: TokenServiceSpec, variants: Sequence[Variant], images: EngineImages) -> Problem:
    own, vendors = spec.engine.image, sorted({variant.accelerator.spec.vendor.value for variant in variants})
    wanted = sorted({f"{v.engine} on {v.accelerator.spec.vendor}" for v in variants})
    message = f"no image is configured for {listed(wanted)}: have it added to the chart's values, or set this"
    if own is not None:
        message = (
            f"{own} is built for {built_for(own, images)}, and the model would run on {listed(vendors)}:"
            " name an image for that, or allow other classes in spec.placement.accelerators"
        )
    return Problem(Reason.NO_ENGINE_IMAGE, "spec.engine.image", message)


def _allowed(image: str, images: EngineImages) -> bool:
    """Entries are whole images, repositories of which any digest will do, or prefixes that end in a slash."""
    known = {*images.allowed, *images.defaults.values()}
    prefixes = tuple(entry for entry in images.allowed if entry.endswith("/"))
    return image in known or repository(image) in images.allowed or image.startswith(prefixes)


def _beyond_maximum(spec: TokenServiceSpec, ways: Sequence[Capacity]) -> Iterable[Problem]:
    """Not even the strongest replicas, as many as there may be, give the guaranteed volume at the usual lengths."""
    if ways and spec.replicas is None:
        fewest = min(guaranteed_replicas(spec, capacity, DEFAULT) for capacity in ways)
        if fewest > spec.scaling.max_replicas:
            yield outranked(spec.scaling.max_replicas, fewest)


def _unnamed_engine(spec: TokenServiceSpec) -> Iterable[Problem]:
    if spec.engine.image is not None and spec.engine.name is EngineName.AUTO:
        yield Problem(
            Reason.INVALID_SPEC,
            "spec.engine.name",
            "an image holds one engine: set spec.engine.name to vLLM or SGLang beside spec.engine.image",
        )


def listed(names: Sequence[str]) -> str:
    """`a, b and 3 more`: messages stay readable in a cluster of any size."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _unique(found: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(dict.fromkeys(found))
