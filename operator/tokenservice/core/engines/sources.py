"""Where a model, a draft model or an adapter lies: the path an engine is told and what its pod must carry for it.

| scheme | path | pod | credentials |
|---|---|---|---|
| hf://ORGANISATION/MODEL | the repository, downloaded to the cache | egress | HF_TOKEN from the Secret |
| s3://BUCKET/PATH | the URL, streamed | egress | AWS shared credentials file from the Secret |
| pvc://CLAIM/PATH | below the mount | the claim, read-only | none |
| oci://IMAGE@sha256:… | the mount | an image volume, read-only | pull secret |

With `spec.model.verification` an hf:// repository is downloaded by the verifier, and only it gets the token: the engine
reads a folder, offline and read-only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tokenservice.api.token_service import ModelSource, SecretReference, TokenServiceSpec
from tokenservice.core.engines.base import literal
from tokenservice.core.model import Json, Problem, Reason
from tokenservice.core.names import MODEL_VOLUME

MODEL_PATH = "/models"
_FETCHED_PATH = f"{MODEL_PATH}/verified"
"""Where the verifier puts what it has downloaded, once it has vouched for it."""

ADAPTERS_PATH = "/adapters"
DOWNLOADS_PATH = f"{ADAPTERS_PATH}/downloads"
"""Where the loader puts the adapters that it has downloaded for a running engine."""

_CREDENTIALS_PATH = "/credentials"
_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})$")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_REPOSITORY, _REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*"), re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_FOLDER = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"([A-Za-z0-9.-]+(:\d+)?/)?{_FOLDER}(/{_FOLDER})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?"
)
"""Of an image, as container runtimes read it; pods that ask for anything else wait for ever."""

REMOTE_BYTES_PER_SECOND = 0.5e9
DISK_BYTES_PER_SECOND = 2e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source as a pod needs it.

    `streamed` weights never touch the disk; `downloaded` ones need local disk; `remote` ones need the network. The
    repository that is `fetched` for the engine by the verifier, which needs `fetch_env` for it.
    """

    path: str
    bytes_per_second: float
    revision: str | None = None
    remote: bool = False
    streamed: bool = False
    downloaded: bool = False
    env: tuple[Json, ...] = ()
    volumes: tuple[Json, ...] = ()
    mounts: tuple[Json, ...] = ()
    pull_secret: str | None = None
    fetched: str | None = None
    fetch_env: tuple[Json, ...] = ()
    safetensors_only: bool = False

    @property
    def load_format(self) -> str | None:
        """The name that both engines have for it; None leaves the choice to the engine."""
        if self.streamed:
            return "runai_streamer"
        return "safetensors" if self.safetensors_only else None


def model_source(model: ModelSource) -> Source:
    """The model itself."""
    asked = model.verification
    found = _source(model.uri, MODEL_VOLUME, MODEL_PATH, model)
    return found if asked is None else replace(found, safetensors_only=not asked.allow_pickle)


def loading(source: Source) -> Iterator[str]:
    """What both engines are told alike of where a model comes from."""
    if source.revision is not None and source.fetched is None:
        yield from ("--revision", source.revision)
    if source.load_format is not None:
        yield from ("--load-format", source.load_format)


def adapter_sources(model: ModelSource) -> tuple[Source, ...]:
    """Its adapters, in the order of the spec."""
    return tuple(
        _source(adapter.uri, f"adapter-{index}", f"/adapters/{index}", None)
        for index, adapter in enumerate(model.adapters)
    )


def runtime_sources(model: ModelSource) -> tuple[Source, ...]:
    """Its adapters as running engines load them, in the order of the spec.

    There is a volume for each claim and image, whatever lies in it, and none for a claim that the model lies in too:
    only an adapter of a further claim or image needs other pods.
    """
    return tuple(_runtime_source(adapter.uri, model.uri) for adapter in model.adapters)


def draft_source(spec: TokenServiceSpec) -> Source | None:
    """The draft model of speculative decoding."""
    speculative = spec.engine.speculative
    if speculative is None or speculative.draft_model is None:
        return None
    return _source(speculative.draft_model, "draft", "/draft", None)


def sources(spec: TokenServiceSpec) -> tuple[Source, ...]:
    """Everything that an engine of the service loads when it starts; the model first."""
    draft = draft_source(spec)
    adapters = adapter_sources(spec.model) if spec.model.runtime_adapters is None else ()
    return (model_source(spec.model), *adapters, *((draft,) if draft is not None else ()))


def pinned_digest(model: ModelSource) -> str | None:
    """The digest that the kubelet holds an oci:// source to; other sources are not checked by anyone."""
    if not model.uri.startswith("oci://"):
        return None
    found = _DIGEST.search(model.uri)
    return found[1] if found else model.digest


def source_problems(spec: TokenServiceSpec) -> tuple[Problem, ...]:
    """Sources that could not be loaded, or not as promised."""
    return (*_model_problems(spec.model), *_companion_problems(spec), *_verification_problems(spec))


def _source(uri: str, name: str, mount: str, model: ModelSource | None) -> Source:
    """`model` is given for the model itself, whose revision, digest and credentials are fields of their own."""
    scheme, _, rest = uri.partition("://")
    credentials = model.credentials if model is not None else None
    if scheme == "hf":
        return _hugging_face(rest, model)
    if scheme == "s3":
        return _bucket(uri, credentials)
    if scheme == "pvc":
        return _claim(rest, name, mount)
    digest = model.digest if model is not None else None
    return _image(rest, digest, name, mount, credentials)


def _runtime_source(uri: str, model: str) -> Source:
    """The path differs for each version that the uri tells apart: engines take the same path for the same weights."""
    scheme, _, rest = uri.partition("://")
    if scheme == "hf":
        found = _hugging_face(rest, None)
        return replace(found, path=f"{DOWNLOADS_PATH}/{_digest(uri)}", downloaded=False, fetched=found.path)
    volume = rest.partition("/")[0] if scheme == "pvc" else rest
    if scheme == "pvc" and f"{model}/".startswith(f"pvc://{volume}/"):
        return replace(_claim(rest, MODEL_VOLUME, MODEL_PATH), volumes=(), mounts=())
    place = f"{scheme}-{_digest(volume)}"
    return _source(uri, f"adapters-{place}", f"{ADAPTERS_PATH}/{place}", None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _hugging_face(rest: str, model: ModelSource | None) -> Source:
    repository, _, revision = rest.partition("@")
    credentials = model.credentials if model is not None else None
    chosen = (model.revision if model is not None else None) or revision or None
    env = () if credentials is None else (_secret_variable("HF_TOKEN", credentials),)
    found = Source(
        path=repository,
        bytes_per_second=REMOTE_BYTES_PER_SECOND,
        revision=literal(chosen) if chosen is not None else None,
        remote=True,
        downloaded=True,
        env=env,
    )
    return found if model is None or model.verification is None else _fetched(found)


def _fetched(source: Source) -> Source:
    """A volume of its own: the engine, which reads it, cannot write to it."""
    return replace(
        source,
        path=_FETCHED_PATH,
        downloaded=False,
        env=(),
        volumes=({"name": MODEL_VOLUME, "emptyDir": {}},),
        mounts=({"name": MODEL_VOLUME, "mountPath": MODEL_PATH, "readOnly": True},),
        fetched=source.path,
        fetch_env=source.env,
    )


def _bucket(uri: str, credentials: SecretReference | None) -> Source:
    found = Source(path=uri, bytes_per_second=REMOTE_BYTES_PER_SECOND, remote=True, streamed=True)
    if credentials is None:
        return found
    items = [{"key": credentials.key, "path": "credentials"}]
    return Source(
        path=uri,
        bytes_per_second=REMOTE_BYTES_PER_SECOND,
        remote=True,
        streamed=True,
        env=({"name": "AWS_SHARED_CREDENTIALS_FILE", "value": f"{_CREDENTIALS_PATH}/credentials"},),
        volumes=({"name": "credentials", "secret": {"secretName": credentials.name, "items": items}},),
        mounts=({"name": "credentials", "mountPath": _CREDENTIALS_PATH, "readOnly": True},),
    )


def _claim(rest: str, name: str, mount: str) -> Source:
    claim, _, path = rest.partition("/")
    return Source(
        path="/".join([mount, path.strip("/")]).rstrip("/"),
        bytes_per_second=DISK_BYTES_PER_SECOND,
        volumes=({"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},),
        mounts=({"name": name, "mountPath": mount, "readOnly": True},),
    )


def _image(rest: str, digest: str | None, name: str, mount: str, credentials: SecretReference | None) -> Source:
    """The kubelet pulls the image before it starts the container, so that only reading counts as loading."""
    reference = rest if _DIGEST.search(rest) or digest is None else f"{rest}@{digest}"
    return Source(
        path=mount,
        bytes_per_second=DISK_BYTES_PER_SECOND,
        volumes=({"name": name, "image": {"reference": reference, "pullPolicy": "IfNotPresent"}},),
        mounts=({"name": name, "mountPath": mount, "readOnly": True},),
        pull_secret=credentials.name if credentials is not None else None,
    )


def _secret_variable(name: str, reference: SecretReference) -> Json:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": reference.name, "key": reference.key}}}


def _model_problems(model: ModelSource) -> Iterator[Problem]:
    yield from _uri_problems(model.uri, "spec.model.uri")
    scheme, _, rest = model.uri.partition("://")
    if scheme == "oci":
        yield from _image_problems(rest, model.digest)
    elif model.digest is not None:
        yield _invalid(
            "spec.model.digest",
            f"a digest can be held to for oci:// sources only: remove it, or bring the model as an image"
            f"{'; to pin this source, set revision to a commit' if scheme == 'hf' else ''}",
        )
    yield from _revision_problems(scheme, rest, model.revision)


def _image_problems(rest: str, digest: str | None) -> Iterator[Problem]:
    found = _DIGEST.search(rest)
    if found is None and digest is None:
        yield _invalid("spec.model.uri", "oci:// needs a digest: append @sha256:… or set spec.model.digest")
    if found is not None and digest not in (None, found[1]):
        yield _invalid("spec.model.digest", f"spec.model.uri names another digest, {found[1]}: keep one of them")


def _revision_problems(scheme: str, rest: str, revision: str | None) -> Iterator[Problem]:
    if revision is None:
        return
    in_uri = rest.partition("@")[2]
    if scheme != "hf":
        yield _invalid("spec.model.revision", f"{scheme}:// has no revisions: remove it, name the version in the uri")
    elif in_uri not in ("", revision):
        yield _invalid("spec.model.revision", f"spec.model.uri names another revision, {in_uri}: keep one of them")


def _companion_problems(spec: TokenServiceSpec) -> Iterator[Problem]:
    """Adapters and drafts are loaded from folders, so they cannot be streamed from a bucket."""
    for at, uri in _companions(spec):
        yield from _uri_problems(uri, at)
        if uri.startswith("s3://"):
            yield _invalid(at, "s3:// is for the model itself: bring this by hf://, oci:// or pvc://")
        if uri.startswith("oci://") and _DIGEST.search(uri) is None:
            yield _invalid(at, "oci:// needs a digest: append @sha256:…")
    for adapter in spec.model.adapters if spec.model.runtime_adapters is None else ():
        if adapter.uri.startswith("hf://") and "@" in adapter.uri:
            at = f"spec.model.adapters[{adapter.name}].uri"
            why = "engines that load adapters when they start take no revision: remove @…, set"
            yield _invalid(at, f"{why} spec.model.runtimeAdapters, or bring the adapter by oci://")


def _companions(spec: TokenServiceSpec) -> Iterator[tuple[str, str]]:
    """Fields of adapters and of the draft model, and where each comes from."""
    yield from ((f"spec.model.adapters[{adapter.name}].uri", adapter.uri) for adapter in spec.model.adapters)
    speculative = spec.engine.speculative
    if speculative is not None and speculative.draft_model is not None:
        yield "spec.engine.speculative.draftModel", speculative.draft_model


def _verification_problems(spec: TokenServiceSpec) -> Iterator[Problem]:
    """A signature is of the model's folder, which must be there before the engine; it says nothing of companions."""
    if spec.model.verification is None:
        return
    if spec.model.uri.startswith("s3://"):
        yield _invalid(
            "spec.model.verification",
            "an s3:// source is streamed into the engine and cannot be verified before: bring the model by hf://,"
            " oci:// or pvc://, or remove this",
        )
    for at, uri in _companions(spec):
        if not uri.startswith("oci://"):
            yield _invalid(
                at, "spec.model.verification speaks of the model only: bring this by oci:// with a digest, too"
            )


def _uri_problems(uri: str, at: str) -> Iterator[Problem]:
    scheme, _, rest = uri.partition("://")
    if ".." in rest.split("/"):
        yield _invalid(at, "a path may not contain ..: name the folder itself")
    elif scheme == "hf":
        yield from _repository_problems(rest, at)
    elif scheme == "pvc" and _CLAIM.fullmatch(claim := rest.partition("/")[0]) is None:
        yield _invalid(at, f"{claim!r} is not the name of a claim: write pvc://CLAIM/PATH")
    elif scheme == "oci" and _REFERENCE.fullmatch(rest) is None:
        yield _invalid(
            at, "not an image: write oci://REGISTRY/REPOSITORY@sha256:… in lower case, a tag may stand before @"
        )


def _repository_problems(rest: str, at: str) -> Iterator[Problem]:
    """A revision that begins with a dash would be taken for a flag."""
    repository, _, revision = rest.partition("@")
    names = repository.split("/")
    if len(names) > 2 or any(_REPOSITORY.fullmatch(name) is None for name in names):
        yield _invalid(at, "write hf://ORGANISATION/MODEL: two names and nothing more, of letters, digits and . _ -")
    if revision and _REVISION.fullmatch(revision) is None:
        yield _invalid(at, f"{revision!r} is not a revision: write a branch, a tag or a commit after @")


def _invalid(at: str, message: str) -> Problem:
    return Problem(Reason.INVALID_SPEC, at, message)
