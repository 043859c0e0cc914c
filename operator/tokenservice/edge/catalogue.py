"""Puts the shipped AcceleratorClasses and CapacityProfiles into the cluster without taking anything from anyone.

They are applied without force: a field that a user has set is the user's. What the API server then calls a conflict
is left out and the rest applied once more, so that a user who set a price still gets a corrected bandwidth.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tokenservice.core.model import Json
from tokenservice.core.names import FIELD_MANAGER
from tokenservice.errors import ApiError, Conflict

_log = logging.getLogger(__name__)

PARALLEL_WRITES = 8


class CatalogueApi(Protocol):
    """What the catalogue needs of the API server."""

    async def apply(
        self, manifest: Json, *, manager: str = FIELD_MANAGER, force: bool = True, subresource: str = ""
    ) -> Json: ...


class Fence(Protocol):
    """Whether this process may write."""

    def held(self) -> bool: ...


async def apply_catalogue(api: CatalogueApi, objects: Sequence[Json], fence: Fence) -> list[Json]:
    """Applies each object, eight at a time; returns those that could not be, for another try."""
    slots = asyncio.Semaphore(PARALLEL_WRITES)
    done = await asyncio.gather(*(_attempt(api, manifest, fence, slots) for manifest in objects))
    return [manifest for manifest, applied in zip(objects, done, strict=True) if not applied]


async def _attempt(api: CatalogueApi, manifest: Json, fence: Fence, slots: asyncio.Semaphore) -> bool:
    async with slots:
        if not fence.held():
            return False
        try:
            await _apply(api, manifest)
        except ApiError as error:
            _log.warning("%s %s is not applied: %s", manifest["kind"], manifest["metadata"]["name"], error)
            return False
        return True


async def _apply(api: CatalogueApi, manifest: Json) -> None:
    try:
        await api.apply(manifest, force=False)
    except Conflict as conflict:
        rest = without(manifest, conflicting_fields(conflict))
        _log.info("%s %s: left to their owners: %s", manifest["kind"], manifest["metadata"]["name"], conflict.message)
        await api.apply(rest, force=False)


def conflicting_fields(conflict: Conflict) -> list[str]:
    """Paths such as `.spec.pricePerHour` of fields that others manage."""
    causes = conflict.details.get("causes") or ()
    return [str(cause["field"]) for cause in causes if cause.get("reason") == "FieldManagerConflict"]


def without(manifest: Json, paths: Iterable[str]) -> Json:
    """A copy that lacks these fields. Keys may hold dots, so paths are matched against keys and not split."""
    kept = copy.deepcopy(manifest)
    for path in paths:
        _drop(kept, path)
    return kept


def _drop(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        return
    for key in list(value):
        if path == f".{key}":
            del value[key]
        elif path.startswith((f".{key}.", f".{key}[")):
            rest = path.removeprefix(f".{key}")
            if rest.startswith("["):  # an entry of a keyed list: leave the list as a whole
                del value[key]
            else:
                _drop(value[key], rest)
