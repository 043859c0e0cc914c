"""What kopf calls. Handlers only mark the fleet dirty and tell how it is; deciding and writing happen in the loop.

`on.event` writes nothing to the objects, unlike handlers with state. Contents come from our own reflectors: kopf does
not say when its first list is complete, nor what vanished while a watch was down, and a plan needs to know both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import kopf

from tokenservice.api import GROUP, VERSION
from tokenservice.edge.kube import PAGE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What handlers reach; `stuck` says why this process should be restarted."""

    mark_dirty: Callable[[], None]
    connection: Callable[[], kopf.ConnectionInfo]
    state: Callable[[], dict[str, Any]]
    stuck: Callable[[], str | None]


def registry(hooks: Hooks) -> kopf.OperatorRegistry:
    """The handlers, bound to `hooks`."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return hooks.connection()

    @kopf.on.event(GROUP, VERSION, kopf.EVERYTHING, registry=found)
    async def changed(**_: Any) -> None:
        hooks.mark_dirty()

    @kopf.on.probe(id="state", registry=found)
    async def state(**_: Any) -> dict[str, Any]:
        if why := hooks.stuck():
            raise kopf.PermanentError(why)
        return hooks.state()

    return found


def settings() -> kopf.OperatorSettings:
    """How kopf runs: alone, silent on the objects, with timeouts, and without watching CRDs or namespaces."""
    chosen = kopf.OperatorSettings()
    chosen.peering.standalone = True
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.networking.request_timeout = 30.0
    chosen.networking.connect_timeout = 10.0
    chosen.watching.chunk_size = PAGE_SIZE
    chosen.persistence.finalizer = f"{GROUP}/unused"
    return chosen
