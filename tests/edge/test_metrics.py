"""The operator's own metrics: counted here, or taken over from the last plan."""

from __future__ import annotations

import urllib.request

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tokenservice.core.model import Plan
from tokenservice.edge.metrics import Metrics

Sample = tuple[str, tuple[tuple[str, str], ...]]


def samples(metrics: Metrics) -> dict[Sample, float]:
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_figures_of_the_last_plan_are_exported_and_those_before_are_not() -> None:
    metrics = Metrics()
    first = {"service_ready_replicas": {(("namespace", "team"), ("service", "chat")): 2}}
    metrics.show(Plan(metrics=first | {"fleet_accelerators": {(): 16}}))
    found = samples(metrics)
    assert found["tokenservice_service_ready_replicas", (("namespace", "team"), ("service", "chat"))] == 2
    assert found["tokenservice_fleet_accelerators", ()] == 16
    metrics.show(Plan(metrics={"fleet_accelerators": {(): 8}, "service_ready_replicas": {}}))
    found = samples(metrics)
    assert found["tokenservice_fleet_accelerators", ()] == 8
    assert not [name for name, _ in found if name == "tokenservice_service_ready_replicas"]


def test_a_figure_may_bring_its_prefix() -> None:
    metrics = Metrics()
    metrics.show(Plan(metrics={"tokenservice_fleet_accelerators": {(): 1}}))
    assert samples(metrics)["tokenservice_fleet_accelerators", ()] == 1


def test_what_this_process_does_is_counted() -> None:
    metrics = Metrics()
    metrics.observe_request("GET", 200)
    metrics.observe_request("GET", 200)
    metrics.count_action("ScaledUp", "Done")
    metrics.count_error("ValueError")
    metrics.count_review("gated")
    metrics.time("decide", 0.2)
    found = samples(metrics)
    assert found["tokenservice_api_requests_total", (("code", "200"), ("method", "GET"))] == 2
    assert found["tokenservice_actions_total", (("reason", "ScaledUp"), ("result", "Done"))] == 1
    assert found["tokenservice_pass_errors_total", (("error", "ValueError"),)] == 1
    assert found["tokenservice_webhook_reviews_total", (("result", "gated"),)] == 1
    assert found["tokenservice_plan_seconds_count", (("stage", "decide"),)] == 1


def test_states_are_read_at_each_scrape() -> None:
    metrics, state = Metrics(), {"held": 0.0}
    metrics.watch("lease_held", "Whether this process leads.", lambda: state["held"])
    metrics.watch_all("store_age_seconds", "Age.", "kind", lambda: {"Pod": state["held"] + 3})
    state["held"] = 1.0
    found = samples(metrics)
    assert found["tokenservice_lease_held", ()] == 1
    assert found["tokenservice_store_age_seconds", (("kind", "Pod"),)] == 4


def test_every_metric_carries_our_prefix_and_a_description() -> None:
    metrics = Metrics()
    metrics.show(Plan(metrics={"fleet_accelerators": {(): 1}}))
    text = generate_latest(metrics.registry).decode()
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("tokenservice_")
        assert family.documentation


def test_metrics_are_served_until_stopped() -> None:
    from e2e.testbed.processes import free_port

    port = free_port()
    stop = Metrics().serve(port, "127.0.0.1")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert b"tokenservice_build_info" in response.read()
    stop()
