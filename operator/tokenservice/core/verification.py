"""What a model is held to before an engine reads it, and the container that holds it to that.

The verifier is the first init container of every engine pod: what it does not vouch for, no engine starts with, with
the operator away too. It is added after the administrator's patch, whose lists replace ours and would drop it. A
template without `spec.model.verification` is left as it is, to the letter: any difference would roll every engine.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenservice.api.token_service import KeyKind, ModelSource, PublicKeyReference, TokenServiceSpec, Verification
from tokenservice.core.deployment import confined
from tokenservice.core.engines import Source, model_source, pinned_digest
from tokenservice.core.engines.base import literal
from tokenservice.core.model import Json
from tokenservice.core.names import ENGINE_CONTAINER, VERIFICATION_ANNOTATION, VERIFIER_CONTAINER

_SIGNER_PATH = "/signer"
_KEY_FILE = "key.pub"


def promise(model: ModelSource) -> str | None:
    """What a pod's model is held to, in words that pods carry; None where nothing is promised."""
    if model.verification is None:
        return pinned_digest(model)
    version = model.revision or model.digest
    source = model.uri if version is None or model.uri.endswith(f"@{version}") else f"{model.uri}@{version}"
    formats = ", pickle allowed" if model.verification.allow_pickle else ""
    return f"{source} signed by {_signer(model.verification)}{formats}"


def verified(template: Json, spec: TokenServiceSpec, image: str | None) -> Json:
    """The pod template with the verifier in it, where the spec asks for one.

    Raises ValueError without an image for it, which the checks would have stopped.
    """
    asked = spec.model.verification
    if asked is None:
        return template
    if image is None:
        raise ValueError("a verification is asked for, and no image of the verifier is configured")
    metadata, pod = template["metadata"], template["spec"]
    annotations = metadata.get("annotations", {}) | {VERIFICATION_ANNOTATION: promise(spec.model)}
    volumes = [*pod.get("volumes", ()), *_key_volumes(asked)]
    others = [one for one in pod.get("initContainers", ()) if one.get("name") != VERIFIER_CONTAINER]
    added = {"initContainers": [_container(spec, asked, image, pod), *others], "volumes": volumes}
    return template | {"metadata": metadata | {"annotations": annotations}, "spec": pod | added}


def _container(spec: TokenServiceSpec, asked: Verification, image: str, pod: Json) -> Json:
    source = model_source(spec.model)
    return {
        "name": VERIFIER_CONTAINER,
        "image": image,
        "args": list(_arguments(spec.model, asked, source)),
        "env": [{"name": "HOME", "value": "/tmp"}, *source.fetch_env],  # noqa: S108
        "resources": _resources(pod),
        **confined(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            *(_writable(mount) if source.fetched is not None else mount for mount in source.mounts),
            *([{"name": "signer", "mountPath": _SIGNER_PATH, "readOnly": True}] if asked.public_key else []),
        ],
    }


def _arguments(model: ModelSource, asked: Verification, source: Source) -> Iterator[str]:
    yield from ("--folder", source.path)
    if source.fetched is not None:
        yield from ("--repository", source.fetched)
    if source.fetched is not None and source.revision is not None:
        yield from ("--revision", source.revision)
    yield from ("--signature", asked.signature)
    if asked.public_key is not None:
        yield from ("--key", f"{_SIGNER_PATH}/{_KEY_FILE}", "--signer", _signer(asked))
    else:
        yield from ("--identity", literal(asked.identity or ""), "--issuer", literal(asked.issuer or ""))
    if asked.allow_pickle:
        yield "--allow-pickle"


def _resources(pod: Json) -> Json:
    """The engine's own without its accelerators: the pod has them anyway, and hashing uses every core it gets."""
    engine: Json = next((one for one in pod["containers"] if one["name"] == ENGINE_CONTAINER), {})
    asked: Json = engine.get("resources", {})
    return {bound: {k: v for k, v in amounts.items() if "/" not in k} for bound, amounts in asked.items()}


def _key_volumes(asked: Verification) -> list[Json]:
    """Optional, so that a key that is missing is told by the verifier: a pod that waits for a volume tells nobody."""
    key = asked.public_key
    if key is None:
        return []
    content = {"items": [{"key": key.key, "path": _KEY_FILE}], "optional": True}
    if key.kind is KeyKind.SECRET:
        return [{"name": "signer", "secret": content | {"secretName": key.name}}]
    return [{"name": "signer", "configMap": content | {"name": key.name}}]


def _writable(mount: Json) -> Json:
    return {name: value for name, value in mount.items() if name != "readOnly"}


def _signer(asked: Verification) -> str:
    if asked.public_key is not None:
        return _key(asked.public_key)
    return f"{asked.identity}, as {asked.issuer} says"


def _key(key: PublicKeyReference) -> str:
    return f"key {key.key} of {key.kind} {key.name}"
