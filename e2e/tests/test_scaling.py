"""Replicas follow traffic that a real Prometheus has counted, and nobody loses a request over it."""

from __future__ import annotations

import pytest

from e2e.tests.support.site import DELETION_COST, Site

pytestmark = pytest.mark.cluster


def replicas(site: Site) -> int:
    """What the Deployments ask for."""
    return sum(int(found["spec"]["replicas"]) for found in site.deployments())


def test_replicas_follow_traffic_up_and_down_without_a_lost_request(site: Site) -> None:
    site.node()
    site.serving(scaling={"minReplicas": 1, "maxReplicas": 4})
    with site.traffic(rate=1.0) as traffic:
        traffic.goes_on()
        assert replicas(site) == 1
        traffic.rate = 6.0  # a replica takes 3.2, of which 0.7 are to be used
        site.eventually(lambda: replicas(site) >= 3, "more replicas are asked for")
        site.eventually(lambda: len(site.endpoints()) >= 3, "and serve")
        assert any("-> 3 replicas" in note or "-> 2 replicas" in note for note in site.told("ScaledUp"))
        traffic.rate = 1.0
        site.eventually(lambda: replicas(site) == 1, "fewer are asked for")
        site.eventually(lambda: len(site.pods(deleting=True)) == 1, "the others have finished and are gone", 120)
        assert any("goes" in note for note in site.told("ScaledDown"))
        traffic.goes_on()
    assert traffic.lost == {}
    marked = [pod for pod in site.pods() if pod["metadata"].get("annotations", {}).get(DELETION_COST, "0") != "0"]
    assert not marked, "the one that stays is not marked as a victim"
