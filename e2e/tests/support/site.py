"""One test's corner of the shared cluster: a namespace, and nodes in a region that only its services may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import requests
import yaml

from e2e.testbed.bed import Bed
from e2e.testbed.nodes import H100, Template
from e2e.tests.support.api import PATIENCE_SECONDS, Api, Json, Record, condition, eventually, is_true, watched
from e2e.tests.support.traffic import Traffic

T = TypeVar("T")

MODEL = "testbed/steady-7b"
SERVICE_LABEL = "taas.dev/service"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


def profile(engine: str, accelerator: str = "h100") -> Json:
    """A model so slow that a few requests a second fill a replica: load tests spare the machine.

    Eight sequences at 20 ms a step are 3.2 requests per second and replica, at 100 tokens an answer.
    """
    return {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "CapacityProfile",
        "metadata": {"name": f"steady-7b-bf16-{engine.lower()}-{accelerator}-tp1"},
        "spec": {
            "model": MODEL,
            "engine": engine,
            "engineVersion": "any",
            "accelerator": accelerator,
            "tensorParallelSize": 1,
            "precision": "bf16",
            "step": {"alphaMs": 20.0, "betaMs": 0.1, "kappaMs": 0.001, "deltaMs": 0.001},
            "kvCapacityTokens": 400_000,
            "maxNumSeqs": 8,
            "maxNumBatchedTokens": 8192,
            "coldStartSeconds": 40.0,
            "provenance": "Measured",
            "source": "made up for tests",
        },
    }


@dataclass
class Site:
    """A namespace of its own; `region` is what its nodes and services have in common."""

    bed: Bed
    api: Api
    namespace: str
    nodes: list[str] = field(default_factory=list)

    @property
    def region(self) -> str:
        return self.namespace

    # -- what is there

    def node(self, template: Template = H100, *, region: str | None = None) -> str:
        """A node more, ready."""
        name = self.bed.autoscaler.add(template, region=region or self.region)
        self.nodes.append(name)
        eventually(lambda: is_true(self.api.get("nodes", name), "Ready"), f"node {name} is ready")
        return name

    def manifest(self, name: str = "chat", **spec: Any) -> Json:
        """A TokenService of the slow model on this site's nodes; `spec` replaces whole fields."""
        fields = {
            "model": {"uri": f"hf://{MODEL}"},
            "engine": {"name": "vLLM"},
            "placement": {"accelerators": ["h100"], "regions": [self.region]},
        }
        return {
            "apiVersion": "taas.dev/v1alpha1",
            "kind": "TokenService",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": fields | spec,
        }

    def apply(self, name: str = "chat", **spec: Any) -> str:
        """Applies one as a user would, and returns its name."""
        self.bed.cluster.apply(self.manifest(name, **spec))
        return name

    def serving(self, name: str = "chat", **spec: Any) -> str:
        """Applies one and waits until as many replicas serve as must."""
        self.apply(name, **spec)
        self.wait_true("Ready", name)
        return name

    # -- looks

    def service(self, name: str = "chat") -> Json:
        found = self.api.get("tokenservices", name, self.namespace)
        assert found is not None, f"TokenService {name} is gone"
        return found

    def status(self, name: str = "chat") -> Json:
        status: Json = self.service(name).get("status") or {}
        return status

    def condition(self, kind: str, name: str = "chat") -> Json:
        return condition(self.service(name), kind)

    def pods(self, name: str | None = "chat", *, deleting: bool = False) -> list[Json]:
        """Engine pods; those that are on their way out only if asked for."""
        found = self.api.list("pods", self.namespace, f"{SERVICE_LABEL}={name}" if name else SERVICE_LABEL)
        return [pod for pod in found if deleting or "deletionTimestamp" not in pod["metadata"]]

    def ready_pods(self, name: str | None = "chat") -> list[Json]:
        return [pod for pod in self.pods(name) if is_true(pod, "Ready")]

    def nodes_of(self, name: str | None = "chat") -> list[str]:
        """Node of each living pod."""
        return sorted(pod["spec"].get("nodeName", "") for pod in self.pods(name))

    def deployments(self, name: str | None = "chat") -> list[Json]:
        return self.api.list("deployments", self.namespace, f"{SERVICE_LABEL}={name}" if name else SERVICE_LABEL)

    def endpoints(self, name: str = "chat") -> list[str]:
        """Names of the pods that the Service sends requests to."""
        slices = self.api.list("endpointslices", self.namespace, f"kubernetes.io/service-name={name}")
        return sorted(
            endpoint["targetRef"]["name"]
            for found in slices
            for endpoint in found.get("endpoints") or []
            if endpoint["conditions"].get("ready")
        )

    def events(self, name: str = "chat") -> list[Json]:
        """Events about the TokenService."""
        found = self.api.list("events", self.namespace)
        mine = [e for e in found if e["regarding"]["kind"] == "TokenService" and e["regarding"]["name"] == name]
        return sorted(mine, key=lambda event: str(event["eventTime"]))

    def told(self, reason: str, name: str = "chat") -> list[str]:
        """What was said for a reason."""
        return [event.get("note", "") for event in self.events(name) if event["reason"] == reason]

    # -- waiting

    def eventually(
        self, check: Callable[[], T | None], what: str, seconds: float = PATIENCE_SECONDS, pause: float = 0.3
    ) -> T:
        """`eventually`, with what there is to see of the services when it fails."""
        try:
            return eventually(check, what, seconds, pause)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._state()}") from None

    def wait_true(self, kind: str, name: str = "chat") -> Json:
        return self.wait_condition(kind, "True", name)

    def wait_condition(self, kind: str, status: str, name: str = "chat") -> Json:
        """The condition, once it has that status for the spec as it is now."""

        def looked() -> Json | None:
            found = self.service(name)
            seen = condition(found, kind)
            current = seen.get("observedGeneration") == found["metadata"]["generation"]
            return seen if seen.get("status") == status and current else None

        try:
            return eventually(looked, f"{kind} of {name} is {status}")  # type: ignore[return-value]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._state(name)}") from None

    def wait_ready_pods(self, count: int, name: str = "chat") -> list[Json]:
        """Exactly so many pods, all of them ready."""

        def looked() -> list[Json] | None:
            living = self.pods(name)
            return living if len(living) == count and all(is_true(pod, "Ready") for pod in living) else None

        try:
            return eventually(looked, f"{count} pods of {name} are ready") or []
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._state(name)}") from None

    # -- doings

    def traffic(self, name: str = "chat", *, rate: float = 2.0, **options: Any) -> Traffic:
        return Traffic(self.bed, self.namespace, name, rate=rate, **options)

    def complete(self, name: str = "chat", *, tokens: int = 8) -> Json:
        """One chat completion from a pod that the Service has as ready endpoint."""
        pod = self.endpoints(name)[0]
        url = f"{self.bed.farm_url}/pods/{self.namespace}/{pod}/v1/chat/completions"
        asked = {"model": name, "max_tokens": tokens, "messages": [{"role": "user", "content": "Good morning"}]}
        answer = requests.post(url, json=asked, timeout=60)
        answer.raise_for_status()
        body: Json = answer.json()
        return body

    def yaml(self, name: str = "chat", **spec: Any) -> str:
        """The manifest as a file would hold it."""
        return yaml.safe_dump(self.manifest(name, **spec))

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.bed.cluster.kubectl("-n", self.namespace, *arguments, **options)

    def watched(self, kind: str) -> Any:
        """A context: the record of every state of a kind's objects here."""
        return watched(self.bed.cluster, kind, self.namespace)

    def _state(self, name: str = "") -> str:
        """For the message of a failure: one service, or all of them."""
        lines = [
            f"{pod['metadata']['name']}: node {pod['spec'].get('nodeName')}, {pod['status'].get('phase')},"
            f" gates {pod['spec'].get('schedulingGates')}, deleting {'deletionTimestamp' in pod['metadata']},"
            f" {[(c['type'], c['status']) for c in pod['status'].get('conditions', [])]}"
            for pod in self.pods(name or None, deleting=True)
        ]
        for service in self.api.list("tokenservices", self.namespace):
            status = service.get("status") or {}
            if name in ("", service["metadata"]["name"]):
                lines.append(service["metadata"]["name"])
                lines += [f"  {c['type']} {c['status']}: {c['message']}" for c in status.get("conditions", [])]
                lines.append(f"  {status.get('decision')}")
        log = (self.bed.cluster.folder / "logs/operator.log").read_text().splitlines()
        said = [line for line in log if f"/{self.namespace}/" in line or "Traceback" in line or " ERROR " in line]
        return "\n".join([*lines, *said[-20:]])


__all__ = ["DELETION_COST", "MODEL", "SERVICE_LABEL", "Record", "Site", "profile"]
