"""What the operator may do and what it does are the same; and the admission policies that hold it to its own objects.

These run last: the audit log then tells of everything that all other tests have led to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import requests

from e2e.testbed.bed import Bed
from e2e.testbed.lws import crd
from e2e.testbed.operator import NAMESPACE, RELEASE
from e2e.testbed.tools import source
from e2e.tests.support.api import Api, Json, eventually, is_true, path
from e2e.tests.support.bed import OPERATOR, audit, mended, reinstalled
from e2e.tests.support.rights import Right, granted, needed
from e2e.tests.support.site import MODEL, SERVICE_LABEL, Site, condition
from tokenservice.core.model import Event, ObjectKey, Plan, Reason, StatusWrite
from tokenservice.edge.events import Events
from tokenservice.edge.kube import Kube, connect
from tokenservice.edge.report import Reporter
from tokenservice.edge.store import Version

pytestmark = pytest.mark.cluster

OWNED = (
    "serviceaccounts",
    "services",
    "apps/deployments",
    "networking.k8s.io/networkpolicies",
    "policy/poddisruptionbudgets",
    "monitoring.coreos.com/podmonitors",
)

DELETED = ("apps/deployments", "networking.k8s.io/networkpolicies")
"""Those of them that the operator deletes by itself."""

BY_ADMISSION = {
    **{(kind, "delete"): "test_children_left_behind_are_taken_back" for kind in OWNED if kind not in DELETED},
    ("taas.dev/tokenservices/finalizers", "update"): "test_children_left_behind_are_taken_back",
}
"""Rights that OwnerReferencesPermissionEnforcement asks for while it judges another request: no request of their own
tells of them. Each with the test here that shows it to be needed."""

TRESPASSER = "trespasser"
"""User agent of the attempts below, so that they are not taken for what the operator does."""


@pytest.fixture(scope="module")
def monitored(whole_bed: Bed) -> None:
    """The kinds of the Prometheus operator are there, and the chart has seen them; LeaderWorkerSets are there, too."""
    if not whole_bed.cluster.owned:
        pytest.skip("the audit log of a cluster that was there is not ours to read")
    folder = source("prometheus-operator") / "example/prometheus-operator-crd"
    files = [f"--filename={folder}/monitoring.coreos.com_{kind}.yaml" for kind in ("podmonitors", "prometheusrules")]
    files.append(f"--filename={crd()}")
    whole_bed.cluster.kubectl("apply", "--server-side", *files)
    wait = ("wait", "--for=condition=Established", "--timeout=30s", *files)  # which fails while there are no conditions
    eventually(lambda: whole_bed.cluster.kubectl(*wait, check=False).count("condition met") == 3, "they are there", 30)
    installed(whole_bed)


@pytest.fixture
def in_one_namespace(monitored: None, site: Site) -> Iterator[Site]:
    """The operator looks after the site's namespace and no other."""
    installed(site.bed, watchNamespaces=[site.namespace])
    yield site
    installed(site.bed, watchNamespaces=[])


def installed(bed: Bed, **values: Any) -> None:
    """Brings the chart to these values, and starts the operator afresh, without a Lease or a part of the catalogue."""
    missing = ("lease/tokenservice", "acceleratorclass/l4", "capacityprofile/llama-3.1-8b-bf16-vllm-l40s-tp1")
    reinstalled(bed, *missing, **values)


# --- granted and used ------------------------------------------------------------------------------------------------


async def test_in_all_namespaces_what_is_granted_is_used_and_nothing_else(monitored: None, site: Site) -> None:
    await exercised(site)
    judged(site, since=0.0)


async def test_in_one_namespace_what_is_granted_is_used_and_nothing_else(in_one_namespace: Site) -> None:
    began = time.time()
    installed(in_one_namespace.bed)
    await exercised(in_one_namespace)
    judged(in_one_namespace, began)
    written = {entry["objectRef"].get("namespace") for entry in own(in_one_namespace.bed, began) if _writes(entry)}
    assert written <= {in_one_namespace.namespace, NAMESPACE, "default", None}


async def exercised(site: Site) -> None:
    """Everything that the operator ever does with its rights: starts, places, removes, replaces, reports."""
    for _ in range(2):
        site.node()
    model = {"uri": f"hf://{MODEL}", "runtimeAdapters": {}}
    site.serving(scaling={"minReplicas": 2}, model=model)
    site.apply(scaling={"minReplicas": 2}, model=model | {"adapters": [{"name": "tone", "uri": "hf://testbed/tone"}]})
    site.eventually(lambda: site.status().get("adapters"), "the adapter is known")
    site.eventually(lambda: site.api.list("podmonitors", site.namespace), "a PodMonitor")
    site.apply()
    site.wait_ready_pods(1)
    site.apply(engine={"name": "SGLang"})
    site.eventually(lambda: ["sglang" in it["metadata"]["name"] for it in site.deployments()] == [True], "one engine")
    site.wait_true("Ready")
    images_are_held_ready_for_a_while(site)
    a_replica_across_nodes_comes_and_goes(site)
    site.eventually(lambda: not lists_of_adapters(site), "the list of adapters is gone")
    async with as_operator(site.bed) as kube:
        await events_repeat(kube, site)
        await what_was_learned_is_written(kube, site)


def images_are_held_ready_for_a_while(site: Site) -> None:
    site.apply(scaling={"warmNodes": 2})
    site.eventually(lambda: site.api.list("daemonsets", site.namespace), "images are held ready")
    site.apply()
    site.eventually(lambda: not site.api.list("daemonsets", site.namespace), "they are no more")


def a_replica_across_nodes_comes_and_goes(site: Site) -> None:
    """Nobody makes its pods here; what the operator does with the LeaderWorkerSet is the same."""
    architecture = {"parameters": 7_000_000_000, "layers": 32, "heads": 32, "kvHeads": 8, "headDim": 128}
    large = {
        "model": {"uri": "hf://acme/large", "architecture": architecture},
        "engine": {"name": "vLLM", "tensorParallelSize": 8, "pipelineParallelSize": 2},
    }
    for count in (1, 2):
        site.apply(replicas=count, **large)
        site.eventually(lambda count=count: _sets(site) == [count], f"a LeaderWorkerSet of {count}")
    site.apply()
    site.eventually(lambda: _sets(site) == [], "it went when a replica within a node served")


def _sets(site: Site) -> list[int]:
    return [it["spec"]["replicas"] for it in site.api.list("leaderworkersets", site.namespace)]


def lists_of_adapters(site: Site) -> list[Json]:
    return site.api.list("configmaps", site.namespace, SERVICE_LABEL)


async def events_repeat(kube: Kube, site: Site) -> None:
    """A sentence that holds for ten minutes: its repeats are counted."""
    now = time.time()
    events = Events(kube, "test", wall_clock=lambda: now)
    services = ObjectKey("TokenService", site.namespace, "chat"), site.service()["metadata"]["uid"]
    classes = ObjectKey("AcceleratorClass", "", "h100"), "uid"
    for regarding, uid in (services, classes):
        said = Event(regarding=regarding, uid=uid, type="Normal", reason=Reason.STEADY, message="nothing to do")
        await events.emit(said)
        now += 700
        await events.emit(said)


async def what_was_learned_is_written(kube: Kube, site: Site) -> None:
    """Minutes of traffic in which a profile proves wrong would be needed to see this by itself."""
    found = site.api.list("capacityprofiles")[0]
    key, metadata = ObjectKey("CapacityProfile", "", found["metadata"]["name"]), found["metadata"]
    versions = Seen({key: Version(metadata["uid"], metadata["resourceVersion"])})
    reporter = Reporter(kube, Events(kube, "test"), Leading(), versions)
    write = StatusWrite(key=key, uid=metadata["uid"], status={"observedGeneration": metadata["generation"]})
    assert await reporter.report(Plan(statuses=(write,)))


class Seen(dict[ObjectKey, Version]):
    """What a store would know."""

    def version(self, key: ObjectKey) -> Version | None:
        return self.get(key)


class Leading:
    """Nobody else writes meanwhile."""

    def held(self) -> bool:
        return True


@asynccontextmanager
async def as_operator(bed: Bed) -> Any:
    """The operator's own client, with its token."""
    kube = Kube(await connect(str(bed.cluster.service_account_kubeconfig(NAMESPACE, RELEASE))))
    try:
        yield kube
    finally:
        await kube.close()


def judged(site: Site, since: float) -> None:
    """Grants and needs agree, and nobody was ever refused."""
    entries = own(site.bed, since)
    refused = [e for e in entries if e["annotations"].get("authorization.k8s.io/decision") == "forbid"]
    assert [f"{e['verb']} {e['requestURI']}" for e in refused] == []
    grants = granted(site.api)
    used = needed(entries, grants)
    assert used - grants == set(), "used by a right that somebody else gave"
    idle = grants - used - {right for right in grants if (right.resource, right.verb) in BY_ADMISSION}
    assert idle == set(), "granted and never used: take it away, or exercise it above"
    assert used.isdisjoint(Right(right.namespace, *pair) for right in used for pair in BY_ADMISSION)


def own(bed: Bed, since: float) -> list[Json]:
    """What the operator itself asked for."""
    asked = [*audit(bed, since=since), *audit(bed, since=since, stage="ResponseStarted")]
    return [entry for entry in asked if TRESPASSER not in entry.get("userAgent", "")]


def _writes(entry: Json) -> bool:
    return entry["verb"] not in ("get", "list", "watch") and "objectRef" in entry


def test_no_role_reaches_secrets_or_further_rights(monitored: None, site: Site) -> None:
    for right in granted(site.api):
        assert "secrets" not in right.resource
        assert "*" not in (*right.resource, right.verb)
        assert right.verb not in ("escalate", "bind", "impersonate")
        assert "rbac.authorization.k8s.io" not in right.resource


# --- children that were left behind ----------------------------------------------------------------------------------


def test_children_left_behind_are_taken_back(monitored: None, site: Site) -> None:
    """A TokenService that was deleted alone and made anew: its engines go on. It takes the right to delete."""
    site.node()
    site.serving()
    before = [pod["metadata"]["uid"] for pod in site.pods()]
    site.bed.operator.stop()
    site.kubectl("delete", "tsvc", "chat", "--cascade=orphan")
    kinds = [kind.rpartition("/")[2] for kind in OWNED]
    left = [it for kind in kinds for it in site.api.list(kind, site.namespace, SERVICE_LABEL)]
    assert sorted({it["metadata"]["name"] for it in left}) == sorted({"chat", "chat-engine", "chat-h100-vllm-tp1-bf16"})
    eventually(lambda: not any(_owners(site)), "the owner references are gone")
    site.apply()
    for verb, resource in (("delete", OWNED), ("update", ["taas.dev/tokenservices/finalizers"])):
        _refused_without(site, verb, list(resource))
    mended(site.bed)
    site.wait_true("Ready")
    uid = site.service()["metadata"]["uid"]
    site.eventually(lambda: _owners(site) == [[uid]] * len(OWNED), "all of them are owned again")
    assert [pod["metadata"]["uid"] for pod in site.pods()] == before


def _owners(site: Site) -> list[list[str]]:
    return [
        [owner["uid"] for owner in it["metadata"].get("ownerReferences") or []]
        for kind in OWNED
        for it in site.api.list(kind.rpartition("/")[2], site.namespace, SERVICE_LABEL)
    ]


def _refused_without(site: Site, verb: str, resources: list[str]) -> None:
    """An account with the operator's rights but one may not take any of the children back."""
    account = f"no-{verb}"
    site.kubectl("create", "serviceaccount", account)
    lacking = {(resource, verb) for resource in resources}
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": [right.verb]}
        for right in granted(site.api)
        if (right.resource, right.verb) not in lacking
        for group, resource in [_parted(right.resource)]
    ]
    metadata = {"name": account, "namespace": site.namespace}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": site.namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
    api = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": metadata}
    site.bed.cluster.apply(
        {**api, "kind": "Role", "rules": rules},
        {**api, "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]},
    )
    owner = {"apiVersion": "taas.dev/v1alpha1", "kind": "TokenService", "name": "chat", "controller": True}
    owner |= {"uid": site.service()["metadata"]["uid"], "blockOwnerDeletion": True}
    body = {"metadata": {"ownerReferences": [owner]}}
    with trespasser(site.bed, f"{site.namespace}/{account}") as http:
        for kind in (kind.rpartition("/")[2] for kind in OWNED):
            for child in site.api.list(kind, site.namespace, SERVICE_LABEL):
                answer = attempt(http, site.bed, "PATCH", kind, site.namespace, child["metadata"]["name"], body)
                assert "cannot set" in answer, f"{kind} without {verb}: {answer}"


def _parted(resource: str) -> tuple[str, str]:
    group, _, rest = resource.partition("/")
    return (group, rest) if "." in group or group in ("apps", "policy") else ("", resource)


# --- the policies ----------------------------------------------------------------------------------------------------


def trespasser(bed: Bed, account: str = f"{NAMESPACE}/{RELEASE}") -> requests.Session:
    """HTTP with the token of a ServiceAccount, the operator's unless told otherwise."""
    namespace, _, name = account.partition("/")
    http = requests.Session()
    http.trust_env = False
    http.headers["Authorization"] = f"Bearer {bed.cluster.kubectl('create', 'token', name, '-n', namespace).strip()}"
    http.headers["User-Agent"] = TRESPASSER
    http.verify = str(bed.cluster.certificate)
    return http


def attempt(
    http: requests.Session,
    bed: Bed,
    method: str,
    kind: str,
    namespace: str,
    name: str = "",
    body: Json | None = None,
    how: str = "application/merge-patch+json",
) -> str:
    """What the server says to a write, tried without effect; empty when it would do it."""
    url = bed.cluster.server + path(kind.partition("/")[0], namespace)
    url = "/".join(filter(None, (url, name, kind.partition("/")[2])))
    headers = {"Content-Type": how} if method == "PATCH" else {}
    answer = http.request(method, url, params={"dryRun": "All"}, json=body, headers=headers, timeout=30)
    return "" if answer.ok else str(answer.json()["message"])


def engine(site: Site, **pod: Any) -> Json:
    """The Deployment that runs, under another name, with some fields of its pods changed."""
    (live,) = site.deployments()
    metadata = {key: live["metadata"][key] for key in ("labels", "ownerReferences", "namespace")} | {"name": "other"}
    template = live["spec"]["template"]
    spec = {**live["spec"], "template": {**template, "spec": {**template["spec"], **pod}}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def neighbours(module_site: Site) -> Site:
    """An engine, and things of a tenant beside it."""
    site = module_site
    site.node()
    site.serving()
    web = {"app": "web"}
    container = {
        "name": "web",
        "image": "example.org/web:1",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    made = {"metadata": {"name": "web", "namespace": site.namespace, "labels": web}}
    site.bed.cluster.apply(
        {"apiVersion": "v1", "kind": "Service", **made, "spec": {"selector": web, "ports": [{"port": 80}]}},
        {"apiVersion": "v1", "kind": "ServiceAccount", **made},
        {"apiVersion": "v1", "kind": "Pod", **made, "spec": pod},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", **made, "spec": {"podSelector": {}}},
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            **made,
            "spec": {"minAvailable": 1, "selector": {"matchLabels": web}},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            **made,
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": web},
                "template": {"metadata": {"labels": web}, "spec": pod},
            },
        },
    )
    return site


MARKED = {"metadata": {"annotations": {"mark": "1"}}}
CLAIMED = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "tokenservice-operator", SERVICE_LABEL: "chat"}}}
NOT_MINE = "leaves those of others alone"


@pytest.mark.parametrize(
    "kind", ["services", "serviceaccounts", "deployments", "networkpolicies", "poddisruptionbudgets"]
)
def test_with_the_operators_token_nothing_of_others_can_be(neighbours: Site, kind: str) -> None:
    """Changed, claimed by its labels, or deleted; its own can be."""
    site, own_name = neighbours, {"serviceaccounts": "chat-engine", "deployments": "chat-h100-vllm-tp1-bf16"}
    with trespasser(site.bed) as http:
        for method, body in (("PATCH", MARKED), ("PATCH", CLAIMED), ("DELETE", None)):
            assert NOT_MINE in attempt(http, site.bed, method, kind, site.namespace, "web", body)
            mine = own_name.get(kind, "chat")
            assert attempt(http, site.bed, method, kind, site.namespace, mine, body) == ""


def _without(body: Json, *where: str) -> Json:
    kept = {**body, "metadata": {**body["metadata"]}}
    for name in where:
        kept["metadata"].pop(name)
    return kept


HOST = {"name": "host", "hostPath": {"path": "/"}}
OF_THE_NODE: dict[str, Json] = {
    "privileged": {"securityContext": {"privileged": True}},
    "a capability": {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}},
    "a port of the node": {"ports": [{"containerPort": 8000, "hostPort": 8000}]},
}
TOKEN = {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}


def group(site: Site, leader: Json, worker: Json) -> Json:
    """A LeaderWorkerSet with the pods of these Deployments."""
    templates = {"leaderTemplate": leader["spec"]["template"], "workerTemplate": worker["spec"]["template"]}
    kind = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": leader["metadata"]}
    return kind | {"spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 2, **templates}}}


@pytest.mark.usefixtures("monitored")
def test_with_the_operators_token_groups_are_held_to_the_same(neighbours: Site) -> None:
    site, sound = neighbours, engine(neighbours)
    token, host = engine(site, automountServiceAccountToken=True), engine(site, hostNetwork=True)
    cases = {
        NOT_MINE: _without(group(site, sound, sound), "labels"),
        "not owned by the TokenService": _without(group(site, sound, sound), "ownerReferences"),
        "without its token": group(site, sound, token),
        "run as their own ServiceAccount": group(site, token, sound),
        "nothing of their node": group(site, sound, host),
        "engines get nothing": group(site, host, sound),
    }
    with trespasser(site.bed) as http:
        kind = "leaderworkersets"
        assert attempt(http, site.bed, "POST", kind, site.namespace, body=group(site, sound, sound)) == ""
        for said, body in cases.items():
            assert said in attempt(http, site.bed, "POST", kind, site.namespace, body=body), said


def warm_up(site: Site, label: str, **changes: Any) -> Json:
    """A DaemonSet with the pods of the engine's Deployment, labelled as those that hold images ready."""
    made = engine(site, **changes)
    labels = {label: "chat"}
    template = {**made["spec"]["template"], "metadata": {"labels": labels}}
    return made | {"kind": "DaemonSet", "spec": {"selector": {"matchLabels": labels}, "template": template}}


def test_with_the_operators_token_what_holds_images_ready_is_held_to_the_same(neighbours: Site) -> None:
    site, label = neighbours, "taas.dev/warm-up"
    cases = {
        NOT_MINE: _without(warm_up(site, label), "labels"),
        "not owned by the TokenService": _without(warm_up(site, label), "ownerReferences"),
        "would not carry the label": warm_up(site, "taas.dev/service"),
        "without its token": warm_up(site, label, automountServiceAccountToken=True),
        "nothing of their node": warm_up(site, label, hostNetwork=True),
    }
    with trespasser(site.bed) as http:
        assert attempt(http, site.bed, "POST", "daemonsets", site.namespace, body=warm_up(site, label)) == ""
        for said, body in cases.items():
            assert said in attempt(http, site.bed, "POST", "daemonsets", site.namespace, body=body), said


def test_with_the_operators_token_only_engines_can_be_made(neighbours: Site) -> None:
    """Of a TokenService, without a token, and with nothing of the node."""
    site = neighbours
    sound = engine(site)
    spec = sound["spec"]["template"]["spec"]
    volumes, container = spec["volumes"], spec["containers"][0]
    nothing = "engines get nothing of their node"
    cases = {
        "no labels": (NOT_MINE, _without(sound, "labels")),
        "no owner": ("not owned by the TokenService", _without(sound, "ownerReferences")),
        "a token": ("without its token", engine(site, automountServiceAccountToken=True)),
        "another account": ("run as their own ServiceAccount", engine(site, serviceAccountName="default")),
        "the node's network": (nothing, engine(site, hostNetwork=True)),
        "the node's files": (nothing, engine(site, volumes=[*volumes, HOST])),
        "a projected token": (nothing, engine(site, volumes=[*volumes, TOKEN])),
    }
    for what, change in OF_THE_NODE.items():
        cases[f"{what}, engine"] = (nothing, engine(site, containers=[{**container, **change}]))
        first = {"name": "first", "image": container["image"], **change}
        cases[f"{what}, before it"] = (nothing, engine(site, initContainers=[first]))
    with trespasser(site.bed) as http:
        assert attempt(http, site.bed, "POST", "deployments", site.namespace, body=sound) == ""
        for what, (said, body) in cases.items():
            assert said in attempt(http, site.bed, "POST", "deployments", site.namespace, body=body), what


def test_with_the_operators_token_a_pod_can_be_placed_and_drained_and_no_more(neighbours: Site) -> None:
    site, cost = neighbours, "controller.kubernetes.io/pod-deletion-cost"
    (pod,) = site.pods()
    name, image = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
    serving = {"conditions": [{"type": "taas.dev/serving", "status": "False"}]}
    allowed: list[tuple[str, Json]] = [
        ("pods", {"metadata": {"annotations": {cost: "7"}}}),
        ("pods/status", {"status": serving}),
    ]
    refused: list[tuple[str, Json]] = [
        ("pods", {"metadata": {"annotations": {"mark": "1"}}}),
        ("pods", {"metadata": {"labels": {"mark": "1"}}}),
        ("pods", {"metadata": {"finalizers": ["taas.dev/stay"]}}),
        ("pods", {"spec": {"containers": [{"name": image, "image": "example.org/mine:1"}]}}),
        ("pods", {"spec": {"tolerations": [*pod["spec"]["tolerations"], {"operator": "Exists"}]}}),
        ("pods", {"spec": {"activeDeadlineSeconds": 1}}),
        ("pods/status", {"status": {"podIPs": [{"ip": "10.0.0.9"}, {"$patch": "replace"}], "podIP": "10.0.0.9"}}),
        ("pods/status", {"status": {"phase": "Failed"}}),
    ]
    strategic = "application/strategic-merge-patch+json"
    with trespasser(site.bed) as http:
        for kind, body in allowed:
            assert attempt(http, site.bed, "PATCH", kind, site.namespace, name, body, strategic) == "", body
        for kind, body in refused:
            assert "denied" in attempt(http, site.bed, "PATCH", kind, site.namespace, name, body, strategic), body
        for kind, body in allowed:
            assert NOT_MINE in attempt(http, site.bed, "PATCH", kind, site.namespace, "web", body, strategic), body


def test_the_policies_bind_nobody_else(neighbours: Site) -> None:
    neighbours.kubectl("annotate", "deployment", "web", "looked=1", "--overwrite")
    neighbours.kubectl("annotate", "pod", "web", "looked=1", "--overwrite")


def test_a_name_that_a_tenant_uses_is_left_to_them_and_said(neighbours: Site) -> None:
    """What is called `web` is the tenant's: a TokenService of that name takes nothing over; it comes when that goes."""
    before = neighbours.kubectl("get", "service", "web", "-o", "jsonpath={.spec}")
    neighbours.apply("web")
    said = neighbours.wait_condition("Stalled", "True", "web")
    assert said["reason"] == "NameTaken"
    assert "web is there already and is not of this TokenService" in said["message"]
    assert "rename or remove it" in said["message"]
    neighbours.eventually(lambda: neighbours.told("NameTaken", "web"), "an event says it")
    assert neighbours.kubectl("get", "service", "web", "-o", "jsonpath={.spec}") == before
    assert is_true(neighbours.service("chat"), "Ready"), "the other service never noticed"
    assert condition(neighbours.service("web"), "Ready").get("status") != "True"
    for kind in ("service", "networkpolicy", "poddisruptionbudget"):
        neighbours.kubectl("delete", kind, "web")
    neighbours.wait_true("Ready", "web")
    assert not is_true(neighbours.service("web"), "Stalled")
    neighbours.kubectl("delete", "tsvc", "web")


# --- users -----------------------------------------------------------------------------------------------------------

USERS = {
    "view": {"get tokenservices": True, "create tokenservices": False, "patch tokenservices/status": False},
    "edit": {
        "create tokenservices": True,
        "delete tokenservices": True,
        "patch tokenservices/scale": True,
        "patch tokenservices/status": False,
        "update tokenservices/finalizers": False,
        "create acceleratorclasses": False,
        "patch tokenfleets": False,
    },
    "admin": {
        "create tokenservices": True,
        "patch tokenservices/status": False,
        "patch tokenfleets": False,
        "patch capacityprofiles": False,
    },
}


@pytest.mark.parametrize("role", USERS)
def test_the_roles_that_kubernetes_has_include_the_right_part(site: Site, api: Api, role: str) -> None:
    site.kubectl("create", "rolebinding", "somebody", f"--clusterrole={role}", "--user=somebody")
    for asked, may in USERS[role].items():
        verb, _, resource = asked.partition(" ")
        eventually(
            lambda verb=verb, resource=resource, may=may: _may(site, verb, resource) is may,
            f"{role}: {asked}",
            10,
        )


def _may(site: Site, verb: str, resource: str) -> bool:
    kind, _, part = resource.partition("/")
    asked = ["auth", "can-i", verb, f"{kind}.taas.dev", "--as=somebody", *([f"--subresource={part}"] if part else [])]
    return site.kubectl(*asked, check=False).split()[0] == "yes"


def test_only_the_operator_is_bound(monitored: None, site: Site) -> None:
    """Its own roles are bound to its ServiceAccount and nobody else."""
    for kind in ("clusterrolebindings", "rolebindings"):
        for binding in site.api.list(kind):
            if binding["metadata"].get("labels", {}).get("app.kubernetes.io/instance") == RELEASE:
                names = [f"{s.get('namespace')}:{s['name']}" for s in binding["subjects"]]
                assert [f"system:serviceaccount:{name}" for name in names] == [OPERATOR]
