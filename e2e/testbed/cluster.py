"""A control plane as five processes: etcd, kube-apiserver, controller-manager, scheduler, KWOK.

The processes are started here rather than by kwokctl: it saves half of the 22 seconds, and the flags that the tests
need (audit log, quick node-death detection, Pod Security) are in plain sight. RBAC is on; each component has a token of
its own user. `CLUSTER=existing` with `KUBE_CONTEXT=NAME` takes a cluster that is there, and never stops it.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from e2e.testbed.processes import Processes, free_port
from e2e.testbed.tools import tool


class TestbedError(RuntimeError):
    """Something asked of the cluster failed; the message carries what the program said."""

    __test__ = False


_HERE = Path(__file__).resolve().parent
_USERS = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "kwok": "system:masters",
}
HPA_SYNC_SECONDS = 2
"""Of the HPA controller, for 15 by default: the pace that the operator has in the testbed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What real nodes need: an `address` of the API server that they reach, and users for what runs on them.

    Simulated ones are noticed to be dead after `grace_seconds`, and renew their leases four times in `lease_seconds`.
    """

    address: str = "127.0.0.1"
    nodes: tuple[str, ...] = ()
    lease_seconds: int = 10
    grace_seconds: int = 10

    def users(self) -> dict[str, str]:
        """Users and the group of each, beside those of every cluster."""
        kubelets = {f"system:node:{name}": "system:nodes" for name in self.nodes}
        return kubelets | ({"system:kube-proxy": ""} if self.nodes else {})


LOOPBACK = Wiring()
USUAL = Wiring(lease_seconds=40, grace_seconds=50)
"""Kubernetes' own defaults: what nodes ask of the API server when nobody waits for their death."""


@dataclass
class Cluster:
    """A running control plane. `kubeconfig` is an administrator's. One that is not `owned` was there before."""

    folder: Path
    server: str
    certificate: Path
    kubeconfig: Path
    processes: Processes
    owned: bool = True

    def restart_api_server(self) -> None:
        """It is killed and started again over the same etcd, and is ready."""
        self.processes.restart("kube-apiserver")
        ready = lambda: self.kubectl("get", "--raw=/readyz", check=False).strip() == "ok"  # noqa: E731
        self.processes.wait_until(ready, what="API server ready", timeout_seconds=90)

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        """Runs kubectl as administrator, returns what it prints; stderr is in the error."""
        done = subprocess.run(
            [tool("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise TestbedError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout + ("" if check else done.stderr)

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> str:
        """Applies objects with kubectl."""
        return self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def apply_server_side(self, *objects: dict[str, Any]) -> str:
        """Applies parts of objects, which are the caller's from then on."""
        arguments = ("apply", "--server-side", "--force-conflicts", "--field-manager=testbed", "-f", "-")
        return self.kubectl(*arguments, stdin=yaml.safe_dump_all(objects))

    def helm(self, *arguments: str) -> str:
        """Runs helm against this cluster."""
        done = subprocess.run(
            [tool("helm"), f"--kubeconfig={self.kubeconfig}", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise TestbedError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def user_kubeconfig(self, user: str) -> Path:
        """The kubeconfig of one of the control plane's own users."""
        return _user_path(self.folder, user)

    @property
    def kubelet_client_certificate(self) -> Path:
        """What the API server shows to kubelets; of a cluster that was started with nodes."""
        return self.folder / "kubelet-client.crt"

    def service_account_kubeconfig(self, namespace: str, name: str, seconds: int = 86400) -> Path:
        """A kubeconfig with a token of the ServiceAccount and nothing more."""
        token = self.kubectl("create", "token", name, "-n", namespace, f"--duration={seconds}s").strip()
        return _kubeconfig(self.folder / f"{namespace}-{name}.kubeconfig", self.server, self.certificate, token)

    def stop(self) -> None:
        """Stops what was started here; an existing cluster is left alone."""
        self.processes.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def start(folder: Path | None = None, wiring: Wiring = LOOPBACK) -> Cluster:
    """A control plane that is ready, in about ten seconds once the programs are there."""
    if os.environ.get("CLUSTER") == "existing":
        return _existing()
    home = folder or Path(tempfile.mkdtemp(prefix="taas-"))
    home.mkdir(parents=True, exist_ok=True)
    processes = Processes(home / "logs")
    try:
        return _start(home, processes, wiring)
    except BaseException:
        processes.stop()
        raise


def _start(home: Path, processes: Processes, wiring: Wiring) -> Cluster:
    users = _USERS | wiring.users()
    tokens = {user: secrets.token_hex(16) for user in users}
    rows = [f'{token},{user},{user},"{users[user]}"' for user, token in tokens.items()]
    _private(home / "tokens.csv", "\n".join(rows))
    etcd_url = _start_etcd(home, processes)
    server = _start_api_server(home, processes, etcd_url, wiring)
    certificate = home / "certs/apiserver.crt"
    processes.wait_until(
        lambda: _ready(server, certificate, tokens["admin"]), what="API server ready", timeout_seconds=60
    )
    configs = {user: _kubeconfig(_user_path(home, user), server, certificate, token) for user, token in tokens.items()}
    cluster = Cluster(
        folder=home, server=server, certificate=certificate, kubeconfig=configs["admin"], processes=processes
    )
    manager = _controller_manager(home, configs["system:kube-controller-manager"], certificate, wiring)
    processes.start("kube-controller-manager", manager)
    processes.start("kube-scheduler", _scheduler(configs["system:kube-scheduler"]))
    processes.start("kwok", _kwok(configs["kwok"], wiring))
    processes.wait_until(
        lambda: "default" in cluster.kubectl("get", "sa", "default", "-o=name", check=False),
        what="controllers at work",
        timeout_seconds=60,
    )
    return cluster


def _start_etcd(home: Path, processes: Processes) -> str:
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = [
        tool("etcd"),
        f"--data-dir={home / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]
    processes.start("etcd", command)
    processes.wait_until(lambda: _answers(f"{client}/health"), what="etcd healthy", timeout_seconds=30)
    return client


def _start_api_server(home: Path, processes: Processes, etcd_url: str, wiring: Wiring) -> str:
    port = free_port()
    key = _service_account_key(home / "sa.key")
    command = [
        tool("kube-apiserver"),
        f"--etcd-servers={etcd_url}",
        f"--bind-address={wiring.address}",
        f"--advertise-address={wiring.address}",
        f"--secure-port={port}",
        f"--cert-dir={home / 'certs'}",
        f"--token-auth-file={home / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        # Off by default, on in OpenShift: it asks for rights that nothing else shows.
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        f"--audit-policy-file={_HERE / 'audit-policy.yaml'}",
        f"--audit-log-path={home / 'audit.log'}",
        "--allow-privileged=true",
        *(_towards_nodes(home) if wiring.nodes else ["--endpoint-reconciler-type=none"]),
    ]
    processes.start("kube-apiserver", command)
    return f"https://{wiring.address}:{port}"


def _towards_nodes(home: Path) -> list[str]:
    """Pods find the API server by its Service, and it finds kubelets by address, with a certificate of its own."""
    certificate, key = home / "kubelet-client.crt", home / "kubelet-client.key"
    _client_certificate(certificate, key)
    return [
        f"--kubelet-client-certificate={certificate}",
        f"--kubelet-client-key={key}",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _controller_manager(home: Path, kubeconfig: Path, certificate: Path, wiring: Wiring) -> list[str | Path]:
    return [
        tool("kube-controller-manager"),
        f"--kubeconfig={kubeconfig}",
        f"--service-account-private-key-file={home / 'sa.key'}",
        f"--root-ca-file={certificate}",
        f"--node-monitor-grace-period={wiring.grace_seconds}s",
        "--node-monitor-period=2s",
        f"--horizontal-pod-autoscaler-sync-period={HPA_SYNC_SECONDS}s",
        "--bind-address=127.0.0.1",
        f"--secure-port={free_port()}",
        "--leader-elect=false",
        "--use-service-account-credentials",
        "--controllers=*,-node-ipam-controller",
        "--authentication-skip-lookup",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]


def _scheduler(kubeconfig: Path) -> list[str | Path]:
    return [
        tool("kube-scheduler"),
        f"--kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--authentication-skip-lookup",
        "--bind-address=127.0.0.1",
        f"--secure-port={free_port()}",
        "--leader-elect=false",
    ]


def _kwok(kubeconfig: Path, wiring: Wiring) -> list[str | Path]:
    return [
        tool("kwok"),
        f"--kubeconfig={kubeconfig}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        f"--node-lease-duration-seconds={wiring.lease_seconds}",
        "--cidr=10.244.0.0/16",
        f"--server-address=127.0.0.1:{free_port()}",
        f"--config={_HERE / 'stages.yaml'}",
    ]


def _kubeconfig(path: Path, server: str, certificate: Path, token: str) -> Path:
    data = base64.b64encode(certificate.read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": {"server": server, "certificate-authority-data": data}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "user"}}],
        "current-context": "testbed",
    }
    _private(path, yaml.safe_dump(config))
    return path


def _service_account_key(path: Path) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    _private(path, pem.decode())
    return path


def _user_path(home: Path, user: str) -> Path:
    return home / f"{user.replace(':', '-')}.kubeconfig"


def _client_certificate(certificate: Path, key: Path) -> None:
    """Signed by itself: who trusts this one certificate trusts nobody else."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kube-apiserver-kubelet-client")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    pem = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _private(key, pem.decode())
    _private(certificate, made.public_bytes(serialization.Encoding.PEM).decode())


def _private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _ready(server: str, certificate: Path, token: str) -> bool:
    if not certificate.exists():
        return False
    context = ssl.create_default_context(cafile=str(certificate))
    return _answers(f"{server}/readyz", context, token)


def _answers(url: str, context: ssl.SSLContext | None = None, token: str = "") -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=2, context=context) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _existing() -> Cluster:
    """A cluster that somebody else runs; only with a context named in so many words."""
    context = os.environ.get("KUBE_CONTEXT")
    if not context:
        raise TestbedError("CLUSTER=existing needs KUBE_CONTEXT=NAME: no cluster is ever taken by accident")
    view = subprocess.run(
        [tool("kubectl"), "config", "view", "--raw", "--flatten", "--minify", f"--context={context}", "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    config = json.loads(view.stdout)
    found, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    if "token" not in user or "certificate-authority-data" not in found:
        raise TestbedError(f"context {context} must name a cluster with its CA and a user with a token: tests use both")
    home = Path(tempfile.mkdtemp(prefix="taas-"))
    certificate = home / "ca.crt"
    certificate.write_bytes(base64.b64decode(found["certificate-authority-data"]))
    _private(home / "kubeconfig", view.stdout)
    return Cluster(
        folder=home,
        server=found["server"],
        certificate=certificate,
        kubeconfig=home / "kubeconfig",
        processes=Processes(home / "logs"),
        owned=False,
    )


if __name__ == "__main__":
    cluster = start()
    print(f"ready; export KUBECONFIG={cluster.kubeconfig}\nCtrl-C stops it")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        cluster.stop()
