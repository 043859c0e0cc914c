"""Which pods Prometheus scrapes.

Debian builds Prometheus without the discovery of Kubernetes, so a thread does that part: it looks at the pods once a
second and writes targets with the labels that the jobs of docs/operations.md give them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubernetes import client, config
from urllib3.exceptions import HTTPError

Json = dict[str, Any]
PERIOD_SECONDS = 1.0
ENGINES, OPERATOR = "engines", "operator"
_SERVICE_LABEL = "taas.dev/service"


class Discovery:
    """Files of targets, kept up to date from `start` to `stop`."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._folder = folder
        self._pods = client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="discovery", daemon=True)

    def scrape_jobs(self) -> list[Json]:
        """For Prometheus; the operator's metrics carry labels of their own that it must keep."""
        return [_job(ENGINES, self.file(ENGINES)), _job(OPERATOR, self.file(OPERATOR), honor_labels=True)]

    def file(self, job: str) -> Path:
        return self._folder / f"{job}.json"

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stopping.wait(PERIOD_SECONDS):
            try:
                pods = self._pods.list_pod_for_all_namespaces(_request_timeout=5).items
            except (client.ApiException, HTTPError, OSError):
                continue  # the files stay as they were, as with Prometheus' own discovery
            self._write(ENGINES, targets(pods, "http", "adapters", label=_SERVICE_LABEL))
            self._write(OPERATOR, targets(pods, "metrics"))

    def _write(self, job: str, found: Iterator[Json]) -> None:
        half = self.file(job).with_suffix(".half")
        half.write_text(json.dumps(list(found)))
        half.replace(self.file(job))


def targets(pods: list[client.V1Pod], *ports: str, label: str | None = None) -> Iterator[Json]:
    """The pods that have an address, a port of one of these names (a sidecar's too) and, if asked for, the label."""
    for pod in pods:
        if not pod.status.pod_ip or (label is not None and label not in (pod.metadata.labels or {})):
            continue
        containers = [*pod.spec.containers, *(pod.spec.init_containers or ())]
        numbers = [it.container_port for c in containers for it in c.ports or () if it.name in ports]
        labels = {"namespace": pod.metadata.namespace, "pod": pod.metadata.name}
        for number in numbers:
            yield {"targets": [f"{pod.status.pod_ip}:{number}"], "labels": labels}


def _job(name: str, file: Path, **more: Any) -> Json:
    return {"job_name": f"taas-{name}", "file_sd_configs": [{"files": [str(file)], "refresh_interval": "1s"}], **more}
