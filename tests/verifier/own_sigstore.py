"""A Sigstore of one's own: certificate authority, transparency logs, and signatures by identity without a network.

Of each log only what a verifier looks at: the certificate log's signature in the certificate (RFC 6962), and the
signature log's promise, checkpoint and proof of inclusion in a tree of this one entry.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

IDENTITY, ISSUER = "release@example.com", "https://issuer.example.com"
SIGNED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
VALID = timedelta(minutes=10)
"""How long a certificate of Fulcio is."""

_ISSUER_OID = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_SCT_OID = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_DSSE = "application/vnd.in-toto+json"
_ECDSA = ec.ECDSA(hashes.SHA256())


class Log:
    """The key of a transparency log."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.public = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.id = hashlib.sha256(self.public).digest()

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, _ECDSA)

    def described(self) -> dict[str, object]:
        return {
            "baseUrl": "https://log.example.com",
            "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": _text(self.public),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": {"start": "2026-01-01T00:00:00Z"},
            },
            "logId": {"keyId": _text(self.id)},
        }


class OwnSigstore:
    """`certificates` and `entries` are the logs; who is not in `trust` under these keys is nobody."""

    def __init__(self) -> None:
        self.certificates, self.entries = Log(), Log()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self._authority = (
            _named(self._name, self._name, self._key.public_key(), SIGNED_AT - timedelta(days=1), timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def trust(self) -> str:
        """What a verifier is given, as JSON."""
        authority = {
            "subject": {"organization": "example", "commonName": "authority"},
            "certChain": {"certificates": [{"rawBytes": _text(_der(self._authority))}]},
            "validFor": {"start": "2026-01-01T00:00:00Z"},
        }
        root = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self.entries.described()],
            "certificateAuthorities": [authority],
            "ctlogs": [self.certificates.described()],
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
                "trustedRoot": root,
                "signingConfig": {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"},
            }
        )

    def sign(self, file: Path, identity: str = IDENTITY, at: datetime = SIGNED_AT) -> None:
        """Signs what a signature of a key says, in its place; the certificate is from SIGNED_AT, the entry `at`."""
        payload = base64.b64decode(json.loads(file.read_text())["dsseEnvelope"]["payload"])
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certificate(key, identity)
        signature = key.sign(b"DSSEv1 %d %s %d %s" % (len(_DSSE), _DSSE.encode(), len(payload), payload), _ECDSA)
        material = {
            "certificate": {"rawBytes": _text(_der(certificate))},
            "tlogEntries": [self._entry(payload, signature, certificate, at)],
        }
        envelope = {"payload": _text(payload), "payloadType": _DSSE, "signatures": [{"sig": _text(signature)}]}
        bundle = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": material,
            "dsseEnvelope": envelope,
        }
        file.write_text(json.dumps(bundle))

    def _certificate(self, key: ec.EllipticCurvePrivateKey, identity: str) -> x509.Certificate:
        """As Fulcio makes it, with the certificate log's word for it."""
        draft = (
            _named(x509.Name([]), self._name, key.public_key(), SIGNED_AT, VALID)
            .add_extension(_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(_ISSUER_OID, ISSUER.encode()),
                critical=False,
            )
        )
        seen = draft.sign(self._key, hashes.SHA256()).tbs_certificate_bytes
        spoken_for = x509.UnrecognizedExtension(_SCT_OID, self._timestamp(seen))
        return draft.add_extension(spoken_for, critical=False).sign(self._key, hashes.SHA256())

    def _timestamp(self, certificate: bytes) -> bytes:
        """A list of one signed certificate timestamp, RFC 6962 sections 3.2 and 3.3."""
        milliseconds = int(SIGNED_AT.timestamp() * 1000)
        authority = hashlib.sha256(
            self._key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        ).digest()
        entry = authority + len(certificate).to_bytes(3, "big") + certificate
        signature = self.certificates.sign(struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + bytes(2))
        one = struct.pack("!B32sQHBBH", 0, self.certificates.id, milliseconds, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(one) + 2, len(one)) + one
        return bytes([4, len(listed)]) + listed  # an OCTET STRING

    def _entry(
        self, payload: bytes, signature: bytes, certificate: x509.Certificate, at: datetime
    ) -> dict[str, object]:
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": "0" * 64},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
            "signatures": [{"signature": _text(signature), "verifier": _text(pem)}],
        }
        body = _canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"log.example.com\n1\n{_text(root)}\n"
        checkpoint = _text(self.entries.id[:4] + self.entries.sign(note.encode()))
        time = int(at.timestamp())
        promised = {"body": _text(body), "integratedTime": time, "logID": self.entries.id.hex(), "logIndex": 0}
        return {
            "logIndex": "0",
            "logId": {"keyId": _text(self.entries.id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(time),
            "inclusionPromise": {"signedEntryTimestamp": _text(self.entries.sign(_canonical(promised)))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _text(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\u2014 log.example.com {checkpoint}\n"},
            },
            "canonicalizedBody": _text(body),
        }


def _named(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, valid: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + valid)
    )


def _usage(*, certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _canonical(value: object) -> bytes:
    """RFC 8785, as far as texts in ASCII and small numbers need it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
