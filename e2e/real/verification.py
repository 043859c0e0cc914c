"""A signed model, and one bit of it changed: what `spec.model.verification` is held to on a real node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing

from e2e.real.service import NAMESPACE

Json = dict[str, Any]
KEY = "release-key"
VERIFIED: Json = {"verification": {"publicKey": {"kind": "ConfigMap", "name": KEY}}}
"""What the spec of a model says more."""

WEIGHTS = "model.safetensors"
_SIGNATURE = "model.sig"


def signed(models: Iterable[Path], folder: Path) -> Json:
    """Signs each with one new key, whose private half goes to the folder; the ConfigMap with the public one."""
    private = ec.generate_private_key(ec.SECP256R1())
    secret = folder / "release.key"
    secret.touch(mode=0o600)
    secret.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    for model in models:
        _sign(model, secret)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": KEY, "namespace": NAMESPACE},
        "data": {"model.pub": public.decode()},
    }


@contextmanager
def changed(models: Sequence[Path]) -> Iterator[None]:
    """One bit of the weights of each is another meanwhile."""
    for model in models:
        _flip(model / WEIGHTS)
    yield
    for model in models:
        _flip(model / WEIGHTS)


def _sign(model: Path, secret: Path) -> None:
    """As `model_signing sign key` does."""
    how = hashing.Config().set_ignored_paths(paths=[model / _SIGNATURE])
    signer = signing.Config().set_hashing_config(how).use_elliptic_key_signer(private_key=secret)
    signer.sign(model, model / _SIGNATURE)
    (model / _SIGNATURE).chmod(0o644)


def _flip(file: Path) -> None:
    """The lowest bit of the last weight, in bf16."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
