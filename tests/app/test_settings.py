"""The administrator's settings: what the chart writes is what is read, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenservice.app import settings
from tokenservice.app.settings import Settings
from tokenservice.errors import ConfigurationError

# The shape of the chart's ConfigMap; tests of the chart render the real one.
WRITTEN = """
logLevel: debug
planIntervalSeconds: 2
statusIntervalSeconds: 30
watchNamespaces: [team-a, team-b]
prometheus: {address: "http://prometheus:9090", tokenFile: ""}
engineImages:
  vLLM: {NVIDIA: "vllm:1", AMD: ""}
  SGLang: {NVIDIA: "sglang:1"}
allowedEngineImages: [example.org/]
enginePodPatch: {spec: {runtimeClassName: nvidia}}
gatewayPeers: [{podSelector: {}}]
metricsPeers: []
podMonitors: true
monitorLabels: {release: stack}
lease: {namespace: system, name: tokenservice}
health: {port: 1}
metrics: {port: 2}
webhook: {enabled: true, port: 3, configuration: tokenservice-pods, host: tokenservice.system.svc, url: ""}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_what_the_chart_writes_is_read(tmp_path: Path) -> None:
    read = settings.load(write(tmp_path, WRITTEN), {})
    assert read.watch_namespaces == ("team-a", "team-b")
    assert (read.health.port, read.metrics.port, read.webhook.port) == (1, 2, 3)
    assert read.webhook.server_name == "tokenservice.system.svc"
    assert read.lease.namespace == "system"
    core = read.core
    assert core.images.defaults == {("vLLM", "NVIDIA"): "vllm:1", ("SGLang", "NVIDIA"): "sglang:1"}
    assert core.images.allowed == ("example.org/",)
    assert core.pod_patch == {"spec": {"runtimeClassName": "nvidia"}}
    assert core.pod_monitors
    assert core.monitor_labels == {"release": "stack"}
    assert core.status_interval_seconds == 30


def test_nothing_given_is_all_defaults() -> None:
    read = settings.load(None, {"POD_NAMESPACE": "mine"})
    assert read.plan_interval_seconds == 5
    assert read.core.status_interval_seconds == 60
    assert read.lease.namespace == "mine"
    assert read.catalogue


def test_a_url_outside_the_cluster_names_the_certificate() -> None:
    read = Settings.model_validate({"webhook": {"url": "https://127.0.0.1:9443/pods", "host": "a.b.svc"}})
    assert read.webhook.server_name == "127.0.0.1"


MISTAKES = {
    "a misspelt key": ("planInterval: 5", "planInterval"),
    "a wrong type": ("planIntervalSeconds: often", "planIntervalSeconds"),
    "out of bounds": ("health: {port: 70000}", "health.port"),
    "no mapping": ("- 1", "mapping"),
    "no YAML": ("a: [", "cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, name: str) -> None:
    text, told = MISTAKES[name]
    with pytest.raises(ConfigurationError, match=told):
        settings.load(write(tmp_path, text), {})


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no-such\.yaml"):
        settings.load("no-such.yaml", {})


def test_no_two_processes_have_one_identity() -> None:
    assert settings.identity({"POD_NAME": "operator-1"}).startswith("operator-1_")
    assert settings.identity({}) != settings.identity({})
