"""The verifier against signatures made by model-signing itself, and the damage that it is there for."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing
from sigstore.models import ClientTrustConfig

from tests.verifier.hub import Hub
from tests.verifier.own_sigstore import IDENTITY, ISSUER, SIGNED_AT, VALID, Log, OwnSigstore

SCRIPT = Path(__file__).parents[2] / "images" / "model-verifier" / "verify_model.py"
VERIFIED, REFUSED, UNCHECKED = 0, 3, 4


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


verifier = _loaded()


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public one, in PEM."""
    private = ec.generate_private_key(ec.SECP256R1())
    secret, public = folder / name, folder / f"{name}.pub"
    secret.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return secret, public


def sign(model: Path, secret: Path, *, ignored: tuple[str, ...] = (), shards: bool = False) -> None:
    how = hashing.Config()
    if shards:
        how = how.use_shard_serialization(shard_size=8)
    how = how.set_ignored_paths(paths=[model / "model.sig", *(model / name for name in ignored)])
    signer = signing.Config().set_hashing_config(how).use_elliptic_key_signer(private_key=secret)
    signer.sign(model, model / "model.sig")


class Signed:
    """A signed model, and the key that it is signed with."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model"
        (self.model / "nested").mkdir(parents=True)
        (self.model / "config.json").write_text("{}")
        (self.model / "nested" / "tokenizer.json").write_text("[]")
        (self.model / "model.safetensors").write_bytes(bytes(range(64)))
        self.secret, self.public = key_pair(folder, "release")
        sign(self.model, self.secret)

    def verify(self, *more: str, key: Path | None = None) -> int:
        code: int = verifier.main(
            ["--folder", str(self.model), "--key", str(key or self.public), "--signer", "key release.pub", *more]
        )
        return code


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


Says = pytest.CaptureFixture[str]


def test_a_model_as_it_was_signed_is_verified(signed: Signed, capsys: Says) -> None:
    assert signed.verify() == VERIFIED
    assert "verified 4 files" in capsys.readouterr().out


def _flipped(signed: Signed) -> None:
    weights = signed.model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[40] ^= 1
    weights.write_bytes(content)


def _emptied(signed: Signed) -> None:
    (signed.model / "model.safetensors").write_bytes(b"")


def _lost(signed: Signed) -> None:
    (signed.model / "nested" / "tokenizer.json").unlink()


def _brought(signed: Signed) -> None:
    (signed.model / "modeling_custom.py").write_text("import os")


def _brought_in_git(signed: Signed) -> None:
    (signed.model / ".git").mkdir()
    (signed.model / ".git" / "config.json").write_text("{}")


def _left_out_by_the_signer(signed: Signed) -> None:
    (signed.model / "modeling_custom.py").write_text("import os")
    sign(signed.model, signed.secret, ignored=("modeling_custom.py",))


def _pickled(signed: Signed) -> None:
    (signed.model / "pytorch_model.bin").write_bytes(b"pickle")
    sign(signed.model, signed.secret)


def _linked_outside(signed: Signed) -> None:
    (signed.model / "config.json").unlink()
    (signed.model / "config.json").symlink_to("/etc/hostname")


def _linked_folder(signed: Signed) -> None:
    (signed.model / "more").symlink_to("/etc")


def _unsigned(signed: Signed) -> None:
    (signed.model / "model.sig").unlink()


def _edited_signature(signed: Signed) -> None:
    _restate(signed, b"config.json", b"cunfig.json")


def _hashed_in_another_way(signed: Signed) -> None:
    _restate(signed, b'"sha256"', b'"sha-0"')


def _restate(signed: Signed, old: bytes, new: bytes) -> None:
    """Edits what the signature says."""
    file = signed.model / "model.sig"
    bundle = json.loads(file.read_text())
    statement = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement.replace(old, new)).decode()
    file.write_text(json.dumps(bundle))


def _signed_in_shards(signed: Signed) -> None:
    sign(signed.model, signed.secret, shards=True)


def _no_signature_at_all(signed: Signed) -> None:
    (signed.model / "model.sig").write_text("{}")


def _gone(signed: Signed) -> None:
    shutil.rmtree(signed.model)


DAMAGE: dict[str, tuple[Callable[[Signed], None], str]] = {
    "one bit of the weights": (_flipped, "Hash mismatch for 'model.safetensors'"),
    "truncated weights": (_emptied, "Hash mismatch for 'model.safetensors'"),
    "a file that is missing": (_lost, "Missing files in model 'model': nested/tokenizer.json"),
    "a file that nobody signed": (_brought, "Extra files found in model 'model': modeling_custom.py"),
    "a file hidden in .git": (_brought_in_git, ".git/config.json not covered by the signature"),
    "a file that the signer left out": (_left_out_by_the_signer, "modeling_custom.py not covered by the signature"),
    "a pickle, signed": (_pickled, "pytorch_model.bin can run code when read: bring safetensors, or set allowPickle"),
    "a link out of the folder": (_linked_outside, "config.json is a symbolic link to /etc/hostname"),
    "a folder that is a link": (_linked_folder, "more is a symbolic link to /etc"),
    "no signature": (_unsigned, "the model has no signature model.sig"),
    "an edited signature": (_edited_signature, "the signature is not of key release.pub, or was changed"),
    "a hash that there is not": (_hashed_in_another_way, "sha-0"),
    "a signature that is none": (_no_signature_at_all, "the file of the signature holds no signature of a model"),
    "a signature of shards": (_signed_in_shards, "sign again file by file"),
    "no model": (_gone, "the model has no folder model"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_not_as_it_was_signed_is_refused(
    signed: Signed, capsys: Says, damage: Callable[[Signed], None], words: str
) -> None:
    damage(signed)
    assert signed.verify() == REFUSED
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("refused: ")
    assert words in said
    assert len(said) <= 500


def test_a_signature_of_another_key_is_refused(signed: Signed, tmp_path: Path, capsys: Says) -> None:
    _, other = key_pair(tmp_path, "other")
    assert signed.verify(key=other) == REFUSED
    assert "Key mismatch" in capsys.readouterr().err


def test_a_model_signed_again_by_somebody_else_is_refused(signed: Signed, tmp_path: Path) -> None:
    stranger, _ = key_pair(tmp_path, "stranger")
    _flipped(signed)
    sign(signed.model, stranger)
    assert signed.verify() == REFUSED


def test_pickles_are_verified_where_they_are_allowed(signed: Signed) -> None:
    _pickled(signed)
    assert signed.verify("--allow-pickle") == VERIFIED
    (signed.model / "pytorch_model.bin").write_bytes(b"another")
    assert signed.verify("--allow-pickle") == REFUSED


def test_git_attributes_need_no_signature_for_no_engine_reads_them(signed: Signed) -> None:
    (signed.model / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert signed.verify() == VERIFIED


def test_a_key_that_is_not_there_is_named_and_is_no_refusal(signed: Signed, tmp_path: Path, capsys: Says) -> None:
    assert signed.verify(key=tmp_path / "absent.pub") == UNCHECKED
    assert "could not be checked: there is no key release.pub in the namespace" in capsys.readouterr().err


def test_a_key_that_is_none_is_named(signed: Signed, tmp_path: Path, capsys: Says) -> None:
    (tmp_path / "bad.pub").write_text("ssh-rsa AAAA")
    assert signed.verify(key=tmp_path / "bad.pub") == UNCHECKED
    assert "key release.pub is no public key of an elliptic curve in PEM" in capsys.readouterr().err


def test_a_signature_made_elsewhere_and_then_brought_is_verified(signed: Signed, tmp_path: Path) -> None:
    """Such a signer had no reason to leave the file of the signature out."""
    elsewhere = tmp_path / "elsewhere.sig"
    (signed.model / "model.sig").unlink()
    signing.Config().use_elliptic_key_signer(private_key=signed.secret).sign(signed.model, elsewhere)
    elsewhere.rename(signed.model / "model.sig")
    assert signed.verify() == VERIFIED
    _flipped(signed)
    assert signed.verify() == REFUSED


# --- By identity ------------------------------------------------------------------------------------------------------


class Vouched:
    """The signed model, signed anew by an identity that a Sigstore of its own vouched for."""

    def __init__(self, signed: Signed, folder: Path) -> None:
        self.signed, self.sigstore, self.trust = signed, OwnSigstore(), folder / "trust.json"
        self.trust.write_text(self.sigstore.trust)
        self.sign()

    def sign(self, by: OwnSigstore | None = None, identity: str = IDENTITY, at: datetime = SIGNED_AT) -> None:
        sign(self.signed.model, self.signed.secret)
        (by or self.sigstore).sign(self.signed.model / "model.sig", identity, at)

    def verify(self, identity: str = IDENTITY, issuer: str = ISSUER) -> int:
        who = ["--identity", identity, "--issuer", issuer, "--trust", str(self.trust)]
        code: int = verifier.main(["--folder", str(self.signed.model), *who])
        return code


@pytest.fixture
def vouched(signed: Signed, tmp_path: Path) -> Vouched:
    return Vouched(signed, tmp_path)


def test_a_model_that_the_identity_signed_is_verified(vouched: Vouched, capsys: Says) -> None:
    code = vouched.verify()
    said = capsys.readouterr()
    assert (code, said.err) == (VERIFIED, "")
    assert "verified 4 files" in said.out


def _by_somebody_else(vouched: Vouched) -> None:
    vouched.sign(identity="stranger@example.com")


def _by_a_key(vouched: Vouched) -> None:
    sign(vouched.signed.model, vouched.signed.secret)


def _of_another_authority(vouched: Vouched) -> None:
    other = OwnSigstore()
    other.certificates, other.entries = vouched.sigstore.certificates, vouched.sigstore.entries
    vouched.sign(by=other)


def _with_an_unlogged_certificate(vouched: Vouched) -> None:
    vouched.sigstore.certificates = Log()
    vouched.sign()


def _with_an_unlogged_signature(vouched: Vouched) -> None:
    vouched.sigstore.entries = Log()
    vouched.sign()


def _after_the_certificate_ended(vouched: Vouched) -> None:
    vouched.sign(at=SIGNED_AT + 2 * VALID)


def _with_other_words(vouched: Vouched) -> None:
    _restate(vouched.signed, b"config.json", b"cunfig.json")


def _with_the_model_changed(vouched: Vouched) -> None:
    _flipped(vouched.signed)


def _with_the_model_and_its_statement_changed(vouched: Vouched) -> None:
    """The old certificate and log entry, around a new statement by a key."""
    file = vouched.signed.model / "model.sig"
    old = json.loads(file.read_text())
    _flipped(vouched.signed)
    sign(vouched.signed.model, vouched.signed.secret)
    new = json.loads(file.read_text())
    file.write_text(json.dumps(new | {"verificationMaterial": old["verificationMaterial"]}))


FORGED: dict[str, tuple[Callable[[Vouched], None], str]] = {
    "another identity": (_by_somebody_else, "do not match release@example.com"),
    "a key": (_by_a_key, "expected certificate in bundle"),
    "a certificate of another authority": (_of_another_authority, "certificate chain"),
    "a certificate that the log does not know": (_with_an_unlogged_certificate, "SCT"),
    "a signature that the log does not know": (_with_an_unlogged_signature, "invalid log entry"),
    "a certificate that had ended": (_after_the_certificate_ended, "certificate chain"),
    "an edited statement": (_with_other_words, "invalid signature"),
    "one bit of the weights": (_with_the_model_changed, "Hash mismatch for 'model.safetensors'"),
    "an old certificate around a new statement": (_with_the_model_and_its_statement_changed, "invalid signature"),
}


@pytest.mark.parametrize(("forge", "words"), FORGED.values(), ids=FORGED)
def test_what_the_identity_did_not_sign_is_refused(
    vouched: Vouched, capsys: Says, forge: Callable[[Vouched], None], words: str
) -> None:
    forge(vouched)
    assert vouched.verify() == REFUSED
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("refused: ")
    assert words in said


def test_an_identity_is_only_its_issuers_word(vouched: Vouched, capsys: Says) -> None:
    assert vouched.verify(issuer="https://another.example.com") == REFUSED
    assert "OIDCIssuer does not match" in capsys.readouterr().err


def test_a_sigstore_of_ones_own_is_not_trusted_by_the_public_one(
    vouched: Vouched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the trust root that the image has."""
    monkeypatch.setenv("HOME", str(tmp_path))
    vouched.trust.write_text(ClientTrustConfig.production(offline=True)._inner.to_json())
    assert vouched.verify() == REFUSED


def test_what_lies_in_the_home_of_the_pod_is_not_trusted(
    vouched: Vouched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Says
) -> None:
    """The volume below it is the engine's too: what one left there would vouch for the next model."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    public = ClientTrustConfig.production(offline=True)._inner.to_json()
    (cached,) = (tmp_path / ".cache").rglob("trusted_root.json")
    cached.write_text(json.dumps(json.loads(vouched.sigstore.trust)["trustedRoot"]))
    vouched.trust.write_text(public)
    assert vouched.verify() == REFUSED
    assert "certificate chain" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_trust_root_that_is_none_is_no_refusal(vouched: Vouched, capsys: Says, content: str | None) -> None:
    vouched.trust.unlink()
    if content is not None:
        vouched.trust.write_text(content)
    assert vouched.verify() == UNCHECKED
    assert "is no trust root of a Sigstore" in capsys.readouterr().err


# --- hf:// -----------------------------------------------------------------------------------------------------------


class Fetching:
    """A pod's volume, a hub that offers the signed model, and starts of the verifier."""

    def __init__(self, signed: Signed, hub: Hub, folder: Path) -> None:
        self.signed, self.hub, self.scratch = signed, hub, folder
        self.target = folder / "models" / "verified"
        self.target.parent.mkdir()

    def start(self) -> tuple[int, str]:
        """Its exit code and its last words."""
        words = ["--folder", str(self.target), "--repository", "org/model", "--key", str(self.signed.public)]
        ran = subprocess.run(
            [sys.executable, str(SCRIPT), *words],
            env={"HF_ENDPOINT": self.hub.url, "HOME": str(self.scratch), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return ran.returncode, (ran.stderr if ran.returncode else ran.stdout).splitlines()[-1]

    @property
    def there(self) -> set[str]:
        return {path.relative_to(self.target).as_posix() for path in self.target.rglob("*") if path.is_file()}


@pytest.fixture
def fetching(signed: Signed, tmp_path: Path) -> Iterator[Fetching]:
    with Hub(signed.model) as hub:
        yield Fetching(signed, hub, tmp_path)


_MEBIBYTE = 2**20
WHOLE = {"config.json", "model.safetensors", "model.sig", "nested/tokenizer.json"}


def test_a_repository_is_downloaded_verified_and_only_then_in_its_place(fetching: Fetching) -> None:
    code, said = fetching.start()
    assert (code, fetching.there) == (VERIFIED, WHOLE), said
    assert [path.name for path in fetching.target.parent.iterdir()] == ["verified"]


def test_a_second_start_of_the_pod_downloads_nothing_and_verifies_again(fetching: Fetching) -> None:
    fetching.start()
    fetching.hub.served.clear()
    assert fetching.start()[0] == VERIFIED
    assert not fetching.hub.served
    (fetching.target / "config.json").write_text("tampered")
    assert fetching.start()[0] == REFUSED


def test_a_repository_with_a_tampered_file_is_refused_and_never_in_its_place(fetching: Fetching) -> None:
    _flipped(fetching.signed)
    code, said = fetching.start()
    assert (code, "Hash mismatch for 'model.safetensors'" in said) == (REFUSED, True), said
    assert not fetching.target.exists()


def test_a_repository_that_was_mended_is_verified_without_what_it_has_no_more(fetching: Fetching) -> None:
    """A container that restarts finds the volume of its pod as the start before has left it."""
    unwanted = fetching.signed.model / "old" / "pytorch_model.bin"
    unwanted.parent.mkdir()
    unwanted.write_bytes(b"pickled")
    assert fetching.start()[0] == REFUSED
    unwanted.unlink()
    code, said = fetching.start()
    assert (code, fetching.there) == (VERIFIED, WHOLE), said


def test_an_interrupted_download_is_resumed_and_the_next_start_keeps_whole_files(
    fetching: Fetching,
) -> None:
    (fetching.signed.model / "large.safetensors").write_bytes(bytes(12 * _MEBIBYTE))
    sign(fetching.signed.model, fetching.signed.secret)
    fetching.hub.cut = ("large.safetensors", 11 * _MEBIBYTE)
    code, said = fetching.start()
    assert (code, fetching.target.exists()) == (UNCHECKED, False), said
    assert said.startswith("could not be checked: hf://org/model could not be downloaded")
    assert ("large.safetensors", 10 * _MEBIBYTE) in fetching.hub.served
    fetching.hub.cut = None
    fetching.hub.served.clear()
    assert fetching.start()[0] == VERIFIED
    assert fetching.hub.served == [("large.safetensors", 0)]
    assert fetching.there == WHOLE | {"large.safetensors"}


def test_a_hub_that_is_away_is_no_refusal(fetching: Fetching) -> None:
    fetching.hub.away = True
    code, said = fetching.start()
    assert (code, fetching.target.exists()) == (UNCHECKED, False), said


def test_a_repository_that_there_is_not_is_named(fetching: Fetching) -> None:
    fetching.hub.repository = "org/another"
    code, said = fetching.start()
    assert code == UNCHECKED
    assert "hf://org/model could not be downloaded" in said
