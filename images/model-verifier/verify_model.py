"""Verifies that a model's folder is what somebody signed, before an engine reads it.

Runs as the first init container of an engine's pod. The signature is OpenSSF Model Signing's (`model-signing`): of a
key, or of an identity that Sigstore's certificate authority vouched for. Neither needs the network: the trust root for
identities is a file of this image. Sigstore's own cache would be in the pod's /tmp, which engines may write to.

The signer may have left files out of the signature (`ignore_paths`), and an engine would read them all the same. So
what the library says is not enough here: every file in the folder must be covered.

Exit codes: 0 verified; 3 refused; 4 could not be checked, which a later attempt may mend. The last line says why.
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_signing.verifying import Config

REFUSED, UNCHECKED = 3, 4
PREDICATE = "https://model_signing/signature/v1.0"
PICKLES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
"""Endings of weights that can run code when they are read."""

TRUST = Path(sys.prefix) / "trust.json"
"""What `sigstore --trust-config` takes; an image for a Sigstore of one's own has another."""

NEVER_READ = frozenset({".gitattributes", ".gitignore"})
"""Files that signers leave out and no engine opens."""

_SHOWN = 5
_LONGEST = 500
"""Characters of the last line: what is told of a container in conditions ends there."""


class RefusedError(Exception):
    """The model is not what was promised."""


class UncheckedError(Exception):
    """Whether it is could not be found out."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a signature says of a model; to be believed once it is verified."""

    files: frozenset[str]
    hash_type: str


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    started = time.monotonic()
    try:
        files = verified(asked)
    except RefusedError as error:
        return _ended(REFUSED, f"refused: {error}")
    except (UncheckedError, OSError) as error:
        return _ended(UNCHECKED, f"could not be checked: {error}")
    print(f"verified {files} files in {time.monotonic() - started:.1f} s")
    return 0


def verified(asked: argparse.Namespace) -> int:
    """How many files there are; all of them are signed. A repository is downloaded first."""
    if asked.repository is None:
        return check_folder(asked.folder, asked)
    if asked.folder.exists():  # of an earlier start of the same pod
        return check_folder(asked.folder, asked)
    partial = asked.folder.with_name(f".{asked.folder.name}-partial")
    download(asked.repository, asked.revision, partial)
    files = check_folder(partial, asked)
    partial.rename(asked.folder)
    return files


def download(repository: str, revision: str | None, folder: Path) -> None:
    """The whole repository and nothing else, or UncheckedError; files that an interrupted start has finished stay.

    Plain HTTP: within a start a connection that breaks is resumed in the middle of a file.
    """
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(repository, revision=revision)
        snapshot_download(repository, revision=info.sha, local_dir=folder)
    except Exception as error:  # of the library, of its HTTP client and of the disk
        raise UncheckedError(f"hf://{repository} could not be downloaded: {_line(error)}") from error
    # Where the hub goes away in between, the library is content with what is there already.
    names = [file.rfilename for file in info.siblings or ()]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise UncheckedError(f"hf://{repository} was not downloaded as a whole: {_listed(absent)} did not come")
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    # What an earlier start was refused for may be gone from the repository by now.
    for name in set(files_of(folder)) - set(names):
        (folder / name).unlink()


def check_folder(folder: Path, asked: argparse.Namespace) -> int:
    """Raises RefusedError or UncheckedError unless the folder is exactly what was signed."""
    if not folder.is_dir():
        raise RefusedError(f"the model has no folder {folder.name}")
    present = set(files_of(folder))
    pickles = sorted(name for name in present if Path(name).suffix.lower() in PICKLES)
    if pickles and not asked.allow_pickle:
        raise RefusedError(f"{_listed(pickles)} can run code when read: bring safetensors, or set allowPickle")
    if asked.signature not in present:
        raise RefusedError(f"the model has no signature {asked.signature}")
    signature = (folder / asked.signature).read_bytes()
    statement = stated(signature)
    with tempfile.TemporaryDirectory() as scratch:
        # What is read here is what is verified, whoever writes to the volume meanwhile.
        copy = Path(scratch) / "signature"
        copy.write_bytes(signature)
        agree(folder, copy, statement, asked)
    loose = present - statement.files - NEVER_READ - {asked.signature}
    if loose:
        raise RefusedError(f"{_listed(sorted(loose))} not covered by the signature")
    return len(present)


def files_of(folder: Path) -> Iterator[str]:
    """Every file below, by its path in the folder. Links and special files are refused: a link can leave the folder."""

    def unreadable(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        for path in (Path(parent, name) for name in (*folders, *names)):
            inside = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise RefusedError(f"{inside} is a symbolic link to {os.readlink(path)}: put the file itself there")
            if path.is_file():
                yield inside
            elif not path.is_dir():
                raise RefusedError(f"{inside} is neither a file nor a folder")


def agree(folder: Path, signature: Path, statement: Statement, asked: argparse.Namespace) -> None:
    """Whatever the library stumbles over is a refusal, but for files that cannot be read."""
    from cryptography.exceptions import InvalidSignature
    from model_signing import hashing

    signer = by_key(asked.key, asked.signer) if asked.key else by_identity(asked.identity, asked.issuer, asked.trust)
    try:
        how = hashing.Config().use_file_serialization(hashing_algorithm=statement.hash_type)
        # The signature itself is no part of the model; signers differ in whether they say so.
        signer.set_hashing_config(how.set_ignored_paths(paths=[asked.signature])).verify(folder, signature)
    except OSError as error:
        raise UncheckedError(str(error)) from error
    except InvalidSignature as error:
        raise RefusedError(f"the signature is not of {asked.signer}, or was changed") from error
    except Exception as error:
        raise RefusedError(_difference(error)) from error


def by_key(key: Path, signer: str) -> Config:
    from model_signing import verifying

    if not key.is_file():
        raise UncheckedError(f"there is no {signer} in the namespace")
    try:
        return verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:
        raise UncheckedError(f"{signer} is no public key of an elliptic curve in PEM: {_line(error)}") from error


def by_identity(identity: str, issuer: str, trust: Path) -> Config:
    from model_signing import verifying

    try:
        return verifying.Config().use_sigstore_verifier(identity=identity, oidc_issuer=issuer, trust_config=trust)
    except Exception as error:
        raise UncheckedError(f"{trust} is no trust root of a Sigstore: {_line(error)}") from error


def stated(signature: bytes) -> Statement:
    """Raises RefusedError where a signature is of another form."""
    try:
        statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
        if statement["predicateType"] != PREDICATE:
            raise RefusedError("the signature is of an old form: sign again with model-signing 1.0 or newer")
        how = statement["predicate"]["serialization"]
        method, hash_type = how["method"], how["hash_type"]
        names = frozenset(resource["name"] for resource in statement["predicate"]["resources"])
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError("the file of the signature holds no signature of a model") from error
    if method != "files":
        # model-signing 1.1.1 reads the size of shards as a fraction, and cannot verify what it has signed itself.
        raise RefusedError(f"the signature is of {method}: sign again file by file, as is the default")
    return Statement(names, hash_type)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Verify the signature of a model's folder")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repository", help="downloaded to the folder first, from the Hugging Face Hub")
    parser.add_argument("--revision")
    parser.add_argument("--signature", default="model.sig", help="path inside the folder")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--key", type=Path)
    who.add_argument("--identity")
    parser.add_argument("--signer", default="key", help="what the key is called in messages")
    parser.add_argument("--issuer")
    parser.add_argument("--trust", type=Path, default=TRUST, help="trust root for identities, of sigstore's form")
    parser.add_argument("--allow-pickle", action="store_true")
    return parser


def _ended(code: int, message: str) -> int:
    print(message if len(message) <= _LONGEST else f"{message[: _LONGEST - 1]}…", file=sys.stderr)
    return code


def _line(error: Exception) -> str:
    """On one line; errors without words have at least a name."""
    return " ".join(str(error).split()) or type(error).__name__


def _difference(error: Exception) -> str:
    """The library's words on which files differ, without their digests: those are told as raw bytes."""
    _, mark, differences = str(error).partition("Signature mismatch: ")
    if not mark:
        return _line(error)
    return "; ".join(one.partition(": Expected ")[0] for one in ast.literal_eval(differences))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


if __name__ == "__main__":
    sys.exit(main())
