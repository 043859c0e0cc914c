"""The loader against an engine that speaks as vLLM or SGLang does, and the guard as vLLM would call it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.verifier.hub import Hub

FOLDER = Path(__file__).parents[2] / "images" / "adapter-loader"


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


program, guard = _loaded("load_adapters"), _loaded("adapter_guard")


class FakeEngine:
    """Adapters by name and path; whatever is asked of it, in order. A path with `bad` in it cannot be loaded."""

    def __init__(self, kind: str) -> None:
        self.kind, self.has, self.asked, self.away = kind, dict[str, str](), list[tuple[str, dict[str, Any]]](), False
        self.tokens = set[str | None]()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append((path, body))
        name, where = body["lora_name"], body.get("lora_path", "")
        prefix = "/v1" if self.kind == "vllm" else ""
        if path == f"{prefix}/unload_lora_adapter":
            return (200, "") if self.has.pop(name, None) else (404, self.error(f"{name} cannot be found"))
        if path != f"{prefix}/load_lora_adapter":
            return 404, {}
        if name in self.has and not body.get("load_inplace"):
            return 400, self.error(f"{name} has already been loaded")
        if "bad" in where:
            return 400, self.error(f"no adapter_config.json\nin {where}")
        self.has[name] = where
        return 200, "done"

    def error(self, text: str) -> dict[str, Any]:
        if self.kind == "vllm":
            return {"error": {"message": text, "type": "x", "code": 400}}
        return {"success": False, "error_message": text}


def _handler(engine: FakeEngine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cards: list[dict[str, Any]] = [{"id": "chat", "root": "/models", "parent": None}]
            cards += [{"id": name, "root": path, "parent": "chat"} for name, path in engine.has.items()]
            self._send(503 if engine.away else 200, {"data": cards})

        def do_POST(self) -> None:
            engine.tokens.add(self.headers["X-Adapter-Token"])
            self._send(*engine.answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _send(self, status: int, body: Any) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture(params=["vllm", "sglang"])
def engine(request: pytest.FixtureRequest) -> Iterator[FakeEngine]:
    made = FakeEngine(request.param)
    yield made
    made.stop()


class Pod:
    """A loader with its list, its engine and its volumes; `look` at a time of the test's choice."""

    def __init__(self, engine: FakeEngine, folder: Path, hub: str = "http://127.0.0.1:1") -> None:
        self.folder = folder
        self.loader: Any = program.Loader(
            program.ENGINES[engine.kind](engine.url, "secret"), folder / "list", folder / "downloads", 300, hub=hub
        )

    def wants(self, *adapters: dict[str, str]) -> None:
        (self.folder / "list").write_text(json.dumps({"adapters": adapters}))

    def look(self, now: float = 0.0) -> dict[str, Any]:
        self.loader.look(now)
        return dict(self.loader.states)


ONE = {"name": "one", "uri": "pvc://c/one", "path": "/adapters/one"}
BAD = {"name": "bad", "uri": "pvc://c/bad", "path": "/adapters/bad"}


def test_what_is_wanted_is_loaded_once_and_what_is_not_is_forgotten(engine: FakeEngine, tmp_path: Path) -> None:
    pod = Pod(engine, tmp_path)
    pod.wants(ONE)
    assert pod.look()["one"].loaded
    assert engine.has == {"one": "/adapters/one"}
    assert pod.look(2.0)["one"].loaded
    assert len(engine.asked) == 1
    pod.wants()
    assert pod.look(4.0) == {}
    assert engine.has == {}
    assert engine.tokens == {"secret"}


def test_another_version_takes_the_place_of_the_first(engine: FakeEngine, tmp_path: Path) -> None:
    pod = Pod(engine, tmp_path)
    pod.wants(ONE)
    pod.look()
    pod.wants(ONE | {"uri": "pvc://c/two", "path": "/adapters/two"})
    assert pod.look(2.0)["one"] == program.State("pvc://c/two", True)
    assert engine.has == {"one": "/adapters/two"}


def test_vllm_never_lacks_an_adapter_that_is_replaced(tmp_path: Path) -> None:
    engine = FakeEngine("vllm")
    pod = Pod(engine, tmp_path)
    for path in ("/adapters/one", "/adapters/two"):
        pod.wants(ONE | {"path": path})
        pod.look()
    engine.stop()
    assert not any("unload" in path for path, _ in engine.asked)


def test_a_version_that_cannot_be_loaded_leaves_the_last_one_with_vllm(tmp_path: Path) -> None:
    engine = FakeEngine("vllm")
    pod = Pod(engine, tmp_path)
    pod.wants(ONE)
    pod.look()
    pod.wants(ONE | {"uri": "pvc://c/bad", "path": "/adapters/bad"})
    state = pod.look()["one"]
    engine.stop()
    assert (state.loaded, engine.has) == (False, {"one": "/adapters/one"})


def test_what_cannot_be_loaded_is_told_and_keeps_nothing_else_from_serving(engine: FakeEngine, tmp_path: Path) -> None:
    pod = Pod(engine, tmp_path)
    pod.wants(BAD, ONE)
    states = pod.look()
    assert states["bad"].error == "no adapter_config.json in /adapters/bad"
    assert states["one"].loaded
    assert pod.loader.ready


def test_what_failed_is_tried_again_but_not_all_the_time(engine: FakeEngine, tmp_path: Path) -> None:
    pod = Pod(engine, tmp_path)
    pod.wants(BAD)
    for now in (0.0, 2.0, 30.0):
        assert pod.look(now)["bad"].error
    assert len(engine.asked) == 1
    pod.look(120.0)
    assert len(engine.asked) == 2


def test_an_engine_that_starts_anew_gets_its_adapters_before_the_pod_serves(engine: FakeEngine, tmp_path: Path) -> None:
    pod = Pod(engine, tmp_path)
    pod.wants(ONE)
    assert not pod.loader.ready
    pod.look()
    engine.has, engine.away = {}, True
    assert not pod.look()["one"].loaded
    assert not pod.loader.ready
    engine.away = False
    assert pod.look()["one"].loaded
    assert pod.loader.ready


def test_a_list_that_cannot_be_read_changes_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    pod = Pod(engine, tmp_path)
    pod.wants(ONE)
    pod.look()
    for text in ("", "[]", '{"adapters": [{"name": "one"}]}'):
        (tmp_path / "list").write_text(text)
        assert pod.look()["one"].loaded
    assert engine.has == {"one": "/adapters/one"}


def test_metrics_say_what_became_of_each(engine: FakeEngine, tmp_path: Path) -> None:
    pod = Pod(engine, tmp_path)
    pod.wants(ONE, BAD | {"uri": 'pvc://c/"bad\\'})
    pod.look()
    lines = pod.loader.metrics().splitlines()
    assert 'tokenservice_adapter_loaded{adapter="one",uri="pvc://c/one",error=""} 1' in lines
    assert (
        'tokenservice_adapter_loaded{adapter="bad",uri="pvc://c/\\"bad\\\\",error="no adapter_config.json in'
        ' /adapters/bad"} 0' in lines
    )


def test_probes_are_answered(engine: FakeEngine, tmp_path: Path) -> None:
    pod = Pod(engine, tmp_path)
    server = program.serve(pod.loader, 0)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with urllib.request.urlopen(f"{url}/started") as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{url}/ready")
    pod.wants()
    pod.look()
    with urllib.request.urlopen(f"{url}/ready") as answer:
        assert answer.status == 200
    server.shutdown()
    server.server_close()


def test_the_program_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """As process 1 it is deaf to SIGTERM unless it asks for it, and its pod would stay for the whole grace period."""
    (tmp_path / "list").write_text('{"adapters": []}')
    words = ("--engine=vLLM", "--url=http://127.0.0.1:1", f"--wanted={tmp_path / 'list'}", "--port=0")
    folders = (f"--downloads={tmp_path}", f"--guard={tmp_path}")
    command = [sys.executable, str(FOLDER / "load_adapters.py"), *words, *folders]
    # In a shell that ignores the signal, so that what it runs is as deaf to it as process 1 is.
    process = subprocess.Popen(["sh", "-c", 'trap "" TERM; exec "$@"', "sh", *command])
    try:
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "token").exists():  # it runs
                process.terminate()
            time.sleep(0.1)
        assert process.wait(1) == 0
    finally:
        process.kill()


# --- downloads


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", ".gitattributes"):
        (folder / name).write_text(name)
    with Hub(folder) as running:
        yield running


def downloaded(tmp_path: Path) -> dict[str, str]:
    path = str(tmp_path / "downloads" / "abc")
    return {"name": "one", "uri": "hf://org/model", "path": path, "repository": "org/model"}


def test_a_repository_is_there_before_the_engine_hears_of_it(engine: FakeEngine, tmp_path: Path, hub: Hub) -> None:
    pod = Pod(engine, tmp_path, hub.url)
    pod.wants(downloaded(tmp_path))
    assert pod.look()["one"].loaded
    there = sorted(path.name for path in (tmp_path / "downloads" / "abc").iterdir())
    assert there == ["adapter_config.json", "adapter_model.safetensors"], "nothing that can run code"


def test_a_revision_with_a_slash_is_one_word(engine: FakeEngine, tmp_path: Path, hub: Hub) -> None:
    pod = Pod(engine, tmp_path, hub.url)
    pod.wants(downloaded(tmp_path) | {"revision": "refs/pr/1"})
    assert pod.look()["one"].loaded
    assert hub.asked[0] == "/api/models/org/model/revision/refs%2Fpr%2F1"


def test_a_download_that_breaks_off_is_no_adapter(engine: FakeEngine, tmp_path: Path, hub: Hub) -> None:
    hub.cut = ("adapter_model.safetensors", 5)
    pod = Pod(engine, tmp_path, hub.url)
    pod.wants(downloaded(tmp_path))
    assert "could not be downloaded" in pod.look()["one"].error
    assert (engine.asked, (tmp_path / "downloads" / "abc").exists()) == ([], False)
    assert list((tmp_path / "downloads").iterdir()) == [], "a large one that fills the disk would keep it full"
    hub.cut = None
    assert pod.look(120.0)["one"].loaded


def test_an_answer_of_the_hub_that_breaks_off_keeps_no_adapter_from_being_loaded(
    engine: FakeEngine, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> bytes:
        raise IncompleteRead(b"{", 100)

    pod = Pod(engine, tmp_path, hub.url)
    pod.wants(downloaded(tmp_path))
    with monkeypatch.context() as during:
        during.setattr(program.Loader, "_fetched", cut)
        assert "could not be downloaded" in pod.look()["one"].error
    assert pod.look(120.0)["one"].loaded


def test_pickled_weights_are_refused(engine: FakeEngine, tmp_path: Path, hub: Hub) -> None:
    (hub.folder / "adapter_model.safetensors").rename(hub.folder / "adapter_model.bin")
    pod = Pod(engine, tmp_path, hub.url)
    pod.wants(downloaded(tmp_path))
    assert "no adapter_model.safetensors" in pod.look()["one"].error


def test_files_stay_for_as_long_as_a_request_may_need_them(engine: FakeEngine, tmp_path: Path, hub: Hub) -> None:
    pod = Pod(engine, tmp_path, hub.url)
    pod.wants(downloaded(tmp_path))
    pod.look(0.0)
    pod.wants()
    folder = tmp_path / "downloads" / "abc"
    for now, there in ((10.0, True), (300.0, True), (311.0, False)):
        pod.look(now)
        assert folder.exists() is there


def test_what_a_loader_that_was_killed_had_begun_is_removed(engine: FakeEngine, tmp_path: Path, hub: Hub) -> None:
    begun = tmp_path / "downloads" / ".gone-partial"
    begun.mkdir(parents=True)
    (begun / "adapter_model.safetensors").write_text("half")
    pod = Pod(engine, tmp_path, hub.url)
    pod.wants(downloaded(tmp_path))
    pod.look(0.0)
    pod.look(301.0)
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["abc"]


def test_the_token_goes_to_the_hub_and_not_where_it_sends_to(tmp_path: Path) -> None:
    loader = program.Loader(None, tmp_path, tmp_path, 1, token="hf_secret")  # pragma: allowlist secret
    request = loader._request("org/model")
    assert request.get_header("Authorization") == "Bearer hf_secret"
    assert "Authorization" not in request.headers, "headers of this kind are sent to redirects too"


# --- the guard


def placed_guard(tmp_path: Path) -> tuple[Any, str]:
    """The guard as the engine imports it, and the token that it asks for."""
    file = tmp_path / "guard" / "adapter_guard.py"
    file.parent.mkdir(exist_ok=True)
    secret = program.set_guard(file.parent)
    spec = importlib.util.spec_from_file_location("placed_guard", file)
    assert spec is not None
    assert spec.loader is not None
    placed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(placed)
    return placed, secret


def passes(tmp_path: Path, method: str, path: str, token: str | None) -> bool:
    """Whether a request gets to the engine."""
    placed, secret = placed_guard(tmp_path)
    reached, sent = [], list[dict[str, Any]]()

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    given = {None: [], "right": [secret.encode()], "wrong": [b"0" * 64], "twice": [secret.encode()] * 2}[token]
    headers = [(b"x-adapter-token", one) for one in given]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(placed.Guard(engine)(scope, None, send))
    assert bool(reached) == (not sent)
    if sent:
        assert sent[0]["status"] == 403
    return bool(reached)


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/Adapters/one"])
def test_only_who_has_the_token_may_load(tmp_path: Path, path: str) -> None:
    for method in ("POST", "DELETE", "PUT"):
        assert [passes(tmp_path, method, path, it) for it in ("right", "wrong", "twice", None)] == [True] + [False] * 3


def test_everything_else_passes(tmp_path: Path) -> None:
    assert passes(tmp_path, "POST", "/v1/chat/completions", None)
    assert passes(tmp_path, "GET", "/v1/models/my-adapter", None)


def test_an_adapter_that_was_replaced_is_not_read_anew_in_each_step(tmp_path: Path) -> None:
    """vLLM serves with the request that loaded the adapter, as it was: its wish to load in place is for once."""
    placed, secret = placed_guard(tmp_path)
    kept = {"tone": SimpleNamespace(load_inplace=False), "of another version": SimpleNamespace()}
    told = []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        kept["tone"] = SimpleNamespace(load_inplace=True)
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        told.append((message["status"], kept["tone"].load_inplace))

    app = SimpleNamespace(state=SimpleNamespace(openai_serving_models=SimpleNamespace(lora_requests=kept)))
    scope = {"type": "http", "method": "POST", "path": "/v1/load_lora_adapter", "app": app}
    asyncio.run(placed.Guard(engine)(scope | {"headers": [(b"x-adapter-token", secret.encode())]}, None, send))
    assert told == [(200, False)]


def test_a_loader_that_starts_anew_keeps_the_token_that_the_engine_has(tmp_path: Path) -> None:
    assert program.set_guard(tmp_path) == program.set_guard(tmp_path)
    assert len(program.set_guard(tmp_path)) == 64
