"""What the chart gives to Prometheus and its operator, judged by them: rules, their behaviour, and the schemas."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.testbed.cluster import Cluster
from e2e.testbed.operator import CHART
from e2e.testbed.tools import source, tool
from tests.core.rendering import SETTINGS
from tests.support.build import make_service
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.manifests import children
from tokenservice.core.windows import Windows
from tokenservice.edge import promql

Json = dict[str, Any]

POD = 'namespace="taas",pod="tokenservice-7d9f-x2v4z"'
OTHER_POD = 'namespace="taas",pod="tokenservice-7d9f-b8k2q"'
CHAT = 'namespace="team",service="chat"'


def rendered(namespace: str = "taas") -> list[Json]:
    """What the chart makes where the Prometheus operator's API exists."""
    command = [tool("helm"), "template", "tokenservice", CHART, f"--namespace={namespace}", "--kube-version=1.33.0"]
    command += ["--api-versions=monitoring.coreos.com/v1", "--show-only=templates/monitoring.yaml"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(filter(None, yaml.safe_load_all(text)))


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The alerts as a file of Prometheus' own."""
    (found,) = (item for item in rendered() if item["kind"] == "PrometheusRule")
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(found["spec"]))
    return path


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_alerts_are_rules_that_prometheus_takes(rules: Path) -> None:
    assert "4 rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", rules)


# --- when an alert fires -------------------------------------------------------------------------------------------

UP, DOWN = f"up{{{POD}}}", "TokenServiceOperatorDown"
ERRORS, FAIL = f'tokenservice_pass_errors_total{{{POD},error="TimeoutError"}}', "TokenServicePassesFail"
MISSING, SLOW = "TokenServiceReplicasMissing", "TokenServiceReplicaSlow"
SLOW_ONES = f"tokenservice_service_slow_replicas{{{CHAT},{POD.partition(',')[2]}}}"


def replicas(ready: str, desired: str, pod: str = OTHER_POD) -> dict[str, str]:
    """As a scrape that honours labels has them: the namespace is the service's, the pod the leader's."""
    who = f"{CHAT},{pod.partition(',')[2]}"
    return {
        f"tokenservice_service_ready_replicas{{{who}}}": ready,
        f"tokenservice_service_desired_replicas{{{who}}}": desired,
    }


CASES: dict[str, tuple[dict[str, str], str, str, bool]] = {
    "an operator that is up": ({UP: "1x30"}, DOWN, "30m", False),
    "an operator that is scraped in vain": ({UP: "1x5 0x30"}, DOWN, "16m", True),
    "an operator that went nine minutes ago": ({UP: "1x5 0x30"}, DOWN, "14m", False),
    "no operator at all": ({}, DOWN, "10m", True),
    "one of two is up": ({UP: "0x30", f"up{{{OTHER_POD}}}": "1x30"}, DOWN, "30m", False),
    "another namespace's operator": ({'up{namespace="b",pod="tokenservice-1"}': "1x30"}, DOWN, "30m", True),
    "passes that fail for a while": ({ERRORS: "0+1x40"}, FAIL, "30m", True),
    "passes that failed once": ({ERRORS: "0x5 1x60"}, FAIL, "30m", False),
    "passes that succeed": ({ERRORS: "7x60"}, FAIL, "40m", False),
    "a service that has what it needs": (replicas("2x60", "2x60"), MISSING, "50m", False),
    "a service that lacks a replica": (replicas("1x60", "2x60"), MISSING, "31m", True),
    "a service that waits a little": (replicas("1x60", "2x60"), MISSING, "29m", False),
    "a replica that stays slow": ({SLOW_ONES: "0x5 1x30"}, SLOW, "21m", True),
    "a slow replica that was replaced": ({SLOW_ONES: "0x5 1x10 0x30"}, SLOW, "21m", False),
    "a service that was helped": (replicas("1x20 2x40", "2x60"), MISSING, "50m", False),
    "a service whose leader changed": (
        replicas("1x15", "2x15", POD) | replicas("_x15 1x45", "_x15 2x45"),
        MISSING,
        "32m",
        True,
    ),
}


ALERTS: dict[str, str] = {DOWN: "", FAIL: f'{POD},error="TimeoutError"', MISSING: CHAT, SLOW: CHAT}
"""Labels of each alert in the cases above."""


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_and_only_then(rules: Path, tmp_path: Path, name: str) -> None:
    series, alert, at, fires = CASES[name]
    expected = [_firing(rules, alert)] if fires else []
    asked = [{"eval_time": at, "alertname": alert, "exp_alerts": expected}]
    promtool("test", "rules", _written(tmp_path, [rules], series, alert_rule_test=asked))


def _firing(rules: Path, alert: str) -> Json:
    """The alert with its texts filled in."""
    (group,) = yaml.safe_load(rules.read_text())["groups"]
    (texts,) = (rule["annotations"] for rule in group["rules"] if rule["alert"] == alert)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', ALERTS[alert]))
    told = {key: re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text) for key, text in texts.items()}
    return {"exp_labels": {"severity": "warning"} | labels, "exp_annotations": told}


def _written(folder: Path, rules: list[Path], series: dict[str, str], *, step: str = "1m", **asked: Any) -> Path:
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    path = folder / "test.yaml"
    tests = [{"interval": step, "input_series": inputs, **asked}]
    path.write_text(yaml.safe_dump({"rule_files": list(map(str, rules)), "evaluation_interval": step, "tests": tests}))
    return path


# --- means of the utilization --------------------------------------------------------------------------------------

OWN = promql.OWN_UTILIZATION
DAY = 24 * 60
MEANS: dict[str, tuple[dict[str, str], str | None, dict[str, float]]] = {
    "a steady day": ({OWN: f"0.5x{DAY}"}, None, {"1h": 0.5, "24h": 0.5}),
    "an idle day, which is known": ({OWN: f"0x{DAY}"}, None, {"1h": 0.0, "24h": 0.0}),
    "a busy last hour": ({OWN: f"0.25x{DAY - 61} 0.75x60"}, None, {"1h": 0.75, "24h": 0.27}),
    "installed forty minutes ago": ({OWN: f"_x{DAY - 40} 0.5x40"}, None, {"1h": 0.5}),
    "installed twenty minutes ago": ({OWN: f"_x{DAY - 20} 0.5x20"}, None, {}),
    "not scraped": ({}, None, {}),
    "another leader for half an hour": (
        {f'{OWN}{{pod="a"}}': f"0.25x{DAY - 30} stale", f'{OWN}{{pod="b"}}': f"_x{DAY - 29} 0.75x29"},
        None,
        {"1h": 0.5, "24h": 0.26},
    ),
    "a query of the user's": ({"busy": f"0.5x{DAY}"}, "avg(busy) / 2", {"1h": 0.25, "24h": 0.25}),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_are_taken_over_what_is_known(tmp_path: Path, name: str) -> None:
    series, query, want = MEANS[name]
    samples = [{"labels": f'{{window="{window}"}}', "value": value} for window, value in want.items()]
    asked = [{"expr": f"round({promql.means(query)}, 0.01)", "eval_time": f"{DAY}m", "exp_samples": samples}]
    promtool("test", "rules", _written(tmp_path, [], series, promql_expr_test=asked))


# --- arrivals when an engine starts --------------------------------------------------------------------------------

SCRAPE_SECONDS, RATE, STARTED = 5, 8.0, 100
BIRTHS = {
    "just before a scrape": STARTED + SCRAPE_SECONDS - 0.1,
    "between two": STARTED + SCRAPE_SECONDS / 2,
    "just after one": STARTED + 0.1,
}


@pytest.mark.parametrize("name", BIRTHS)
def test_requests_that_a_new_engine_took_before_its_first_scrape_are_counted(tmp_path: Path, name: str) -> None:
    """From its second scrape on: `rate` goes back from the first sample to where the counter was zero."""
    born, times = BIRTHS[name], range(0, 2 * STARTED, SCRAPE_SECONDS)
    old = [RATE * min(at, born) + RATE / 2 * max(0.0, at - born) for at in times]
    new = [RATE / 2 * (at - born) if at >= born else None for at in times]
    series = _engine("old", old) | _engine("new", new)
    query = promql.figures(Windows(rate=30, peak=300, staleness=30))["requests_per_second"]
    first = STARTED + SCRAPE_SECONDS
    asked = [
        _asked(f"round({query}, 0.01)", at, RATE) for at in times if STARTED - 50 <= at < 2 * STARTED and at != first
    ]
    asked.append(_asked(f"{query} > bool {0.9 * RATE}", first, 1.0))  # until then one sample of it is no rate
    promtool("test", "rules", _written(tmp_path, [], series, step="5s", promql_expr_test=asked))


def _engine(pod: str, served: Sequence[float | None]) -> dict[str, str]:
    """An engine that has given so many first tokens at each scrape and keeps nobody waiting; None: not there yet."""
    labels = f'{{namespace="team",model_name="chat",pod="{pod}",instance="{pod}"}}'
    idle = " ".join("_" if count is None else "0" for count in served)
    counts = " ".join("_" if count is None else str(count) for count in served)
    return {
        f"vllm:{promql.TTFT.vllm}_count{labels}": counts,
        f"vllm:{promql.WAITING.vllm}{labels}": idle,
        f"vllm:{promql.RUNNING.vllm}{labels}": idle,
    }


def _asked(query: str, at: int, value: float) -> Json:
    labels = '{model_name="chat", namespace="team"}'
    return {"expr": query, "eval_time": f"{at}s", "exp_samples": [{"labels": labels, "value": value}]}


# --- the Prometheus operator's schemas -----------------------------------------------------------------------------


@pytest.fixture
def monitoring(cluster: Cluster) -> Iterator[None]:
    """The kinds of the Prometheus operator, for one test."""
    folder = source("prometheus-operator") / "example/prometheus-operator-crd"
    files = [f"--filename={folder}/monitoring.coreos.com_{kind}.yaml" for kind in ("podmonitors", "prometheusrules")]
    cluster.kubectl("apply", "--server-side", *files)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *files)
    yield
    cluster.kubectl("delete", *files)


@pytest.mark.cluster
@pytest.mark.usefixtures("monitoring")
def test_the_prometheus_operators_schemas_take_all_of_it(cluster: Cluster, namespace: str) -> None:
    service = make_service(namespace=namespace)
    made = children(service, [], replace(SETTINGS, pod_monitors=True), needed=0, fleet=TokenFleetSpec())
    objects = [*rendered(namespace), *(item for item in made if item["kind"] == "PodMonitor")]
    taken = cluster.kubectl(
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--output=name",
        "--filename=-",
        stdin="\n---\n".join(map(json.dumps, objects)),
    )
    kinds = sorted(name.partition(".")[0] for name in taken.split())
    assert kinds == ["podmonitor", "podmonitor", "prometheusrule"]
