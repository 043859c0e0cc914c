"""A certificate authority and server certificates that live in memory only.

The API server trusts the webhook through the CA in its configuration, so nobody needs cert-manager for one endpoint.
Keys are never on a disk: OpenSSL wants files, an anonymous one of the kernel is enough.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=30)
_CLOCK_SKEW = timedelta(minutes=5)
_AUTHORITY_NAME = "tokenservice-operator webhook CA"

BUNDLE_LIMIT = 5
"""Authorities trusted at a time: three processes, and two that were replaced. Keys of those that ended are gone."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs for as long as the process lives; a restart makes another."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, now: datetime) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(_AUTHORITY_NAME)
        builder = _builder(name, name, key.public_key(), now, AUTHORITY_LIFETIME)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return cls(key, builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256()))

    @property
    def pem(self) -> bytes:
        """What clients trust."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, hosts: Sequence[str], now: datetime) -> tuple[bytes, bytes]:
        """Certificate and key of a server that is reached under `hosts`; both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(hosts[0][:64])
        builder = _builder(subject, self.certificate.subject, key.public_key(), now, SERVER_LIFETIME)
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = builder.add_extension(issuer, critical=False).sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def bundle(own: bytes, present: bytes) -> bytes:
    """`own` first, then the youngest of our other authorities in `present`; what is not of our making is left out."""
    mine = x509.load_pem_x509_certificate(own)
    others = [found for found in _certificates(present) if found.subject == _name(_AUTHORITY_NAME) and found != mine]
    others.sort(key=lambda found: (found.not_valid_before_utc, found.serial_number), reverse=True)
    return b"".join(found.public_bytes(serialization.Encoding.PEM) for found in [mine, *others[: BUNDLE_LIMIT - 1]])


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        return []


def load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Makes `context` serve this certificate to whoever connects from now on."""
    with _anonymous_file(certificate) as certificate_path, _anonymous_file(key) as key_path:
        context.load_cert_chain(certificate_path, key_path)


@contextmanager
def _anonymous_file(content: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("tokenservice", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = now.astimezone(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
