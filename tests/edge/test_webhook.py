"""The admission webhook: gates while someone plans, allows always, and its certificates are what a client wants."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.edge.fakes import Server
from tests.edge.objects import pod
from tokenservice.core.model import Json, ObjectKey
from tokenservice.core.names import FIELD_MANAGER, MANAGED_BY_LABEL, PLACEMENT_GATE, SERVICE_LABEL, SERVING_CONDITION
from tokenservice.edge import webhook as module
from tokenservice.edge.certificates import BUNDLE_LIMIT, Authority, load
from tokenservice.edge.webhook import Webhook, gates, review
from tokenservice.errors import ApiError, Conflict, Forbidden

CONFIGURATION = ObjectKey("MutatingWebhookConfiguration", "", "tokenservice-pods")
NOW = datetime.now(UTC)


def asked(obj: Json, operation: str = "CREATE") -> Json:
    return {"request": {"uid": "r1", "operation": operation, "object": obj}}


def bare_pod(**spec: Any) -> Json:
    return {
        "metadata": {"labels": {SERVICE_LABEL: "chat", MANAGED_BY_LABEL: FIELD_MANAGER}},
        "spec": {"containers": [{"name": "engine"}]} | spec,
    }


def patched(response: Json) -> list[Json]:
    operations: list[Json] = json.loads(base64.b64decode(response["patch"]))
    return operations


def test_a_pod_of_somebody_else_gets_none() -> None:
    """A canary behind the same Service, say: the operator may not lift the gate of what it did not make."""
    theirs = {"metadata": {"labels": {SERVICE_LABEL: "chat"}}, "spec": {"containers": [{"name": "engine"}]}}
    assert gates(theirs) == []


def test_a_new_engine_pod_gets_both_gates() -> None:
    answer = review(asked(bare_pod()), active=True)
    response = answer["response"]
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert (response["uid"], response["allowed"], response["patchType"]) == ("r1", True, "JSONPatch")
    assert patched(response) == [
        {"op": "add", "path": "/spec/schedulingGates", "value": [{"name": PLACEMENT_GATE}]},
        {"op": "add", "path": "/spec/readinessGates", "value": [{"conditionType": SERVING_CONDITION}]},
    ]


def test_gates_of_others_stay() -> None:
    operations = gates(
        bare_pod(schedulingGates=[{"name": "kueue"}], readinessGates=[{"conditionType": "example.org/lb"}])
    )
    assert [operation["path"] for operation in operations] == ["/spec/schedulingGates/-", "/spec/readinessGates/-"]


UNTOUCHED: dict[str, tuple[Json, bool]] = {
    "nobody plans": (asked(bare_pod()), False),
    "an update": (asked(bare_pod(), "UPDATE"), True),
    "a deletion carries no object": ({"request": {"uid": "r1", "operation": "DELETE", "object": None}}, True),
    "not an engine": (asked({"metadata": {}, "spec": {}}), True),
    "it has a node": (asked(bare_pod(nodeName="node-1")), True),
    "it has both": (asked(pod()), True),
    "no object": ({"request": {"uid": "r1", "operation": "CREATE"}}, True),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_everything_else_is_admitted_as_it_came(name: str) -> None:
    body, active = UNTOUCHED[name]
    response = review(body, active=active)["response"]
    assert response == {"uid": "r1", "allowed": True}


# --- publishing ------------------------------------------------------------------------------------------------------


def configuration(*bundles: str | None) -> Json:
    hooks = [
        {"name": f"hook-{number}", "clientConfig": {"caBundle": bundle} if bundle else {}}
        for number, bundle in enumerate(bundles)
    ]
    return {"kind": CONFIGURATION.kind, "metadata": {"name": CONFIGURATION.name}, "webhooks": hooks}


class Times:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def make_webhook(server: Server, *, port: int = 0, times: Times | None = None) -> Webhook:
    return Webhook(
        api=server,
        configuration=CONFIGURATION,
        hosts=["127.0.0.1"],
        address="127.0.0.1",
        port=port,
        active=lambda: True,
        now=times or (lambda: datetime.now(UTC)),
    )


def trusted(server: Server) -> list[bytes]:
    """What the API server trusts, by webhook."""
    return [base64.b64decode(hook["clientConfig"]["caBundle"]) for hook in server.objects[CONFIGURATION]["webhooks"]]


async def test_a_process_publishes_its_ca_where_it_is_lacking_and_only_once() -> None:
    server = Server()
    webhook = make_webhook(server)
    own = base64.b64encode(webhook.authority.pem).decode()
    server.put(configuration(None, own, "b2xk"))
    await webhook.maintain()
    verb, _, sent = server.calls[-1]
    assert verb == "patch"
    assert sent["body"]["metadata"] == {"resourceVersion": "2"}
    assert sent["body"]["webhooks"] == [
        {"name": "hook-0", "clientConfig": {"caBundle": own}},
        {"name": "hook-2", "clientConfig": {"caBundle": own}},
    ]
    server.put(configuration(own, own, own))
    await webhook.maintain()
    assert server.calls[-1][0] == "get"


async def test_every_process_that_may_be_asked_is_trusted() -> None:
    server = Server()
    server.put(configuration(None))
    several = [make_webhook(server) for _ in range(3)]
    for webhook in several:
        await webhook.maintain()
    (bundle,) = trusted(server)
    certificates = [webhook.authority.issue(["a.svc"], NOW) for webhook in several]
    assert all(_handshake(bundle, *pair, "a.svc") for pair in certificates)
    stranger = Authority.create(NOW)
    assert not _handshake(bundle, *stranger.issue(["a.svc"], NOW), "a.svc")


async def test_of_processes_that_restart_for_ever_only_the_last_are_trusted() -> None:
    server, times = Server(), Times()
    server.put(configuration(None))
    for _ in range(BUNDLE_LIMIT + 2):
        times.now += timedelta(minutes=1)
        last = make_webhook(server, times=times)
        await last.maintain()
    (bundle,) = trusted(server)
    assert bundle.count(b"BEGIN CERTIFICATE") == BUNDLE_LIMIT
    assert bundle.startswith(last.authority.pem)


@pytest.mark.parametrize("error", [Conflict("changed"), Forbidden("no right")])
async def test_a_ca_that_cannot_be_published_is_no_reason_to_end(error: ApiError) -> None:
    server = Server()
    server.failures = [error]
    settled = await make_webhook(server).maintain()
    assert settled is not isinstance(error, Conflict), "who came second looks again at once"


async def test_the_certificate_is_renewed_while_it_is_good() -> None:
    times = Times()
    webhook = make_webhook(Server(), times=times)
    first = webhook._renewed_at
    times.now += timedelta(days=14)
    await webhook.maintain()
    assert webhook._renewed_at == first
    times.now += timedelta(days=2)
    await webhook.maintain()
    assert webhook._renewed_at == times.now


# --- serving ---------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def served() -> AsyncIterator[tuple[str, ssl.SSLContext]]:
    from e2e.testbed.processes import free_port

    server, port = Server(), free_port()
    server.put(configuration(None))
    webhook = make_webhook(server, port=port)
    serving = asyncio.create_task(webhook.run())
    while not any(verb == "patch" for verb, _, _ in server.calls):  # noqa: ASYNC110 - nothing tells us
        await asyncio.sleep(0.01)
    trust = ssl.create_default_context(cadata=webhook.authority.pem.decode())
    trust.verify_flags |= ssl.VERIFY_X509_STRICT
    yield f"https://127.0.0.1:{port}/pods", trust
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_a_review_is_answered_within_milliseconds(served: tuple[str, ssl.SSLContext]) -> None:
    url, trust = served
    took = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
        for _ in range(50):
            began = time.perf_counter()
            async with session.post(url, json=asked(bare_pod())) as response:
                answer = await response.json()
            took.append(time.perf_counter() - began)
    assert len(patched(answer["response"])) == 2
    assert sorted(took)[25] < 0.05
    await asyncio.sleep(0.1)


async def ask(url: str, trust: ssl.SSLContext, **body: Any) -> int:
    async with aiohttp.ClientSession() as session, session.post(url, ssl=trust, **body) as response:
        return response.status


async def test_who_floods_the_port_is_turned_away_and_reviews_are_answered_again_at_once(
    served: tuple[str, ssl.SSLContext],
) -> None:
    """Each of these once held its body in memory, for as long as it liked, beside the renewal of the Lease."""
    url, trust = served

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    slow = [asyncio.create_task(ask(url, trust, data=endless())) for _ in range(module._REVIEWS_AT_ONCE + 4)]
    done, held = await asyncio.wait(slow, timeout=0.8)
    assert ([task.result() for task in done], len(held)) == ([503] * 4, module._REVIEWS_AT_ONCE)
    assert await ask(url, trust, json=asked(bare_pod())) == 503
    assert {await task for task in held} == {408}
    assert await ask(url, trust, json=asked(bare_pod())) == 200


BODIES = {
    "more than a pod can have": (b"[" + b"{}," * (2 << 20) + b"{}]", 413),
    "no JSON": (b"{", 400),
    "no review": (b"[]", 400),
    "nested deep": (b"[" * 100_000, 400),
}


@pytest.mark.parametrize("name", BODIES)
async def test_what_is_no_review_is_refused(served: tuple[str, ssl.SSLContext], name: str) -> None:
    (url, trust), (body, want) = served, BODIES[name]
    assert await ask(url, trust, data=io.BytesIO(body)) == want
    assert await ask(url, trust, json=asked(bare_pod())) == 200


# --- certificates ----------------------------------------------------------------------------------------------------


def test_a_certificate_holds_for_the_names_and_addresses_it_was_issued_for() -> None:
    authority = Authority.create(NOW)
    certificate, key = authority.issue(["operator.system.svc", "127.0.0.1"], NOW)
    load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
    for host, fits in (("operator.system.svc", True), ("127.0.0.1", True), ("other.system.svc", False)):
        assert _handshake(authority.pem, certificate, key, host) is fits


def test_a_certificate_of_another_authority_is_not_trusted() -> None:
    certificate, key = Authority.create(NOW).issue(["a.svc"], NOW)
    assert not _handshake(Authority.create(NOW).pem, certificate, key, "a.svc")


def test_a_long_host_name_is_no_obstacle() -> None:
    authority = Authority.create(NOW)
    host = f"{'a' * 40}.{'n' * 60}.svc"
    assert _handshake(authority.pem, *authority.issue([host], NOW), host)


def _handshake(trusted: bytes, certificate: bytes, key: bytes, host: str) -> bool:
    """A TLS handshake in memory."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(server, certificate, key)
    client = ssl.create_default_context(cadata=trusted.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True
