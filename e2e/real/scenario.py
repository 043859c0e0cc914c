"""The run: a cold start to the first token, then a change after the other under load that never stops.

Each change has a phase of its own, which begins before the change and ends when it is carried out and has settled.
"""

from __future__ import annotations

import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from e2e.real import bed as parts
from e2e.real import images, optimizations, service, verification
from e2e.real.bed import SCRAPE_SECONDS, Bed
from e2e.real.load import Load, Question
from e2e.real.report import Report
from e2e.real.service import HIGH, LOW, NAME, NAMESPACE, WINDOW_SECONDS
from e2e.testbed.cluster import TestbedError
from e2e.testbed.operator import NAMESPACE as OPERATOR_NAMESPACE
from e2e.testbed.operator import RELEASE
from tokenservice.core.engines.sources import MODEL_PATH
from tokenservice.core.names import ENGINE_CONTAINER

Json = dict[str, Any]
Say = Callable[[str], None]

START_SECONDS = 900.0
"""A replica may take so long on a machine that does other things too; alone it takes a tenth."""

_MODEL = Path(__file__).with_name("model.py")
"""Run by the engine image's Python, never here."""

POLL_SECONDS = 2.0
"""Each look is a kubectl of its own, and the engines need the cores."""

SETTLE_SECONDS = 20.0
"""A phase goes on for so long after its change, for what comes late."""

_RUNNING = '{__name__="vllm:num_requests_running"}'


class Scenario:
    """One run on one bed."""

    def __init__(self, bed: Bed, say: Say) -> None:
        self._bed, self._say, self._report = bed, say, Report(operator_image_bytes=bed.operator_image_bytes)
        self._began: dict[str, float] = {}

    def run(self, *, short: bool = False) -> Report:
        """Everything, or `short` what needs no load. The report says what was lost; what did not come about raises."""
        parts.install_operator(self._bed)
        self._say("the operator runs, from its image, under Pod Security restricted")
        self._bring_model()
        url = self._first_token()
        if not short:
            self._changes_under_load(url)
        self._measure_operator()
        self._report.verification = self._verified(url)
        seen = optimizations.seen(_address(self._pod()))
        pod = self._drafted()
        adapted = self._adapted(pod)
        self._report.optimizations = seen | adapted | optimizations.seen_later(_address(pod))
        self._report.contract = self._held_to_contract(pod)
        return self._report

    def _changes_under_load(self, url: str) -> None:
        load = Load(Question(url=url, model=NAME, output_tokens=service.OUTPUT_TOKENS))
        load.start("steady", LOW)
        try:
            self._phases(load)
        except BaseException:
            load.abandon()
            raise
        load.stop()
        self._report.phases = load.phases

    def _phases(self, load: Load) -> None:
        began = time.time()
        self._settle()
        self._count_running("steady", time.time() - began)
        with self._phase(load, "scale-up", HIGH):
            self._until(lambda: self._ready() == service.MAX_REPLICAS, "two replicas serving")
            self._settle(WINDOW_SECONDS)
            self._report.columns = self._kubectl("get", "tokenservices", "-n", NAMESPACE)
            print(self._report.columns, flush=True)
        with self._phase(load, "upgrade", HIGH):
            before = set(self._pods())
            self._bed.cluster.apply(service.token_service())
            self._until(lambda: self._all_new(before), "every replica with the new argument, the old ones gone")
        with self._phase(load, "drain", HIGH):
            node = self._drainable()
            self._drain(node)
            self._until(lambda: self._ready() == service.MAX_REPLICAS, "two replicas serving after the drain")
            self._kubectl("uncordon", node)
        load.question = replace(load.question, busy=service.BUSY, longer_tokens=service.LONGER_TOKENS)
        with self._phase(load, "operator-restart", HIGH):
            self._restart_operator()
        with self._phase(load, "operator-upgrade", HIGH):
            parts.install_operator(self._bed, tag=images.NEXT)
        load.question = replace(load.question, busy=0)
        with self._phase(load, "scale-down", LOW):
            self._until(lambda: len(self._pods()) == 1 and self._ready() == 1, "one replica, the other gone")
        with self._phase(load, "refused-change", LOW):
            self._bed.cluster.apply(service.token_service(max_model_len=service.TOO_LONG))
            self._until(lambda: "max_model_len" in self._stalled(), "the engine's own words in Stalled")
            self._report.refusal = self._stalled()
            self._say(f"Stalled: {self._report.refusal}")
            self._bed.cluster.apply(service.token_service())
            self._until(lambda: not self._stalled() and len(self._pods()) == 1, "what served before, alone again")
        self._say("the last requests end")

    # --- What is done --------------------------------------------------------------------------------------------

    def _bring_model(self) -> None:
        self._say("the model: two layers, random weights")
        for node in self._bed.nodes:
            node.bring_model(self._bed.engine_image, _MODEL)
        self._bed.cluster.apply(*service.weights(), service.accelerator(), service.profile(), service.fleet())

    def _first_token(self) -> str:
        """From `kubectl apply` to the first token of an answer, over the Service's cluster address."""
        applied = time.time()
        self._bed.cluster.apply(service.token_service(max_model_len=1024))
        self._say("kubectl apply of the TokenService")
        self._kubectl("wait", "--for=condition=Ready", f"tokenservice/{NAME}", "-n", NAMESPACE, "--timeout=15m")
        found = self._bed.cluster.get("service", NAME, "-n", NAMESPACE)["spec"]
        url = f"http://{found['clusterIP']}:{found['ports'][0]['port']}"
        self._report.engine_version = json.loads(_get(f"{url}/version"))["version"]
        first = _first_token(url)
        self._report.cold_start = self._start_up(applied, first)
        self._say(f"first token {first - applied:.0f} s after the apply, from vLLM {self._report.engine_version}")
        return url

    def _start_up(self, applied: float, first: float) -> dict[str, float]:
        """Seconds by step, from what the kubelet noted (whole seconds) and the engine's log."""
        (pod,) = self._bed.cluster.get("pods", "-n", NAMESPACE, "-l", f"taas.dev/service={NAME}")["items"]
        when = {c["type"]: _epoch(c["lastTransitionTime"]) for c in pod["status"]["conditions"]}
        running = _epoch(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"])
        created = _epoch(pod["metadata"]["creationTimestamp"])
        return {
            "podCreated": max(0.0, created - applied),
            "podScheduled": when["PodScheduled"] - created,
            "containerStarted": running - when["PodScheduled"],
            "engineReady": when["Ready"] - running,
            "firstToken": first - when["Ready"],
            "all": first - applied,
        }

    def _drainable(self) -> str:
        """A node with a replica, where possible not the operator's: its restart is a phase of its own."""
        pods = self._bed.cluster.get("pods", "-A")["items"]
        replicas = {pod["spec"].get("nodeName") for pod in pods if pod["metadata"]["namespace"] == NAMESPACE}
        operators = {p["spec"].get("nodeName") for p in pods if p["metadata"]["namespace"] == OPERATOR_NAMESPACE}
        return str(min(replicas, key=lambda node: node in operators))

    def _drain(self, node: str) -> None:
        self._say(f"kubectl drain {node}")
        self._kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={START_SECONDS:.0f}s")

    def _restart_operator(self) -> None:
        at = ("-n", OPERATOR_NAMESPACE)
        selector = f"app.kubernetes.io/instance={RELEASE}"
        self._kubectl("delete", "pod", *at, "-l", selector, "--wait")
        self._kubectl("rollout", "status", f"deployment/{RELEASE}", *at, "--timeout=300s")

    def _verified(self, url: str) -> Json:
        """What is said of a signed model, and of one with a changed bit, whose engine must not start.

        Its engines have optimizations already, to be seen after it.
        """
        models = [node.folder / "models/tiny" for node in self._bed.nodes]
        self._bed.cluster.apply(verification.signed(models, self._bed.cluster.folder))
        good = service.token_service(model=verification.VERIFIED, engine=service.OPTIMIZED)
        self._bed.cluster.apply(good)
        self._until(lambda: self._alone_with(verification.KEY), "one replica whose model was verified")
        self._until(lambda: self._condition("ModelVerified")["status"] == "True", "ModelVerified to say so")
        said, (serving,) = self._condition("ModelVerified")["message"], self._pods()
        self._say(f"ModelVerified: {said}")
        unwritable = self._cannot_write(serving)
        with verification.changed(models):
            told = self._refused(url, serving)
        self._bed.cluster.apply(good)
        self._until(lambda: not self._stalled() and self._pods() == [serving], "what was verified, alone again")
        return {"signed": said, "engineCannotWrite": unwritable} | told

    def _cannot_write(self, pod: str) -> bool:
        """Whether the kernel keeps an engine from its model: restarted in its pod, it reads it without a verifier."""
        command = ("touch", f"{MODEL_PATH}/tiny/new")
        try:
            self._kubectl("exec", pod, "-n", NAMESPACE, "-c", ENGINE_CONTAINER, "--", *command)
        except TestbedError as error:
            return "Read-only file system" in str(error)
        return False

    def _refused(self, url: str, serving: str) -> Json:
        """A new version is asked for while the model is another than was signed."""
        another = service.token_service(max_model_len=1024, model=verification.VERIFIED, engine=service.OPTIMIZED)
        self._bed.cluster.apply(another)
        self._until(lambda: self._condition("ModelVerified")["status"] == "False", "the changed bit to be noticed")
        said = self._condition("ModelVerified")["message"]
        self._say(f"ModelVerified: {said}")
        _first_token(url)
        pods = self._pods()
        return {
            "changed": said,
            "fileIsNamed": f"Hash mismatch for '{verification.WEIGHTS}'" in said,
            "noEngineStarted": len(pods) > 1 and not any(map(self._engine_started, set(pods) - {serving})),
            "goodVersionServed": serving in pods and self._ready() == 1,
        }

    def _drafted(self) -> Json:
        """The pod of a replica with a draft model, and room for an adapter."""
        self._say("speculation with a draft model, and room for an adapter")
        self._bed.cluster.apply(service.token_service(model=service.ROOM, engine=service.DRAFTED))
        self._until(lambda: self._alone_with("draft_model"), "one replica with them")
        return self._pod()

    def _adapted(self, before: Json) -> Json:
        """What it took for the engine that runs to have the adapter, which nobody but its loader may give it."""
        began = time.time()
        self._bed.cluster.apply(service.token_service(model=service.ADAPTED, engine=service.DRAFTED))
        self._until(lambda: self._adapters() == {service.ADAPTER: "Ready"}, "the adapter, in the engine that runs")
        after = self._pod()
        same = [pod["metadata"]["uid"] for pod in (before, after)]
        ran = [pod["status"]["containerStatuses"][0]["restartCount"] for pod in (before, after)]
        return {
            "adapterLoadedAfterSeconds": round(time.time() - began, 1),
            "adapterCostNoReplica": same[0] == same[1] and ran[0] == ran[1],
            "adaptersGuarded": optimizations.refuses_adapters(_address(after)),
        }

    def _adapters(self) -> dict[str, str]:
        """State of each adapter that the status shows."""
        status = self._bed.cluster.get("tokenservice", NAME, "-n", NAMESPACE).get("status", {})
        return {one["name"]: one["state"] for one in status.get("adapters", ())}

    def _held_to_contract(self, pod: Json) -> list[Json]:
        """`tokenservice engine check` against the replica, a graceful stop last of all, from its own node."""
        node = next(node for node in self._bed.nodes if node.name == pod["spec"]["nodeName"])
        self._say("the engine contract")
        return node.check_engine(pod)

    # --- What is seen --------------------------------------------------------------------------------------------

    def _ready(self) -> int:
        found = self._bed.cluster.get("tokenservice", NAME, "-n", NAMESPACE).get("status", {})
        return int(found.get("readyReplicas") or 0)

    def _living(self) -> list[Json]:
        found = self._bed.cluster.get("pods", "-n", NAMESPACE, "-l", f"taas.dev/service={NAME}")["items"]
        return [pod for pod in found if pod["status"].get("phase") in ("Pending", "Running")]

    def _pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self._living()]

    def _pod(self) -> Json:
        """The only one there is."""
        (pod,) = self._living()
        return pod

    def _condition(self, name: str) -> Json:
        conditions = self._bed.cluster.get("tokenservice", NAME, "-n", NAMESPACE)["status"]["conditions"]
        return next(dict(it) for it in conditions if it["type"] == name)

    def _stalled(self) -> str:
        """Why, or nothing."""
        found = self._condition("Stalled")
        return str(found["message"]) if found["status"] == "True" else ""

    def _engine_started(self, name: str) -> bool:
        """Whether a pod's engine ever ran."""
        (engine,) = self._bed.cluster.get("pod", name, "-n", NAMESPACE)["status"]["containerStatuses"]
        return bool(engine["restartCount"]) or "waiting" not in engine["state"]

    def _alone_with(self, word: str) -> bool:
        """Whether the only replica serves, and was started with this word."""
        pods = self._living()
        return len(pods) == 1 == self._ready() and word in json.dumps(pods[0]["spec"])

    def _all_new(self, before: set[str]) -> bool:
        now = self._pods()
        return len(now) == service.MAX_REPLICAS and not before & set(now) and self._ready() == len(now)

    def _measure_operator(self) -> None:
        """Its resident memory at the end and at its peak, as the kernel counts it; one process is all there is."""
        at = ("-n", OPERATOR_NAMESPACE, f"deployment/{RELEASE}")
        status = self._kubectl("exec", *at, "--", "cat", "/proc/1/status")
        kib = {name: int(value) for name, value in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status)}
        self._report.operator_resident_bytes = kib["VmRSS"] * 1024
        self._report.operator_peak_bytes = kib["VmHWM"] * 1024

    # --- How it goes on ------------------------------------------------------------------------------------------

    @contextmanager
    def _phase(self, load: Load, name: str, rate: float) -> Iterator[None]:
        began = time.time()
        load.phase(name, rate)
        self._say(f"phase {name}: {rate:g} requests/s")
        yield
        self._settle()
        ending = load.phases[-1]
        self._count_running(name, time.time() - began)
        lost = f"{ending.sent} sent, {ending.failed} failed, {ending.cut} cut so far"
        self._say(f"phase {name} over: {lost}; {self._report.busy[name]:.2f} running per replica")

    def _count_running(self, name: str, seconds: float) -> None:
        """How busy the engines were in the phase that ends now: by replica, and per replica of those that were up."""
        window = f"{seconds:.0f}s"
        by_pod = self._asked(f"avg by (pod) (avg_over_time({_RUNNING}[{window}]))")
        self._report.running[name] = {series["metric"]["pod"]: float(series["value"][1]) for series in by_pod}
        (every,) = self._asked(f"avg_over_time(avg({_RUNNING})[{window}:{SCRAPE_SECONDS}s])")
        self._report.busy[name] = float(every["value"][1])

    def _asked(self, query: str) -> list[Json]:
        """Series of an instant query."""
        asked = urllib.parse.urlencode({"query": query})
        answer = json.loads(_get(f"{self._bed.prometheus.address}/api/v1/query?{asked}"))
        return list(answer["data"]["result"])

    def _settle(self, seconds: float = SETTLE_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._bed.processes.check()
            time.sleep(0.5)

    def _until(self, true: Callable[[], bool], what: str) -> None:
        self._say(f"waiting for {what}")
        self._bed.processes.wait_until(true, what=what, timeout_seconds=START_SECONDS, pause_seconds=POLL_SECONDS)

    def _kubectl(self, *arguments: str) -> str:
        return self._bed.cluster.kubectl(*arguments)


def _first_token(url: str) -> float:
    """When the first token of a streamed answer came (clock of `time.time`)."""
    body = json.dumps({"model": NAME, "prompt": "Hello", "max_tokens": 8, "stream": True}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        next(line for line in answer if line.startswith(b"data: "))
        return time.time()


def _address(pod: Json) -> str:
    return f"http://{pod['status']['podIP']}:8000"


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())


def _epoch(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
