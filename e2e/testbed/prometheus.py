"""A real Prometheus on loopback that finds the engines by HTTP service discovery."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.testbed.processes import Processes, free_port
from e2e.testbed.tools import tool


@dataclass
class Prometheus:
    """May be stopped and started again over the same data, on the same port."""

    folder: Path
    port: int
    processes: Processes
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        command = [
            tool("prometheus"),
            f"--config.file={self.folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self.host}:{self.port}",
            "--log.level=warn",
        ]
        self.processes.start("prometheus", command)
        self.processes.wait_until(self._ready, what="Prometheus ready", timeout_seconds=60)

    def pause(self) -> None:
        """Gone, until `start` brings it back."""
        self.processes.stop_one("prometheus")

    def stop(self) -> None:
        self.processes.stop()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/-/ready", timeout=1) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def create(folder: Path, discovery_url: str, *, scrape_seconds: int = 5, targets: tuple[str, ...] = ()) -> Prometheus:
    """Configured and not yet started. `discovery_url` serves HTTP service discovery; `targets` are scraped as well."""
    jobs: list[dict[str, Any]] = [
        {
            "job_name": "engines",
            "honor_labels": True,
            "http_sd_configs": [{"url": discovery_url, "refresh_interval": "1s"}],
        }
    ]
    if targets:
        jobs.append({"job_name": "operator", "static_configs": [{"targets": list(targets)}]})
    return create_with(folder, jobs, scrape_seconds=scrape_seconds)


def create_with(
    folder: Path, jobs: list[dict[str, Any]], *, scrape_seconds: int = 5, host: str = "127.0.0.1"
) -> Prometheus:
    """As `create`, with scrape jobs of one's own; `host` is the address to listen on."""
    folder.mkdir(parents=True, exist_ok=True)
    timing = {"scrape_interval": f"{scrape_seconds}s", "scrape_timeout": f"{scrape_seconds}s"}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump({"global": timing, "scrape_configs": jobs}))
    return Prometheus(folder=folder, port=free_port(), processes=Processes(folder / "logs"), host=host)
