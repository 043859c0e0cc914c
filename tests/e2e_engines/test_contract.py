"""What the fleet reads from pods and profiles."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.engines.contract import Deletion, Dialect, EngineCommand, PodKey, read_command, read_pod, read_profile


def pod_object(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "team",
            "name": "chat-h100-abc",
            "uid": "u1",
            "labels": {"taas.dev/service": "chat", "taas.dev/variant": "h100-tp2", "taas.dev/engine": "vllm"},
            "annotations": {"taas.dev/profile": "qwen3-32b-h100-tp2"},
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [
                {"name": "sidecar", "args": ["--max-num-seqs", "1"]},
                {
                    "name": "engine",
                    "command": ["vllm", "serve", "/models/qwen3"],
                    "args": ["--served-model-name", "chat", "--max-num-seqs=64", "--shutdown-timeout", "45"],
                    **spec,
                },
            ],
        },
        "status": {"phase": "Running"},
    }


def test_a_running_pod_is_read_whole() -> None:
    pod = read_pod(pod_object())
    assert (pod.key, pod.service, pod.variant) == (PodKey("team", "chat-h100-abc"), "chat", "h100-tp2")
    assert (pod.dialect, pod.profile, pod.node, pod.running) == (Dialect.VLLM, "qwen3-32b-h100-tp2", "node-1", True)
    assert pod.command == EngineCommand("chat", 1, 64, None, None, 45.0)
    assert pod.deletion is None
    assert not pod.ready_reported


def test_a_pod_without_a_port_works_for_another() -> None:
    port = {"name": "http", "containerPort": 8000}
    assert [read_pod(pod_object(**spec)).serves for spec in ({"ports": [port]}, {})] == [True, False]


COMMANDS = {
    "vLLM, values apart": (
        Dialect.VLLM,
        "vllm serve /m --served-model-name chat -tp 4 --max-model-len 8k --max-num-batched-tokens 2048",
        EngineCommand("chat", 4, None, 2048, 8000, 0.0),
    ),
    "vLLM, values joined": (
        Dialect.VLLM,
        "vllm serve --tensor-parallel-size=2 --max-model-len=16K --shutdown-timeout=60",
        EngineCommand("model", 2, None, None, 16384, 60.0),
    ),
    "vLLM, model named by position": (Dialect.VLLM, "vllm serve org/model", EngineCommand("org/model")),
    "vLLM, as long as fits": (Dialect.VLLM, "vllm serve m --max-model-len auto", EngineCommand("m")),
    "SGLang": (
        Dialect.SGLANG,
        "python3 -m sglang.launch_server --model-path /m --served-model-name chat --tp-size 2 "
        "--max-running-requests 48 --context-length 4096 --chunked-prefill-size 8192 --enable-metrics",
        EngineCommand("chat", 2, 48, 8192, 4096, 0.0),
    ),
    "vLLM, histograms and switches": (
        Dialect.VLLM,
        "vllm serve /m --no-enable-prefix-caching --enable-force-include-usage --custom-histogram-buckets "
        '{"inter_token_latency":[0.01,0.04],"time_to_first_token":[0.3,1]}',
        EngineCommand("/m", 1, None, None, None, 0.0, False, True, (0.3, 1.0), (0.01, 0.04)),
    ),
    "SGLang, histograms and switches": (
        Dialect.SGLANG,
        "python3 -m sglang.launch_server --served-model-name a b --bucket-time-to-first-token 0.1 0.3 1 "
        "--bucket-inter-token-latency 0.01 0.04 --disable-radix-cache",
        EngineCommand("a", 1, None, None, None, 0.0, False, False, (0.1, 0.3, 1.0), (0.01, 0.04)),
    ),
}


@pytest.mark.parametrize(("dialect", "line", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_command_lines(dialect: Dialect, line: str, expected: EngineCommand) -> None:
    assert read_command(line.split(), dialect) == expected


PRESTOPS = {
    "none": ({}, 0.0),
    "sleep action": ({"preStop": {"sleep": {"seconds": 5}}}, 5.0),
    "sleep command": ({"preStop": {"exec": {"command": ["sleep", "7"]}}}, 7.0),
    "sleep in a shell": ({"preStop": {"exec": {"command": ["/bin/sh", "-c", "sleep 3.5"]}}}, 3.5),
}


@pytest.mark.parametrize(("lifecycle", "seconds"), PRESTOPS.values(), ids=PRESTOPS)
def test_sigterm_waits_for_the_prestop_hook(lifecycle: dict[str, Any], seconds: float) -> None:
    assert read_pod(pod_object(lifecycle=lifecycle)).prestop_seconds == seconds


def test_deletion_carries_its_grace_period() -> None:
    item = pod_object()
    item["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30}
    assert read_pod(item).deletion == Deletion(30.0, 1767225630.0 + 1)


def test_a_pod_without_a_node_does_not_run() -> None:
    item = pod_object()
    del item["spec"]["nodeName"]
    assert not read_pod(item).running


def test_a_profile_gives_the_engine_its_speed_and_the_command_line_wins_over_it() -> None:
    profile = read_profile(
        {
            "spec": {
                "step": {"alphaMs": 13.96, "betaMs": 0.057, "kappaMs": 0.054, "deltaMs": 0.049},
                "kvCapacityTokens": 200000,
                "coldStartSeconds": 90,
                "maxNumSeqs": 128,
            }
        }
    )
    assert profile.step.tpot_ms(1, 1000, 1000) == pytest.approx(13.96 + 0.057 + 0.054 * 1.5 + 0.049)
    assert profile.limits(EngineCommand()).max_num_seqs == 128
    assert profile.limits(EngineCommand(max_num_seqs=16)).max_num_seqs == 16
    assert profile.limits(EngineCommand()).kv_capacity_tokens == 200000
