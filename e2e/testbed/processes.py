"""Child processes that log to files and never outlive their owner.

A test run may end by Ctrl-C, by an exception or by SIGKILL, and an API server left behind would hold its ports and
memory for days. `atexit` does not run on SIGKILL, and Linux's parent-death signal fires when the *thread* that forked
ends, which kills children started from a worker thread. So each owner has a watchdog: a small process that knows the
children's ids and reads a pipe whose other end only the owner holds. However the owner dies, the pipe closes, and the
watchdog ends the children. Children get sessions of their own, so that Ctrl-C reaches the owner alone, which then stops
them in order.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Below Linux's range for outgoing connections (32768 and up), which may take a port between choosing and binding it.
PORTS = range(20_000, 32_000)
LOG_TAIL_LINES = 25

WATCHDOG = """
import os, signal, sys, time

def send(pid, number):
    try:
        os.killpg(pid, number)
        return True
    except ProcessLookupError:
        return False

pids = set()
for line in sys.stdin:
    sign, pid = line[0], int(line[1:])
    (pids.add if sign == "+" else pids.discard)(pid)
pids = {pid for pid in pids if send(pid, signal.SIGTERM)}
deadline = time.monotonic() + 3
while pids and time.monotonic() < deadline:
    time.sleep(0.1)
    pids = {pid for pid in pids if send(pid, 0)}
for pid in pids:
    send(pid, signal.SIGKILL)
"""


class ProcessDiedError(RuntimeError):
    """A child process ended by itself; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """One running process and the file it logs to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def log_tail(self) -> str:
        """The last lines of the log, for error messages."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-LOG_TAIL_LINES:])


class Processes:
    """The children of one owner, stopped together; a context manager.

    With `guarded=False` the children outlive the owner on purpose (`cluster up` by hand).
    """

    def __init__(self, log_dir: Path, *, guarded: bool = True) -> None:
        self._log_dir = log_dir
        self._children: dict[str, Child] = {}
        self._watchdog = _start_watchdog() if guarded else None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self._children.items()}

    def start(self, name: str, args: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Child:
        """Start a process in a session of its own, appending its output to `<log_dir>/<name>.log`."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        log = self._log_dir / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(arg) for arg in args],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )
        child = Child(name=name, process=process, log=log)
        self._children[name] = child
        self._tell_watchdog("+", child.pid)
        return child

    def stop_one(self, name: str, *, grace_seconds: float = 5) -> None:
        """Stop one child, if it is there."""
        if child := self._children.get(name):
            self._stop([child], grace_seconds)

    def restart(self, name: str) -> Child:
        """Kill one child, and start it again as it was, but for an environment of its own."""
        command = self._children[name].process.args
        self.signal(name, signal.SIGKILL)
        self.stop_one(name)
        assert isinstance(command, list)
        return self.start(name, command)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one child, if it is there."""
        if child := self._children.get(name):
            _signal(child, number)

    def stop(self, *, grace_seconds: float = 5) -> None:
        """Stop every child, the last started first, and the watchdog."""
        self._stop(list(reversed(self._children.values())), grace_seconds)
        self._dismiss_watchdog()

    def release(self) -> None:
        """Let the children live on after their owner has gone."""
        for child in self._children.values():
            self._tell_watchdog("-", child.pid)
        self._dismiss_watchdog()

    def check(self) -> None:
        """Raise ProcessDiedError if a child has ended by itself."""
        for child in self._children.values():
            if not child.is_running:
                code = child.process.returncode
                raise ProcessDiedError(f"{child.name} ended with status {code}; {child.log} ends:\n{child.log_tail()}")

    def wait_until(
        self, ready: Callable[[], bool], *, what: str, timeout_seconds: float, pause_seconds: float = 0.1
    ) -> None:
        """Poll `ready` until it is true; raise as soon as a child dies, or when the time is up."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} not reached in {timeout_seconds:.0f} s; logs are in {self._log_dir}")
            time.sleep(pause_seconds)

    def _stop(self, children: Sequence[Child], grace_seconds: float) -> None:
        for child in children:
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        for child in children:
            try:
                child.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(child, signal.SIGKILL)
                child.process.wait()
            self._tell_watchdog("-", child.pid)
            del self._children[child.name]

    def _tell_watchdog(self, sign: str, pid: int) -> None:
        if self._watchdog and self._watchdog.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.write(f"{sign}{pid}\n".encode())
                self._watchdog.stdin.flush()

    def _dismiss_watchdog(self) -> None:
        if self._watchdog and self._watchdog.stdin:
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on."""
    for port in random.sample(PORTS, k=200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port among 200 of {PORTS.start}-{PORTS.stop}")


def _start_watchdog() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCHDOG],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _signal(child: Child, number: signal.Signals) -> None:
    """Signal the child's whole group; a child that was not reaped yet keeps its id, so this hits no stranger."""
    if child.is_running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
