"""A bridge for the nodes, and routes to their pods and Services.

The host is the router: it reaches each node by the bridge, each node's pods by the node, and cluster addresses by the
first node, whose kube-proxy translates them. Nothing leaves the machine: there is no address translation to outside.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

BRIDGE = "taas0"
GATEWAY = "10.90.0.1"
SERVICES = "10.96.0.0/16"
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class CommandError(RuntimeError):
    """A program of the system said no; the message carries its words."""


def run(*command: str | Path, stdin: str | None = None) -> str:
    """Runs a command to its end and returns what it prints. Raises CommandError."""
    done = subprocess.run([str(word) for word in command], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandError(f"{' '.join(str(word) for word in command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def address(number: int) -> str:
    """Of node 1, 2, …"""
    return f"10.90.0.{10 + number}"


def pods(number: int) -> str:
    """The pods' subnet of a node."""
    return f"10.245.{number}.0/24"


def create() -> bool:
    """The bridge. Returns whether the machine forwarded packets before; `remove` wants to know."""
    forwarded = _FORWARD.read_text().strip() == "1"
    _FORWARD.write_text("1")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    return forwarded


def remove(*, forwarded: bool = True) -> None:
    """The bridge goes, and the routes over it with it. The nodes' ends went with their namespaces."""
    with suppress(CommandError):
        run("ip", "link", "delete", BRIDGE)
    if not forwarded:
        _FORWARD.write_text("0")


def plug_in(number: int, pid: int, others: Iterable[int]) -> None:
    """Connects the network namespace of process `pid` as node `number`, with routes from and to everything."""
    here, there = f"taas{number}", "eth0"
    with suppress(CommandError):  # the kernel takes a namespace of the run before down in its own time
        run("ip", "link", "delete", here)
    run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", str(pid))
    run("ip", "link", "set", here, "master", BRIDGE, "up")
    inside = ("nsenter", f"--target={pid}", "--net", "ip")
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "address", "add", f"{address(number)}/24", "dev", there)
    run(*inside, "link", "set", there, "up")
    run(*inside, "route", "add", "default", "via", GATEWAY)
    for other in others:
        run(*inside, "route", "add", pods(other), "via", address(other))
    run("ip", "route", "add", pods(number), "via", address(number))
    if number == 1:
        run("ip", "route", "add", SERVICES, "via", address(number))
