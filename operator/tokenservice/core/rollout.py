"""From the counts that a service should have to the writes that get it there without dropping a request.

More replicas come first and at once. Fewer come only when the rest serves: the victim is marked, then the count is
lowered under the resource version that was seen. A pod that is to leave (its node is cordoned, or is to be emptied) is
replaced before it goes: the count is raised by it, its successor serves, it is taken out of the endpoints, the count
falls back. All of this is read off the objects on every pass, so a restart in the middle changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from tokenservice.core.allocation import open_room
from tokenservice.core.drift import differs
from tokenservice.core.facts import Facts, observed, replicas, rolling_out, spans_nodes, surge
from tokenservice.core.groups import ordinal
from tokenservice.core.model import (
    Action,
    Apply,
    Child,
    Delete,
    Json,
    ObjectKey,
    Pod,
    Reason,
    ServiceKey,
    SetDeletionCost,
    SetServing,
)
from tokenservice.core.packing import victims
from tokenservice.core.refusal import refused_pods
from tokenservice.core.repack import LEAVING, VICTIM


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one Deployment should ask for now, `surge` of it for a while only, and the writes that must come before."""

    replicas: int
    surge: int = 0
    before: tuple[Action, ...] = ()
    reason: Reason = Reason.STEADY
    message: str = ""


def step(
    facts: Facts, service: ServiceKey, variant: str, wanted: int, deployment: Child | None, lacking: int = 0
) -> Step:
    """The next step of one (service, variant) towards `wanted` replicas.

    `lacking` are those of its other variants that must serve and do not: so many more of this one serve until then.
    """
    pods = facts.pods.get((service, variant), ())
    found = _step(facts, service, variant, wanted, deployment, pods, lacking)
    return replace(found, before=(*_taken_back(facts, pods, wanted), *found.before))


def lacking(facts: Facts, service: ServiceKey, variant: str, counts: Mapping[str, int], owed: int) -> int:
    """What variants other than this one lack of what is `owed`: headroom beyond that may be missed for a while."""
    ready = {other: sum(pod.ready for pod in facts.pods.get((service, other), ())) for other in counts}
    missing = sum(max(0, count - ready[other]) for other, count in counts.items() if other != variant)
    return max(0, missing - max(0, sum(counts.values()) - owed))


def _taken_back(facts: Facts, pods: Sequence[Pod], wanted: int) -> Iterable[SetServing]:
    """Puts pods back into the endpoints that were taken out to go and need not go any more, while they are missed."""
    if sum(pod.ready for pod in pods) >= wanted:
        return
    for pod in pods:
        if pod.serving is False and pod.node is not None and not pod.gated and not facts.leaving(pod):
            why = f"{pod.name} serves again: it is not to go any more"
            yield _set_serving("serve", pod, Reason.MOVE_CANCELLED, why, serving=True)


def _step(
    facts: Facts,
    service: ServiceKey,
    variant: str,
    wanted: int,
    deployment: Child | None,
    pods: tuple[Pod, ...],
    lacking: int,
) -> Step:
    current = replicas(deployment) if deployment is not None else 0
    if deployment is None or wanted > current:
        return _grow(wanted, current, variant)
    stays = max(wanted, min(sum(pod.ready for pod in pods), current, wanted + lacking))
    if spans_nodes(deployment):
        return _fewer_groups(facts, variant, stays, current, pods, deployment)
    leaving = tuple(pod for pod in pods if facts.leaving(pod))
    if leaving and wanted > 0:
        return _replace(facts, variant, wanted, stays, current, pods, leaving, deployment)
    if wanted < current:
        return _shrink(facts, variant, wanted, stays, current, pods, deployment)
    return Step(replicas=current)


def _grow(wanted: int, current: int, variant: str) -> Step:
    reason = Reason.CREATED if current == 0 else Reason.SCALED_UP
    return Step(replicas=wanted, reason=reason, message=f"{variant}: {current} -> {wanted} replicas")


def _replace(
    facts: Facts,
    variant: str,
    wanted: int,
    stays: int,
    current: int,
    pods: tuple[Pod, ...],
    leaving: tuple[Pod, ...],
    deployment: Child,
) -> Step:
    """Surge, wait, shift, then shrink: never fewer than `wanted` that serve, as far as they served before."""
    successors = [pod for pod in pods if pod.ready and not facts.leaving(pod)]
    if len(successors) < wanted:
        count = max(current, wanted + len(leaving))
        reason = Reason.SURGED if count > current else Reason.STEADY
        return Step(
            replicas=count,
            surge=min(len(leaving), count - wanted),
            reason=reason,
            message=f"{variant}: {len(leaving)} leaving, successors start before they go",
        )
    serving = [pod for pod in leaving if pod.serving]
    if serving:
        bridging = min(len(leaving), max(0, current - wanted))
        return Step(replicas=current, surge=bridging, before=tuple(_shift(pod) for pod in serving))
    return _shrink(facts, variant, wanted, stays, current, pods, deployment)


def _shift(pod: Pod) -> SetServing:
    why = f"{pod.name} finishes its requests; its successor serves"
    return _set_serving("shift", pod, Reason.MOVE_SHIFTED, why, serving=False)


def _set_serving(verb: str, pod: Pod, reason: Reason, why: str, *, serving: bool) -> SetServing:
    return SetServing(
        id=f"{verb}/{pod.namespace}/{pod.name}",
        service=pod.service,
        reason=reason,
        message=why,
        pod=_pod_key(pod),
        uid=pod.uid,
        serving=serving,
    )


def _shrink(
    facts: Facts,
    variant: str,
    wanted: int,
    stays: int,
    current: int,
    pods: tuple[Pod, ...],
    deployment: Child,
) -> Step:
    """Lowers the count to what `stays` when that can only take pods that may go; otherwise waits."""
    if current <= wanted:
        return Step(replicas=current)
    bridging = min(surge(deployment), current - wanted)  # who stands in for others is still not wanted for good
    waits = _scale_in_waits(facts, current, deployment)
    if waits is not None and waits.reason is Reason.ROLLING_OUT and _holds_up_rollout(pods, stays, current, deployment):
        fewer, which = max(stays, current - 1), "of those without a node, for which its rollout waits"
        return _fewer(variant, wanted, fewer, current, bridging, which)
    if waits is not None:
        return replace(waits, surge=bridging)
    if stays >= current or not _only_free_pods_go(facts, pods, current, stays):
        homeless = sum(pod.node is None for pod in pods) + _refused(deployment, current, pods)
        if homeless:  # a ReplicaSet removes these before any other; they may wait for ever
            fewer = max(stays, current - homeless)
            return _fewer(variant, wanted, fewer, current, bridging, "of those without a node")
        message = "not every replica is ready: scale-in waits"
        return Step(replicas=current, surge=bridging, reason=Reason.HOLDING, message=message)
    going = victims(pods, facts.rooms, current - stays)
    which = f"{', '.join(pod.name for pod in going) or 'none'} goes"
    return replace(_fewer(variant, wanted, stays, current, bridging, which), before=tuple(_marks(facts, pods, going)))


def _fewer(variant: str, wanted: int, fewer: int, current: int, bridging: int, which: str) -> Step:
    """A lower count; of the replicas that stand in for others no more are left than it holds beyond those wanted."""
    return Step(
        replicas=fewer,
        surge=min(bridging, fewer - wanted),
        reason=Reason.SCALED_DOWN,
        message=f"{variant}: {current} -> {fewer} replicas, {which}",
    )


def _holds_up_rollout(pods: tuple[Pod, ...], stays: int, current: int, deployment: Child) -> bool:
    """Whether replicas that are wanted no more find no room: a rollout waits for them, and scale-in for the rollout.

    One goes at a time, once the last was seen to go. A Deployment that is scaled while it rolls out takes it from its
    largest ReplicaSet, and that one takes what has no node before what serves: so that has to have one. Where replicas
    are exchanged in place, one fewer may serve than stay, and it may be that one.
    """
    homeless = {pod.template_hash for pod in pods if pod.node is None and pod.unschedulable}
    placed, ready = sum(pod.node is not None for pod in pods), sum(pod.ready for pod in pods)
    if not homeless or not observed(deployment) or not placed < current <= len(pods):
        return False
    sizes = Counter(pod.template_hash for pod in pods)
    largest = {template for template, size in sizes.items() if size == max(sizes.values())}
    return (len(largest) == 1 and largest <= homeless) or (_in_place(deployment) and ready >= stays)


def _in_place(deployment: Child) -> bool:
    """Whether it may take a replica away before its successor serves."""
    rolling = deployment.body["spec"].get("strategy", {}).get("rollingUpdate", {})
    return rolling.get("maxUnavailable") not in (None, 0)


def _scale_in_waits(facts: Facts, current: int, deployment: Child) -> Step | None:
    if facts.snapshot.stale_kinds:
        return Step(replicas=current, reason=Reason.STALE_VIEW, message="a view is stale: nothing is removed")
    if rolling_out(deployment):
        return Step(replicas=current, reason=Reason.ROLLING_OUT, message="a rollout runs: scale-in waits")
    return None


def _fewer_groups(
    facts: Facts, variant: str, wanted: int, current: int, leaders: tuple[Pod, ...], deployment: Child
) -> Step:
    """Of replicas that span nodes the last go, whatever is marked: so those before them have to serve.

    For the same reason none is replaced before it goes: the successor would be the last, and the first to go again.
    """
    if wanted >= current:
        return Step(replicas=current)
    waits = _scale_in_waits(facts, current, deployment)
    if waits is not None:
        return waits
    staying = [pod for pod in leaders if ordinal(pod) < wanted]
    going = [pod for pod in leaders if ordinal(pod) >= wanted]
    if any(pod.ready for pod in going) and sum(pod.ready for pod in staying) < wanted:
        return Step(replicas=current, reason=Reason.HOLDING, message="not every replica is ready: scale-in waits")
    return Step(
        replicas=wanted,
        reason=Reason.SCALED_DOWN,
        message=f"{variant}: {current} -> {wanted} replicas, the last {current - wanted} of its LeaderWorkerSet go",
    )


def _refused(deployment: Child, current: int, pods: tuple[Pod, ...]) -> int:
    """How many the cluster does not let be."""
    return max(0, current - len(pods)) if refused_pods(deployment) is not None else 0


def _only_free_pods_go(facts: Facts, pods: tuple[Pod, ...], current: int, wanted: int) -> bool:
    """Either all serve, so that the marks decide; or those that do not serve are enough to make up the excess."""
    staying = [pod for pod in pods if pod.serving is not False or pod.ready]
    all_ready = len(pods) == current and all(pod.ready for pod in staying)
    return all_ready or sum(pod.ready for pod in pods) <= wanted


def _marks(facts: Facts, pods: tuple[Pod, ...], going: Sequence[Pod]) -> list[Action]:
    """Marks the victims and takes old marks off the others."""
    marked = {pod.uid for pod in going}
    wanted = {pod.uid: min(pod.deletion_cost, VICTIM) if pod.uid in marked else 0 for pod in pods}
    stale = [pod for pod in pods if pod.deletion_cost != wanted[pod.uid] and not (pod.deletion_cost <= LEAVING)]
    return [mark(pod, wanted[pod.uid], Reason.VICTIM_CHOSEN, "its going frees the most") for pod in stale]


def mark(pod: Pod, cost: int, reason: Reason, why: str) -> SetDeletionCost:
    """Sets a pod's deletion cost."""
    return SetDeletionCost(
        id=f"cost/{pod.namespace}/{pod.name}",
        service=pod.service,
        reason=reason,
        message=f"{pod.name}: {why}",
        pod=_pod_key(pod),
        uid=pod.uid,
        cost=cost,
    )


def exchanged_in_place(
    deployments: Mapping[str, Child], ways: Set[str], pods: Sequence[Pod], owed: int
) -> frozenset[str]:
    """Variants of which a replica may go before its successor serves: that finds no room, and the others are enough.

    Only for as long as it waits: once it has the room, the exchange goes on with a surge again. Where it waits for a
    volume, room would not help it. Of variants that are among the `ways` to run the service; and as each Deployment may
    be one short then, of no more than can be missed.
    """
    waiting = {pod.variant for pod in pods if pod.unschedulable and not pod.ready and pod.unbound is None}
    may = sorted(variant for variant, child in deployments.items() if variant in waiting & ways and rolling_out(child))
    return frozenset(may[: max(0, sum(pod.ready for pod in pods) - owed)])


def retired(facts: Facts, service: ServiceKey, counts: Mapping[str, int], asked: float) -> tuple[Child, ...]:
    """Deployments of variants that are wanted no more, once their successors serve what is wanted.

    Where replicas are `asked` for and none is granted, there will be no successors: what serves goes on.
    """
    wanted = sum(counts.values()) or asked
    serving = sum(pod.ready for variant in counts for pod in facts.pods.get((service, variant), ()))
    old = [child for variant, child in sorted(facts.deployments.get(service, {}).items()) if variant not in counts]
    return tuple(old) if serving >= wanted else tuple(child for child in old if replicas(child) == 0)


def without_room(facts: Facts, service: ServiceKey, counts: Mapping[str, int]) -> Iterable[Apply]:
    """Of variants that are wanted no more, what has found no room: it would draw nodes that nobody needs.

    A ReplicaSet removes these before any other. What serves goes once its successors do; without any it all stays.
    """
    if not counts:
        return
    for variant, child in sorted(facts.deployments.get(service, {}).items()):
        pods = facts.pods.get((service, variant), ())
        homeless, count = sum(pod.node is None and pod.unschedulable for pod in pods), replicas(child)
        if variant not in counts and homeless and len(pods) == count and not rolling_out(child):
            fewer = max(0, count - homeless)
            why = f"{variant}: {count} -> {fewer} replicas, those without a node are wanted no more"
            yield apply(_with_count(child, fewer), child, service, Reason.SCALED_DOWN, why)


def making_room(facts: Facts, service: ServiceKey, counts: Mapping[str, int], owed: int) -> Apply | None:
    """One replica less of a variant that is wanted no more: its successors find no room, and the others are enough.

    Only what holds the very room that a successor waits for goes, and one at a time: nothing while one is going, a
    successor starts, or there is room that the scheduler has yet to see. Of what is wanted one is missed at most, who
    ever takes the room. The template stays what it is.
    """
    pods = facts.pods_of(service)
    successors = [pod for pod in pods if pod.variant in counts]
    waiting = [pod for pod in successors if pod.unschedulable and pod.unbound is None]
    starts = any(pod.node is not None and not pod.ready for pod in successors)
    fewest = max(owed, sum(counts.values()) - 1)
    if not waiting or starts or _going(facts, service) or sum(pod.ready for pod in pods) <= fewest:
        return None
    room = open_room(facts)
    if any(room.holds((pod,)) for pod in waiting):
        return None
    old = [pair for pair in sorted(facts.deployments.get(service, {}).items()) if pair[0] not in counts]
    for variant, child in old:
        count = replicas(child)
        leaves_room = any(
            _alike(facts, pod, other) for pod in facts.pods.get((service, variant), ()) for other in waiting
        )
        if count > 0 and leaves_room and not spans_nodes(child) and not rolling_out(child):
            why = f"{variant}: {count} -> {count - 1} replicas, to make room for a successor that finds none"
            return apply(_with_count(child, count - 1), child, service, Reason.SCALED_DOWN, why)
    return None


def _going(facts: Facts, service: ServiceKey) -> bool:
    """Whether a pod of the service is on its way out, on a node that lives; on another it may be so for ever."""
    nodes = [facts.nodes.get(pod.node or "") for pod in facts.going.get(service, ())]
    return any(node is not None and node.ready for node in nodes)


def _alike(facts: Facts, pod: Pod, other: Pod) -> bool:
    """Whether they take the same room."""
    return pod.accelerators == other.accelerators and facts.accelerator_of(pod) == facts.accelerator_of(other)


def _with_count(child: Child, count: int) -> Json:
    """The Deployment as it stands, with another count."""
    kept = ("name", "namespace", "labels", "annotations", "ownerReferences")
    metadata = {name: value for name, value in child.body["metadata"].items() if name in kept}
    spec = {**child.body["spec"], "replicas": count}
    return {"apiVersion": child.body["apiVersion"], "kind": child.key.kind, "metadata": metadata, "spec": spec}


def delete(child: Child, service: ServiceKey, reason: Reason, message: str, after: tuple[str, ...] = ()) -> Delete:
    """Deletes exactly the object that was seen."""
    return Delete(
        id=f"delete/{child.key.kind}/{child.key.namespace}/{child.key.name}",
        service=service,
        reason=reason,
        message=message,
        after=after,
        key=child.key,
        uid=child.uid,
        resource_version=child.resource_version,
    )


def apply(
    manifest: Json, live: Child | None, service: ServiceKey, reason: Reason, message: str, after: tuple[str, ...] = ()
) -> Apply:
    """Applies a child; over a live one only if it still is as it was seen."""
    metadata = manifest["metadata"]
    return Apply(
        id=f"apply/{manifest['kind']}/{metadata['namespace']}/{metadata['name']}",
        service=service,
        reason=reason,
        message=message,
        after=after,
        manifest=manifest,
        resource_version=live.resource_version if live is not None else None,
    )


def applied(
    facts: Facts, service: ServiceKey, manifest: Json, reason: Reason, message: str = "", after: tuple[str, ...] = ()
) -> Iterable[Apply]:
    """The apply of a child, if it differs from what is there."""
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    live = facts.child(service, kind, name)
    if live is not None and not differs(manifest, live.body):
        return
    first = reason if live is not None or reason is not Reason.UPDATED else Reason.CREATED
    yield apply(manifest, live, service, first, message or f"{kind} {name} {'changed' if live else 'created'}", after)


def _pod_key(pod: Pod) -> ObjectKey:
    return ObjectKey("Pod", pod.namespace, pod.name)
