"""The facts a decision rests on, and what a decision is.

`decide(snapshot, now) -> Plan` is the only way from one to the other. A Snapshot holds everything that may be known:
objects as slim projections, metrics as numbers or as `Missing`, and how old each view is. A Plan holds everything
that will be done, with the reason that goes to condition, event, log and `explain` alike. All collections are sorted
by their makers, so equal facts give equal plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.capacity_profile import CapacityProfileSpec, Provenance
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import Architecture, TokenServiceSpec
from tokenservice.core.hindsight import Hindsight
from tokenservice.core.step import StepModel

Json = dict[str, Any]


class ServiceKey(NamedTuple):
    """Identity of a TokenService."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ObjectKey(NamedTuple):
    """Identity of any object; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str


# --- Facts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that is not known, and why. Never None and never zero: nothing is scaled down on it."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A TokenService as read. `spec` is None when it could not be parsed; `error` then says which field and why.

    Or when the decision about it failed (`undecided`): `error` is then what it failed with.
    """

    key: ServiceKey
    uid: str
    generation: int
    resource_version: str
    created_at: float
    spec: TokenServiceSpec | None
    status: Json = field(default_factory=dict)
    error: str | None = None
    deleting: bool = False
    undecided: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node with accelerators; `allocatable` counts them by resource name.

    `cpu_cores` and `memory_bytes` are what pods without accelerators (DaemonSets, above all) leave of it.
    """

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, int]
    cpu_cores: float
    memory_bytes: float
    ready: bool
    schedulable: bool
    created_at: float
    taints: tuple[Json, ...] = ()
    deleting: bool = False
    images: tuple[str, ...] = field(default=(), compare=False)
    """Identities of images that its kubelet reports. A pull makes no other node of it: it wakes nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """An engine pod of ours, or a foreign pod that holds accelerators (`service` is None)."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    created_at: float
    accelerators: Mapping[str, int]
    cpu_cores: float = 0.0
    memory_bytes: float = 0.0
    service: ServiceKey | None = None
    variant: str = ""
    template_hash: str = ""
    node: str | None = None
    nominated_node: str | None = None
    gated: bool = False
    other_gates: bool = False
    unschedulable: bool = False
    containers_ready: bool = False
    ready: bool = False
    serving: bool | None = None
    deleting: bool = False
    deletion_cost: int = 0
    waiting_reason: str | None = None
    restarts: int = 0
    failure: str | None = None
    """What kubelet, scheduler and engine say of a pod that does not start, again and again."""
    unbound: str | None = None
    """What the scheduler says of a volume that it waits for; room would not help."""
    starting_since: float | None = None
    """When it got its node, seconds since the epoch, as long as no start of its engine has ended, good or bad."""
    took_seconds: float | None = None
    """From its node until its engine was ready, of one that has not started anew since: a cold start, measured."""
    unprepared: bool = False
    """Its volumes are not mounted yet, or its sandbox is not made."""
    complaint: str | None = None
    """What kubelet or a controller say of that; it may come to it all the same."""
    unverified: bool = False
    """What fails is the verifier of the model."""
    held_to: str | None = None
    """What its model was held to before the engine started; None before that, and where it was held to nothing."""
    images: tuple[str, ...] = ()
    """Identities of the images that it cannot start without, the largest first: the model's before the engine's."""
    group: str = ""
    """Name of the leader, of every pod of a replica that takes several; empty for a replica that is one pod."""
    worker: bool = False
    """Belongs to the group and does not lead it: it holds accelerators, and serves through its leader alone."""

    @property
    def starting(self) -> bool:
        """Counts as capacity on its way."""
        return not self.ready and not self.deleting and self.serving is not False


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A live object that a TokenService owns, without managedFields."""

    key: ObjectKey
    uid: str
    resource_version: str
    owner: ServiceKey
    body: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What one replica gives: output tokens per second, for so many sequences that run (a mean over the window)."""

    pod: str
    tokens_per_second: float
    running: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMetrics:
    """What Prometheus says of one service. Rates are per second over the fleet's window.

    `*_buckets` are (upper bound in seconds, cumulative requests per second), ascending, the last bound infinite.
    `peak_requests_per_second` is the highest arrival rate within the scale-down window. `owed_requests_per_second` is
    what must be started of work that may wait, so that it is done in time, where a queue in front of the engines
    tells; arrivals and peak are without it. `paces` are those of every busy replica, where one gives far less than the
    others; empty otherwise. `engines_reporting` did so for the whole window of rates; `engines_heard` gave some figure
    since the longest window began, None where that is not known. Where they are more than there were replicas, somebody
    else speaks in the service's name.
    """

    requests_per_second: float
    peak_requests_per_second: float
    output_tokens_per_second: float
    input_tokens_per_second: float
    mean_input_tokens: float | Missing
    mean_output_tokens: float | Missing
    prefix_hit_rate: float
    running: float
    waiting: float
    kv_usage: float
    engines_reporting: int
    engines_heard: int | None = None
    mean_tpot_seconds: float | Missing = Missing("NotRead", "the mean time per output token was not read")
    ttft_buckets: tuple[tuple[float, float], ...] = ()
    tpot_buckets: tuple[tuple[float, float], ...] = ()
    owed_requests_per_second: float = 0.0
    paces: tuple[Pace, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """What the loader of one pod says of one adapter: from where, whether its engine has it, and why not."""

    uri: str
    loaded: bool
    error: str = ""


PodAdapters = Mapping[tuple[str, str], Mapping[str, LoadedAdapter]]
"""Adapters by name, of each pod by namespace and name; pods that did not report are absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """The fleet's utilization over longer times, as far as Prometheus remembers it."""

    hour: float | Missing
    day: float | Missing


_NOT_READ = Missing("NotRead", "the means of the utilization were not read yet")
NO_MEANS = Means(hour=_NOT_READ, day=_NOT_READ)


@dataclass(frozen=True, slots=True)
class Margin:
    """Factor on the modelled capacity of a service, and what is remembered to judge the next moment (see `margin`).

    `usual` is the mean rate of requests, per second; `at` is when the factor was last moved; until
    `blind_until` nothing is learned. `tried_seconds` is how long the pool was under a load that teaches.
    `overrun_share` is what the time after demand had overrun the pool took of the misses that are allowed, over hours.
    """

    factor: float = 1.0
    usual: float = 0.0
    at: float | None = None
    blind_until: float = 0.0
    tried_seconds: float = 0.0
    overrun_share: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A CapacityProfile under its object name, with what production taught about it in its status."""

    name: str
    spec: CapacityProfileSpec
    uid: str = ""
    generation: int = 0
    status: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """An AcceleratorClass under its object name, with the status that stands there."""

    name: str
    spec: AcceleratorClassSpec
    uid: str = ""
    status: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run a model: accelerator x engine x tensor parallel size x precision, and what it is known to do.

    Where no node holds a replica, each of its pipeline stages is a pod on a node of its own.

    `profile` names the CapacityProfile behind the figures; None when they are the roofline prior. `pinned` is the
    profile's own step model where production has refined `step`: what utilization is counted in. `checkpoint_bytes`
    is what is downloaded and read where the engine makes other `weight_bytes` of it; None when they are the same.
    """

    name: str
    accelerator: Accelerator
    engine: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    precision: str
    profile: str | None
    step: StepModel
    kv_capacity_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    cold_start_seconds: float
    weight_bytes: float
    provenance: Provenance
    pinned: StepModel | None = None
    checkpoint_bytes: float | None = None

    @property
    def bytes_on_disk(self) -> float:
        """What a start downloads and reads."""
        return self.weight_bytes if self.checkpoint_bytes is None else self.checkpoint_bytes

    @property
    def accelerators(self) -> int:
        """Accelerators of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def pods(self) -> int:
        """Pods of one replica: one, or one for each pipeline stage where no node holds it whole."""
        whole = self.accelerators <= self.accelerator.spec.accelerators_per_node
        return 1 if whole else self.pipeline_parallel_size

    @property
    def accelerators_per_pod(self) -> int:
        """Accelerators that each pod of a replica takes, on one node."""
        return self.accelerators // self.pods

    @property
    def price_per_hour(self) -> float:
        """US dollars per replica-hour."""
        return self.accelerators * self.accelerator.spec.price_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineImages:
    """Images by (engine, vendor), and what else users may name; from the chart's values.

    `verifier` is the image that verifies signatures of models before an engine starts, `loader` the one that has
    running engines load adapters.
    """

    defaults: Mapping[tuple[str, str], str]
    allowed: tuple[str, ...] = ()
    verifier: str | None = None
    loader: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The administrator's settings that rendering and deciding need; from the chart's values."""

    images: EngineImages
    gateway_peers: tuple[Json, ...] = ()
    metrics_peers: tuple[Json, ...] = ()
    pod_monitors: bool = False
    monitor_labels: Mapping[str, str] = field(default_factory=dict)
    cluster_domain: str = "cluster.local"
    pod_patch: Json = field(default_factory=dict)
    status_interval_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a decision may know."""

    services: tuple[Service, ...]
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    children: Mapping[ObjectKey, Child]
    accelerators: tuple[Accelerator, ...]
    profiles: tuple[Profile, ...]
    architectures: Mapping[str, Architecture]
    metrics: Mapping[ServiceKey, ServiceMetrics | Missing]
    settings: Settings
    fleet: TokenFleetSpec = field(default_factory=TokenFleetSpec)
    fleet_object: Json | None = None
    fleet_problem: Problem | None = None
    fleet_utilization: float | Missing = Missing("NoData", "utilization was not read yet")
    fleet_means: Means = NO_MEANS
    adapters: PodAdapters = field(default_factory=dict)
    stale_kinds: tuple[str, ...] = ()
    status_written_at: Mapping[ObjectKey, float] = field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    margins: Mapping[ServiceKey, Margin] = field(default_factory=dict)
    hindsights: Mapping[ServiceKey, Hindsight] = field(default_factory=dict)
    slow_since: Mapping[str, float] = field(default_factory=dict)
    """Since when each replica that is slow is so, by the pod's uid."""
    given_up: Mapping[str, float] = field(default_factory=dict)
    """When a move of each replica was given up last, by the pod's uid; of those that rest from it."""
    holders: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Names of the nodes that have an image, by its identity: of those that services use."""
    leader_worker_sets: bool = False
    """Whether the cluster has the API for replicas of several pods."""
    refusals: Mapping[ServiceKey, Problem] = field(default_factory=dict)
    """What the API server refused for good when the last plan was carried out, the first of each service."""


# --- Decisions -----------------------------------------------------------------------------------------------------


class Reason(StrEnum):
    """The one vocabulary of conditions, events, logs and `explain`. docs/reasons.md has a paragraph for each."""

    # why something is done
    CREATED = "Created"
    UPDATED = "Updated"
    SCALED_UP = "ScaledUp"
    SCALED_DOWN = "ScaledDown"
    VICTIM_CHOSEN = "VictimChosen"
    PLACED = "Placed"
    NO_ROOM = "NoRoom"
    GATE_EXPIRED = "GateExpired"
    MOVE_STARTED = "MoveStarted"
    MOVE_SHIFTED = "MoveShifted"
    MOVE_CANCELLED = "MoveCancelled"
    SLOW_REPLICA = "SlowReplica"
    SURGED = "Surged"
    REMOVED = "Removed"
    # why nothing is done
    STEADY = "Steady"
    HOLDING = "Holding"
    PAUSED = "Paused"
    OBSERVING = "Observing"
    RECOMMENDED = "Recommended"
    STALE_VIEW = "StaleView"
    ROLLING_OUT = "RollingOut"
    ROLLED_BACK = "RolledBack"
    # states of conditions
    PENDING = "Pending"
    SERVING = "Serving"
    STARTING = "Starting"
    NOT_SERVING = "NotServing"
    MET = "Met"
    MISSED = "Missed"
    UNKNOWN = "Unknown"
    AVAILABLE = "Available"
    INSUFFICIENT = "InsufficientCapacity"
    NAMESPACE_LIMIT = "NamespaceLimit"
    BUDGET_LIMIT = "BudgetLimit"
    METRICS_FRESH = "MetricsFresh"
    METRICS_MISSING = "MetricsMissing"
    NOT_CHECKED = "NotChecked"
    VERIFIED = "Verified"
    ACCEPTED = "Accepted"
    ENGINE_FAILED = "EngineFailed"
    NAME_TAKEN = "NameTaken"
    REFUSED = "Refused"
    VERIFICATION_FAILED = "VerificationFailed"
    DECISION_FAILED = "DecisionFailed"
    # what is wrong with a spec
    INVALID_SPEC = "InvalidSpec"
    UNKNOWN_ACCELERATOR = "UnknownAccelerator"
    MODEL_TOO_LARGE = "ModelTooLarge"
    UNKNOWN_MODEL = "UnknownModel"
    TENSOR_PARALLEL_TOO_LARGE = "TensorParallelTooLarge"
    NO_LEADER_WORKER_SET = "NoLeaderWorkerSet"
    OBJECTIVES_UNREACHABLE = "ObjectivesUnreachable"
    RESIDENCY_EXCLUDES_ALL = "ResidencyExcludesAll"
    MAXIMUM_OUTRANKED = "MaximumOutranked"
    SERVED_NAME_TAKEN = "ServedNameTaken"
    CONFLICTING_ARGUMENTS = "ConflictingArguments"
    ARGUMENT_NOT_ALLOWED = "ArgumentNotAllowed"
    IMAGE_NOT_ALLOWED = "ImageNotAllowed"
    NO_ENGINE_IMAGE = "NoEngineImage"
    NO_VERIFIER_IMAGE = "NoVerifierImage"
    NO_LOADER_IMAGE = "NoLoaderImage"
    NOT_ALLOWED_IN_NAMESPACE = "NotAllowedInNamespace"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a service is Stalled: a reason, the field, and a sentence that says how to mend it."""

    reason: Reason
    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One write. `after` names actions that must have succeeded first; actions without a common ancestor are free.

    One that `can_wait` is left to the next plan where this one takes long to carry out.
    """

    id: str
    reason: Reason
    message: str
    service: ServiceKey | None = None
    after: tuple[str, ...] = ()
    can_wait: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply(Action):
    """Server-side apply of a child. With `resource_version` it conflicts unless the object is as it was seen."""

    manifest: Json
    resource_version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Action):
    """Deletion of exactly the object that was seen."""

    key: ObjectKey
    uid: str
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDeletionCost(Action):
    """Marks the pod that its ReplicaSet should remove first (lowest cost goes first)."""

    pod: ObjectKey
    uid: str
    cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Action):
    """Nominates `node` (None: leaves it to the scheduler), sets the serving condition and lifts our gate."""

    pod: ObjectKey
    uid: str
    node: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetServing(Action):
    """Takes a pod out of the endpoints (False) or back in (True)."""

    pod: ObjectKey
    uid: str
    serving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusWrite:
    """A status to apply, only present when it differs enough from what is there."""

    key: ObjectKey
    uid: str
    status: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something users should see in `kubectl describe`."""

    regarding: ObjectKey
    uid: str
    type: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A node that could be emptied, and since when each pass has said so; acted on at the second look."""

    node: str
    pods: tuple[str, ...]
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do, in order, and what to say about it. What it remembers is for the next decision to see."""

    actions: tuple[Action, ...] = ()
    statuses: tuple[StatusWrite, ...] = ()
    events: tuple[Event, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    slow_since: Mapping[str, float] = field(default_factory=dict)
    given_up: Mapping[str, float] = field(default_factory=dict)
    margins: Mapping[ServiceKey, Margin] = field(default_factory=dict)
    hindsights: Mapping[ServiceKey, Hindsight] = field(default_factory=dict)
