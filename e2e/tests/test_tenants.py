"""What somebody gains who may write TokenServices in one namespace, and nothing else: the running of a model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.tests.support.api import eventually
from e2e.tests.support.site import Site

pytestmark = pytest.mark.cluster

TENANT = "--as=tenant"
DIGEST = "sha256:" + "0a" * 32


@pytest.fixture
def tenant(site: Site) -> Site:
    """Somebody with the chart's roles to see and to edit here, and no other."""
    for role in ("view", "edit"):
        site.kubectl("create", "rolebinding", f"tenant-{role}", f"--clusterrole=tokenservice-{role}", "--user=tenant")
    eventually(
        lambda: site.kubectl("auth", "can-i", "create", "tokenservices.taas.dev", TENANT, check=False) == "yes\n",
        "the tenant's role is in force",
        10,
    )
    return site


@pytest.mark.parametrize(
    "asked",
    [
        "create pods",
        "create deployments.apps",
        "patch deployments.apps",
        "get secrets",
        "create pods/exec",
        "get pods/log",
        "create serviceaccounts/token",
        "patch tokenservices.taas.dev --subresource=status",
        "patch tokenfleets.taas.dev",
        "patch acceleratorclasses.taas.dev",
        "create tokenservices.taas.dev --namespace=default",
    ],
)
def test_a_tenant_may_not(tenant: Site, asked: str) -> None:
    said = tenant.bed.cluster.kubectl(
        f"--namespace={tenant.namespace}", "auth", "can-i", *asked.split(), TENANT, check=False
    )
    assert said.split()[0] == "no"


def test_what_a_tenant_writes_runs_in_its_namespace_and_nowhere_else(tenant: Site) -> None:
    tenant.node()
    tenant.kubectl("apply", "-f", "-", TENANT, stdin=tenant.yaml())
    tenant.wait_true("Ready")
    uid = tenant.service()["metadata"]["uid"]
    kinds = ("deployments", "services", "serviceaccounts", "networkpolicies", "poddisruptionbudgets")
    made = [it for kind in kinds for it in tenant.api.list(kind, selector="taas.dev/service")]
    mine = [it for it in made if any(owner["uid"] == uid for owner in it["metadata"].get("ownerReferences", []))]
    assert len(mine) == len(kinds)
    assert {it["metadata"]["namespace"] for it in mine} == {tenant.namespace}
    (pod,) = tenant.pods()
    assert pod["spec"]["serviceAccountName"] == "chat-engine"
    assert not [volume for volume in pod["spec"]["volumes"] if "projected" in volume or "hostPath" in volume]


REFUSED = {
    "a field that there is not": ({"template": {"spec": {"hostNetwork": True}}}, 'unknown field "spec.template"'),
    "a secret as a revision": ({"model": {"uri": "hf://a/b", "revision": "$(HF_TOKEN)"}}, "not a revision"),
    "a secret by path": ({"model": {"uri": "hf://a/b", "credentials": {"name": "../x"}}}, "not the name of a Secret"),
    "an image by tag": ({"engine": {"name": "vLLM", "image": "evil.org/x:1"}}, "pin the image by digest"),
}


@pytest.mark.parametrize(("spec", "said"), REFUSED.values(), ids=REFUSED)
def test_the_api_server_refuses(tenant: Site, spec: dict[str, object], said: str) -> None:
    text = tenant.yaml(**spec)
    assert said in tenant.kubectl("apply", "-f", "-", TENANT, "--validate=strict", stdin=text, check=False)


STALLED = {
    "an image that nobody allowed": ({"engine": {"name": "vLLM", "image": f"evil.org/x@{DIGEST}"}}, "ImageNotAllowed"),
    "code of the model": ({"engine": {"name": "vLLM", "extraArgs": ["--trust-remote-code"]}}, "ArgumentNotAllowed"),
    "a file of the pod": (
        {"engine": {"name": "vLLM", "extraArgs": ["--chat-template=/etc/passwd"]}},
        "ArgumentNotAllowed",
    ),
    "a library": (
        {"engine": {"name": "vLLM", "env": [{"name": "LD_PRELOAD", "value": "x.so"}]}},
        "ArgumentNotAllowed",
    ),
}


def test_what_only_the_operator_can_tell_stalls_and_starts_nothing(tenant: Site) -> None:
    for number, (spec, _) in enumerate(STALLED.values()):
        tenant.kubectl("apply", "-f", "-", TENANT, stdin=tenant.yaml(f"case-{number}", **spec))
    for number, (_, reason) in enumerate(STALLED.values()):
        assert tenant.wait_true("Stalled", f"case-{number}")["reason"] == reason
    assert tenant.deployments(None) == []


# --- limits of the namespace


@pytest.fixture
def limited(site: Site) -> Iterator[Site]:
    """A namespace that may hold one accelerator and use two tiers."""
    _limit(site, maxAccelerators=1, tiers=["Elastic", "Spot"])
    yield site
    site.api.patch("tokenfleets", "default", {"spec": {"namespaces": None}})


def _limit(site: Site, **limit: object) -> None:
    site.api.patch("tokenfleets", "default", {"spec": {"namespaces": [{"name": site.namespace, **limit}]}})


def test_a_namespace_gets_what_the_fleet_lets_it_have_and_is_told(limited: Site) -> None:
    site = limited
    site.node()
    site.apply(scaling={"minReplicas": 3})
    site.apply("owed", tier="Guaranteed", objectives={"volume": {"guaranteedTokensPerSecond": 10}})
    said = site.wait_condition("CapacityAvailable", "False")
    assert (said["reason"], "may hold 1 accelerators" in said["message"]) == ("NamespaceLimit", True)
    assert site.wait_true("Stalled", "owed")["reason"] == "NotAllowedInNamespace"
    site.wait_ready_pods(1)
    assert len(site.pods(None)) == 1
    _limit(site, maxAccelerators=3)
    site.eventually(lambda: len(site.ready_pods(None)) == 3, "three replicas of both")
