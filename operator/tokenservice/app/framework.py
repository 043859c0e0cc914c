"""kopf in a thread and an event loop of its own.

kopf takes every task in its loop for one of its own and cancels them all when it ends; here it cannot reach ours. Its
health endpoint also answers when our loop hangs, and can then say so.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any, Protocol, cast

import kopf

from tokenservice.app.handlers import Hooks, registry, settings

_log = logging.getLogger(__name__)

_STOP_SECONDS = 10.0


async def run_kopf(
    hooks: Hooks, *, identity: str, namespaces: Sequence[str], health_address: str, health_port: int
) -> None:
    """Runs kopf until cancelled. Raises what ended it, should it end by itself.

    `identity` is this process's. Left to itself kopf asks for the user's name, and a container's user may have none.
    """
    stop = threading.Event()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    host = f"[{health_address}]" if ":" in health_address else health_address
    endpoint = f"http://{host}:{health_port}/healthz"
    work = threading.Thread(
        target=_run, args=(asyncio.get_running_loop(), ended, hooks, identity, namespaces, endpoint, stop), name="kopf"
    )
    work.start()
    try:
        await ended
    finally:
        stop.set()
        await asyncio.to_thread(work.join, _STOP_SECONDS)


def _run(
    main: asyncio.AbstractEventLoop,
    ended: asyncio.Future[None],
    hooks: Hooks,
    identity: str,
    namespaces: Sequence[str],
    endpoint: str,
    stop: threading.Event,
) -> None:
    error: BaseException | None = None
    try:
        asyncio.run(_operate(hooks, identity, namespaces, endpoint, stop))
    except BaseException as caught:
        error = caught
    if not stop.is_set():
        main.call_soon_threadsafe(_settle, ended, error)


async def _operate(
    hooks: Hooks, identity: str, namespaces: Sequence[str], endpoint: str, stop: threading.Event
) -> None:
    await kopf.operator(
        identity=cast(Any, identity),  # kopf keeps the type of it to itself
        registry=registry(hooks),
        settings=settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        liveness_endpoint=endpoint,
        stop_flag=stop,
    )


def _settle(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if not ended.done():
        ended.set_exception(error or RuntimeError("kopf ended by itself"))


class Connection(Protocol):
    """Where the API server is and who we are, as `kubernetes.aio` holds it."""

    host: str
    api_key: dict[str, str]
    verify_ssl: bool
    ssl_ca_cert: str | None
    cert_file: str | None
    key_file: str | None


def connection_info(connection: Connection) -> kopf.ConnectionInfo:
    """How kopf reaches the API server: as we do, with the token of this moment."""
    scheme, _, token = connection.api_key.get("BearerToken", "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=connection.host,
        insecure=not connection.verify_ssl,
        ca_path=connection.ssl_ca_cert,
        certificate_path=connection.cert_file,
        private_key_path=connection.key_file,
        scheme=scheme.capitalize() or None,
        token=token or None,
    )
