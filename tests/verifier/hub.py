"""The part of the Hugging Face Hub that a download of a repository needs, with one repository and faults on request."""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType

_COMMIT = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret


class Hub:
    """Serves a folder as org/model. `served` has each file that was sent and the byte that it began with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = "org/model"
        self.away = False
        self.cut: tuple[str, int] | None = None
        self.served: list[tuple[str, int]] = []
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Tests read what the verifier says."""

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            self._answer(send=True)

        def _answer(self, *, send: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(path)
            if hub.away:
                self._plain(404, {})
            elif re.fullmatch(f"/api/models/{hub.repository}(/revision/.+)?", path):
                names = [{"rfilename": name} for name in hub.files()]
                self._plain(200, {"id": hub.repository, "sha": _COMMIT, "siblings": names})
            elif re.fullmatch(f"/api/models/{hub.repository}/tree/.+", path):
                self._plain(200, [self._entry(name) for name in hub.files()])
            elif path.startswith(f"/{hub.repository}/resolve/"):
                self._file(path.split("/", 5)[5], send=send)
            else:
                self._plain(404, {"error": "no such repository"})

        def _entry(self, name: str) -> dict[str, object]:
            content = (hub.folder / name).read_bytes()
            return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

        def _plain(self, code: int, body: object) -> None:
            text = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _file(self, name: str, *, send: bool) -> None:
            content = (hub.folder / name).read_bytes()
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("X-Repo-Commit", _COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if not send:
                return
            hub.served.append((name, start))
            if hub.cut is not None and hub.cut[0] == name:
                self.wfile.write(content[start : hub.cut[1]])
                self.close_connection = True
            else:
                self.wfile.write(content[start:])

    return Handler
