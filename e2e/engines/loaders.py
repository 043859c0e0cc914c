"""The adapter loader of every pod that has one: the product's own program, with what a kubelet would give it.

Its list is read from the ConfigMap that the pod mounts, and adapters come from a hub that is played here as well.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from e2e.engines.contract import EnginePod, Json, PodKey
from e2e.engines.fleet import Fleet
from e2e.engines.reflector import ApiError

_PROGRAM = Path(__file__).resolve().parents[2] / "images/adapter-loader/load_adapters.py"
_DOWNLOADS = "/adapters/downloads"
_COMMIT = "0" * 40
LOOK_SECONDS = 0.5


def _program() -> Any:
    spec = importlib.util.spec_from_file_location("load_adapters", _PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["load_adapters"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Reads(Protocol):
    """Of the API server."""

    async def get(self, path: str, **query: str) -> Json: ...


class Loaders:
    """Loaders by pod; `look` once lets each have its engine brought to its list."""

    def __init__(self, fleet: Fleet, api: Reads, port: int, folder: Path) -> None:
        self._fleet, self._api = fleet, api
        self._url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._program = _program()
        self._loaders: dict[tuple[PodKey, str], Any] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """One round."""
        pods = [engine.pod for engine in self._fleet if engine.pod.adapter_list and engine.listens]
        self._loaders = {(pod.key, pod.uid): self._loaders.get((pod.key, pod.uid)) or self._new(pod) for pod in pods}
        for pod in pods:
            loader = self._loaders[pod.key, pod.uid]
            try:
                path = f"/api/v1/namespaces/{pod.key.namespace}/configmaps/{pod.adapter_list}"
                (text,) = (await self._api.get(path))["data"].values()
            except ApiError:  # a pod goes on with the list that was mounted
                continue
            loader.wanted.write_text(text.replace(_DOWNLOADS, str(loader.downloads)))
            await asyncio.to_thread(loader.look, time.monotonic())
        self._fleet.adapter_pages = {key: loader.metrics() for (key, _), loader in self._loaders.items()}

    def _new(self, pod: EnginePod) -> Any:
        own = self._folder / pod.uid
        (own / "downloads").mkdir(parents=True, exist_ok=True)
        engine = self._program.ENGINES[pod.dialect](
            f"{self._url}/pods/{pod.key.namespace}/{pod.key.name}", "no guard is played"
        )
        return self._program.Loader(engine, own / "list", own / "downloads", 300.0, hub=f"{self._url}/hub")


# -- a hub: every repository is an adapter, of the rank that its name ends in (`tone-r64`), else 16; `lost` is not there


def add_hub(app: web.Application) -> None:
    """Answers under /hub as the Hugging Face Hub does."""
    repository = "/{organisation}/{name}"
    app.router.add_get(f"/hub/api/models{repository}/revision/{{revision}}", _about)
    app.router.add_get(f"/hub{repository}/resolve/{_COMMIT}/{{file}}", _file)


async def _about(request: web.Request) -> web.Response:
    if request.match_info["name"] == "lost":
        raise web.HTTPNotFound
    files = ("adapter_config.json", "adapter_model.safetensors")
    return web.json_response({"sha": _COMMIT, "siblings": [{"rfilename": name} for name in files]})


async def _file(request: web.Request) -> web.Response:
    rank = request.match_info["name"].rpartition("-r")[2]
    return web.json_response({"r": int(rank) if rank.isdecimal() else 16})
