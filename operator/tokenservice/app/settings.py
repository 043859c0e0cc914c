"""The administrator's settings: `config.yaml` of the chart's ConfigMap. A key that is not known is an error."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tokenservice.core.model import EngineImages, Json
from tokenservice.core.model import Settings as CoreSettings
from tokenservice.errors import ConfigurationError, cause

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class PrometheusSettings(_Model):
    """Where metrics are read; a TokenFleet may name another address."""

    address: str = ""
    token_file: str = ""
    timeout_seconds: int = Field(5, ge=1, le=60)


class WebhookSettings(_Model):
    """The admission webhook. `host` is what the API server calls it by; `url` comes first when it is given."""

    enabled: bool = True
    port: int = Field(9443, ge=0, le=65535)
    configuration: str = "tokenservice-pods"
    host: str = "localhost"
    url: str = ""

    @property
    def server_name(self) -> str:
        """The name, or address, that its certificate must carry."""
        return (urlsplit(self.url).hostname if self.url else None) or self.host


class LeaseSettings(_Model):
    """The Lease that leaders hold; an empty namespace is the pod's own."""

    namespace: str = ""
    name: str = "tokenservice"


class Listener(_Model):
    """A port."""

    port: int = Field(ge=0, le=65535)


class Settings(_Model):
    """Everything that can be set."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    plan_interval_seconds: float = Field(5.0, gt=0, le=600)
    status_interval_seconds: float = Field(60.0, ge=1, le=600)
    cluster_domain: str = "cluster.local"
    watch_namespaces: tuple[str, ...] = ()
    prometheus: PrometheusSettings = PrometheusSettings()
    engine_images: dict[str, dict[str, str]] = Field(default_factory=dict)
    allowed_engine_images: tuple[str, ...] = ()
    model_verifier_image: str = ""
    adapter_loader_image: str = ""
    engine_pod_patch: Json = Field(default_factory=dict)
    gateway_peers: tuple[Json, ...] = ()
    metrics_peers: tuple[Json, ...] = ()
    pod_monitors: bool = False
    monitor_labels: dict[str, str] = Field(default_factory=dict)
    catalogue: bool = True
    lease: LeaseSettings = LeaseSettings()
    listen_address: str = "0.0.0.0"  # noqa: S104 - a pod's own network namespace
    health: Listener = Listener(port=8081)
    metrics: Listener = Listener(port=8080)
    webhook: WebhookSettings = WebhookSettings()

    @property
    def optional_kinds(self) -> dict[str, bool]:
        """Kinds of children that are made under some settings only, and whether these are such."""
        return {"PodMonitor": self.pod_monitors, "ConfigMap": bool(self.adapter_loader_image)}

    @property
    def core(self) -> CoreSettings:
        """What rendering and deciding need."""
        defaults = {
            (engine, vendor): image
            for engine, images in sorted(self.engine_images.items())
            for vendor, image in sorted(images.items())
            if image
        }
        return CoreSettings(
            images=EngineImages(
                defaults=defaults,
                allowed=self.allowed_engine_images,
                verifier=self.model_verifier_image or None,
                loader=self.adapter_loader_image or None,
            ),
            gateway_peers=self.gateway_peers,
            metrics_peers=self.metrics_peers,
            pod_monitors=self.pod_monitors,
            monitor_labels=self.monitor_labels,
            cluster_domain=self.cluster_domain,
            pod_patch=self.engine_pod_patch,
            status_interval_seconds=self.status_interval_seconds,
        )


def load(path: str | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from a file, or the defaults; the Lease is in the pod's namespace unless the file says where."""
    try:
        settings = Settings.model_validate(_read(path) if path else {})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: {field}: {first['msg']}") from error
    if settings.lease.namespace:
        return settings
    namespace = environment.get("POD_NAMESPACE") or _own_namespace()
    return settings.model_copy(update={"lease": LeaseSettings(namespace=namespace, name=settings.lease.name)})


def identity(environment: Mapping[str, str] = os.environ) -> str:
    """A name for this process that no other has: restarts within a pod differ too."""
    name = environment.get("POD_NAME") or socket.gethostname()
    return f"{name}_{os.getpid()}_{os.urandom(4).hex()}"


def _read(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: the settings cannot be read: {cause(error)}") from error
    if not isinstance(content, dict | None):
        raise ConfigurationError(f"{path}: settings must be a mapping")
    return content or {}


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        return "default"
