"""The four kinds as the API server knows them: names, scope, columns, subresources, and their CRDs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenservice.api import GROUP, VERSION
from tokenservice.api.accelerator_class import AcceleratorClassSpec, AcceleratorClassStatus
from tokenservice.api.base import ApiModel, Rule, cel_text, is_text, rule_schema
from tokenservice.api.capacity_profile import CapacityProfileSpec, CapacityProfileStatus
from tokenservice.api.schema import structural_schema
from tokenservice.api.token_fleet import TokenFleetSpec, TokenFleetStatus
from tokenservice.api.token_service import TokenServiceSpec, TokenServiceStatus

Json = dict[str, Any]

CATEGORY = "taas"
_READY = '.status.conditions[?(@.type=="Ready")].status'
_SERVICE_NAME = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; those of priority 1 show with `-o wide`."""

    name: str
    type: str
    path: str
    description: str
    priority: int = 0

    def as_json(self) -> Json:
        shown = {"name": self.name, "type": self.type, "jsonPath": self.path, "description": self.description}
        return shown | ({"priority": self.priority} if self.priority else {})


_AGE = Column("Age", "date", ".metadata.creationTimestamp", "Time since creation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind: everything of its CRD that is not in the models."""

    kind: str
    plural: str
    short_name: str
    namespaced: bool
    description: str
    spec: type[ApiModel]
    status: type[ApiModel]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    scalable: bool = False
    spec_required: bool = True

    @property
    def crd_name(self) -> str:
        return f"{self.plural}.{GROUP}"


def _name_of(resource: Json) -> object:
    return resource.get("metadata", {}).get("name")


_SERVICE_NAME_RULE = Rule(
    f"self.metadata.name.matches({cel_text(_SERVICE_NAME)})",
    "metadata.name also names a Service: use at most 40 characters, lower-case letters, digits and - (no dots),"
    " beginning with a letter and not ending with -",
    check=lambda resource: is_text(_name_of(resource), _SERVICE_NAME),
)
_ADAPTER_RULE = Rule(
    "has(self.spec.model.servedName) || !has(self.spec.model.adapters)"
    " || !self.spec.model.adapters.exists(a, a.name == self.metadata.name)",
    "an adapter has the name of the TokenService, under which the model is served: rename it or set model.servedName",
    ".spec.model.adapters",
    check=lambda resource: (
        "servedName" in resource["spec"]["model"]
        or _name_of(resource) not in {adapter["name"] for adapter in resource["spec"]["model"].get("adapters", [])}
    ),
)
_FLEET_NAME_RULE = Rule(
    "self.metadata.name == 'default'",
    "metadata.name must be default: there is one fleet",
    check=lambda resource: _name_of(resource) == "default",
)

TOKEN_SERVICE = Kind(
    kind="TokenService",
    plural="tokenservices",
    short_name="tsvc",
    namespaced=True,
    description="A promise of tokens: which model, how many tokens a second, how fast and at what price.",
    spec=TokenServiceSpec,
    status=TokenServiceStatus,
    rules=(_SERVICE_NAME_RULE, _ADAPTER_RULE),
    scalable=True,
    columns=(
        Column("Replicas", "string", ".status.replicaSummary", "Ready and wanted replicas"),
        Column("Variant", "string", ".status.variantSummary", "Accelerator, engine, TP and precision in use"),
        Column("Tokens/s", "number", ".status.tokensPerSecond", "Output delivered"),
        Column("Utilization", "number", ".status.utilization", "Demand as a share of capacity at the objectives"),
        Column("TTFT/TPOT", "string", ".status.objectives.summary", "Measured latency against its targets"),
        Column("$/Mtok", "number", ".status.costPerMillionTokens", "Accelerator cost of a million output tokens"),
        Column("Ready", "string", _READY, "Whether it serves"),
        Column("Tier", "string", ".spec.tier", "What happens when capacity is short", priority=1),
        Column("Model", "string", ".spec.model.uri", "Where the model is", priority=1),
        Column(
            "Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', "Why it is Ready or not", priority=1
        ),
        _AGE,
    ),
)

ACCELERATOR_CLASS = Kind(
    kind="AcceleratorClass",
    plural="acceleratorclasses",
    short_name="accel",
    namespaced=False,
    description="What one kind of accelerator offers and costs.",
    spec=AcceleratorClassSpec,
    status=AcceleratorClassStatus,
    columns=(
        Column("Vendor", "string", ".spec.vendor", "Who makes it"),
        Column("Memory", "string", ".spec.memory", "Memory of one accelerator"),
        Column("GB/s", "number", ".spec.bandwidthGigabytesPerSecond", "Peak memory bandwidth"),
        Column("$/h", "number", ".spec.pricePerHour", "Price of one accelerator-hour"),
        Column("Nodes", "integer", ".status.nodes", "Nodes that match"),
        Column("Existing", "integer", ".status.accelerators", "Accelerators that exist"),
        Column("Allocated", "integer", ".status.allocated", "Accelerators that pods hold"),
        _AGE,
    ),
)

CAPACITY_PROFILE = Kind(
    kind="CapacityProfile",
    plural="capacityprofiles",
    short_name="cprof",
    namespaced=False,
    description="What one model delivers on one engine, accelerator, tensor parallel size and precision.",
    spec=CapacityProfileSpec,
    status=CapacityProfileStatus,
    columns=(
        Column("Model", "string", ".spec.model", "Model repository"),
        Column("Engine", "string", ".spec.engine", "Engine"),
        Column("Accelerator", "string", ".spec.accelerator", "AcceleratorClass"),
        Column("TP", "integer", ".spec.tensorParallelSize", "Accelerators of one replica"),
        Column("Precision", "string", ".spec.precision", "Number format of the weights"),
        Column("Provenance", "string", ".spec.provenance", "How the figures were found"),
        Column("Version", "string", ".spec.engineVersion", "Engine version that was measured", priority=1),
        Column("Error", "number", ".spec.errorFraction", "Mean error of TPOT, as a share of it", priority=1),
        _AGE,
    ),
)

TOKEN_FLEET = Kind(
    kind="TokenFleet",
    plural="tokenfleets",
    short_name="tfleet",
    namespaced=False,
    description="Policy for the whole fleet; absent means defaults.",
    spec=TokenFleetSpec,
    status=TokenFleetStatus,
    rules=(_FLEET_NAME_RULE,),
    spec_required=False,
    columns=(
        Column("Utilization", "number", ".status.utilization", "Utilization now"),
        Column("Target", "number", ".spec.targetUtilization", "Utilization that the fleet steers to"),
        Column("Existing", "integer", ".status.accelerators", "Accelerators that exist"),
        Column("In-Use", "integer", ".status.acceleratorsInUse", "Accelerators that pods hold"),
        Column("Fragmented", "integer", ".status.acceleratorsFragmented", "Free accelerators on nodes in use"),
        Column("$/h", "number", ".status.costPerHour", "Price of the accelerators that exist"),
        Column("$/Mtok", "number", ".status.costPerMillionTokens", "Cost of a million output tokens"),
        Column("Ready", "string", _READY, "Whether the fleet is looked after"),
        _AGE,
    ),
)

KINDS = (TOKEN_SERVICE, ACCELERATOR_CLASS, CAPACITY_PROFILE, TOKEN_FLEET)


def resource_schema(kind: Kind) -> Json:
    """Schema of a whole object of `kind`, from `apiVersion` to `status`."""
    spec, status = structural_schema(kind.spec), structural_schema(kind.status)
    root: Json = {
        "description": kind.description,
        "type": "object",
        "required": ["spec"] if kind.spec_required else None,
        "properties": {
            "apiVersion": {"description": f"{GROUP}/{VERSION}.", "type": "string"},
            "kind": {"description": f"{kind.kind}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": spec if kind.spec_required else spec | {"default": {}},
            "status": status | ({"default": {}} if "conditions" in status["properties"] else {}),
        },
        "x-kubernetes-validations": [rule_schema(rule) for rule in kind.rules] or None,
    }
    return {key: value for key, value in root.items() if value is not None}


def custom_resource_definition(kind: Kind) -> Json:
    """The CRD of `kind`."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short_name],
                "categories": [CATEGORY],
            },
            "versions": [_version(kind)],
        },
    }


def _version(kind: Kind) -> Json:
    subresources: Json = {"status": {}}
    if kind.scalable:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": subresources,
        "additionalPrinterColumns": [column.as_json() for column in kind.columns],
        "schema": {"openAPIV3Schema": resource_schema(kind)},
    }
