"""One fake engine: the life of an engine pod's container, from cold start to drain.

What the kubelet would see goes to `Reports`. The drain is each engine's own: vLLM finishes what it has for
`--shutdown-timeout` seconds and without that flag aborts everything, SGLang finishes without limit; both are killed
when the pod's grace period is over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from e2e.engines.contract import Dialect, EnginePod, Profile
from e2e.engines.metrics import EngineMetrics
from e2e.engines.process import EngineProcess, Stream, Timer, Timers
from e2e.engines.sglang_metrics import SglangMetrics
from e2e.engines.vllm_metrics import VllmMetrics
from tokenservice.simulate.engine import RequestId

SGLANG_DRAIN_POLL_SECONDS = 5.0
"""SGLang looks for unfinished requests on SIGTERM and then this often, and exits when it finds none."""


class Reports(Protocol):
    """Where the engine's state is made visible to the cluster."""

    def ready(self, pod: EnginePod, ready: bool) -> None:
        """The engine opened its port, or lost its process."""

    def drained(self, pod: EnginePod) -> None:
        """The engine's process ended after the pod was told to go."""


class State(StrEnum):
    """Of the engine's process, as a client sees it."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


class UnavailableError(Exception):
    """The engine takes no requests now."""


class ImpossibleError(Exception):
    """This engine can never serve that request."""


class FakeEngine:
    """The engine of one pod; its cold start begins when it is made.

    `cold_start_seconds` are on the timers' clock, so already divided by the time scale. A failing start is tried
    again and again. Every method may be called in any state.
    """

    def __init__(
        self,
        pod: EnginePod,
        profile: Profile,
        timers: Timers,
        reports: Reports,
        *,
        cold_start_seconds: float,
        wall_clock: Callable[[], float],
        start_fails: Callable[[], bool] = lambda: False,
    ) -> None:
        self.pod = pod
        self.profile = profile
        self.max_model_len = profile.max_model_len(pod.command)
        self._timers = timers
        self._reports = reports
        self._wall_clock = wall_clock
        self._cold_start_seconds = cold_start_seconds
        self._start_fails = start_fails
        self._deadlines: list[Timer] = []
        self._is_terminating = False
        self.adapters: dict[str, str] = {}
        self._process = self._new_process()
        if pod.ready_reported:  # it was serving before this fleet was started
            self.state = State.SERVING
        else:
            self._begin_cold_start()

    # -- what clients, scrapers and probers see

    @property
    def in_flight(self) -> int:
        """Requests that are waiting or running."""
        return self._process.in_flight

    @property
    def listens(self) -> bool:
        """Whether the process has its port open."""
        return self.state in (State.SERVING, State.DRAINING)

    def submit(self, *, prompt_tokens: int, output_tokens: int, cached_tokens: int, stream: Stream) -> RequestId:
        """Queue a request. Raises UnavailableError or ImpossibleError."""
        if self.state != State.SERVING:
            raise UnavailableError(f"the engine is {self.state}")
        if prompt_tokens + output_tokens > self.max_model_len:
            raise ImpossibleError(
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{output_tokens} output tokens and your prompt contains {prompt_tokens} input tokens."
            )
        return self._process.submit(
            prompt_tokens=prompt_tokens, output_tokens=output_tokens, cached_tokens=cached_tokens, stream=stream
        )

    def abort(self, request_id: RequestId) -> None:
        """The client left. Nothing when the request is already over."""
        self._process.abort(request_id)

    def load_adapter(self, name: str, path: str, *, in_place: bool) -> None:
        """Load an adapter from a folder. Raises ImpossibleError in the words of vLLM."""
        room = self.pod.command.max_lora_rank
        if room is None:
            raise ImpossibleError("LoRA is not enabled")
        if name in self.adapters and not in_place:
            raise ImpossibleError(f"The lora adapter '{name}' has already been loaded.")
        try:
            rank = int(json.loads((Path(path) / "adapter_config.json").read_text())["r"])
        except OSError as error:
            raise ImpossibleError(f"Loading lora {name} failed: No adapter found for {path}") from error
        if rank > room:
            raise ImpossibleError(f"LoRA rank {rank} is greater than max_lora_rank {room}.")
        self.adapters[name] = path

    def metrics_page(self) -> str:
        """The Prometheus text as of now."""
        return self._process.metrics_page()

    # -- life

    def terminate(self) -> None:
        """The pod was deleted: the preStop hook, then SIGTERM, and SIGKILL when the grace period is over."""
        deletion = self.pod.deletion
        if deletion is None or self.state == State.GONE or self._is_terminating:
            return
        self._is_terminating = True
        self._after(min(deletion.grace_seconds, max(0.0, deletion.kill_at_epoch_s - self._wall_clock())), self.kill)
        if self.state == State.STARTING:
            self.kill()
        elif self.pod.prestop_seconds:
            self._after(self.pod.prestop_seconds, self._sigterm)
        else:
            self._sigterm()

    def kill(self) -> None:
        """The process is gone at once, with its connections."""
        if self.state == State.GONE:
            return
        self._stop_process()
        self.state = State.GONE
        if self.pod.deletion is not None:
            self._reports.drained(self.pod)

    def crash(self) -> None:
        """The process dies and the kubelet starts the container again, from cold."""
        if self._is_terminating:  # a container of a pod on its way out is not restarted
            self.kill()
        if self.state == State.GONE:
            return
        self._stop_process()
        self._reports.ready(self.pod, False)
        self._process = self._new_process()
        self.adapters.clear()
        self._begin_cold_start()

    def hang(self) -> None:
        """The engine makes no progress until `resume`."""
        self._process.hang()

    def resume(self) -> None:
        """The end of `hang`."""
        self._process.resume()

    def _new_process(self) -> EngineProcess:
        limits = self.profile.limits(self.pod.command)
        return EngineProcess(self.profile, limits, self._new_metrics(), self._timers, self._on_idle)

    def _new_metrics(self) -> EngineMetrics:
        command, capacity = self.pod.command, self.profile.kv_capacity_tokens
        if self.pod.dialect == Dialect.SGLANG:
            return SglangMetrics(
                model_name=command.model_name,
                kv_capacity_tokens=capacity,
                startup_seconds=self.profile.cold_start_seconds,
                ttft_bounds=command.ttft_bounds,
                token_gap_bounds=command.token_gap_bounds,
            )
        return VllmMetrics(
            model_name=command.model_name,
            kv_capacity_tokens=capacity,
            max_model_len=self.max_model_len,
            started_epoch_s=self._wall_clock(),
            ttft_bounds=command.ttft_bounds,
            token_gap_bounds=command.token_gap_bounds,
        )

    def _stop_process(self) -> None:
        for timer in self._deadlines:
            timer.cancel()
        self._deadlines.clear()
        self._process.stop()

    def _begin_cold_start(self) -> None:
        self.state = State.STARTING
        self._after(self._cold_start_seconds, self._end_cold_start)

    def _end_cold_start(self) -> None:
        if self._start_fails():
            self._begin_cold_start()
            return
        self.state = State.SERVING
        self._reports.ready(self.pod, True)

    def _sigterm(self) -> None:
        self.state = State.DRAINING
        if self.pod.dialect == Dialect.SGLANG:
            self._poll_drained()
        elif self.pod.command.shutdown_timeout_seconds > 0 and self.in_flight:
            self._after(self.pod.command.shutdown_timeout_seconds, self.kill)
        else:
            self.kill()

    def _poll_drained(self) -> None:
        if self.in_flight:
            self._after(SGLANG_DRAIN_POLL_SECONDS, self._poll_drained)
        else:
            self.kill()

    def _on_idle(self) -> None:
        if self.state == State.DRAINING and self.pod.dialect == Dialect.VLLM:
            self.kill()

    def _after(self, seconds: float, callback: Callable[[], None]) -> None:
        self._deadlines.append(self._timers.call_at(self._timers.time() + seconds, callback))
