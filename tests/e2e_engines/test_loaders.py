"""The product's loader against the played engines: what the tests on a control plane stand on."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from e2e.engines.contract import Dialect, read_pod
from e2e.engines.fleet import Fleet
from e2e.engines.loaders import Loaders
from e2e.engines.server import serve
from tests.core.rendering import make_variant
from tests.core.test_adapters import rendered
from tests.e2e_engines.builders import FAST, Notes, pod


class Lists:
    """The ConfigMaps of an API server."""

    def __init__(self) -> None:
        self.wanted: tuple[dict[str, str], ...] = ()

    async def get(self, path: str, **query: str) -> Any:
        assert path == "/api/v1/namespaces/team/configmaps/chat-adapters"
        return rendered(*self.wanted)["ConfigMap"]


@pytest.mark.parametrize("dialect", list(Dialect))
async def test_adapters_come_and_go_and_failures_are_told(dialect: Dialect, tmp_path: Path) -> None:
    fleet = Fleet(asyncio.get_running_loop(), Notes(), wall_clock=time.time)
    fleet.profile_seen("fast", FAST)
    runner, port = await serve(fleet, 0)
    made = pod(dialect=dialect, ready_reported=True, adapter_list="chat-adapters")
    fleet.pod_seen(replace(made, command=replace(made.command, max_lora_rank=16)))
    lists = Lists()
    loaders = Loaders(fleet, lists, port, tmp_path)
    lists.wanted = ({"name": "tone", "uri": "hf://a/tone"}, {"name": "loud", "uri": "hf://a/loud-r64"})
    await loaders.look()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}/") as session:
        async with session.get("pods/team/chat-0/v1/models") as answer:
            assert [card["id"] for card in (await answer.json())["data"]] == ["chat", "tone"]
        async with session.get("pods/team/chat-0/adapters/metrics") as answer:
            page = await answer.text()
        async with session.get("sd") as answer:
            paths = [one["labels"]["__metrics_path__"] for one in await answer.json()]
        asked = {"model": "tone", "prompt": "x", "max_tokens": 2}
        async with session.post("pods/team/chat-0/v1/completions", json=asked) as answer:
            assert answer.status == 200
        lists.wanted = ()
        await loaders.look()
        async with session.post("pods/team/chat-0/v1/completions", json=asked) as answer:
            assert answer.status == 404
    assert 'adapter="tone",uri="hf://a/tone",error=""} 1' in page
    assert 'error="LoRA rank 64 is greater than max_lora_rank 16."} 0' in page
    assert "/pods/team/chat-0/adapters/metrics" in paths
    await runner.cleanup()


@pytest.mark.parametrize("engine", ["vLLM", "SGLang"])
def test_a_pod_says_which_list_its_loader_reads_and_which_rank_its_engine_takes(engine: str) -> None:
    found = rendered(engine=engine)["Deployment"]["spec"]["template"]
    metadata = found["metadata"] | {"namespace": "team", "name": "chat-0"}
    read = read_pod({"metadata": metadata, "spec": found["spec"]})
    assert (read.adapter_list, read.command.max_lora_rank) == ("chat-adapters", 32)
    assert make_variant(engine).engine.lower() == read.dialect
    assert json.dumps(found).count("chat-adapters") == 1
