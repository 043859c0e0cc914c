"""The client against a server on loopback that answers as an API server would, or as badly as one can."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from kubernetes.aio import client as kubernetes_client

from tests.edge.fakes import Clock
from tokenservice.core.model import Json, ObjectKey
from tokenservice.edge import kube as module
from tokenservice.edge.kube import SILENCE_SECONDS, Kube, Patch
from tokenservice.errors import ApiError, ConfigurationError, Conflict, Forbidden, Gone, Invalid, NotFound, Retryable

POD = ObjectKey("Pod", "team", "chat-1")
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Scripted:
    """A server that plays answers in turn and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer | web.Response] = []
        self.requests: list[tuple[str, str, dict[str, str], Any, str]] = []
        self.address = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        seen = (request.method, request.path, dict(request.query), body, request.headers.get("Content-Type", ""))
        self.requests.append(seen)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return _copy(answer) if isinstance(answer, web.Response) else await answer(request)


def _copy(answer: web.Response) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connected() -> AsyncIterator[tuple[Kube, Scripted, Clock]]:
    """One connection for all: setting up TLS costs half a second even where it is not used."""
    server, clock = Scripted(), Clock()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = kubernetes_client.Configuration()
    configuration.host = server.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    configuration.api_key = {"BearerToken": "Bearer secret"}
    client = Kube(kubernetes_client.ApiClient(configuration), sleep=clock.sleep)
    yield client, server, clock
    await client.close()
    await runner.cleanup()


@pytest.fixture
def kube(connected: tuple[Kube, Scripted, Clock]) -> Kube:
    return connected[0]


@pytest.fixture
def server(connected: tuple[Kube, Scripted, Clock]) -> Scripted:
    connected[1].requests.clear()
    return connected[1]


@pytest.fixture
def clock(connected: tuple[Kube, Scripted, Clock]) -> Clock:
    connected[2].slept.clear()
    return connected[2]


def status(
    code: int, reason: str = "", *, after: str | None = None, details: Json | None = None, message: str = ""
) -> web.Response:
    said = f"it is {reason}{message}"
    body = {"kind": "Status", "code": code, "reason": reason, "message": said, "details": details or {}}
    headers = {"Retry-After": after} if after else {}
    return web.json_response(body, status=code, headers=headers)


ERRORS: dict[str, tuple[web.Response, type[ApiError]]] = {
    "bad request": (status(400, "BadRequest"), Invalid),
    "no token": (status(401, "Unauthorized"), Forbidden),
    "no right": (status(403, "Forbidden"), Forbidden),
    "absent": (status(404, "NotFound"), NotFound),
    "conflict": (status(409, "Conflict"), Conflict),
    "compacted": (status(410, "Expired"), Gone),
    "too large": (status(413, "RequestEntityTooLarge"), Invalid),
    "invalid": (status(422, "Invalid"), Invalid),
    "namespace is going": (
        status(403, "Forbidden", details={"causes": [{"reason": "NamespaceTerminating"}]}),
        NotFound,
    ),
    "kind of the owner is new": (
        status(
            403,
            "Forbidden",
            message=": cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion"
            " taas.dev/v1alpha1 Kind TokenService: no matches for kind",
        ),
        Retryable,
    ),
    "made anew": (status(422, "Invalid", details={"causes": [{"field": "metadata.uid"}]}), Conflict),
    "bound meanwhile": (
        status(
            422,
            "Invalid",
            details={"causes": [{"field": "status.nominatedNodeName", "reason": "FieldValueForbidden"}]},
        ),
        Conflict,
    ),
    "no node's name": (
        status(
            422,
            "Invalid",
            details={"causes": [{"field": "status.nominatedNodeName", "reason": "FieldValueInvalid"}]},
        ),
        Invalid,
    ),
    "broken": (status(500, "InternalError"), Retryable),
    "away": (status(503, "ServiceUnavailable"), Retryable),
    "too slow": (status(504, "Timeout"), Retryable),
    "a proxy's page": (web.Response(status=502, text="<html>Bad Gateway</html>"), Retryable),
    "a list where a Status should be": (web.json_response([], status=500), Retryable),
}


@pytest.mark.parametrize("name", ERRORS)
async def test_each_refusal_has_its_error(kube: Kube, server: Scripted, name: str) -> None:
    answer, want = ERRORS[name]
    server.answers = [answer]
    with pytest.raises(ApiError) as caught:
        await kube.get(POD)
    assert type(caught.value) is want
    assert caught.value.status == answer.status
    assert len(server.requests) == 1


async def test_the_page_of_a_proxy_is_quoted(kube: Kube, server: Scripted) -> None:
    server.answers = [web.Response(status=502, text="<html>Bad Gateway</html>")]
    with pytest.raises(Retryable, match="502 Bad Gateway: <html>Bad Gateway</html>"):
        await kube.get(POD)


async def test_a_busy_server_is_waited_for_as_long_as_it_asks(kube: Kube, server: Scripted, clock: Clock) -> None:
    server.answers = [status(429, after="3"), status(429, after="1"), web.json_response({"metadata": {}})]
    await kube.get(POD)
    assert clock.slept == [3.0, 1.0]


async def test_a_server_that_stays_busy_is_given_up(kube: Kube, server: Scripted, clock: Clock) -> None:
    server.answers = [status(429, after="600")]
    with pytest.raises(Retryable) as caught:
        await kube.get(POD)
    assert caught.value.after == 600
    assert len(server.requests) == 4
    assert clock.slept == [10.0] * 3


async def test_a_delay_may_stand_in_the_status_alone(kube: Kube, server: Scripted) -> None:
    server.answers = [status(503, details={"retryAfterSeconds": 5})]
    with pytest.raises(Retryable) as caught:
        await kube.get(POD)
    assert caught.value.after == 5


async def test_a_delay_that_is_no_number_is_a_second(kube: Kube, server: Scripted) -> None:
    server.answers = [status(503, after="Wed, 21 Oct 2026 07:28:00 GMT")]
    with pytest.raises(Retryable) as caught:
        await kube.get(POD)
    assert caught.value.after == 1


async def test_an_error_is_no_request_to_wait(kube: Kube, server: Scripted) -> None:
    """As of a webhook that fails: its 500 must not slow down what others wait for."""
    server.answers = [status(500)]
    with pytest.raises(Retryable) as caught:
        await kube.get(POD)
    assert caught.value.after == 0


async def test_a_busy_server_that_names_no_delay_is_given_a_second(kube: Kube, server: Scripted, clock: Clock) -> None:
    server.answers = [status(429), web.json_response({"metadata": {}})]
    await kube.get(POD)
    assert clock.slept == [1.0]


async def test_nobody_there_is_worth_another_try(clock: Clock) -> None:
    configuration = kubernetes_client.Configuration()
    configuration.host = "http://127.0.0.1:9"
    seen: list[tuple[str, int]] = []
    client = Kube(kubernetes_client.ApiClient(configuration), observer=lambda *what: seen.append(what))
    with pytest.raises(Retryable):
        await client.get(POD)
    await client.close()
    assert seen == [("GET", 0)]


@pytest.mark.parametrize("status", [200, 500])
async def test_a_connection_that_breaks_within_the_answer_is_worth_another_try(
    kube: Kube, server: Scripted, status: int
) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"metadata":')
        assert request.transport is not None
        request.transport.close()
        return response

    server.answers = [cut]
    with pytest.raises(Retryable, match="broke off"):
        await kube.get(POD)


async def test_an_answer_that_is_no_json_is_worth_another_try(kube: Kube, server: Scripted) -> None:
    server.answers = [web.Response(text="<html>Log in</html>")]
    with pytest.raises(Retryable):
        await kube.get(POD)


# --- requests ------------------------------------------------------------------------------------------------------


async def test_requests_go_where_the_api_has_them(kube: Kube, server: Scripted) -> None:
    server.answers = [web.json_response({"metadata": {}})]
    await kube.get(POD)
    await kube.get(ObjectKey("Node", "", "node-1"))
    await kube.patch(POD, {"status": {}}, Patch.STRATEGIC, "status")
    await kube.apply({"kind": "Deployment", "metadata": {"namespace": "team", "name": "chat"}}, force=False)
    await kube.create("Event", {"metadata": {"namespace": "team", "name": "e"}})
    await kube.delete(POD, uid="u1", resource_version="7")
    assert [(method, path, query) for method, path, query, _, _ in server.requests] == [
        ("GET", "/api/v1/namespaces/team/pods/chat-1", {}),
        ("GET", "/api/v1/nodes/node-1", {}),
        ("PATCH", "/api/v1/namespaces/team/pods/chat-1/status", {"fieldManager": "tokenservice-operator"}),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/team/deployments/chat",
            {"fieldManager": "tokenservice-operator", "force": "false"},
        ),
        ("POST", "/apis/events.k8s.io/v1/namespaces/team/events", {"fieldManager": "tokenservice-operator"}),
        ("DELETE", "/api/v1/namespaces/team/pods/chat-1", {}),
    ]
    assert [kind.partition(";")[0] for *_, kind in server.requests][2:4] == [
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ]
    assert server.requests[-1][3]["preconditions"] == {"uid": "u1", "resourceVersion": "7"}


async def test_a_list_comes_in_chunks_and_its_items_say_what_they_are(kube: Kube, server: Scripted) -> None:
    server.answers = [
        web.json_response({"metadata": {"resourceVersion": "5", "continue": "more"}, "items": [{"metadata": {}}]}),
        web.json_response({"metadata": {"resourceVersion": "5"}, "items": None}),
    ]
    pages = [page async for page in kube.list_pages("Deployment", selector="a=b")]
    assert [page.revision for page in pages] == ["5", "5"]
    assert pages[0].items == ({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}},)
    assert [query for _, _, query, _, _ in server.requests] == [
        {"limit": "100", "labelSelector": "a=b"},
        {"limit": "100", "labelSelector": "a=b", "continue": "more"},
    ]


async def test_of_events_only_what_pods_themselves_do_not_say_is_asked_for(kube: Kube, server: Scripted) -> None:
    server.answers = [web.json_response({"metadata": {"resourceVersion": "5"}, "items": []}), lines()]
    async for _ in kube.list_pages("Event"):
        pass
    async with kube.watch("Event", revision="5") as events:
        assert [event async for event in events] == []
    asked = "regarding.kind=Pod,type=Warning,reason!=FailedScheduling,reason!=Unhealthy,reason!=BackOff,reason!=Failed"
    assert [query["fieldSelector"] for _, _, query, _, _ in server.requests] == [asked, asked]
    assert int(server.requests[1][2]["timeoutSeconds"]) < SILENCE_SECONDS, "it ends before it is taken for dead"


def lines(*events: Json, then: Callable[[web.Request], None] | None = None) -> Answer:
    return raw_lines(*(json.dumps(event) for event in events), then=then)


def raw_lines(*events: str, then: Callable[[web.Request], None] | None = None) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            await response.write(event.encode() + b"\n")
        if then is not None:
            then(request)
        return response

    return answer


async def test_watches_that_begin_together_end_one_by_one(
    kube: Kube, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter((0.0, 0.5))
    monkeypatch.setattr(kube, "_jitter", lambda: next(turns))
    server.answers = [lines(), lines()]
    for kind in ("Pod", "Node"):
        async with kube.watch(kind, revision="5") as events:
            assert [event async for event in events] == []
    assert [query["timeoutSeconds"] for _, _, query, _, _ in server.requests] == ["300", "450"]


async def watched(kube: Kube) -> list[tuple[str, Json]]:
    async with kube.watch("Pod", revision="5") as events:
        return [(event.type, event.object) async for event in events]


async def test_a_watch_gives_events_until_the_server_ends_it(kube: Kube, server: Scripted) -> None:
    large = {"metadata": {"annotations": {"large": "x" * 1_000_000}}}
    server.answers = [lines({"type": "ADDED", "object": large}, {"type": "BOOKMARK", "object": {}})]
    assert await watched(kube) == [("ADDED", large), ("BOOKMARK", {})]
    assert server.requests[0][2]["allowWatchBookmarks"] == "true"
    assert server.requests[0][2]["resourceVersion"] == "5"


async def test_a_watch_of_a_compacted_revision_says_so(kube: Kube, server: Scripted) -> None:
    server.answers = [lines({"type": "ERROR", "object": {"code": 410, "message": "too old"}})]
    with pytest.raises(Gone):
        await watched(kube)
    server.answers = [status(410, "Expired")]
    with pytest.raises(Gone):
        await watched(kube)


async def test_an_event_may_be_as_long_as_an_object_can_become(
    kube: Kube, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored in 1.5 MiB has six times as many bytes where JSON escapes them."""
    large = {"type": "ADDED", "object": {"kind": "Pod", "args": ["\\u003c" * (1 << 20)]}}
    server.answers = [lines(large), lines(large)]
    assert len(await watched(kube)) == 1
    monkeypatch.setattr(module, "_LONGEST_LINE", 1 << 20)
    with pytest.raises(Gone, match="longer than 1 MiB"):
        await watched(kube)


async def test_a_watch_that_breaks_is_worth_another_try(kube: Kube, server: Scripted) -> None:
    def cut(request: web.Request) -> None:
        assert request.transport is not None
        request.transport.abort()

    server.answers = [lines({"type": "ADDED", "object": {}}, then=cut)]
    with pytest.raises(Retryable, match="watch of Pod broke"):
        await watched(kube)


async def test_a_watch_that_falls_silent_is_given_up(
    kube: Kube, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await request.content.readany()
        await hang.wait()
        return response

    hang = asyncio.Event()
    monkeypatch.setattr(module, "_WATCH_TIMEOUT", module.aiohttp.ClientTimeout(sock_read=0.05))
    server.answers = [silent]
    with pytest.raises(Retryable):
        await watched(kube)
    hang.set()


# --- nesting -------------------------------------------------------------------------------------------------------

DEEP = 9_980
"""The API server takes 10,000 levels in all."""


def nested(name: str) -> str:
    """A pod as any tenant may create one: what its fields belong to may be nested as deep as JSON may be."""
    fields = '{"f:a":' * DEEP + "{}" + "}" * DEEP
    return f'{{"metadata":{{"name":"{name}","managedFields":[{{"fieldsV1":{fields}}}]}}}}'


@pytest.fixture
def as_started(kubeconfig: Path) -> Iterator[None]:
    """The process's limits as `connect` leaves them."""
    before = sys.getrecursionlimit()
    asyncio.run(_connect_and_close(kubeconfig))
    yield
    sys.setrecursionlimit(before)


async def _connect_and_close(kubeconfig: Path) -> None:
    await (await module.connect(str(kubeconfig))).close()


@pytest.fixture
def kubeconfig(server: Scripted, tmp_path: Path) -> Path:
    path = tmp_path / "config"
    named = {"clusters": [{"name": "c", "cluster": {"server": server.address}}], "users": [{"name": "u", "user": {}}]}
    context = {"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}], "current-context": "x"}
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **named, **context}))
    return path


@pytest.mark.usefixtures("as_started")
async def test_an_object_as_deep_as_the_api_server_takes_hides_no_other(kube: Kube, server: Scripted) -> None:
    pods = f"{nested('deep')},{nested('deep too')}"
    server.answers = [
        web.Response(text=f'{{"metadata":{{"resourceVersion":"5"}},"items":[{pods},{{"metadata":{{}}}}]}}')
    ]
    assert [len(page.items) async for page in kube.list_pages("Pod")] == [3]
    server.answers = [raw_lines(f'{{"type":"ADDED","object":{nested("deep")}}}', '{"type":"DELETED","object":{}}')]
    assert [happened for happened, _ in await watched(kube)] == ["ADDED", "DELETED"]
    server.answers = [web.Response(text=nested("deep"))]
    assert (await kube.get(POD))["metadata"]["name"] == "deep"
    assert (await asyncio.to_thread(json.loads, nested("deep")))["metadata"]["name"] == "deep", "kopf's thread"


async def test_what_is_nested_too_deep_to_be_read_is_no_more_than_an_answer_that_broke(
    kube: Kube, server: Scripted
) -> None:
    server.answers = [web.Response(text=nested("deep"))]
    with pytest.raises(Retryable, match="recursion"):
        await kube.get(POD)
    server.answers = [raw_lines(f'{{"type":"ADDED","object":{nested("deep")}}}')]
    with pytest.raises(Retryable, match="recursion"):
        await watched(kube)
    server.answers = [web.Response(status=409, text=nested("deep"))]
    with pytest.raises(Conflict):
        await kube.get(POD)


# --- connections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "no/such/file"])
async def test_no_way_to_the_cluster_is_a_matter_of_configuration(path: str | None) -> None:
    with pytest.raises(ConfigurationError, match="kubeconfig"):
        await module.connect(path)


@pytest.mark.parametrize("path", ["no/such/file", "no/such/file:nor/this"])
async def test_a_kubeconfig_that_is_not_there_is_told_as_such(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its loader warns, reads nothing and misses a key of what it read."""
    with pytest.raises(ConfigurationError, match=f"through kubeconfig {path}: there is no such file"):
        await module.connect(path)
    assert caplog.records == []


_BAD_CA = {"clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority-data": "%"}}]}
_NO_CA = {"clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority-data": "bm8gUEVN"}}]}
_REST = {
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "x",
}
BROKEN: dict[str, tuple[bytes | None, str]] = {
    "malformed": (b"clusters: [", "parsing"),
    "text": (b"no kubeconfig at all", "the form"),
    "a list": (b"[]", "the form"),
    "empty": (b"", "the form"),
    "a NUL byte": (b"a: \0", "unacceptable character"),
    "no UTF-8": (b"\xff\xfe\xfd", "utf-8"),
    "base64 that is none": (json.dumps(_BAD_CA | _REST).encode(), "certificate"),
    "a CA that is none": (json.dumps(_NO_CA | _REST).encode(), "certificate"),
    "a directory": (None, "directory"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_kubeconfig_is_named_with_what_is_wrong(case: str, tmp_path: Path) -> None:
    path, (content, wrong) = tmp_path / "config", BROKEN[case]
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"(?s)through kubeconfig {path}: .*{wrong}"):
        await module.connect(str(path))


async def test_the_lease_never_waits_for_a_connection_that_a_watch_holds(server: Scripted, kubeconfig: Path) -> None:
    """Ten watched namespaces hold a hundred watches; a client has a hundred connections where nothing is said."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"kind": "Lease"})
        response = web.StreamResponse()
        await response.prepare(request)
        begun.release()
        await over.wait()
        return response

    begun, over = asyncio.Semaphore(0), asyncio.Event()
    server.answers = [answer]
    client = Kube(await module.connect(str(kubeconfig)))
    watches = [asyncio.create_task(watched(client)) for _ in range(110)]
    try:
        async with asyncio.timeout(10):
            for _ in watches:
                await begun.acquire()
            assert await client.get(ObjectKey("Lease", "system", "operator"))
    finally:
        over.set()
        await asyncio.gather(*watches)
        await client.close()
