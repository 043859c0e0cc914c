"""What one bed is asked: how fast services become Deployments, and what the operator costs when nothing happens.

Figures come from outside the operator: object counts from the API server, requests and writes from its audit log,
queries from Prometheus's own counters, memory from the kernel.
"""

from __future__ import annotations

import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from e2e.testbed.bed import Bed
from e2e.testbed.nodes import H100
from e2e.tests.support.api import Json, path, session
from e2e.tests.support.bed import OPERATOR, leads, writes

Say = Callable[[str], None]

PLAN_INTERVAL_SECONDS = 5
NAMESPACES = 25
STATUS_INTERVAL_SECONDS = 60.0
"""The operator's default: figures in a status wait so long, and up to half as long again, until they are written."""

_PATIENCE_SECONDS = 1800.0
_PAUSE_SECONDS = 0.25
_SAID_SECONDS = 5.0


class BenchError(RuntimeError):
    """Something that the benchmark waits for did not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a fleet is asked for. Nodes have eight accelerators, a replica takes one."""

    services: int
    replicas: int
    nodes: int

    @property
    def pods(self) -> int:
        return self.services * self.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A time in which nothing changed. Memory is the most that the process ever held."""

    seconds: float
    requests_per_minute: float
    writes: tuple[str, ...]
    queries_per_round: float
    rss_bytes: int


# --- The fleet -----------------------------------------------------------------------------------------------------


def namespace(number: int) -> str:
    return f"team-{number % NAMESPACES:02}"


def service(number: int, replicas: int) -> Json:
    """A TokenService of a model that takes one accelerator."""
    return {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": {"name": f"service-{number:05}", "namespace": namespace(number)},
        "spec": {
            "model": {"uri": "hf://testbed/steady-7b"},
            "engine": {"name": "vLLM"},
            "placement": {"accelerators": ["h100"]},
            "scaling": {"minReplicas": replicas},
        },
    }


def fleet(scrape_seconds: int) -> Json:
    """Windows as `docs/operations.md` asks for them: four scrapes."""
    seconds = 4 * scrape_seconds
    return {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenFleet",
        "metadata": {"name": "default"},
        "spec": {"prometheus": {"windowSeconds": seconds, "stalenessSeconds": seconds}},
    }


def furnish(bed: Bed, size: Size) -> None:
    """Nodes and namespaces, before the clock starts."""
    names = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(n)}} for n in range(NAMESPACES)]
    bed.cluster.apply(*names)
    for some in _batches((H100.node(f"h100-{number:05}") for number in range(size.nodes)), 200):
        bed.cluster.apply(*some)


def _batches(items: Iterable[Json], count: int) -> Iterator[list[Json]]:
    left = iter(items)
    while some := list(itertools.islice(left, count)):
        yield some


# --- Services to Deployments -----------------------------------------------------------------------------------------


def seconds_to_deployments(bed: Bed, size: Size, clients: int, say: Say) -> float:
    """From the first create to the last Deployment, with so many clients that create one service after the other."""
    with ThreadPoolExecutor(clients) as pool, session(bed.cluster) as looks:
        others, began = count(bed, "deployments", looks), time.monotonic()
        created = [
            pool.submit(_create_all, bed, size, range(first, size.services, clients)) for first in range(clients)
        ]
        wait(lambda: count(bed, "deployments", looks) - others, size.services, "Deployments", say)
        for one in created:
            one.result()
    return time.monotonic() - began


def _create_all(bed: Bed, size: Size, numbers: Iterable[int]) -> None:
    with session(bed.cluster) as client:
        for number in numbers:
            url = bed.cluster.server + path("tokenservices", namespace(number))
            client.post(url, json=service(number, size.replicas), timeout=60).raise_for_status()


def count(bed: Bed, kind: str, client: requests.Session) -> int:
    """Objects of a kind in the whole cluster, without reading them: the server says how many it left out."""
    answer = client.get(bed.cluster.server + path(kind, ""), params={"limit": "1"}, timeout=60)
    answer.raise_for_status()
    page = answer.json()
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


def wait(look: Callable[[], int], wanted: int, what: str, say: Say) -> None:
    """Until so many are there, saying how far it is. Raises BenchError when they do not come."""
    began = said = time.monotonic()
    while (there := look()) < wanted:
        now = time.monotonic()
        if now - began > _PATIENCE_SECONDS:
            raise BenchError(f"{there} of {wanted} {what} after {now - began:.0f} s")
        if now - said >= _SAID_SECONDS:
            said = now
            say(f"{there} of {wanted} {what} after {now - began:.0f} s")
        time.sleep(_PAUSE_SECONDS)


# --- Rest ------------------------------------------------------------------------------------------------------------


def settle(bed: Bed, size: Size, status_interval_seconds: float, say: Say) -> None:
    """Returns when every replica is Ready and nobody has written for longer than figures may wait: that is rest."""
    quiet = 1.5 * status_interval_seconds + 5
    wait(lambda: _ready(bed), size.pods, "replicas ready", say)
    log, began, quiet_since = AuditLog(bed), time.monotonic(), time.monotonic()
    while time.monotonic() - quiet_since < quiet:
        time.sleep(2.0)
        written = other_writes(log.news())
        if written:
            quiet_since = time.monotonic()
        if time.monotonic() - began > _PATIENCE_SECONDS:
            raise BenchError(f"never quiet for {quiet:.0f} s; at last: {written[-3:]}")
    say(f"settled {quiet_since - began:.0f} s after the last replica was ready")


def idle(bed: Bed, seconds: float, say: Say) -> Idle:
    """What the operator does while nothing changes."""
    log, asked, began = AuditLog(bed), queries(bed), time.monotonic()
    entries: list[Json] = []
    while (waited := time.monotonic() - began) < seconds:
        time.sleep(min(30.0, seconds - waited))
        entries += log.news()
        say(f"idle for {time.monotonic() - began:.0f} of {seconds:.0f} s, {len(entries)} requests")
    took = time.monotonic() - began
    return Idle(
        seconds=took,
        requests_per_minute=len(entries) / took * 60,
        writes=tuple(other_writes(entries)),
        queries_per_round=(queries(bed) - asked) / (took / PLAN_INTERVAL_SECONDS),
        rss_bytes=memory_bytes(bed, "VmHWM"),
    )


def other_writes(entries: list[Json]) -> list[str]:
    """Writes to anything but the Lease."""
    return [line for line in writes(entries) if " leases " not in line]


class AuditLog:
    """What the operator asked of the API server, from now on; read once, however long the log is."""

    def __init__(self, bed: Bed) -> None:
        self._path: Path = bed.cluster.folder / "audit.log"
        self._at = self._path.stat().st_size

    def news(self) -> list[Json]:
        """Requests that ended since the last question."""
        with self._path.open("rb") as log:
            log.seek(self._at)
            lines = log.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._at += len(whole)
        found = (json.loads(line) for line in whole.splitlines() if OPERATOR.encode() in line)
        return [one for one in found if one["user"]["username"] == OPERATOR and one["stage"] == "ResponseComplete"]


def queries(bed: Bed) -> float:
    """Queries that Prometheus has answered so far."""
    handler = 'handler="/api/v1/query"'
    return sum(value for series, value in exposed(f"{bed.prometheus.address}/metrics") if _asked(series, handler))


def _asked(series: str, handler: str) -> bool:
    return series.startswith("prometheus_http_requests_total{") and handler in series


def exposed(url: str) -> list[tuple[str, float]]:
    """Series and value of a `/metrics` page."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return [(series, float(value)) for series, _, value in pairs]


def memory_bytes(bed: Bed, line: str) -> int:
    """Of the operator's process by the kernel: VmHWM is the most that it ever held, VmRSS what it holds now."""
    status = Path(f"/proc/{bed.processes.pids['operator']}/status").read_text()
    (found,) = (text for text in status.splitlines() if text.startswith(f"{line}:"))
    return int(found.split()[1]) * 1024


# --- Restart ---------------------------------------------------------------------------------------------------------


def seconds_to_plan(bed: Bed, size: Size, say: Say) -> float:
    """From the start of a new process, the old one having left, to its first plan, which must be the one in force.

    Raises BenchError when the new process changes anything that runs: its plan was another.
    """
    bed.operator.stop()
    log = AuditLog(bed)
    bed.operator.start()
    began = time.monotonic()
    url = f"http://127.0.0.1:{bed.operator.metrics_port}/metrics"
    while not (leads(bed) and planned(url) == [float(size.replicas)] * size.services):
        if time.monotonic() - began > _PATIENCE_SECONDS:
            raise BenchError("no plan after the restart")
        time.sleep(0.1)
    took = time.monotonic() - began
    changes = [line for line in other_writes(log.news()) if not line.startswith(_OWN)]
    if changes:
        raise BenchError(f"the first plan after a restart changed {len(changes)} things: {changes[:3]}")
    say(f"{took:.1f} s from start to plan")
    return took


_OWN = (
    "patch acceleratorclasses",
    "patch capacityprofiles",
    "patch mutatingwebhookconfigurations",
    "patch tokenfleets",
    "patch tokenservices",
)
"""What a process writes when it begins to lead: its catalogue, where its webhook is, and statuses."""


def planned(url: str) -> list[float]:
    """Replicas that the last plan wants, of every service; none while nobody answers."""
    try:
        page = exposed(url)
    except (OSError, ValueError):
        return []
    return [value for series, value in page if series.startswith("tokenservice_service_desired_replicas{")]


def _ready(bed: Bed) -> int:
    url = f"http://127.0.0.1:{bed.operator.metrics_port}/metrics"
    try:
        page: list[tuple[str, float]] = exposed(url)
    except (OSError, ValueError):
        return 0
    return int(sum(value for series, value in page if series.startswith("tokenservice_service_ready_replicas{")))


def as_json(found: Idle) -> dict[str, Any]:
    """The idle figures by the names of `bench.json`."""
    return {
        "rss_bytes": found.rss_bytes,
        "idle_seconds": round(found.seconds),
        "idle_api_requests_per_minute": round(found.requests_per_minute, 1),
        "idle_writes_other_than_lease": len(found.writes),
        "idle_writes": sorted(set(found.writes))[:20],
        "prometheus_queries_per_round": round(found.queries_per_round, 2),
    }
