"""Holding images ready on the nodes where the next replicas would go: `spec.scaling.warmNodes`.

A DaemonSet on just these nodes, whose pods do nothing: to have the engine's image and the model's in use is all that
they are for. The kubelet pulls what is missing, and its image garbage collection spares what a pod uses. A DaemonSet,
because drains and node autoscalers look past its pods: what waits for replicas must not keep an empty node alive. Its
pods carry none of the labels by which replicas are found, so no Service, budget, monitor or count takes them for one.

The nodes are the first ones in the very order in which replicas are placed. So they follow the fleet as it fills, and
each node is pulled to once; of nodes that are as good, those that hold the images or were chosen before come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from tokenservice.api.token_service import Tier, TokenServiceSpec
from tokenservice.core.allocation import Grant, Want, replica
from tokenservice.core.deployment import confined, confined_pod, engine_image
from tokenservice.core.engines import sources
from tokenservice.core.facts import Facts
from tokenservice.core.images import needed_by
from tokenservice.core.manifests import hashed, merged, shared
from tokenservice.core.memo import column
from tokenservice.core.model import Action, Child, Json, Reason, Service, ServiceKey, Settings, Variant
from tokenservice.core.names import ENGINE_CONTAINER, PRIORITY_CLASSES, WARM_UP_LABEL, warm_up_name
from tokenservice.core.packing import Yard, lacks
from tokenservice.core.rollout import applied, delete
from tokenservice.core.room import Room, usable

KINDS = ("NetworkPolicy", "DaemonSet")


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """Of one service: nodes that hold its images ready, by name, of those that are to; and what is to be done."""

    ready: tuple[str, ...]
    actions: tuple[Action, ...]


def warm_ups(facts: Facts, grants: Mapping[ServiceKey, Grant]) -> Mapping[ServiceKey, WarmUp]:
    """Of the services that may be acted on, and ask for it or still have what is left of it."""
    everyone = tuple(grants)
    specs = [grant.want.service.spec for grant in grants.values()]
    concerned = facts.memo.recall_each(
        "asks for warm nodes",
        everyone,
        (specs, column(facts.all_belongings, everyone, ())),
        lambda new: [_concerned(facts, grants[key].want) for key in new],
    )
    asking = {key: grants[key].want for key, asks in concerned.items() if asks}
    if not asking:
        return {}
    emptied = facts.emptied
    yard = cache(lambda: Yard(_open(facts, emptied), facts.admits, facts.site))
    keys = tuple(asking)
    return facts.memo.recall_each(
        "warm-ups of nodes",
        keys,
        (tuple(asking.values()), column(facts.all_belongings, keys, ())),
        lambda new: [_warm_up(facts, asking[key], yard()) for key in new],
        shared=(facts.rooms, facts.snapshot.holders, emptied, facts.snapshot.stale_kinds, facts.scope),
    )


def _concerned(facts: Facts, want: Want) -> bool:
    spec = want.service.spec
    return spec is not None and (spec.scaling.warm_nodes > 0 or any(_live(facts, want.service.key)))


def _live(facts: Facts, key: ServiceKey) -> list[Child]:
    named = [facts.child(key, kind, warm_up_name(key.name)) for kind in KINDS]
    return [child for child in named if child is not None]


def _open(facts: Facts, emptied: frozenset[str]) -> Iterable[Room]:
    return (room for name, room in facts.rooms.items() if name not in emptied and usable(room.node))


def _warm_up(facts: Facts, want: Want, yard: Yard) -> WarmUp:
    service, spec, live = want.service, want.service.spec, _live(facts, want.service.key)
    assert spec is not None
    template = pod_template(service.key, spec, want.variant, facts.snapshot.settings)
    needed = replace(replica(service, want.variant)[0], images=needed_by(template["spec"]))
    held, before = facts.held(needed), next((named_in(child) for child in live if child.key.kind == "DaemonSet"), ())
    nodes = yard.first(needed, _count(facts, spec, want), (*held, frozenset(before)))
    wanted = manifests(service, template, nodes) if nodes else ()
    changed = (action for manifest in wanted for action in applied(facts, service.key, manifest, Reason.UPDATED))
    actions: list[Action] = [replace(action, can_wait=True) for action in changed]
    kinds = {manifest["kind"] for manifest in wanted}
    if not facts.snapshot.stale_kinds:
        actions += [_deleted(child, service.key) for child in live if child.key.kind not in kinds]
    known = len(held) == len(needed.images)
    ready = tuple(sorted(node for node in nodes if known and not any(lacks(node, held))))
    return WarmUp(ready=ready, actions=tuple(actions))


def _count(facts: Facts, spec: TokenServiceSpec, want: Want) -> int:
    """A namespace holds no more nodes ready than it may have replicas: disks are shared as well."""
    limit = facts.limit_of(want.service.key.namespace)
    if limit is None or limit.max_accelerators is None:
        return spec.scaling.warm_nodes
    return min(spec.scaling.warm_nodes, limit.max_accelerators // want.variant.accelerators)


def _deleted(child: Child, key: ServiceKey) -> Action:
    said = f"{child.key.name}: no node is to hold images ready"
    return replace(delete(child, key, Reason.REMOVED, said), can_wait=True)


def manifests(service: Service, template: Json, nodes: Iterable[str]) -> tuple[Json, ...]:
    """A DaemonSet on these nodes, and that nobody talks to its pods, nor they to anybody."""
    key = service.key
    mine = {"matchLabels": {WARM_UP_LABEL: key.name}}
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]} for node in sorted(nodes)]
    there = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    pod = template["spec"] | {"affinity": {"nodeAffinity": there}}
    policy = shared(service, "networking.k8s.io/v1", "NetworkPolicy", warm_up_name(key.name))
    holding = shared(service, "apps/v1", "DaemonSet", warm_up_name(key.name))
    body = {
        "revisionHistoryLimit": 0,
        "selector": mine,
        "template": template | {"spec": pod},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
    }
    closed = {"podSelector": mine, "policyTypes": ["Ingress", "Egress"]}
    return hashed(policy | {"spec": closed}), hashed(holding | {"spec": body})


def named_in(daemon_set: Child) -> tuple[str, ...]:
    """The nodes that the live DaemonSet is for."""
    pod = daemon_set.body.get("spec", {}).get("template", {}).get("spec", {})
    required = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    fields = [field for term in required.get("nodeSelectorTerms") or () for field in term.get("matchFields") or ()]
    return tuple([value for field in fields for value in field.get("values") or ()])


def pod_template(key: ServiceKey, spec: TokenServiceSpec, variant: Variant, settings: Settings) -> Json:
    """A pod with the images of a replica, and nothing else of it. Admissible under Pod Security level restricted.

    What the administrator adds to engines holds here as well: pull secrets above all.
    """
    found = sources(spec)
    mounted = [volume for source in found for volume in source.volumes if "image" in volume]
    names = {volume["name"] for volume in mounted}
    container = {
        "name": ENGINE_CONTAINER,
        "image": engine_image(spec, variant, settings.images),
        "command": ["sleep", "infinity"],
        # Images built on NVIDIA's ask for every accelerator of the node, and where its runtime is the default they get
        # them without a request.
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}],
        "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "1m", "memory": "16Mi"}},
        **confined(),
        "volumeMounts": [mount for source in found for mount in source.mounts if mount["name"] in names],
    }
    pod: Json = {
        **confined_pod(key, variant, found),
        "containers": [container],
        "priorityClassName": PRIORITY_CLASSES[Tier.SPOT],
        "terminationGracePeriodSeconds": 1,
        "volumes": mounted,
    }
    own = {"metadata": {"labels": {WARM_UP_LABEL: key.name}}, "spec": pod}
    patched: Json = merged(own, settings.pod_patch)
    return patched | {"spec": patched["spec"] | {"containers": pod["containers"], "volumes": pod["volumes"]}}
