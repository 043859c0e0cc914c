"""Adds the placement gate and the serving readiness gate to new engine pods, while someone is there to lift them.

It must never be in the way: the configuration says `Ignore`, and while nobody plans every pod is admitted as it came.
The API server may ask any process of ours, the leader or not. So each has its own authority in the configuration, and
each knows from the Lease whether someone plans; no key is shared, and no Secret is needed. kopf's own webhook server
writes its keys to files and hands handlers a merge patch; this is smaller than bending it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from aiohttp import web

from tokenservice.core.model import Json, ObjectKey
from tokenservice.core.names import FIELD_MANAGER, MANAGED_BY_LABEL, PLACEMENT_GATE, SERVICE_LABEL, SERVING_CONDITION
from tokenservice.edge.certificates import SERVER_LIFETIME, Authority, bundle, load
from tokenservice.edge.kube import Patch
from tokenservice.errors import ApiError, Conflict

_log = logging.getLogger(__name__)

CHECK_SECONDS = 30.0
"""How often the published CA is looked at: an upgrade of the chart may have taken it out."""

AGAIN_SECONDS = 1.0
"""Until the next look when another process published at the same moment."""

_BODY_LIMIT_BYTES = 4 * 2**20
"""A review has an object that is made: at most the 1.5 MiB that can be stored, and what JSON escapes of it."""

_BODY_SECONDS = 1.0
"""The API server waits no longer for the whole answer."""

_REVIEWS_AT_ONCE = 16
"""Bodies that are held in memory. Whoever the network lets in can send some, and the Lease is renewed beside them."""


class ConfigurationApi(Protocol):
    """What publishing the CA needs of the API server."""

    async def get(self, key: ObjectKey) -> Json: ...

    async def patch(self, key: ObjectKey, body: Json | list[Json], how: Patch, subresource: str = "") -> Json: ...


def review(body: Json, *, active: bool) -> Json:
    """The answer to an AdmissionReview; always allows."""
    request = body["request"]
    answer: Json = {"uid": request["uid"], "allowed": True}
    operations = gates(request.get("object") or {}) if active and request.get("operation") == "CREATE" else []
    if operations:
        patch = base64.b64encode(json.dumps(operations).encode()).decode()
        answer |= {"patchType": "JSONPatch", "patch": patch}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}


def gates(pod: Json) -> list[Json]:
    """JSON patch that adds both gates; empty for pods that are not engines or already have a node."""
    spec, labels = pod.get("spec") or {}, (pod.get("metadata") or {}).get("labels") or {}
    ours = SERVICE_LABEL in labels and labels.get(MANAGED_BY_LABEL) == FIELD_MANAGER
    if not ours or spec.get("nodeName"):  # of others' pods the operator may not lift a gate
        return []
    return [
        *_appended(spec, "schedulingGates", {"name": PLACEMENT_GATE}),
        *_appended(spec, "readinessGates", {"conditionType": SERVING_CONDITION}),
    ]


def _appended(spec: Json, name: str, entry: Json) -> list[Json]:
    present = spec.get(name) or []
    if entry in present:
        return []
    if not present:
        return [{"op": "add", "path": f"/spec/{name}", "value": [entry]}]
    return [{"op": "add", "path": f"/spec/{name}/-", "value": entry}]


@dataclass(kw_only=True)
class Webhook:
    """The HTTPS server, and the CA that the API server is told to trust.

    `active` says whether gates may be added; `hosts` are the names and addresses that the API server reaches it under.
    """

    api: ConfigurationApi
    configuration: ObjectKey
    hosts: Sequence[str]
    address: str
    port: int
    active: Callable[[], bool]
    count: Callable[[str], None] = lambda result: None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    authority: Authority = field(init=False)

    def __post_init__(self) -> None:
        self.authority = Authority.create(self.now())
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._renewed_at = self._renew()
        self._slots = asyncio.Semaphore(_REVIEWS_AT_ONCE)

    async def run(self) -> None:
        """Serves until cancelled; renews its certificate long before it ends."""
        application = web.Application(client_max_size=_BODY_LIMIT_BYTES)
        application.add_routes([web.post("/{path:.*}", self._answer)])
        runner = web.AppRunner(application, handle_signals=False, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.address, self.port, ssl_context=self._context).start()
            while True:
                settled = await self.maintain()
                await asyncio.sleep(CHECK_SECONDS if settled else AGAIN_SECONDS)
        finally:
            await runner.cleanup()

    async def maintain(self) -> bool:
        """Renews what is due and publishes what is missing; False when someone else wrote at the same time."""
        if self.now() - self._renewed_at > SERVER_LIFETIME / 2:
            self._renewed_at = self._renew()
        try:
            await self._publish()
        except Conflict:
            return False
        except ApiError as error:
            _log.warning("the webhook's CA could not be published, pods are not gated: %s", error)
        return True

    async def _answer(self, request: web.Request) -> web.Response:
        """Turns away at once what there is no room for: the pod is then admitted as it came."""
        if self._slots.locked():
            self.count("busy")
            raise web.HTTPServiceUnavailable
        async with self._slots:
            return self._reviewed(await _body_of(request))

    def _reviewed(self, body: bytes) -> web.Response:
        active = self.active()
        try:
            answer = review(json.loads(body), active=active)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise web.HTTPBadRequest(text=f"this is no AdmissionReview: {error!r:.200}") from error
        self.count("gated" if "patch" in answer["response"] else "passed" if active else "inactive")
        return web.json_response(answer)

    async def _publish(self) -> None:
        """Adds our CA to every webhook of the configuration that lacks it, on the revision that was read."""
        live = await self.api.get(self.configuration)
        present = {hook["name"]: _bundle_of(hook) for hook in live.get("webhooks") or ()}
        lacking = [name for name, trusted in present.items() if self.authority.pem not in trusted]
        if lacking:
            body = {
                "metadata": {"resourceVersion": live["metadata"]["resourceVersion"]},
                "webhooks": [{"name": name, "clientConfig": self._trusting(present[name])} for name in lacking],
            }
            await self.api.patch(self.configuration, body, Patch.STRATEGIC)
            _log.info("published the CA of the webhook in %s", self.configuration.name)

    def _trusting(self, present: bytes) -> Json:
        return {"caBundle": base64.b64encode(bundle(self.authority.pem, present)).decode()}

    def _renew(self) -> datetime:
        now = self.now()
        load(self._context, *self.authority.issue(self.hosts, now))
        return now


async def _body_of(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error


def _bundle_of(hook: Json) -> bytes:
    return base64.b64decode((hook.get("clientConfig") or {}).get("caBundle") or "")
