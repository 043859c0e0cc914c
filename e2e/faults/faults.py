"""Faults by name: what may happen to a request, to its answer, and to the events of a watch."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from e2e.faults.proxy import Answer, Broken, Call, Door, Fault, Forward, Lines, Stream, straight

Chosen = Callable[[Call], bool]


def counted(call: Call) -> bool:
    """A write that something hangs on: neither a renewal of the Lease nor an Event, on which nothing is decided."""
    return call.is_write and call.kind not in ("leases", "events")


def beside_lease(call: Call) -> bool:
    """Everything but what keeps leadership."""
    return call.kind != "leases"


# --- requests --------------------------------------------------------------------------------------------------------


def answering(status: int, reason: str = "", *, retry_after: int | None = None) -> Fault:
    """The server refuses, and does nothing."""

    async def refuse(call: Call, forward: Forward) -> Answer:
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason}
        headers = {"Content-Type": "application/json"}
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        return Answer(status, json.dumps({**body, "message": f"injected {status}"}).encode(), headers)

    return refuse


async def page(call: Call, forward: Forward) -> Answer:
    """Something in between answers with a page for people."""
    return Answer(502, b"<html><body>Bad gateway</body></html>", {"Content-Type": "text/html"})


async def reset(call: Call, forward: Forward) -> Answer:
    """The connection breaks before the request arrives."""
    raise Broken


async def lost(call: Call, forward: Forward) -> Answer:
    """The request is carried out, and its answer is lost."""
    await forward(call)
    raise Broken


def slow(seconds: float) -> Fault:
    """The answer takes so long."""

    async def wait(call: Call, forward: Forward) -> Answer:
        await asyncio.sleep(seconds)
        return await forward(call)

    return wait


def only(chosen: Chosen, fault: Fault) -> Fault:
    """The fault for the calls that are chosen."""

    async def pick(call: Call, forward: Forward) -> Answer:
        return await (fault if chosen(call) else straight)(call, forward)

    return pick


def every(step: int, chosen: Chosen, fault: Fault) -> Fault:
    """The fault for each `step`th call of those that are chosen, from the first on."""
    seen = -1

    async def pick(call: Call, forward: Forward) -> Answer:
        nonlocal seen
        if not chosen(call):
            return await forward(call)
        seen += 1
        return await (straight if seen % step else fault)(call, forward)

    return pick


@dataclass
class AtWrite:
    """Something happens at the `number`th write that counts; writes pass one at a time, so that it is well defined.

    `hit` is that write once it came.
    """

    number: int
    then: Fault
    hit: Call | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    _seen: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        if not counted(call):
            return await forward(call)
        async with self._turn:
            self._seen += 1
            if self._seen != self.number:
                return await forward(call)
            self.hit = call
            try:
                return await self.then(call, forward)
            finally:
                self.reached.set()


def dying(door: Door) -> Fault:
    """The write is carried out; whoever sent it dies before it hears of that, and nothing of it comes after."""

    async def die(call: Call, forward: Forward) -> Answer:
        await forward(call)
        door.shut()
        raise Broken

    return die


# --- watches ---------------------------------------------------------------------------------------------------------


def of_kinds(kinds: Sequence[str], stream: Stream) -> Stream:
    """The fault for the watches of some kinds."""
    return lambda call, lines: stream(call, lines) if call.kind in kinds else lines


async def repeated(call: Call, lines: Lines) -> Lines:
    """Every event comes twice."""
    async for line in lines:
        yield line
        yield line


def late(seconds: float) -> Stream:
    """Every event comes that much later than it should."""

    async def delay(call: Call, lines: Lines) -> Lines:
        async for line in lines:
            await asyncio.sleep(seconds)
            yield line

    return delay


def coalesced(seconds: float) -> Stream:
    """Events are gathered for so long, and of each object only the last is shown."""

    async def gather(call: Call, lines: Lines) -> Lines:
        async with _queued(lines) as queue:
            while (first := await queue.get()) is not None:
                await asyncio.sleep(seconds)
                held = [first]
                while not queue.empty():
                    if (line := queue.get_nowait()) is None:
                        return
                    held.append(line)
                for line in _last_of_each(held):
                    yield line

    return gather


def additions_unseen(seconds: float) -> Stream:
    """The first event of each new object is dropped where a change follows within so long, and comes as late if not.

    Nothing may change a pod with a gate before somebody lifts it: that it is there has to be shown some time.
    """

    async def withhold(call: Call, lines: Lines) -> Lines:
        held: dict[str, tuple[float, bytes]] = {}
        clock = asyncio.get_running_loop().time
        async with _queued(lines) as queue:
            while True:
                try:
                    async with asyncio.timeout_at(min((at for at, _ in held.values()), default=None)):
                        line = await queue.get()
                except TimeoutError:
                    for uid in [uid for uid, (at, _) in held.items() if at <= clock()]:
                        yield held.pop(uid)[1]
                    continue
                if line is None:
                    return
                event = json.loads(line)
                uid = event["object"].get("metadata", {}).get("uid", "")
                if event["type"] == "ADDED":
                    held[uid] = (clock() + seconds, line)
                else:
                    held.pop(uid, None)
                    yield line

    return withhold


@asynccontextmanager
async def _queued(lines: Lines) -> AsyncIterator[asyncio.Queue[bytes | None]]:
    """The lines as they come, then None."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def fill() -> None:
        try:
            async for line in lines:
                queue.put_nowait(line)
        finally:
            queue.put_nowait(None)

    filling = asyncio.create_task(fill())
    try:
        yield queue
    finally:
        filling.cancel()


@dataclass
class Frozen:
    """Events of some kinds are held back while it is `on`, and come in order afterwards."""

    kinds: Sequence[str]
    on: bool = False

    def __call__(self, call: Call, lines: Lines) -> Lines:
        return self._held(lines) if call.kind in self.kinds else lines

    async def _held(self, lines: Lines) -> Lines:
        async for line in lines:
            while self.on:  # noqa: ASYNC110 - set from another thread
                await asyncio.sleep(0.02)
            yield line


def _last_of_each(lines: list[bytes]) -> list[bytes]:
    last: dict[tuple[str, str], bytes] = {}
    for line in lines:
        metadata = json.loads(line)["object"]["metadata"]
        identity = (metadata.get("namespace", ""), metadata.get("name", ""))
        last.pop(identity, None)
        last[identity] = line
    return list(last.values())


# --- Prometheus ------------------------------------------------------------------------------------------------------

Result = dict[str, Any]
Change = Callable[[Result], Result | None]


def results(change: Change, asked: str = "") -> Fault:
    """Each series that Prometheus found for queries that contain `asked`, changed or (None) left out."""

    async def rewrite(call: Call, forward: Forward) -> Answer:
        answer = await forward(call)
        if answer.status != 200 or asked not in call.query.get("query", ""):
            return answer
        body = answer.json
        if body["data"]["resultType"] == "vector":
            changed = (change(found) for found in body["data"]["result"])
            body["data"]["result"] = [found for found in changed if found is not None]
        return replace(answer, body=json.dumps(body).encode())

    return rewrite


def valued(text: str) -> Change:
    """The value, replaced."""
    return lambda found: {**found, "value": [found["value"][0], text]}


def nothing(found: Result) -> None:
    """The series is not there."""


def twice(asked: str, second: str) -> Fault:
    """Every series comes again, with another value and a label more: two servers answer as one."""

    async def rewrite(call: Call, forward: Forward) -> Answer:
        answer = await forward(call)
        if asked not in call.query.get("query", ""):
            return answer
        body = answer.json
        found = body["data"]["result"]
        again = [{"metric": {**f["metric"], "replica": "b"}, "value": [f["value"][0], second]} for f in found]
        body["data"]["result"] = [*found, *again]
        return replace(answer, body=json.dumps(body).encode())

    return rewrite


def moved(seconds: float) -> Fault:
    """Asked as of another time: with a positive one all samples are old, as of a server that lags."""

    async def shift(call: Call, forward: Forward) -> Answer:
        query = {**call.query, "time": f"{time.time() + seconds:.3f}"}
        return await forward(replace(call, query=query))

    return shift


def crowded(count: int) -> Fault:
    """So many series of services that nobody asked for come along."""

    async def add(call: Call, forward: Forward) -> Answer:
        answer = await forward(call)
        body = answer.json
        for number in range(count):
            labels = {"namespace": f"tenant-{number}", "model_name": "other", "le": "1.0"}
            body["data"]["result"].append({"metric": labels, "value": [time.time(), "1"]})
        return replace(answer, body=json.dumps(body).encode())

    return add


def text(status: int, body: str, kind: str = "text/html") -> Fault:
    """Something else answers there."""

    async def say(call: Call, forward: Forward) -> Answer:
        return Answer(status, body.encode(), {"Content-Type": kind})

    return say


# --- scrapes ---------------------------------------------------------------------------------------------------------


def scraping(farm: int, door: int, change: Callable[[str, str], str] = lambda path, page: page) -> Fault:
    """Engines are found and scraped by way of the door, their pages changed."""

    async def pass_on(call: Call, forward: Forward) -> Answer:
        answer = await forward(call)
        if call.path == "/sd":
            return replace(answer, body=answer.body.replace(f":{farm}".encode(), f":{door}".encode()))
        if call.path.endswith("/metrics") and answer.status == 200:
            return replace(answer, body=change(call.path, answer.body.decode()).encode())
        return answer

    return pass_on


@dataclass
class Restarting:
    """Every counter begins anew at every scrape: an engine that restarts all the time."""

    _last: dict[str, float] = field(default_factory=dict)

    def __call__(self, path: str, page: str) -> str:
        return "\n".join(self._line(path, line) for line in page.splitlines()) + "\n"

    def _line(self, path: str, line: str) -> str:
        name, _, value = line.rpartition(" ")
        counter = name.partition("{")[0].endswith(("_total", "_count", "_sum", "_bucket"))
        if line.startswith("#") or not counter:
            return line
        before = self._last.get(path + name, 0.0)
        self._last[path + name] = float(value)
        return f"{name} {float(value) - before}"
