"""Steady traffic to one service, through its ready endpoints, while a test does something to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import cast

from e2e.engines.cluster import Api, connect
from e2e.engines.reflector import follow
from e2e.load.account import Account, Objectives, Outcome, Result
from e2e.load.client import LoadGenerator, Target
from e2e.load.endpoints import ENDPOINT_SLICES, SERVICE_NAME_LABEL, ServiceKey, SliceEndpoints
from e2e.load.trace import Arrival
from e2e.testbed.bed import Bed
from e2e.tests.support.api import eventually

_SERVICE = "service"
_OBJECTIVES = Objectives(2.0, 0.2)


class Traffic:
    """Sends `rate` requests a second, evenly spaced, until it is left; the rate may change on the way.

    A context manager. Leaving it waits for the last answer; then the account is complete.
    """

    def __init__(
        self,
        bed: Bed,
        namespace: str,
        service: str,
        *,
        rate: float,
        input_tokens: int = 200,
        output_tokens: int = 100,
        max_wait_seconds: float = 30.0,
    ) -> None:
        self.rate = rate
        self.results: list[Result] = []
        self._input_tokens, self._output_tokens = input_tokens, output_tokens
        self._bed = bed
        self._service = ServiceKey(namespace, service)
        self._endpoints = SliceEndpoints()
        self._generator = LoadGenerator(
            bed.farm_url,
            {_SERVICE: Target(self._service, service, _OBJECTIVES)},
            self._endpoints,
            max_wait_seconds=max_wait_seconds,
            on_result=self.results.append,
        )
        self._stop, self._sent = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        eventually(lambda: self.account.arrived > 0 or self._error, "the first request is sent")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(120)
        if self._error is not None and error is None:
            raise self._error

    @property
    def account(self) -> Account:
        return self._generator.accounts[_SERVICE]

    @property
    def lost(self) -> dict[str, int]:
        """Requests that did not get their whole answer, by what became of them; empty is what is wanted."""
        outcomes = self.account.outcomes
        return {str(o): count for o, count in outcomes.items() if count and o is not Outcome.OK}

    @property
    def cut(self) -> int:
        """Answers that broke off."""
        return self.account.outcomes[Outcome.CUT]

    @property
    def answered(self) -> int:
        return self.account.outcomes[Outcome.OK]

    def goes_on(self, requests: int = 5) -> None:
        """Waits until so many more requests were answered: it is alive now."""
        before = self.answered
        eventually(lambda: self.answered >= before + requests, f"{requests} more answers; lost so far: {self.lost}")

    def stop_sending(self) -> None:
        """No further requests from the moment this returns; those under way go on."""
        self._stop.set()
        self._sent.wait(30)

    def _run(self) -> None:
        try:
            asyncio.run(self._send())
        except BaseException as error:  # told to the test by __exit__
            self._error = error

    async def _send(self) -> None:
        client = await connect(str(self._bed.cluster.kubeconfig))
        selector = f"{SERVICE_NAME_LABEL}={self._service.name}"
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{self._service.namespace}/endpointslices"
        assert ENDPOINT_SLICES.endswith("/endpointslices")
        watch = asyncio.create_task(follow(Api(client), slices, self._endpoints, labelSelector=selector))
        try:
            await asyncio.wait_for(self._endpoints.wait_ready(self._service), 60)
            await self._generator.run(cast(list[Arrival], self._arrivals()))
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            await client.close()  # type: ignore[no-untyped-call]
            await asyncio.sleep(0.25)  # TLS connections need a moment of the loop to end

    def _arrivals(self) -> Iterator[Arrival]:
        """Made up as time passes, so that the rate can change and the end need not be known."""
        at_s = 0.0
        while not self._stop.is_set():
            yield Arrival(at_s, _SERVICE, self._input_tokens, self._output_tokens)
            at_s += 1.0 / max(self.rate, 0.2)
        self._sent.set()
