"""Prometheus is absent, late, wrong or says nonsense: what is missing is never zero, and nothing is removed on it.

One service under steady traffic that takes three replicas, one at least. Each case holds its fault for several times as
long as a service that is really idle takes to come down, which is measured first on this very service: so a fault that
was taken for zero would be seen.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from e2e.faults.faults import (
    Restarting,
    answering,
    crowded,
    every,
    lost,
    moved,
    nothing,
    reset,
    results,
    scraping,
    slow,
    text,
    twice,
    valued,
)
from e2e.faults.instance import Instance, Log, logged
from e2e.faults.oracle import births
from e2e.faults.proxy import Fault
from e2e.faults.rig import Rig
from e2e.faults.scenario import Play
from e2e.tests.conftest import make_site
from e2e.tests.support.api import eventually, throughout
from e2e.tests.support.bed import FLEET
from e2e.tests.support.traffic import Traffic
from tokenservice.core.model import Reason

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

REPLICAS = 3
RATE = 5.0
"""Requests a second: at 2.24 a replica, three."""

RATE_SECONDS = FLEET["spec"]["prometheus"]["windowSeconds"]
WINDOW_SECONDS = 4
HOLD_SECONDS = 10.0
"""Of each fault; an idle service comes down in half of this, and must with three seconds to spare."""


@dataclass
class Scene:
    """The service under traffic, and the operator that looks after it."""

    rig: Rig
    play: Play
    life: Instance
    log: Log
    traffic: Traffic

    def asked(self) -> int:
        (found,) = self.play.site.deployments("auto")
        return int(found["spec"]["replicas"])

    def lowered(self, since: float) -> list[str]:
        """Scale-ins decided since a moment."""
        recent = [plan for at, _, plan in self.life.plans if at > since]
        return [action.message for plan in recent for action in plan.actions if action.reason is Reason.SCALED_DOWN]

    def metrics(self) -> tuple[str, str]:
        found = self.play.site.condition("MetricsAvailable", "auto")
        return found.get("status", ""), found.get("message", "")

    def settled(self) -> None:
        """Three replicas that serve, with metrics."""
        site = self.play.site
        site.eventually(lambda: self.metrics()[0] == "True", "metrics are there", 60)
        site.eventually(lambda: self.asked() == REPLICAS, f"{REPLICAS} replicas are asked for", 60)
        site.wait_ready_pods(REPLICAS, "auto")


@pytest.fixture(scope="module")
def scene(whole_rig: Rig) -> Iterator[Scene]:
    """Made once: each case leaves it as it found it, or says that it could not."""
    whole_rig.mend()
    consolidation = {**FLEET["spec"]["consolidation"], "scaleDownWindowSeconds": WINDOW_SECONDS}
    whole_rig.bed.cluster.apply({**FLEET, "spec": {**FLEET["spec"], "consolidation": consolidation}})
    sites = make_site(whole_rig.bed, whole_rig.api, "prometheus-faults")
    site = next(sites)
    site.node()
    with births(whole_rig.api, whole_rig.bed.cluster, site.namespace) as counted, logged() as log:
        play = Play(whole_rig, site, counted)
        sooner = {"statusIntervalSeconds": 1}  # else what a status says of a fault comes within a minute
        settings = {"watchNamespaces": [site.namespace], "prometheus": whole_rig.prometheus(), **sooner}
        life = whole_rig.start(whole_rig.door(), **settings)
        play.ask("auto", REPLICAS, scaling={"minReplicas": 1, "maxReplicas": REPLICAS})
        site.wait_true("Ready", "auto")
        with site.traffic("auto", rate=RATE) as traffic:
            made = Scene(whole_rig, play, life, log, traffic)
            made.settled()
            yield made
        whole_rig.mend()
        whole_rig.end()
    whole_rig.bed.cluster.apply(FLEET)
    next(sites, None)


@pytest.fixture
def calm(scene: Scene) -> Iterator[Scene]:
    """The scene with nothing wrong, before and after."""
    scene.rig.mend()
    scene.settled()
    began = len(scene.log.records)
    yield scene
    scene.rig.mend()
    scene.settled()
    assert Log(scene.log.records[began:]).errors() == []


def zero_demand(scene: Scene) -> None:
    """What a truthful zero looks like."""
    scene.rig.to_metrics.fault = results(lambda found: None if "le" in found["metric"] else valued("0")(found), "rate(")


@pytest.mark.slice
def test_control_an_idle_service_comes_down_sooner_than_a_fault_ends(calm: Scene) -> None:
    """The rest of this module proves nothing unless this holds."""
    time.sleep(RATE_SECONDS + 2)  # so long nothing is taken from replicas that have just come
    began = time.monotonic()
    calm.play.site.eventually(lambda: calm.asked() == REPLICAS, "three", 1)
    zero_demand(calm)
    eventually(lambda: calm.asked() == 1, "the count follows what is asked", HOLD_SECONDS - 3, 0.1)
    assert calm.lowered(began)


def held(scene: Scene, *, noticed: bool, seconds: float = HOLD_SECONDS) -> None:
    """The count holds for as long as the fault lasts, and the user is told of it."""
    began = time.monotonic()
    throughout(lambda: scene.asked() == REPLICAS, f"{REPLICAS} replicas stay", seconds, 0.25)
    assert scene.lowered(began) == []
    assert scene.life.is_alive, f"the operator ended: {scene.life.error!r}"
    if noticed:
        status, message = scene.metrics()
        assert status == "False", f"nobody is told: {message}"
        assert "held" in message


NAN, INF = valued("NaN"), valued("+Inf")
PEAK, AGE, RUNNING = "max_over_time", "timestamp(", "num_requests_running|"

NOTICED: dict[str, Fault] = {
    "connection refused or reset": reset,
    "the answer breaks off": lost,
    "no answer for 30 s": slow(30),
    "401": answering(401),
    "403": answering(403),
    "404": answering(404),
    "422 too many samples": answering(422),
    "500": answering(500),
    "503": answering(503),
    "a page in HTML with 200": text(200, "<html>Sign in</html>"),
    "other JSON with 200": text(200, '{"status": "ok"}', "application/json"),
    "an answer without a result": text(200, '{"status":"success","data":{"resultType":"vector"}}', "application/json"),
    "no series": results(nothing),
    "every value NaN": results(NAN),
    "every value infinite": results(INF),
    "every value negative": results(valued("-1")),
    "only the rate is NaN": results(NAN, "time_to_first_token_seconds_count"),
    "samples a minute old": moved(60),
    "the age of samples is NaN": results(NAN, AGE),
    "every series twice, the second zero": twice("", "0"),
}

UNNOTICED: dict[str, Fault] = {
    "only the peak is NaN": results(NAN, PEAK),
    "only the peak is infinite": results(INF, PEAK),
    "only the peak is negative": results(valued("-5"), PEAK),
    "only the peak has no series": results(nothing, PEAK),
    "20,000 series of others": crowded(20_000),
    "times of samples a minute ahead": results(lambda f: {**f, "value": [f["value"][0] + 60, f["value"][1]]}),
    "times of samples a minute behind": results(lambda f: {**f, "value": [f["value"][0] - 60, f["value"][1]]}),
    "lengths of requests are NaN": results(NAN, "_sum"),
    "histograms without bounds": results(lambda f: {**f, "metric": {**f["metric"], "le": "?"}}, "_bucket"),
}
"""What decisions do without, or what is right whatever it looks like."""


@pytest.mark.parametrize("case", NOTICED)
def test_held_and_said(calm: Scene, case: str) -> None:
    calm.rig.to_metrics.fault = NOTICED[case]
    held(calm, noticed=True)


@pytest.mark.parametrize("case", UNNOTICED)
def test_held(calm: Scene, case: str) -> None:
    calm.rig.to_metrics.fault = UNNOTICED[case]
    held(calm, noticed=False)


@pytest.mark.slice
def test_absent(calm: Scene) -> None:
    calm.rig.bed.prometheus.pause()
    held(calm, noticed=True)


def test_restarted_empty(calm: Scene) -> None:
    """It comes back knowing nothing: the first rates are of a second or two."""
    calm.rig.bed.prometheus.pause()
    shutil.rmtree(calm.rig.bed.prometheus.folder / "data")
    calm.rig.bed.prometheus.start()
    held(calm, noticed=False)


def test_it_flaps(calm: Scene) -> None:
    """Every second query fails."""
    calm.rig.to_metrics.fault = every(2, lambda call: True, reset)
    held(calm, noticed=False)


def _scraped(scene: Scene, change: Callable[[str, str], str]) -> None:
    door = scene.rig.to_engines
    door.fault = scraping(scene.rig.bed.farm_port, door.port, change)


def test_counters_begin_anew_at_every_scrape(calm: Scene) -> None:
    _scraped(calm, Restarting())
    held(calm, noticed=True)


def test_one_engine_of_three_is_scraped(calm: Scene) -> None:
    seen = sorted(pod["metadata"]["name"] for pod in calm.play.site.pods("auto"))[0]
    _scraped(calm, lambda path, page: page if f"/{seen}/" in path else "")
    held(calm, noticed=False)


def test_engines_report_gauges_and_no_counters(calm: Scene) -> None:
    def gauges(path: str, page: str) -> str:
        return "\n".join(line for line in page.splitlines() if "_total" not in line and "_count" not in line) + "\n"

    _scraped(calm, gauges)
    held(calm, noticed=True, seconds=3 * HOLD_SECONDS)  # until nothing that was counted before is left in any window


@pytest.mark.parametrize("query", ["vector(70)", "vector(NaN)", "nothing_of_that_name", "up or vector(0.5)", "}{"])
def test_the_users_own_utilization_is_no_share(calm: Scene, query: str) -> None:
    """0-100 instead of 0-1, and other mistakes: its figure is left out and says why; replicas do not follow it."""
    calm.rig.api.patch("tokenfleets", "default", {"spec": {"prometheus": {"utilizationQuery": query}}})
    try:
        held(calm, noticed=False)
        fleet = calm.rig.api.get("tokenfleets", "default") or {}
        said = str(fleet["status"]["conditions"])
        assert "utilizationQuery" in said, said
        assert "utilization" not in fleet["status"]
    finally:
        calm.rig.api.patch("tokenfleets", "default", {"spec": {"prometheus": {"utilizationQuery": None}}})
