"""The chart as Helm renders it: restricted pods, least rights, checked values, and what stays on uninstall."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenservice.app.settings import load
from tokenservice.cli.lint import linted
from tokenservice.core.names import PRIORITY_CLASSES, SERVICE_LABEL
from tokenservice.edge.resources import OWNED_KINDS, RESOURCES

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tokenservice"
MONITORING = ("--api-versions", "monitoring.coreos.com/v1")


@cache
def helm() -> str | None:
    """Helm as the testbed keeps it, or from PATH; it is not built for these tests."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenservice"
    kept = sorted((Path(os.environ.get("TAAS_CACHE") or home) / "tools").glob("helm-*/helm"))
    return str(kept[-1]) if kept else shutil.which("helm")


pytestmark = pytest.mark.skipif(helm() is None, reason="helm is not there yet: `make tools` fetches or builds it")


def run(*arguments: str, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    command = [str(helm()), "template", "tokenservice", str(chart), "--namespace=taas", "--kube-version=1.33.0"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


@cache
def rendered(*arguments: str, chart: Path = CHART) -> tuple[Json, ...]:
    """Every object of `helm template`."""
    done = run(*arguments, chart=chart)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def values(**wanted: Any) -> tuple[str, ...]:
    """Values as arguments, dots written as __."""
    return tuple(f"--set-json={key.replace('__', '.')}={json.dumps(value)}" for key, value in wanted.items())


def kinds(objects: tuple[Json, ...], kind: str) -> list[Json]:
    return [it for it in objects if it["kind"] == kind]


def only(objects: tuple[Json, ...], kind: str) -> Json:
    (found,) = kinds(objects, kind)
    return found


def config(*arguments: str) -> Json:
    """The settings as the operator reads them."""
    loaded: Json = yaml.safe_load(only(rendered(*arguments), "ConfigMap")["data"]["config.yaml"])
    return loaded


# --- the operator's pod ---------------------------------------------------------------------------------------------


def test_the_operator_satisfies_pod_security_restricted() -> None:
    pod = only(rendered(), "Deployment")["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]} <= {"configMap", "emptyDir", "secret"}
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True
        assert container["resources"]["requests"]
        assert "memory" in container["resources"]["limits"]


def test_one_operator_replaces_the_other() -> None:
    spec = only(rendered(), "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_probes_ask_the_health_port_that_the_operator_is_told() -> None:
    container = only(rendered(*values(health__port=9999)), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["health"] == config(*values(health__port=9999))["health"]["port"] == 9999
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}


def test_a_changed_setting_restarts_the_operator() -> None:
    def checksum(*arguments: str) -> str:
        metadata = only(rendered(*arguments), "Deployment")["spec"]["template"]["metadata"]
        return str(metadata["annotations"]["checksum/config"])

    assert checksum() != checksum(*values(operator__planIntervalSeconds=7))


def test_a_digest_takes_precedence_over_the_tag() -> None:
    digest = "sha256:" + "a" * 64
    pod = only(rendered(*values(image__digest=digest, image__tag="v9")), "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"].endswith(f"@{digest}")


def test_the_operator_has_the_priority_that_it_is_given() -> None:
    def given(*arguments: str) -> str | None:
        return only(rendered(*arguments), "Deployment")["spec"]["template"]["spec"].get("priorityClassName")

    assert given() is None
    assert given(*values(operator__priorityClassName="system-cluster-critical")) == "system-cluster-critical"


@pytest.mark.parametrize("repository", ["operator", "example.org/a/operator", "localhost:5000/operator"])
def test_a_repository_may_name_the_port_of_its_registry(repository: str) -> None:
    pod = only(rendered(*values(image__repository=repository)), "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == f"{repository}:0.1.0"


def test_a_secret_reaches_the_operator_as_a_file_and_by_no_right() -> None:
    arguments = values(prometheus__tokenSecret={"name": "prom", "key": "bearer"})
    pod = only(rendered(*arguments), "Deployment")["spec"]["template"]["spec"]
    (mount,) = [it for it in pod["containers"][0]["volumeMounts"] if it["name"] == "prometheus-token"]
    assert config(*arguments)["prometheus"]["tokenFile"] == f"{mount['mountPath']}/token"


# --- rights ---------------------------------------------------------------------------------------------------------

INSTALLS = {
    "everywhere": MONITORING,
    "in two namespaces": (*MONITORING, *values(watchNamespaces=["a", "b"])),
    "without the webhook": values(webhook__enabled=False),
    "with adapters at run time": values(adapterLoader__image="example.org/adapter-loader:1"),
}
each_install = pytest.mark.parametrize("arguments", INSTALLS.values(), ids=INSTALLS)


def rules(objects: tuple[Json, ...]) -> Iterator[tuple[str, str, Json]]:
    """Kind, namespace and rule of everything that the operator's account is bound to."""
    roles = {(it["kind"], it["metadata"].get("namespace", ""), it["metadata"]["name"]): it for it in objects}
    for binding in kinds(objects, "ClusterRoleBinding") + kinds(objects, "RoleBinding"):
        namespace = binding["metadata"].get("namespace", "")
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "tokenservice", "namespace": "taas"}]
        for rule in roles[binding["roleRef"]["kind"], namespace, binding["roleRef"]["name"]]["rules"]:
            yield binding["kind"], namespace, rule


@each_install
def test_rights_have_no_wildcard_no_secret_and_no_escalation(arguments: tuple[str, ...]) -> None:
    for role in kinds(rendered(*arguments), "ClusterRole") + kinds(rendered(*arguments), "Role"):
        for rule in role["rules"]:
            named = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "*" not in named, role["metadata"]["name"]
            assert not {"secrets", "pods/exec", "pods/log", "serviceaccounts/token", "nodes/proxy"} & set(named)
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            assert "rbac.authorization.k8s.io" not in rule["apiGroups"]


@each_install
def test_no_spec_of_a_user_can_be_written(arguments: tuple[str, ...]) -> None:
    for _, _, rule in rules(rendered(*arguments)):
        if {"tokenservices", "tokenfleets"} & set(rule["resources"]):
            assert set(rule["verbs"]) <= {"get", "list", "watch"}
        if "nodes" in rule["resources"]:
            assert set(rule["verbs"]) <= {"get", "list", "watch"}


def granted(objects: tuple[Json, ...]) -> set[tuple[str, str, str]]:
    """(group, resource, verb)"""
    return {
        (group, resource, verb)
        for _, _, rule in rules(objects)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@each_install
def test_everything_owned_can_be_watched_applied_and_deleted(arguments: tuple[str, ...]) -> None:
    owned = [*OWNED_KINDS, "LeaderWorkerSet", *(["PodMonitor"] if "--api-versions" in arguments else [])]
    rights = granted(rendered(*arguments))
    for kind in owned:
        resource = RESOURCES[kind]
        for verb in ("list", "watch", "create", "patch", "delete"):
            assert (resource.group, resource.plural, verb) in rights, (kind, verb)


@each_install
def test_rights_in_a_namespace_are_the_same_in_every_install(arguments: tuple[str, ...]) -> None:
    """What an install uses was seen for both on a control plane (e2e/tests/test_rights.py)."""
    everywhere = granted(rendered(*(it for it in arguments if "watchNamespaces" not in it)))
    leader = {("coordination.k8s.io", "leases", verb) for verb in ("create", "get", "patch")}
    assert granted(rendered(*arguments)) - leader == everywhere - leader


def test_config_maps_are_no_business_of_an_operator_that_loads_no_adapters() -> None:
    assert not any(resource == "configmaps" for _, resource, _ in granted(rendered()))
    loading = values(adapterLoader__image="example.org/adapter-loader:1")
    assert {verb for _, resource, verb in granted(rendered(*loading)) if resource == "configmaps"} == {
        *("list", "watch", "create", "patch", "delete")
    }
    assert config(*loading)["adapterLoaderImage"] == "example.org/adapter-loader:1"


@each_install
def test_the_admission_policies_judge_the_operator_and_every_kind_that_it_writes(arguments: tuple[str, ...]) -> None:
    policies = {it["metadata"]["name"]: it["spec"] for it in kinds(rendered(*arguments), "ValidatingAdmissionPolicy")}
    for spec in policies.values():
        assert spec["failurePolicy"] == "Fail"
        (condition,) = spec["matchConditions"]
        assert condition["expression"] == "request.userInfo.username == 'system:serviceaccount:taas:tokenservice'"
    judged = {
        (group, resource)
        for spec in policies.values()
        for rule in spec["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    written = {
        (group, resource)
        for kind, _, rule in rules(rendered(*arguments))
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if {"create", "patch", "delete"} & set(rule["verbs"]) and group not in NOT_JUDGED
    }
    assert written <= judged
    bound = {
        it["spec"]["policyName"]: it["spec"] for it in kinds(rendered(*arguments), "ValidatingAdmissionPolicyBinding")
    }
    assert bound.keys() == policies.keys()
    assert all(spec["validationActions"] == ["Deny"] for spec in bound.values())


NOT_JUDGED = {"taas.dev", "coordination.k8s.io", "events.k8s.io", "admissionregistration.k8s.io"}
"""Statuses and the catalogue, its Lease, events, and its webhook, which no admission policy is ever asked about."""


def test_an_administrators_patch_may_give_engines_what_the_policy_would_refuse() -> None:
    def said(*arguments: str) -> str:
        return str([it["spec"]["validations"] for it in kinds(rendered(*arguments), "ValidatingAdmissionPolicy")])

    assert "hostPath" in said()
    assert "hostPath" not in said(*values(enginePodPatch={"spec": {"hostNetwork": True}}))
    assert "taas.dev/service" in said(*values(enginePodPatch={"spec": {"hostNetwork": True}}))


def test_the_admission_policies_can_be_left_out() -> None:
    assert not kinds(rendered(*values(admissionPolicy__enabled=False)), "ValidatingAdmissionPolicy")


@each_install
def test_nothing_beyond_the_known_kinds_is_granted(arguments: tuple[str, ...]) -> None:
    known = {(resource.group, resource.plural) for resource in RESOURCES.values()}
    for group, resource, _ in granted(rendered(*arguments)):
        assert (group, resource.split("/")[0]) in known


def test_namespaced_install_reaches_no_other_namespace() -> None:
    found = list(rules(rendered(*INSTALLS["in two namespaces"])))
    cluster_wide = {
        resource for kind, _, rule in found if kind == "ClusterRoleBinding" for resource in rule["resources"]
    }
    assert not {"pods", "deployments", "services", "tokenservices", "events"} & cluster_wide
    namespaces = {namespace for _, namespace, rule in found if "pods" in rule["resources"]}
    assert namespaces == {"a", "b"}


def test_only_its_own_webhook_can_be_patched() -> None:
    (rule,) = [rule for _, _, rule in rules(rendered()) if "mutatingwebhookconfigurations" in rule["resources"]]
    assert rule["resourceNames"] == [only(rendered(), "MutatingWebhookConfiguration")["metadata"]["name"]]
    assert set(rule["verbs"]) == {"get", "patch"}


def test_only_its_own_lease_can_be_patched() -> None:
    (rule,) = [rule for _, _, rule in rules(rendered()) if "leases" in rule["resources"] and "patch" in rule["verbs"]]
    lease = config()["lease"]
    assert rule["resourceNames"] == [lease["name"]]


def test_users_get_their_rights_through_the_roles_they_have() -> None:
    roles = {it["metadata"]["name"]: it for it in kinds(rendered(), "ClusterRole")}
    edit = roles["tokenservice-edit"]
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert not [rule for rule in edit["rules"] if "tokenservices/status" in rule["resources"]]


def test_without_aggregation_there_is_still_a_role_for_those_who_run_the_fleet() -> None:
    names = {it["metadata"]["name"] for it in kinds(rendered(*values(rbac__aggregate=False)), "ClusterRole")}
    assert "tokenservice-fleet-admin" in names
    assert "tokenservice-edit" not in names


# --- the webhook ----------------------------------------------------------------------------------------------------


def test_the_webhook_can_never_hold_a_pod_up() -> None:
    (webhook,) = only(rendered(), "MutatingWebhookConfiguration")["webhooks"]
    assert (webhook["failurePolicy"], webhook["timeoutSeconds"]) == ("Ignore", 1)
    assert (webhook["sideEffects"], webhook["reinvocationPolicy"]) == ("None", "Never")
    assert webhook["objectSelector"] == {
        "matchLabels": {"app.kubernetes.io/managed-by": "tokenservice-operator"},
        "matchExpressions": [{"key": SERVICE_LABEL, "operator": "Exists"}],
    }
    assert webhook["rules"] == [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "resources": ["pods"],
            "operations": ["CREATE"],
            "scope": "Namespaced",
        }
    ]


def test_the_webhook_calls_a_url_when_the_operator_runs_elsewhere() -> None:
    objects = rendered(*values(webhook__url="https://127.0.0.1:9443/pods", operator__replicas=0))
    (webhook,) = only(objects, "MutatingWebhookConfiguration")["webhooks"]
    assert webhook["clientConfig"] == {"url": "https://127.0.0.1:9443/pods"}
    assert only(objects, "Deployment")["spec"]["replicas"] == 0


def test_the_webhook_is_called_for_watched_namespaces_only() -> None:
    objects = rendered(*values(watchNamespaces=["a", "b"]))
    (webhook,) = only(objects, "MutatingWebhookConfiguration")["webhooks"]
    assert webhook["namespaceSelector"]["matchExpressions"][0]["values"] == ["a", "b"]


# --- what stays, and tiers ------------------------------------------------------------------------------------------


def test_what_engines_need_is_kept_on_uninstall() -> None:
    policies: dict[str, set[str | None]] = {}
    for it in rendered():
        policy = it["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
        policies.setdefault(it["kind"], set()).add(policy)
    kept = {kind: found for kind, found in policies.items() if found != {None}}
    assert kept == {"CustomResourceDefinition": {"keep"}, "PriorityClass": {"keep"}}


def test_guaranteed_preempts_spot_and_nothing_else() -> None:
    """Elastic and pods of other tenants, which have priority 0, are never in its way."""
    classes = {
        it["metadata"]["name"]: (it["value"], it["preemptionPolicy"]) for it in kinds(rendered(), "PriorityClass")
    }
    assert classes == {
        PRIORITY_CLASSES["Guaranteed"]: (0, "PreemptLowerPriority"),
        PRIORITY_CLASSES["Elastic"]: (0, "Never"),
        PRIORITY_CLASSES["Spot"]: (-100000, "Never"),
    }


def test_crds_and_classes_can_be_left_to_another_install() -> None:
    objects = rendered(*values(crds__enabled=False, priorityClasses__enabled=False))
    assert not kinds(objects, "CustomResourceDefinition") + kinds(objects, "PriorityClass")


def test_monitoring_objects_appear_where_their_api_exists() -> None:
    assert not kinds(rendered(), "PodMonitor") + kinds(rendered(), "PrometheusRule")
    assert config()["podMonitors"] is False
    with_api = rendered(*MONITORING)
    assert kinds(with_api, "PodMonitor")
    assert kinds(with_api, "PrometheusRule")
    assert config(*MONITORING)["podMonitors"] is True


@pytest.mark.parametrize(("replicas", "told"), [(1, True), (0, False)])
def test_an_operator_that_is_not_to_run_is_not_missed(replicas: int, told: bool) -> None:
    (group,) = only(rendered(*MONITORING, *values(operator__replicas=replicas)), "PrometheusRule")["spec"]["groups"]
    alerts = [rule["alert"] for rule in group["rules"]]
    assert ("TokenServiceOperatorDown" in alerts) is told
    assert "TokenServiceReplicasMissing" in alerts


def test_monitoring_objects_have_the_labels_that_prometheus_selects_by() -> None:
    mine = {"release": "stack", "app.kubernetes.io/name": "another"}
    arguments = (*MONITORING, *values(metrics__labels=mine))
    for made in kinds(rendered(*arguments), "PodMonitor") + kinds(rendered(*arguments), "PrometheusRule"):
        assert made["metadata"]["labels"]["release"] == "stack"
        assert made["metadata"]["labels"]["app.kubernetes.io/name"] == "tokenservice"
    assert config(*arguments)["monitorLabels"] == mine


# --- settings and network -------------------------------------------------------------------------------------------


def test_peers_are_network_policy_peers() -> None:
    settings = config(
        *values(
            access__gateways=[{"namespace": "gateway", "podLabels": {"app": "envoy"}}],
            access__prometheus={"namespace": "monitoring", "podLabels": {}},
        )
    )
    assert settings["gatewayPeers"] == [
        {"podSelector": {}},
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}},
            "podSelector": {"matchLabels": {"app": "envoy"}},
        },
    ]
    assert settings["metricsPeers"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]


@pytest.mark.parametrize("arguments", [(), MONITORING, values(watchNamespaces=["a"], webhook__url="https://h:1/pods")])
def test_the_operator_understands_every_setting(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Unknown keys are errors there, and what is missing here would be a default that nobody chose."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config(*arguments)))
    loaded = load(str(file), environment={})
    assert loaded.lease.namespace == "taas"
    assert loaded.core.images.defaults["SGLang", "AMD"] == config()["engineImages"]["SGLang"]["AMD"]


def test_nobody_is_let_in_by_an_empty_list() -> None:
    settings = config(*values(access__sameNamespace=False))
    assert settings["gatewayPeers"] == settings["metricsPeers"] == []


PROMETHEUS_PORTS = {
    "http://prometheus.monitoring.svc:9090": 9090,
    "https://prometheus.example.com": 443,
    "http://prometheus.example.com/select/0": 80,
    "http://[fd00::1]:9091/": 9091,
}


@pytest.mark.parametrize(("address", "port"), PROMETHEUS_PORTS.items())
def test_the_operator_may_reach_prometheus(address: str, port: int) -> None:
    policy = only(rendered(*values(prometheus__address=address)), "NetworkPolicy")
    reached = {it["port"] for rule in policy["spec"]["egress"] for it in rule["ports"]}
    assert reached == {53, 443, 6443, port}


def test_the_operator_may_reach_pods_of_prometheus_behind_a_service_of_another_port() -> None:
    """A policy judges the port that a connection has after the Service: many charts put 80 before 9090."""
    wanted = values(prometheus__address="http://prometheus-server.monitoring", networkPolicy__prometheusPorts=[9090])
    policy = only(rendered(*wanted), "NetworkPolicy")
    reached = {it["port"] for rule in policy["spec"]["egress"] for it in rule["ports"]}
    assert reached == {53, 443, 6443, 80, 9090}


def test_every_default_engine_image_is_pinned_to_a_version() -> None:
    for engine in ("vLLM", "SGLang"):
        for vendor in ("NVIDIA", "AMD"):
            image = config()["engineImages"][engine][vendor]
            assert ":v" in image or "@sha256:" in image, image


# --- what is said after an install ------------------------------------------------------------------------------------


def notes(folder: Path, *arguments: str) -> str:
    """NOTES.txt as Helm renders it, which it shows where there is a cluster only."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates/NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates/notes.yaml").write_text('{kind: Notes, text: {{ tpl (.Files.Get "notes.txt") . | toJson }}}')
    text: str = only(rendered(*arguments, chart=chart), "Notes")["text"]
    return text


@pytest.mark.parametrize("watched", [[], ["team-a", "team-b"]])
def test_the_first_service_that_is_shown_is_sound_and_looked_after(tmp_path: Path, watched: list[str]) -> None:
    text = notes(tmp_path, *values(watchNamespaces=watched))
    shown = yaml.safe_load(text.partition("<<EOF\n")[2].partition("  EOF\n")[0])
    assert shown["metadata"].get("namespace") == (watched[0] if watched else None)
    assert not linted([("notes", yaml.safe_dump(shown))]).findings


WRONG = {
    "a misspelt value": (values(oprator__replicas=1), "oprator"),
    "a negative count": (values(operator__replicas=-1), "replicas"),
    "a short digest": (values(image__digest="sha256:abc"), "digest"),
    "an address without scheme": (values(prometheus__address="prometheus:9090"), "address"),
    "an address with a space": (values(prometheus__address="http://prometheus:9090 "), "/prometheus/address"),
    "a port of the webhook that is another's": (values(webhook__port=8080), "give each a port of its own"),
    "two ports that are one": (values(metrics__port=8081, health__port=8081), "give each a port of its own"),
    "an address with a password": (values(prometheus__address="http://a:b@prometheus:9090"), "prometheus.tokenSecret"),
    "an image with its tag in its name": (values(image__repository="example.org:5000/operator:0.1.0"), "repository"),
    "an image with its digest in its name": (values(image__repository="operator@sha256:ab"), "repository"),
    "a tag with a space": (values(image__tag="0.1.0 "), "tag"),
    "a domain with a space": (values(clusterDomain="cluster local"), "clusterDomain"),
    "misspelt resources": (values(operator__resources={"limit": {"memory": "1Gi"}}), "limit"),
    "a misspelt toleration": (values(operator__tolerations=[{"keyy": "a"}]), "keyy"),
    "a misspelt affinity": (values(operator__affinity={"nodeAffinitee": {}}), "nodeAffinitee"),
    "a label that selects the operator": (values(operator__podLabels={"app.kubernetes.io/name": "a"}), "podLabels"),
    "a port of Prometheus that is none": (values(networkPolicy__prometheusPorts=[0]), "prometheusPorts"),
    "a plain webhook URL": (values(webhook__url="http://example.com"), "url"),
    "an image with a space": (values(engineImages__vllm__amd="a b"), "amd"),
    "a gateway without namespace": (values(access__gateways=[{"podLabels": {}}]), "namespace"),
}


@pytest.mark.parametrize(("arguments", "named"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_fails_the_install_and_is_named(arguments: tuple[str, ...], named: str) -> None:
    done = run(*arguments)
    assert done.returncode != 0
    assert named in done.stderr


def closed(schema: Json, given: Any, path: str = "") -> Iterator[str]:
    """Paths of values that the schema does not describe."""
    for name, value in given.items():
        known = schema.get("properties", {}).get(name)
        if known is None:
            yield f"{path}.{name}"
        elif isinstance(value, dict) and "properties" in known:
            assert known["additionalProperties"] is False, f"{path}.{name}"
            yield from closed(known, value, f"{path}.{name}")


def test_the_schema_describes_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    given = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["additionalProperties"] is False
    assert not list(closed(schema, given))
    assert set(schema["properties"]) == set(given) | {"global"}


def test_what_yaml_takes_for_numbers_and_truths_reaches_the_operator_as_it_was_written(tmp_path: Path) -> None:
    """A namespace may be all digits, a domain `on`; no patch is an empty one."""
    unusual = (*values(clusterDomain="on", enginePodPatch=None), "--namespace=1234", *MONITORING)
    objects = rendered(*unusual)
    file = tmp_path / "config.yaml"
    file.write_text(only(objects, "ConfigMap")["data"]["config.yaml"])
    read = load(str(file))
    assert (read.lease.namespace, read.core.cluster_domain, read.core.pod_patch) == ("1234", "on", {})
    names = [it["metadata"].get("namespace", "1234") for it in objects]
    assert set(names) == {"1234"}
    subjects = [subject for it in objects for subject in it.get("subjects", ())]
    assert {subject["namespace"] for subject in subjects} == {"1234"}


def test_no_address_and_no_webhook_are_no_mistake() -> None:
    none = values(prometheus__address=None, webhook__enabled=False, webhook__port=8080)
    assert config(*none)["prometheus"]["address"] in (None, "")
