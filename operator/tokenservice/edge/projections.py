"""Raw objects as the core sees them.

Pure functions from JSON to facts; what is of no interest becomes None. Quantities are read as Kubernetes reads them,
requests as the scheduler counts them (sidecars, init containers, overhead, pod-level resources).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from operator import is_
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from tokenservice.api import GROUP
from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.base import ApiModel
from tokenservice.api.capacity_profile import CapacityProfileSpec
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.images import identity, needed_by
from tokenservice.core.model import Accelerator, Child, Json, Node, ObjectKey, Pod, Profile, Service, ServiceKey
from tokenservice.core.names import (
    DELETION_COST_ANNOTATION,
    FIELD_MANAGER,
    GROUP_INDEX_LABEL,
    GROUP_SET_LABEL,
    GROUP_TEMPLATE_LABEL,
    LOADER_CONTAINER,
    MANAGED_BY_LABEL,
    MODEL_VOLUME,
    PLACEMENT_GATE,
    SERVICE_LABEL,
    SERVING_CONDITION,
    VARIANT_LABEL,
    VERIFICATION_ANNOTATION,
    VERIFIER_CONTAINER,
    WORKER_INDEX_LABEL,
)
from tokenservice.core.quantities import amount
from tokenservice.edge.store import Projection

_FINISHED = ("Succeeded", "Failed")
_TEMPLATE_HASH_LABEL = "pod-template-hash"

# --- our kinds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fleet:
    """The TokenFleet; where it cannot be parsed, `spec` is what can be read of it, and `error` says what cannot."""

    name: str
    spec: TokenFleetSpec
    body: Json
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A cluster-wide object of ours that cannot be parsed. It harms nothing else; `meanwhile` says what holds."""

    key: ObjectKey
    uid: str
    error: str
    meanwhile: str = "it is left out"


def service(obj: Json) -> Service:
    """A TokenService, readable or not."""
    metadata = obj["metadata"]
    spec, error = _parsed(TokenServiceSpec, obj.get("spec"), extra="forbid")
    return Service(
        key=ServiceKey(metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=int(metadata.get("generation", 0)),
        resource_version=metadata["resourceVersion"],
        created_at=seconds(metadata["creationTimestamp"]),
        spec=spec,
        status=obj.get("status") or {},
        error=error,
        deleting="deletionTimestamp" in metadata,
    )


def accelerator(obj: Json) -> Accelerator | Unreadable:
    """An AcceleratorClass."""
    spec, error = _parsed(AcceleratorClassSpec, obj.get("spec"))
    if spec is None:
        return _unreadable(obj, error)
    metadata = obj["metadata"]
    return Accelerator(name=metadata["name"], spec=spec, uid=metadata["uid"], status=obj.get("status") or {})


def profile(obj: Json) -> Profile | Unreadable:
    """A CapacityProfile."""
    spec, error = _parsed(CapacityProfileSpec, obj.get("spec"))
    if spec is None:
        return _unreadable(obj, error)
    metadata = obj["metadata"]
    return Profile(
        name=metadata["name"],
        spec=spec,
        uid=metadata.get("uid", ""),
        generation=int(metadata.get("generation", 0)),
        status=obj.get("status") or {},
    )


def fleet(obj: Json) -> Fleet:
    """A TokenFleet."""
    given = obj.get("spec") or {}
    spec, error = _parsed(TokenFleetSpec, given)
    return Fleet(obj["metadata"]["name"], _legible(given) if spec is None else spec, _without_managers(obj), error)


def _legible(given: object) -> TokenFleetSpec:
    """The fields that can be read each by itself, the others at their defaults."""
    if not isinstance(given, dict):
        return TokenFleetSpec()
    single = {name: value for name, value in given.items() if _parsed(TokenFleetSpec, {name: value})[0] is not None}
    spec, _ = _parsed(TokenFleetSpec, single)
    return TokenFleetSpec() if spec is None else spec


_Spec = TypeVar("_Spec", bound=ApiModel)


def _parsed(
    model: type[_Spec], spec: object, extra: Literal["ignore", "forbid"] = "ignore"
) -> tuple[_Spec | None, str | None]:
    """The spec, or why it cannot be read. With `forbid` fields of a later version are a reason.

    What asks for replicas must not be half understood: without the field its engines would change.
    """
    try:
        return model.model_validate(spec if spec is not None else {}, extra=extra), None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        path = ".".join(["spec", *(str(part) for part in first["loc"])])
        return None, f"{path}: {_LATER if first['type'] == 'extra_forbidden' else first['msg']}"


_LATER = (
    "this version of the operator does not know the field, so nothing of the service is touched:"
    " upgrade the operator, or remove the field"
)


def _unreadable(obj: Json, error: str | None) -> Unreadable:
    metadata = obj["metadata"]
    key = ObjectKey(obj.get("kind", ""), metadata.get("namespace", ""), metadata["name"])
    return Unreadable(key, metadata.get("uid", ""), error or "unreadable")


@dataclass(frozen=True, slots=True)
class Resident:
    """A pod without accelerators, as far as it matters: the room that it takes from engines on its node."""

    node: str
    cpu_cores: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a kubelet or a controller says of a pod that it cannot prepare; `at` in seconds since the epoch."""

    pod: tuple[str, str]
    uid: str
    words: str
    at: float


# --- nodes and pods ------------------------------------------------------------------------------------------------


def node(obj: Json) -> Node | None:
    """A node that has extended resources; which of them are accelerators is for the AcceleratorClasses to say.

    One that has none of them now is there all the same: its device plugin is down, and where it is still counts.
    """
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    allocatable = status.get("allocatable") or {}
    extended = _counts(allocatable)
    if not extended:
        return None
    return Node(
        name=metadata["name"],
        labels=metadata.get("labels") or {},
        allocatable=extended,
        cpu_cores=_number(allocatable.get("cpu", 0)),
        memory_bytes=_number(allocatable.get("memory", 0)),
        ready=_condition(status, "Ready") == "True",
        schedulable=not spec.get("unschedulable", False),
        created_at=seconds(metadata["creationTimestamp"]),
        taints=tuple(spec.get("taints") or ()),
        deleting="deletionTimestamp" in metadata,
        images=_images(status),
    )


def _images(status: Json) -> tuple[str, ...]:
    """Each image has up to five names, of digests and of tags; all of them are looked for."""
    names = [name for image in status.get("images") or () for name in image.get("names") or ()]
    return tuple(dict.fromkeys([identity(name) for name in names]))


def pod(obj: Json) -> Pod | Resident | None:
    """An engine pod of ours, or any other that asks for resources; none that is finished, for that holds nothing.

    One that was evicted stays until it is collected: it is nobody's replica, and nothing waits for it to go.
    """
    metadata, spec, status = obj["metadata"], obj["spec"], obj.get("status") or {}
    labels = metadata.get("labels") or {}
    if status.get("phase") in _FINISHED:
        return None
    requests = _requests(spec)
    if SERVICE_LABEL not in labels and not _extended(requests):
        return _resident(spec.get("nodeName"), requests)
    gates = {gate["name"] for gate in spec.get("schedulingGates") or ()}
    states = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    unbound = _unbound(status) if SERVICE_LABEL in labels else None
    group = _group(labels) if SERVICE_LABEL in labels else ""
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        created_at=seconds(metadata["creationTimestamp"]),
        accelerators=_extended(requests),
        cpu_cores=requests["cpu"],
        memory_bytes=requests["memory"],
        service=ServiceKey(metadata["namespace"], labels[SERVICE_LABEL]) if SERVICE_LABEL in labels else None,
        variant=labels.get(VARIANT_LABEL, ""),
        template_hash=labels.get(_TEMPLATE_HASH_LABEL) or labels.get(GROUP_TEMPLATE_LABEL, ""),
        node=spec.get("nodeName") or None,
        nominated_node=status.get("nominatedNodeName") or None,
        gated=PLACEMENT_GATE in gates,
        other_gates=bool(gates - {PLACEMENT_GATE}),
        unschedulable=_reason(status, "PodScheduled") == "Unschedulable",
        containers_ready=_condition(status, "ContainersReady") == "True",
        ready=_condition(status, "Ready") == "True",
        serving=_tristate(_condition(status, SERVING_CONDITION)),
        deleting="deletionTimestamp" in metadata,
        deletion_cost=_integer((metadata.get("annotations") or {}).get(DELETION_COST_ANNOTATION, "0")),
        waiting_reason=_waiting_reason(states),
        restarts=sum(int(state.get("restartCount", 0)) for state in states),
        failure=(_failure(states) or _lacks_claim(unbound)) if SERVICE_LABEL in labels else None,
        unbound=unbound,
        starting_since=_starting_since(status, states) if SERVICE_LABEL in labels else None,
        took_seconds=_took_seconds(status, states) if SERVICE_LABEL in labels else None,
        unprepared=SERVICE_LABEL in labels and _unprepared(status, states),
        unverified=any(state.get("name") == VERIFIER_CONTAINER and _fails(state) for state in states),
        held_to=_held_to(metadata.get("annotations") or {}, spec, states) if SERVICE_LABEL in labels else None,
        images=needed_by(spec) if SERVICE_LABEL in labels else (),
        group=group,
        worker=bool(group) and labels.get(WORKER_INDEX_LABEL, "0") != "0",
    )


def _group(labels: Mapping[str, str]) -> str:
    """The leader's name, as the controller of LeaderWorkerSets gives it."""
    index = labels.get(GROUP_INDEX_LABEL)
    return sys.intern(f"{labels.get(GROUP_SET_LABEL, '')}-{index}") if index is not None else ""


def _held_to(annotations: Json, spec: Json, states: list[Json]) -> str | None:
    """What the verifier has vouched for, else the digest by which the kubelet mounted the model's image."""
    promised = annotations.get(VERIFICATION_ANNOTATION)
    if promised is not None:
        passed = any(state.get("name") == VERIFIER_CONTAINER and state.get("ready") for state in states)
        return sys.intern(promised) if passed else None
    images = (volume.get("image") for volume in spec.get("volumes") or () if volume.get("name") == MODEL_VOLUME)
    reference = next((str(image.get("reference", "")) for image in images if image), "")
    return sys.intern(reference.partition("@")[2]) or None


def _resident(node: str | None, requests: _Amounts) -> Resident | None:
    takes = requests["cpu"] or requests["memory"]
    return Resident(sys.intern(node), requests["cpu"], requests["memory"]) if node and takes else None


def _condition(status: Json, kind: str) -> str | None:
    return next((c.get("status") for c in status.get("conditions") or () if c.get("type") == kind), None)


def _reason(status: Json, kind: str) -> str | None:
    return next((c.get("reason") for c in status.get("conditions") or () if c.get("type") == kind), None)


_CLAIM = re.compile(r'persistentvolumeclaim "[^"]*" (?:not found|is being deleted)|unbound immediate \w+')


def _unbound(status: Json) -> str | None:
    """The scheduler's words about a volume, without its counts of nodes, which change as nodes come and go."""
    said: Json = next((c for c in status.get("conditions") or () if c.get("type") == "PodScheduled"), {})
    found = _CLAIM.search(said.get("message") or "") if said.get("reason") == "Unschedulable" else None
    return found[0] if found else None


def _lacks_claim(unbound: str | None) -> str | None:
    """A claim that does not exist fails the pod; one that waits for its volume may come to it by itself."""
    return unbound if unbound is not None and unbound.startswith("persistentvolumeclaim") else None


def _starting_since(status: Json, states: list[Json]) -> float | None:
    """The loader of adapters starts before the engine, and says nothing of its start."""
    awaited = [state for state in states if state.get("name") != LOADER_CONTAINER]
    if any(state.get("started") or state.get("restartCount") for state in awaited):
        return None
    return _true_since(status, "PodScheduled")


def _took_seconds(status: Json, states: list[Json]) -> float | None:
    """None while it starts, and of one whose engine started again: its weights were there by then."""
    bound, ready = _true_since(status, "PodScheduled"), _true_since(status, "ContainersReady")
    if bound is None or ready is None or any(state.get("restartCount") for state in states):
        return None
    return max(0.0, ready - bound)


def _true_since(status: Json, kind: str) -> float | None:
    """Seconds since the epoch."""
    conditions = status.get("conditions") or ()
    found: Json = next((c for c in conditions if c.get("type") == kind and c.get("status") == "True"), {})
    return seconds(found["lastTransitionTime"]) if found.get("lastTransitionTime") else None


def _pod_after(last: Pod | Resident | None, new: Pod | Resident) -> Pod | Resident:
    """A pod that was ready has started: that it is so again after a while is no other start."""
    if not isinstance(last, Pod) or not isinstance(new, Pod) or last.uid != new.uid or last.took_seconds is None:
        return new
    return new if new.restarts else replace(new, took_seconds=last.took_seconds)


def _unprepared(status: Json, states: list[Json]) -> bool:
    """Volumes are mounted, and the sandbox is made, before the first container is even pulled."""
    begun = any(
        (state.get("state") or {}).keys() & {"running", "terminated"} or state.get("lastState") for state in states
    )
    return not begun and _condition(status, "PodReadyToStartContainers") != "True"


_UNPREPARED = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox"})
"""Reasons of events about what a pod needs before its first container; its status has nothing of them."""


def complaint(obj: Json) -> Complaint | None:
    """An event that says why a pod cannot be prepared."""
    if obj.get("reason") not in _UNPREPARED:
        return None
    regarding = obj["regarding"]
    told = (obj.get("series") or {}).get("lastObservedTime") or obj.get("deprecatedLastTimestamp")
    at = told or obj.get("eventTime") or obj["metadata"]["creationTimestamp"]
    return Complaint(
        pod=(regarding.get("namespace", ""), regarding["name"]),
        uid=regarding.get("uid", ""),
        words=f"{obj['reason']}: {_tail(obj.get('note', ''))}",
        at=seconds(at),
    )


def _tristate(status: str | None) -> bool | None:
    return {"True": True, "False": False}.get(status or "")


def _waiting_reason(states: list[Json]) -> str | None:
    waiting = (state.get("state", {}).get("waiting") for state in states)
    return next((str(found["reason"]) for found in waiting if found and found.get("reason")), None)


_HOPELESS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
"""Why a container waits for something that does not come by itself."""

_OFTEN = 2
_LAST_WORDS = 600


def _failure(states: list[Json]) -> str | None:
    """What is said of a container that does not start; once is no failure, the second start may do."""
    return next((_last_words(state) for state in states if _fails(state)), None)


def _fails(state: Json) -> bool:
    return not state.get("ready") and _last_words(state) is not None


def _last_words(state: Json) -> str | None:
    waiting = (state.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") in _HOPELESS:
        return f"{waiting['reason']}: {_tail(waiting.get('message', ''))}".rstrip(": ")
    ended = (state.get("state") or {}).get("terminated") or (state.get("lastState") or {}).get("terminated")
    if ended is None or int(state.get("restartCount", 0)) < _OFTEN:
        return None
    how = f"{state.get('name', 'container')} ended with {ended.get('exitCode')} ({ended.get('reason', 'Error')})"
    return f"{how}: {_tail(ended.get('message', ''))}".rstrip(": ")


def _tail(text: str) -> str:
    """The end of a log is where the error is."""
    words = " ".join(str(text).split())
    return words if len(words) <= _LAST_WORDS else f"…{words[-_LAST_WORDS:]}"


def _integer(text: str) -> int:
    """Deletion costs that are not numbers are refused by the API server; be safe all the same."""
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else 0


# --- resources ----------------------------------------------------------------------------------------------------


def _extended(resources: Mapping[str, Any]) -> dict[str, int]:
    """Extended resources that are asked for."""
    return {name: count for name, count in _counts(resources).items() if count > 0}


def _counts(resources: Mapping[str, Any]) -> dict[str, int]:
    """Extended resources: those with a domain that is not Kubernetes' own."""
    return {name: int(_number(value)) for name, value in sorted(resources.items()) if _is_extended(name)}


def _number(quantity: object) -> float:
    return _parsed_number(str(quantity))


@lru_cache(maxsize=4096)
def _parsed_number(quantity: str) -> float:
    """A cluster has many pods and few quantities."""
    return float(amount(quantity) or 0)


def _is_extended(name: str) -> bool:
    domain, slash, _ = name.partition("/")
    return bool(slash) and domain != "kubernetes.io" and not domain.endswith(".kubernetes.io")


def _requests(spec: Json) -> _Amounts:
    """What the scheduler reserves for a pod.

    The highest of: containers and sidecars together; each init container with the sidecars started before it. Then
    overhead; and pod-level resources stand in for what they name.
    https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers
    """
    running, peak = _Amounts(), _Amounts()
    for container in spec.get("initContainers") or ():
        together = running.plus(_asked(container))
        peak = peak.or_more(together)
        running = together if container.get("restartPolicy") == "Always" else running
    for container in spec.get("containers") or ():
        running = running.plus(_asked(container))
    total = peak.or_more(running)
    total.update(_asked(spec))
    return total.plus(_Amounts({name: _number(value) for name, value in (spec.get("overhead") or {}).items()}))


class _Amounts(dict[str, float]):
    """Amounts by resource name; what is not named is zero."""

    def __missing__(self, name: str) -> float:
        return 0.0

    def plus(self, other: _Amounts) -> _Amounts:
        if not self or not other:
            return self or other
        return _Amounts({name: self[name] + other[name] for name in {**self, **other}})

    def or_more(self, other: _Amounts) -> _Amounts:
        if not self or not other:
            return self or other
        return _Amounts({name: max(self[name], other[name]) for name in {**self, **other}})


def _asked(holder: Json) -> _Amounts:
    requests = (holder.get("resources") or {}).get("requests") or {}
    return _Amounts({name: _number(value) for name, value in requests.items()})


# --- children ------------------------------------------------------------------------------------------------------


def child(obj: Json) -> Child | None:
    """An object that a TokenService owns, or that nobody owns any more but is labelled as one's: it is taken back.

    What others own is not ours, whatever label it carries.
    """
    metadata = obj["metadata"]
    owner = belongs_to(metadata)
    if owner is None:
        return None
    return Child(
        key=ObjectKey(obj["kind"], metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        owner=ServiceKey(metadata["namespace"], owner),
        body=_without_managers(obj),
    )


def is_sibling(obj: Json, manifest: Json) -> bool:
    """Whether an object that has the name of a child is seen as one of the same TokenService."""
    theirs, ours = obj["metadata"], manifest["metadata"]
    watched = (theirs.get("labels") or {}).get(MANAGED_BY_LABEL) == FIELD_MANAGER
    return watched and belongs_to(theirs) == belongs_to(ours)


def belongs_to(metadata: Json) -> str | None:
    """Name of the TokenService whose child an object is."""
    left_behind = None if metadata.get("ownerReferences") else (metadata.get("labels") or {}).get(SERVICE_LABEL)
    return _owner(metadata) or left_behind


def _owner(metadata: Json) -> str | None:
    return next(
        (
            str(reference["name"])
            for reference in metadata.get("ownerReferences") or ()
            if reference["kind"] == "TokenService" and reference["apiVersion"].startswith(f"{GROUP}/")
        ),
        None,
    )


def _without_managers(obj: Json) -> Json:
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    return {**obj, "metadata": metadata}


# --- what matters --------------------------------------------------------------------------------------------------


def _timeless(body: Json) -> Json:
    """A body without what changes by being written."""
    volatile = ("resourceVersion", "managedFields")
    metadata = {key: value for key, value in body["metadata"].items() if key not in volatile}
    return {**body, "metadata": metadata}


def seconds(timestamp: str) -> float:
    """Seconds since the epoch."""
    return datetime.fromisoformat(timestamp).timestamp()


_OTHER = object()
_SHORT = 64
"""Characters: longer texts are seldom those of another object."""


def shared(last: Any, new: Any) -> Any:
    """`new`, parsed from JSON, made of the parts of `last` that are the same, and of texts that there are once.

    Each object of a kind comes with names and values of its own; a thousand of them hold the same few, and of each the
    memo of decisions may keep a version beside the newest. Nothing is written to, so what is equal can be one.
    """
    if type(new) is str:
        return last if last == new else sys.intern(new) if len(new) <= _SHORT else new
    if type(new) is dict:
        olds = last if type(last) is dict else {}
        found = {sys.intern(key): shared(olds.get(key, _OTHER), value) for key, value in new.items()}
        same = len(olds) == len(found) and all(olds.get(key, _OTHER) is value for key, value in found.items())
        return olds if same and last is olds else found
    if type(new) is list:
        before = last if type(last) is list and len(last) == len(new) else None
        items = [shared(old, item) for old, item in zip(before or [_OTHER] * len(new), new, strict=True)]
        return before if before is not None and all(map(is_, before, items)) else items
    return last if type(last) is type(new) and last == new else new


def _service_after(last: Service | None, new: Service) -> Service:
    if last is None:
        return replace(new, status=shared(None, new.status))
    spec = last.spec if last.spec == new.spec else new.spec
    return replace(new, spec=spec, status=shared(last.status, new.status))


def _child_after(last: Child | None, new: Child) -> Child:
    return replace(new, body=shared(None if last is None else last.body, new.body))


SERVICES = Projection(service, lambda value: replace(value, resource_version="", status={}), _service_after)
ACCELERATORS = Projection(accelerator)
PROFILES = Projection(profile)
FLEETS = Projection(fleet, lambda value: (value.spec, value.error, value.body["metadata"].get("uid")))
NODES = Projection(node)
PODS = Projection(
    pod, lambda value: replace(value, resource_version="") if isinstance(value, Pod) else None, _pod_after
)
COMPLAINTS = Projection(complaint, lambda value: (value.uid, value.words))
CHILDREN = Projection(child, lambda value: _timeless(value.body), _child_after)

PROJECTIONS: Mapping[str, Projection[Any]] = {
    "TokenService": SERVICES,
    "AcceleratorClass": ACCELERATORS,
    "CapacityProfile": PROFILES,
    "TokenFleet": FLEETS,
    "Node": NODES,
    "Pod": PODS,
}
"""Every other kind is a child."""
