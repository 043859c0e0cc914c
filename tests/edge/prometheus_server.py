"""A Prometheus on loopback that answers from a table, or misbehaves on purpose."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Labels = dict[str, str]
Series = tuple[Labels, float | str]
Reply = tuple[int, str, str]
"""Status, content type, body."""


def vector(*series: Series) -> Reply:
    result = [{"metric": labels, "value": [1_800_000_000, str(value)]} for labels, value in series]
    return success({"resultType": "vector", "result": result})


def scalar(value: float | str) -> Reply:
    return success({"resultType": "scalar", "result": [1_800_000_000, str(value)]})


def success(data: Any) -> Reply:
    return 200, "application/json", json.dumps({"status": "success", "data": data})


class Prometheus:
    """`answers` decides by query; `queries` and `headers` keep what came."""

    def __init__(self, answers: Callable[[str], Reply]) -> None:
        self.answers = answers
        self.queries: list[str] = []
        self.authorization: list[str | None] = []
        self.address = ""


@contextmanager
def serving(answers: Callable[[str], Reply]) -> Iterator[Prometheus]:
    told = Prometheus(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query).get("query", [""])[0]
            told.queries.append(query)
            told.authorization.append(self.headers.get("Authorization"))
            status, kind, body = told.answers(query)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
