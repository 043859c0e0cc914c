"""What this machine must be for real nodes, said in one sentence where it is not."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from e2e.real import network
from e2e.real.node import CGROUP_PREFIX, CGROUPS, remove_cgroup
from e2e.testbed.tools import cache_root

CANNOT = 77
"""Exit code of a run that this machine cannot do: neither passed nor failed."""

DISK_BYTES = 30 * 10**9
"""Needed while the engine's image is made; a third of it stays."""

MEMORY_BYTES = 12 * 10**9

PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}
"""Program -> Debian package that brings it."""


class CannotError(RuntimeError):
    """This machine lacks what real nodes need; the message is the sentence that says so."""


def check(say: Callable[[str], None]) -> None:
    """Raises CannotError; installs Debian packages that are missing."""
    for lack in _lacks():
        raise CannotError(f"real nodes cannot run here: {lack}")
    _install(say)


def _lacks() -> Iterator[str]:
    if os.geteuid() != 0:
        yield "it takes root to make namespaces, mounts and control groups"
        return
    if not _succeeds("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"):
        yield "the kernel or the container around this refuses new namespaces"
    if not _can_make_cgroups():
        yield f"control groups cannot be made in {CGROUPS}"
    if "overlay" not in Path("/proc/filesystems").read_text():
        yield "the kernel has no overlay file system"
    if not _succeeds("ip", "link", "add", "taas-probe", "type", "bridge"):
        yield "no bridge can be made (iproute2 and CAP_NET_ADMIN)"
    _succeeds("ip", "link", "delete", "taas-probe")
    yield from _small()


def _small() -> Iterator[str]:
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < DISK_BYTES and not list((root / "images").glob("engine-*")):
        yield f"{root} has {free / 1e9:.0f} GB free, and making the engine's image takes {DISK_BYTES / 1e9:.0f}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < MEMORY_BYTES:
        yield f"it has {memory / 1e9:.0f} GB of memory, and two engines take {MEMORY_BYTES / 1e9:.0f}"


def _can_make_cgroups() -> bool:
    probes = [path / f"{CGROUP_PREFIX}probe" for path in (CGROUPS, CGROUPS / "memory") if path.is_dir()]
    for probe in reversed(probes):
        with suppress(OSError):
            probe.mkdir(exist_ok=True)
            probe.rmdir()
            return True
    return False


def _succeeds(*command: str) -> bool:
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def _install(say: Callable[[str], None]) -> None:
    """From Debian, the services they would start held back: nodes start containerd themselves."""
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise CannotError(f"real nodes cannot run here: install {', '.join(missing)}")
    say(f"apt-get install {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for arguments in (("update",), ("install", "--yes", "--no-install-recommends", *missing)):
        done = subprocess.run(
            ["apt-get", "-qq", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise CannotError(f"real nodes cannot run here: apt-get {arguments[0]}: {done.stderr.strip()}")


@contextmanager
def alone() -> Iterator[None]:
    """One real testbed a machine: names of bridge and control groups are given. Clears what a killed run left."""
    folder = cache_root()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "real.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotError("real nodes cannot run here: another run on this machine has them") from None
        network.remove()
        for name in {path.name for depth in ("", "*/") for path in CGROUPS.glob(f"{depth}{CGROUP_PREFIX}*")}:
            remove_cgroup(name)
        yield
