from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.rendering import SETTINGS, SPECS, VARIANTS, spec_of
from tests.support.build import make_service
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.drift import differs
from tokenservice.core.manifests import children
from tokenservice.core.model import Json


def manifests() -> list[Json]:
    service = make_service()
    rendered: list[Json] = []
    for case in SPECS:
        owner = type(service)(
            key=service.key, uid="u", generation=1, resource_version="1", created_at=0, spec=spec_of(case)
        )
        for variant in VARIANTS.values():
            rendered += children(owner, [(variant, 3)], SETTINGS, needed=2, fleet=TokenFleetSpec())
    return rendered


MANIFESTS = manifests()
DEPLOYMENT = next(m for m in MANIFESTS if m["kind"] == "Deployment")


def live(**changes: Any) -> Json:
    """A Deployment as the server shows it, after `changes` to its pod template's spec."""
    body = copy.deepcopy(DEPLOYMENT)
    body["metadata"] |= {
        "resourceVersion": "7",
        "uid": "x",
        "generation": 2,
        "creationTimestamp": "2027-01-01T00:00:00Z",
    }
    body["status"] = {"replicas": 3}
    body["spec"]["template"]["spec"] |= {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always"} | changes
    return body


@pytest.mark.parametrize("manifest", MANIFESTS[:40], ids=lambda m: m["kind"])
def test_what_was_applied_does_not_differ_from_itself(manifest: Json) -> None:
    assert not differs(manifest, copy.deepcopy(manifest))


def test_defaults_of_the_server_are_no_drift() -> None:
    body = live()
    container = body["spec"]["template"]["spec"]["containers"][0]
    container |= {"imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log"}
    container["readinessProbe"]["successThreshold"] = 1
    assert not differs(DEPLOYMENT, body)


def test_items_that_others_add_to_keyed_lists_are_no_drift() -> None:
    body = live()
    pod = body["spec"]["template"]["spec"]
    pod["containers"].append({"name": "sidecar", "image": "proxy"})
    pod["containers"][0]["env"].insert(0, {"name": "INJECTED", "value": "1"})
    pod["volumes"].reverse()
    assert not differs(DEPLOYMENT, body)


def test_a_quantity_in_other_words_is_no_drift() -> None:
    body = live()
    body["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "24576Mi"
    desired = copy.deepcopy(DEPLOYMENT)
    desired["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "24Gi"
    assert not differs(desired, body)


def test_a_number_in_an_argument_is_no_quantity() -> None:
    desired = {"args": ["1000m"], "replicas": 1}
    assert differs(desired, {"args": ["1"], "replicas": 1})


def test_a_truth_is_no_number() -> None:
    assert differs({"automount": True}, {"automount": 1})
    assert differs({"count": 0}, {"count": False})


def test_lists_that_the_server_leaves_out_when_empty_are_no_drift() -> None:
    desired: Json = {"spec": {"egress": [], "podSelector": {}}}
    assert not differs(desired, {"spec": {}})
    assert differs(desired, {"spec": {"egress": [{}]}})


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod["containers"][0]["args"].append("--trust-remote-code"),
        lambda pod: pod["containers"][0]["args"].pop(),
        lambda pod: pod["containers"][0].update(image="other"),
        lambda pod: pod["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
        lambda pod: pod["containers"][0]["resources"]["limits"].update(memory="1Gi"),
        lambda pod: pod["containers"][0]["env"].pop(),
        lambda pod: pod["tolerations"].append({"operator": "Exists"}),
        lambda pod: pod["tolerations"].reverse(),
        lambda pod: pod.pop("priorityClassName"),
        lambda pod: pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"].update(
            nodeSelectorTerms=[{"matchExpressions": []}]
        ),
    ],
    ids=[
        "argument added",
        "argument removed",
        "image",
        "boolean",
        "quantity",
        "variable removed",
        "toleration added",
        "owned list reordered",
        "field removed",
        "hard rule loosened",
    ],
)
def test_what_applying_would_put_right_is_drift(change: Any) -> None:
    body = live()
    change(body["spec"]["template"]["spec"])
    assert differs(DEPLOYMENT, body)


def test_a_count_that_somebody_else_set_is_drift() -> None:
    body = live()
    body["spec"]["replicas"] = 0
    assert differs(DEPLOYMENT, body)


def test_a_field_that_is_no_longer_wanted_is_found_by_the_hash() -> None:
    body = live(runtimeClassName="nvidia")
    assert not differs(DEPLOYMENT, body)
    body["metadata"]["annotations"]["taas.dev/manifest-hash"] = "of an earlier manifest"
    assert differs(DEPLOYMENT, body)


def test_an_object_without_our_hash_was_not_made_by_us() -> None:
    body = live()
    del body["metadata"]["annotations"]["taas.dev/manifest-hash"]
    assert differs(DEPLOYMENT, body)


scalars = st.booleans() | st.integers(-5, 5) | st.text("ab1m", min_size=1, max_size=3)
keys = st.sampled_from(["name", "type", "limits", "spec", "args", "x"])
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)
objects = st.dictionaries(keys, trees, max_size=4)


def grown(tree: Any, extra: Any) -> Any:
    """`tree` with a field more in every object, as a server or another manager would add it."""
    if isinstance(tree, dict):
        return {key: grown(value, extra) for key, value in tree.items()} | {"addedByServer": extra}
    return [grown(item, extra) for item in tree] if isinstance(tree, list) else tree


def changed_leaves(tree: Any) -> list[Any]:
    """Every tree that has one leaf of `tree` changed."""
    if isinstance(tree, dict):
        return [tree | {key: leaf} for key, value in tree.items() for leaf in changed_leaves(value)]
    if isinstance(tree, list):
        return [[*tree[:i], leaf, *tree[i + 1 :]] for i, value in enumerate(tree) for leaf in changed_leaves(value)]
    return [f"{tree} changed"]


@settings(deadline=None)  # a busy machine is no failure
@given(objects, scalars)
def test_what_others_add_never_is_drift(desired: Json, extra: Any) -> None:
    assert not differs(desired, grown(desired, extra))


@settings(deadline=None)  # a busy machine is no failure
@given(objects)
def test_every_leaf_counts(desired: Json) -> None:
    assert all(differs(desired, other) for other in changed_leaves(desired))


@settings(deadline=None)  # a busy machine is no failure
@given(objects, objects)
def test_drift_never_fails_on_what_a_server_may_show(desired: Json, shown: Json) -> None:
    assert differs(desired, shown) in (True, False)
