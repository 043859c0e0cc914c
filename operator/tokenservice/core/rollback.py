"""A change of engines that does not come up: what it said, and the way back.

A Deployment takes no replica away before its successor serves, so the last good version serves on by itself. But its
surge replica crashes for ever, and so would every replica that is added. Going back needs the template that served
before: it is kept on the Deployment, beside the digest of the one that failed, so that a restart forgets neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from tokenservice.core.drift import differs
from tokenservice.core.facts import rolling_out
from tokenservice.core.manifests import hashed
from tokenservice.core.model import Child, Json, Pod
from tokenservice.core.names import (
    FAILED_TEMPLATE_ANNOTATION,
    FAILURE_ANNOTATION,
    GOOD_TEMPLATE_ANNOTATION,
    MANIFEST_HASH_ANNOTATION,
    TEMPLATE_ANNOTATION,
)

_PULLED_ONCE = "ErrImagePull"
"""What a kubelet says right after a pull that failed; between the tries it says ImagePullBackOff."""


def failure(pods: Sequence[Pod], *, known: bool = False) -> str | None:
    """What is said of the newest version if none of its pods serves and one fails; None while there is hope.

    Of the newest alone: a version that is being replaced because it fails says nothing of its successor. A first pull
    that fails is no failure yet; where it is `known` that the version fails, it is one more try of the same.
    """
    failing = _failing(pods, known=known)
    return failing.failure if failing is not None else None


def unverified(pods: Sequence[Pod], *, known: bool = False) -> bool:
    """Whether that is said by the verifier of the model."""
    failing = _failing(pods, known=known)
    return failing is not None and failing.unverified


def newest(pods: Sequence[Pod]) -> list[Pod]:
    """Pods of the version that was made last."""
    if not pods:
        return []
    version = max(pods, key=lambda pod: (pod.created_at, pod.name)).template_hash
    return sorted((pod for pod in pods if pod.template_hash == version), key=lambda pod: pod.name)


def _failing(pods: Sequence[Pod], *, known: bool) -> Pod | None:
    mine = newest(pods)
    if any(pod.ready for pod in mine):
        return None
    return next((pod for pod in mine if pod.failure and (known or pod.waiting_reason != _PULLED_ONCE)), None)


def rolled_back(live: Child | None) -> str | None:
    """What the version said that this Deployment was rolled back from."""
    notes = _notes(live)
    return notes.get(FAILURE_ANNOTATION, "") if FAILED_TEMPLATE_ANNOTATION in notes else None


def with_history(manifest: Json, live: Child | None, said: str | None, *, automatic: bool) -> Json:
    """The Deployment to apply, once it is clear whether what the spec asks for is still to be tried.

    `said` is the failure of the version that is being rolled out, None without one.
    """
    template, notes = manifest["spec"]["template"], _notes(live)
    wanted = _digest(template)
    good = _good(template, wanted, live)
    restorable = _template(good)
    given_up = notes.get(FAILED_TEMPLATE_ANNOTATION) == wanted
    failing = said is not None and live is not None and rolling_out(live) and notes.get(TEMPLATE_ANNOTATION) == wanted
    kept = {TEMPLATE_ANNOTATION: wanted} | ({GOOD_TEMPLATE_ANNOTATION: good} if good else {})
    if not (automatic and restorable and (given_up or failing)):
        return _annotated(manifest, kept)
    words = notes.get(FAILURE_ANNOTATION, "") if given_up else said
    restored = _with_template(manifest, restorable)
    return _annotated(restored, kept | {FAILED_TEMPLATE_ANNOTATION: wanted, FAILURE_ANNOTATION: words or ""})


def _good(template: Json, wanted: str, live: Child | None) -> str | None:
    """The template to go back to: what stands there and serves when a change begins, and that from then on."""
    notes = _notes(live)
    before = notes.get(GOOD_TEMPLATE_ANNOTATION)
    if live is None or rolling_out(live):
        return before
    stands = live.body.get("spec", {}).get("template")
    known = notes.get(TEMPLATE_ANNOTATION)
    changes = known != wanted if known is not None else stands is not None and differs(template, stands)
    serves = int(live.body.get("status", {}).get("readyReplicas", 0)) > 0
    return _compact(stands) if changes and serves and stands is not None else before


def _template(text: str | None) -> Json | None:
    """What was kept; None where that is no template, since others may write into annotations too."""
    try:
        kept = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return kept if isinstance(kept, dict) else None


def _notes(live: Child | None) -> Json:
    return live.body.get("metadata", {}).get("annotations") or {} if live is not None else {}


def _annotated(manifest: Json, notes: Json) -> Json:
    metadata = manifest["metadata"]
    return manifest | {"metadata": metadata | {"annotations": metadata["annotations"] | notes}}


def _with_template(manifest: Json, template: Json) -> Json:
    """The manifest with another template, and its hash anew."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "annotations"}
    others = {k: v for k, v in manifest["metadata"]["annotations"].items() if k != MANIFEST_HASH_ANNOTATION}
    made = hashed(manifest | {"metadata": metadata, "spec": manifest["spec"] | {"template": template}})
    return _annotated(made, others)


def _compact(template: Json) -> str:
    return json.dumps(template, sort_keys=True, separators=(",", ":"))


def _digest(template: Json) -> str:
    return hashlib.sha256(_compact(template).encode()).hexdigest()[:16]
