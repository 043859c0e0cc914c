"""Has the engine of its pod load the adapters that a list names, and forget the others, for as long as the pod lives.

The list is a file that the kubelet keeps up to date. What the engine has is asked of the engine itself, each time, so a
restart of either is mended by itself. Repositories are downloaded here first: an engine that downloads stops its steps.

Answers on --port: /started once the guard is in its place, which the engine reads when it starts; /ready while every
adapter of the list was brought to the engine, or could not be (one that cannot be loaded keeps no replica from
serving the others); /metrics, what became of each.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

LOOK_SECONDS = 2.0
RETRY_SECONDS = 60.0
"""Until what failed is tried again: it may cost the engine a step, and a download."""

LOAD_SECONDS = 300.0
_ASK_SECONDS = 10.0
_LONGEST = 300
"""Characters of an engine's words that are told: they become a label."""

_ENDINGS = (".json", ".safetensors", ".jinja", ".txt", ".model")
"""Of a repository, what an engine may read of an adapter. Pickled weights can run code when they are read."""

Json = dict[str, Any]


class LoadError(Exception):
    """An adapter could not be brought to the engine; says why."""


@dataclass(frozen=True)
class Adapter:
    """One adapter of the list. The engine reads `path`; a `repository` is downloaded there first."""

    name: str
    uri: str
    path: str
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class State:
    """What became of an adapter; an error is of the last attempt."""

    uri: str
    loaded: bool
    error: str = ""


class Engine:
    """vLLM over HTTP."""

    LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def adapters(self) -> dict[str, str]:
        """Path of each adapter that it has, by name. Raises OSError or ValueError while nobody answers properly."""
        with self._opener.open(f"{self._url}/v1/models", timeout=_ASK_SECONDS) as answer:
            cards = json.load(answer)["data"]
        return {card["id"]: card.get("root") or "" for card in cards if card.get("parent")}

    def load(self, adapter: Adapter, had: bool) -> None:
        """Raises LoadError. One that it `had` from another path is replaced under requests: none finds it missing."""
        self._post(self.LOAD, {"lora_name": adapter.name, "lora_path": adapter.path, "load_inplace": had})

    def unload(self, name: str) -> None:
        """Raises LoadError. Requests that run with it come to their end."""
        self._post(self.UNLOAD, {"lora_name": name})

    def _post(self, path: str, body: Json) -> None:
        headers = {"Content-Type": "application/json", "X-Adapter-Token": self._token}
        request = urllib.request.Request(f"{self._url}{path}", data=json.dumps(body).encode(), headers=headers)  # noqa: S310 - the pod's own engine
        try:
            with self._opener.open(request, timeout=LOAD_SECONDS):
                return
        except urllib.error.HTTPError as error:
            raise LoadError(_words(error)) from error
        except (OSError, HTTPException) as error:
            raise LoadError(f"the engine does not answer: {_line(str(error))}") from error


class SGLang(Engine):
    """SGLang over HTTP. It has no replacing: for the time between, requests do not find the adapter."""

    LOAD, UNLOAD = "/load_lora_adapter", "/unload_lora_adapter"

    def load(self, adapter: Adapter, had: bool) -> None:
        if had:
            self.unload(adapter.name)
        self._post(self.LOAD, {"lora_name": adapter.name, "lora_path": adapter.path})


ENGINES = {"vllm": Engine, "sglang": SGLang}


@dataclass
class Loader:
    """Brings the engine to what the list says; `look` once in a while. Other threads read `states` and `ready`."""

    engine: Engine
    wanted: Path
    downloads: Path
    keep_seconds: float
    hub: str = "https://huggingface.co"
    token: str | None = None
    states: dict[str, State] = field(default_factory=dict)
    ready: bool = False
    _failed: dict[Adapter, tuple[float, str]] = field(default_factory=dict)
    _unwanted: dict[Path, float] = field(default_factory=dict)

    def look(self, now: float) -> None:
        """One round; `now` in seconds of any clock that only goes forward."""
        try:
            wanted = read_list(self.wanted)
        except (OSError, ValueError) as error:
            _say(f"the list cannot be read, nothing is changed: {error}")
            return
        self.states = {it.name: self.states.get(it.name, State(it.uri, False)) for it in wanted}
        try:
            there = self.engine.adapters()
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            self.ready = False
            self.states = {it.name: State(it.uri, False) for it in wanted}
            return
        for name in sorted(there.keys() - self.states.keys()):
            self._forget(name)
        for adapter in wanted:
            self.states[adapter.name] = self._brought(adapter, there.get(adapter.name), now)
        self._failed = {it: why for it, why in self._failed.items() if it in wanted}
        self._tidy({Path(it.path) for it in wanted}, now)
        self.ready = True

    def _forget(self, name: str) -> None:
        try:
            self.engine.unload(name)
            _say(f"{name}: forgotten")
        except LoadError as error:
            _say(f"{name}: could not be forgotten: {error}")

    def _brought(self, adapter: Adapter, path: str | None, now: float) -> State:
        if path == adapter.path:
            return State(adapter.uri, True)
        until, why = self._failed.get(adapter, (now, ""))
        if now < until:
            return State(adapter.uri, False, why)
        self.states[adapter.name] = State(adapter.uri, False, why)
        began = time.monotonic()
        try:
            if adapter.repository is not None:
                self._download(adapter, adapter.repository)
            self.engine.load(adapter, path is not None)
        except LoadError as error:
            self._failed[adapter] = now + time.monotonic() - began + RETRY_SECONDS, str(error)
            _say(f"{adapter.name}: could not be loaded from {adapter.uri}: {error}")
            return State(adapter.uri, False, str(error))
        self._failed.pop(adapter, None)
        _say(f"{adapter.name}: loaded from {adapter.uri} in {time.monotonic() - began:.1f} s")
        return State(adapter.uri, True)

    def _download(self, adapter: Adapter, repository: str) -> None:
        """The adapter's files, all or none. Raises LoadError."""
        folder = Path(adapter.path)
        if folder.is_dir():
            return
        partial = folder.with_name(f".{folder.name}-partial")
        try:
            version = quote(adapter.revision or "main", safe="")  # refs/pr/1 is one word to the hub
            about = json.loads(self._fetched(f"api/models/{repository}/revision/{version}"))
            names = [str(it["rfilename"]) for it in about["siblings"]]
            names = [it for it in names if "/" not in it and not it.startswith(".") and it.endswith(_ENDINGS)]
            if "adapter_model.safetensors" not in names:
                raise LoadError(f"{adapter.uri} has no adapter_model.safetensors")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for name in names:
                self._fetch(f"{repository}/resolve/{about['sha']}/{quote(name)}", partial / name)
            partial.rename(folder)
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            shutil.rmtree(partial, ignore_errors=True)  # it may have filled the disk, which others write to
            raise LoadError(f"{adapter.uri} could not be downloaded: {_line(str(error) or repr(error))}") from error

    def _fetched(self, path: str) -> bytes:
        with urllib.request.urlopen(self._request(path), timeout=_ASK_SECONDS) as answer:  # noqa: S310
            return bytes(answer.read())

    def _fetch(self, path: str, to: Path) -> None:
        asked = self._request(path)
        with urllib.request.urlopen(asked, timeout=_ASK_SECONDS) as answer, to.open("wb") as file:  # noqa: S310
            shutil.copyfileobj(answer, file, 2**20)
            expected = answer.headers.get("Content-Length")
        if expected is not None and to.stat().st_size != int(expected):
            raise OSError(f"{to.name} broke off")

    def _request(self, path: str) -> urllib.request.Request:
        """The token is for the hub alone: files come from where the hub redirects to."""
        request = urllib.request.Request(f"{self.hub}/{path}")  # noqa: S310 - the administrator's image says which hub
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return request

    def _tidy(self, wanted: set[Path], now: float) -> None:
        """Removes downloads that were wanted by nobody for as long as a request may take, unfinished ones too."""
        there = set(self.downloads.iterdir()) if self.downloads.is_dir() else ()
        self._unwanted = {it: self._unwanted.get(it, now) for it in there if it not in wanted}
        for folder, since in list(self._unwanted.items()):
            if now - since > self.keep_seconds:
                shutil.rmtree(folder, ignore_errors=True)

    def metrics(self) -> str:
        """What became of each adapter, as Prometheus reads it."""
        lines = [
            "# HELP tokenservice_adapter_loaded Whether the engine of the pod has the adapter.",
            "# TYPE tokenservice_adapter_loaded gauge",
        ]
        for name, state in sorted(self.states.copy().items()):
            labels = {"adapter": name, "uri": state.uri, "error": state.error}
            told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            lines.append(f"tokenservice_adapter_loaded{{{told}}} {int(state.loaded)}")
        return "\n".join([*lines, ""])


def read_list(path: Path) -> list[Adapter]:
    """The adapters that the list names; the kubelet swaps it as a whole. Raises OSError, or ValueError for no list."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["adapters"]
        return [Adapter(it["name"], it["uri"], it["path"], it.get("repository"), it.get("revision")) for it in listed]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no list of adapters: {error!r}") from error


def set_guard(folder: Path) -> str:
    """Puts the guard into its place and gives the token; that of an earlier start stays, for the engine has read it."""
    token = folder / "token"
    if not token.is_file():
        fresh = folder / ".token"
        fresh.write_text(secrets.token_hex(32), encoding="ascii")
        fresh.rename(token)
    shutil.copyfile(Path(__file__).with_name("adapter_guard.py"), folder / "adapter_guard.py")
    return token.read_text(encoding="ascii")


def serve(loader: Loader, port: int) -> ThreadingHTTPServer:
    """Answers probes and Prometheus from now on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"/started": (200, ""), "/ready": (200 if loader.ready else 503, "")}
            status, text = (200, loader.metrics()) if self.path == "/metrics" else found.get(self.path, (404, ""))
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Probes are no news."""

    server = ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main(arguments: Sequence[str] | None = None) -> None:
    asked = _parser().parse_args(arguments)
    engine = ENGINES[asked.engine.lower()](asked.url, set_guard(asked.guard))
    hub = os.environ.get("HF_ENDPOINT", Loader.hub).rstrip("/")
    token = os.environ.get("HF_TOKEN")
    loader = Loader(engine, asked.wanted, asked.downloads, asked.keep_seconds, hub=hub, token=token)
    # The first process of a container gets only the signals that it asks for, and a pod waits for its sidecars.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    serve(loader, asked.port)
    while True:
        loader.look(time.monotonic())
        time.sleep(LOOK_SECONDS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Have an engine load the adapters that a list names")
    parser.add_argument("--engine", required=True, help="vLLM or SGLang")
    parser.add_argument("--url", required=True, help="of the engine, without a path")
    parser.add_argument("--wanted", type=Path, required=True, help="the list, JSON")
    parser.add_argument("--downloads", type=Path, required=True, help="folder for what is downloaded")
    parser.add_argument("--guard", type=Path, required=True, help="folder for the guard and its token")
    parser.add_argument("--keep-seconds", type=float, default=300.0, help="how long requests may still need files")
    parser.add_argument("--port", type=int, default=8001)
    return parser


def _words(error: urllib.error.HTTPError) -> str:
    """What the engine says: vLLM in error.message, SGLang in error_message."""
    text = error.read().decode(errors="replace")
    try:
        body = json.loads(text)
        said = body.get("error_message") or (body.get("error") or {}).get("message") or text
    except (ValueError, AttributeError):
        said = text
    return _line(str(said)) or f"the engine answers {error.code}"


def _line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
