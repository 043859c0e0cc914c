"""Stand-ins for what is outside: a clock that is moved by hand, an API server that keeps optimistic concurrency."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from tokenservice.core.model import Json, ObjectKey
from tokenservice.core.names import FIELD_MANAGER
from tokenservice.edge.kube import Page, Patch, key_of
from tokenservice.edge.store import Version
from tokenservice.errors import Conflict, NotFound


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Server:
    """Objects under keys; every write raises the revision. `failures` are raised first, one a call."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, Json] = {}
        self.calls: list[tuple[str, ObjectKey, Any]] = []
        self.failures: list[Exception] = []
        self.revision = 1  # no object has ever the first: it is the empty store's

    def put(self, obj: Json) -> ObjectKey:
        key = key_of(obj)
        self.revision += 1
        metadata = {"uid": f"uid-{self.revision}", **obj["metadata"], "resourceVersion": str(self.revision)}
        self.objects[key] = {**obj, "metadata": metadata}
        return key

    def version(self, key: ObjectKey) -> Version | None:
        found = self.objects.get(key)
        return Version(found["metadata"]["uid"], found["metadata"]["resourceVersion"]) if found else None

    async def get(self, key: ObjectKey) -> Json:
        self._call("get", key)
        return copy.deepcopy(self._live(key))

    async def find(self, key: ObjectKey) -> Json | None:
        self._call("find", key)
        return copy.deepcopy(self.objects.get(key))

    async def list_pages(self, kind: str, namespace: str = "") -> AsyncIterator[Page]:
        """One object a page."""
        self._call("list", ObjectKey(kind, namespace, ""))
        for key in [key for key in self.objects if (key.kind, key.namespace) == (kind, namespace)]:
            yield Page((copy.deepcopy(self.objects[key]),), str(self.revision))

    async def create(self, kind: str, body: Json) -> Json:
        self._call("create", key_of(body), body)
        if key_of(body) in self.objects:
            raise Conflict("exists", status=409, reason="AlreadyExists")
        return copy.deepcopy(self.objects[self.put(body)])

    async def apply(
        self, manifest: Json, *, manager: str = FIELD_MANAGER, force: bool = True, subresource: str = ""
    ) -> Json:
        key = key_of(manifest)
        self._call("apply", key, {"manifest": manifest, "manager": manager, "force": force, "subresource": subresource})
        self._check(key, manifest["metadata"])
        merged = {**self.objects.get(key, {}), **manifest}
        merged["metadata"] = {**self.objects.get(key, {}).get("metadata", {}), **manifest["metadata"]}
        return copy.deepcopy(self.objects[self.put(merged)])

    async def patch(self, key: ObjectKey, body: Json | list[Json], how: Patch, subresource: str = "") -> Json:
        self._call("patch", key, {"body": body, "how": how, "subresource": subresource})
        assert isinstance(body, dict)
        live = self._live(key)
        self._check(key, body.get("metadata", {}))
        self.put(_merged(live, body))
        return copy.deepcopy(self.objects[key])

    async def delete(self, key: ObjectKey, *, uid: str, resource_version: str) -> Json:
        self._call("delete", key)
        self._live(key)
        self._check(key, {"uid": uid, "resourceVersion": resource_version})
        return self.objects.pop(key)

    def _call(self, verb: str, key: ObjectKey, detail: Any = None) -> None:
        self.calls.append((verb, key, detail))
        if self.failures:
            raise self.failures.pop(0)

    def _live(self, key: ObjectKey) -> Json:
        if key not in self.objects:
            raise NotFound(f"{key.name} not found", status=404)
        return self.objects[key]

    def _check(self, key: ObjectKey, expected: Json) -> None:
        live = self.objects.get(key, {}).get("metadata", {})
        if not live and "uid" not in expected:
            return  # as the real one does: a revision alone does not keep an apply from creating
        for field in ("uid", "resourceVersion"):
            if field in expected and expected[field] != live.get(field):
                raise Conflict(f"{field} is {live.get(field)}", status=409)


def _merged(live: Json, patch: Json) -> Json:
    merged = dict(live)
    for key, value in patch.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
