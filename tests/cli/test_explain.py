from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.support.build import NOW, make_service
from tokenservice.app import runtime
from tokenservice.cli import explain as command
from tokenservice.cli.explain import answer, explanation
from tokenservice.cli.main import app
from tokenservice.core.model import Reason, ServiceKey
from tokenservice.core.status import DecisionReport, ServiceReport, service_status
from tokenservice.errors import ApiError, ConfigurationError, Forbidden, NotFound, Retryable

Json = dict[str, Any]
SENTENCE = "12.4 requests/s (3 waiting) fill 2 replicas to 0.93 of their capacity (target 0.70): 3 are needed"
SERVICE: Json = {
    "apiVersion": "taas.dev/v1alpha1",
    "kind": "TokenService",
    "metadata": {"namespace": "team", "name": "chat", "generation": 4},
    "spec": {
        "model": {"uri": "hf://Qwen/Qwen3-32B"},
        "tier": "Guaranteed",
        "mode": "Act",
        "objectives": {
            "timeToFirstToken": {"percentile": "p99", "target": "2s"},
            "timePerOutputToken": {"percentile": "p95", "target": "50ms"},
            "volume": {"guaranteedTokensPerSecond": 500},
            "maxCostPerMillionTokens": 10,
        },
        "scaling": {"targetUtilization": 0.6},
    },
    "status": {
        "observedGeneration": 4,
        "endpoint": "http://chat.team.svc.cluster.local/v1",
        "tokensPerSecond": 2480,
        "utilization": 0.93,
        "objectives": {"timeToFirstTokenSeconds": 0.41, "timePerOutputTokenSeconds": 0.0731},
        "costPerMillionTokens": 1.4,
        "joulesPerToken": 0.61,
        "forecast": "15 requests/s in 60 s, when a start now would serve",
        "loading": {"replicas": 1, "oldestSeconds": 12, "expectedSeconds": 60},
        "variants": [
            {
                "name": "h100-vllm-tp2-bf16",
                "accelerator": "h100",
                "engine": "vLLM",
                "tensorParallelSize": 2,
                "provenance": "Roofline",
                "precision": "bf16",
                "replicas": 3,
                "readyReplicas": 2,
            }
        ],
        "decision": {
            "reason": "ScaledUp",
            "message": SENTENCE,
            "inputs": {"current": "2 replicas", "capacity": "6.67 requests/s per replica, TPOT"},
            "rejected": ["2 replicas: 12.4 requests/s fill 0.93 of their capacity (target 0.70)"],
        },
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Serving",
                "message": "2 of 3 replicas serve",
                "lastTransitionTime": "2026-07-01T12:00:05Z",
            }
        ],
    },
}


def service(**changes: Json) -> Json:
    """The canned service; `changes` are merged into metadata, spec or status."""
    found = copy.deepcopy(SERVICE)
    for part, fields in changes.items():
        found[part] |= fields
    return found


def told(resource: Json, *, as_json: bool = False, width: int = 200) -> str:
    """What is printed of a service that can be read."""
    out = Console(file=io.StringIO(), width=width)
    assert answer("team/chat", lambda key: resource, as_json=as_json, console=out) == 0
    return out.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def refuse(error: Exception) -> Callable[[ServiceKey], Json]:
    """A loader that fails."""

    def load(key: ServiceKey) -> Json:
        raise error

    return load


def test_the_decision_stands_in_one_line_with_its_inputs_and_what_it_rejected() -> None:
    text = told(service(), width=60)
    assert f"ScaledUp: {SENTENCE}" in text.splitlines()
    assert "6.67 requests/s per replica, TPOT" in told(service())
    assert "  2 replicas: 12.4 requests/s fill 0.93 of their capacity (target 0.70)" in text.splitlines()


@pytest.mark.parametrize(
    "row",
    [
        "time to first token, p99 410ms 2s yes",
        "time per output token, p95 73.1ms 50ms no",
        "output tokens per second 2480 500 guaranteed -",
        "$ per million tokens 1.4 10 yes",
        "utilization 0.93 0.6 -",
        "joules per token 0.61 (estimate) - -",
        "h100-vllm-tp2-bf16 2/3 2 estimate, not measured",
        "Ready=True Serving, since 2026-07-01 12:00:05 UTC: 2 of 3 replicas serve",
        "Starting: 1, the oldest for 12 s; a start should take 60 s",
        "Forecast: 15 requests/s in 60 s, when a start now would serve",
        "http://chat.team.svc.cluster.local/v1",
        "team/chat hf://Qwen/Qwen3-32B Guaranteed",
    ],
)
def test_everything_that_was_promised_stands_beside_what_was_measured(row: str) -> None:
    assert row in {" ".join(line.split()) for line in told(service()).splitlines()}


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    bare = service()
    for name in ("objectives", "tokensPerSecond", "costPerMillionTokens", "utilization", "joulesPerToken"):
        del bare["status"][name]
    rows = {" ".join(line.split()) for line in told(bare).splitlines()}
    assert {"time to first token, p99 - 2s -", "$ per million tokens - 10 -", "utilization - 0.6 -"} <= rows
    assert "joules" not in told(bare)


def test_a_status_of_an_older_spec_says_so() -> None:
    assert "The spec was changed since" in told(service(metadata={"generation": 5}))
    assert "The spec was changed since" not in told(service())


def test_a_service_that_is_only_watched_says_so() -> None:
    assert "Guaranteed, mode Recommend, paused" in told(service(spec={"mode": "Recommend", "paused": True}))


def test_a_stalled_service_has_no_decision_and_shows_its_conditions() -> None:
    stalled = service()
    del stalled["status"]["decision"]
    stalled["status"]["conditions"][0] |= {"status": "False", "reason": "UnknownModel", "message": "nothing is known"}
    assert "No decision was made: see the conditions." in told(stalled)
    assert "UnknownModel" in told(stalled)


def test_users_words_are_not_taken_for_markup() -> None:
    odd = service(spec={"model": {"uri": "hf://a/[red]b[/red]"}})
    odd["status"]["conditions"][0]["message"] = "[bold]spec.model.adapters[0][/bold] and [/]"
    assert "hf://a/[red]b[/red]" in told(odd)
    assert "[bold]spec.model.adapters[0][/bold] and [/]" in told(odd)


def test_json_holds_what_the_table_shows() -> None:
    found = json.loads(told(service(), as_json=True))
    assert found["service"] == "team/chat"
    assert found["reason"] == "ScaledUp"
    assert found["message"] == SENTENCE
    assert found["inputs"]["current"] == "2 replicas"
    assert found["measures"][1] == {
        "name": "time per output token, p95",
        "measured": "73.1ms",
        "target": "50ms",
        "met": False,
    }
    assert found["conditions"] == SERVICE["status"]["conditions"]


def test_json_is_json_also_for_text_with_line_breaks() -> None:
    odd = service()
    odd["status"]["decision"]["message"] = 'a "quoted"\nline ' * 30
    assert json.loads(told(odd, as_json=True, width=40))["message"] == 'a "quoted"\nline ' * 30


def test_a_status_as_the_operator_writes_it_can_be_explained() -> None:
    born = make_service(objectives={"timeToFirstToken": {"target": "2s"}, "timePerOutputToken": {"target": "200ms"}})
    report = ServiceReport(
        service=born,
        floor=1,
        desired=2,
        existing=2,
        ready=2,
        cluster_domain="cluster.local",
        ttft_seconds=0.41,
        tpot_seconds=0.03,
        decision=DecisionReport(reason=Reason.STEADY, message="all is well", inputs={"demand": "3"}, rejected=("x",)),
    )
    assert born.spec is not None
    found = explanation(
        {
            "metadata": {"namespace": "default", "name": "chat", "generation": born.generation},
            "spec": born.spec.model_dump(by_alias=True, mode="json", exclude_none=True),
            "status": service_status(report, NOW),
        }
    )
    assert (found.reason, found.message, found.inputs, found.rejected) == (
        "Steady",
        "all is well",
        {"demand": "3"},
        ("x",),
    )
    assert [measure.met for measure in found.measures[:2]] == [True, True]
    assert found.current
    assert {"Ready", "Stalled", "ObjectivesMet"} <= {condition["type"] for condition in found.conditions}


# --- What can go wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat", "/chat", "team/", "a/b/c", ""])
def test_a_name_that_is_not_namespace_and_name_is_refused_before_anything_is_read(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(name, refuse(AssertionError("nothing may be read"))) == 1
    assert f"error: {name!r} is not NAMESPACE/NAME: write for example default/chat" in capsys.readouterr().err


def test_a_service_that_the_operator_has_not_seen_is_no_empty_page(capsys: pytest.CaptureFixture[str]) -> None:
    born = service()
    born["status"] = {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "Pending"}]}
    assert answer("team/chat", lambda key: born) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "team/chat has no status yet: the operator has not looked at it" in captured.err


CASES: dict[str, tuple[ApiError, str]] = {
    "no such object": (
        NotFound("not found", status=404, details={"kind": "tokenservices", "name": "chat"}),
        "there is no TokenService team/chat",
    ),
    "no such kind": (
        NotFound("the server could not find the requested resource", status=404),
        "the cluster has no kind TokenService: install the chart",
    ),
    "no rights": (
        Forbidden("tokenservices.taas.dev is forbidden", status=403),
        "you need the right to get tokenservices.taas.dev in team",
    ),
    "no answer": (Retryable("GET: cannot connect"), "the API server gave no answer on team/chat: GET: cannot connect"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_api_server_refuses_is_told_in_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, words = CASES[case]
    assert answer("team/chat", refuse(error)) == 1
    assert words in capsys.readouterr().err


def test_a_missing_kubeconfig_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer("team/chat", refuse(ConfigurationError("no way to the API server"))) == 1
    assert capsys.readouterr().err == "error: no way to the API server\n"


@pytest.mark.parametrize("named", ["/somewhere/config", None])
def test_the_kubeconfig_is_found_as_kubectl_finds_it(
    named: str | None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    if named:
        monkeypatch.setenv("KUBECONFIG", named)
    assert command.default_kubeconfig() == named
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube/config").touch()
    assert command.default_kubeconfig() == (named or str(tmp_path / ".kube/config"))


# --- The command ---------------------------------------------------------------------------------------------------


def test_the_command_reads_the_named_object_and_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[ServiceKey, str | None, str | None]] = []

    def read(key: ServiceKey, kubeconfig: str | None, context: str | None) -> Json:
        asked.append((key, kubeconfig, context))
        return service()

    monkeypatch.setattr(command, "read", read)
    done = CliRunner().invoke(app, ["explain", "team/chat", "--json", "--kubeconfig", "k", "--context", "c"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["reason"] == "ScaledUp"
    assert asked == [(ServiceKey("team", "chat"), "k", "c")]


def test_run_starts_the_operator_with_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[runtime.Options] = []

    def run(options: runtime.Options) -> int:
        given.append(options)
        return 3

    monkeypatch.setattr(runtime, "run", run)
    done = CliRunner().invoke(app, ["run", "--config", "f", "--kubeconfig", "k", "--context", "c"])
    assert done.exit_code == 3
    assert given == [runtime.Options(kubeconfig="k", context="c", config="f")]
