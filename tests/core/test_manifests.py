from __future__ import annotations

import copy
import ipaddress
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.rendering import MI300X, SETTINGS, SPECS, VARIANTS, make_variant, spec_of
from tests.support.build import H100, make_service, make_spec
from tests.support.pod_security import violations
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.deployment import node_terms, startup_seconds
from tokenservice.core.manifests import children, merged
from tokenservice.core.model import Json, Service, ServiceKey, Settings, Variant
from tokenservice.core.network import disruption_spec, endpoint
from tokenservice.core.quantities import amount, canonical, gibibytes

FLEET = TokenFleetSpec()
HASH = "taas.dev/manifest-hash"


def render(
    service: Service | None = None,
    variant: Variant | None = None,
    *,
    replicas: int = 2,
    settings: Settings = SETTINGS,
    fleet: TokenFleetSpec = FLEET,
    needed: int = 1,
    **spec: Any,
) -> dict[str, Json]:
    """Manifests by kind; `spec` makes a service when none is given."""
    found = children(
        service or make_service(**spec), [(variant or make_variant(), replicas)], settings, needed=needed, fleet=fleet
    )
    return {manifest["kind"]: manifest for manifest in found}


def pod_of(manifests: dict[str, Json]) -> Json:
    pod: Json = manifests["Deployment"]["spec"]["template"]["spec"]
    return pod


def case_service(case: str) -> Service:
    return replace(make_service(), spec=spec_of(case))


every_case = pytest.mark.parametrize("case", SPECS)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


# --- all children


@every_case
def test_every_child_is_owned_and_never_looks_like_anothers(case: str) -> None:
    service = case_service(case)
    for manifest in render(service, settings=replace(SETTINGS, pod_monitors=True)).values():
        metadata = manifest["metadata"]
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("TokenService", "chat", service.uid)
        assert owner["controller"] is True
        assert owner["blockOwnerDeletion"] is True
        assert metadata["namespace"] == service.key.namespace
        assert metadata["labels"]["taas.dev/service"] == "chat"
        assert not any("instance" in label or "argocd" in label for label in metadata["labels"])


def test_a_service_has_exactly_these_children() -> None:
    variants = [make_variant(), make_variant(tp=2)]
    found = children(make_service(), [(v, 1) for v in variants], SETTINGS, needed=1, fleet=FLEET)
    assert [(m["kind"], m["metadata"]["name"]) for m in found] == [
        ("ServiceAccount", "chat-engine"),
        ("Service", "chat"),
        ("NetworkPolicy", "chat"),
        ("PodDisruptionBudget", "chat"),
        ("Deployment", "chat-h100-vllm-tp1-bf16"),
        ("Deployment", "chat-h100-vllm-tp2-bf16"),
    ]


@every_case
@every_variant
def test_equal_facts_give_equal_text(case: str, variant: str) -> None:
    first, second = (render(case_service(case), VARIANTS[variant]) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


@every_case
@every_variant
def test_nothing_rendered_is_null_or_an_empty_list_which_each_apply_would_change_again(case: str, variant: str) -> None:
    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in leaves(item)]
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) and value else [value]

    manifests = render(case_service(case), VARIANTS[variant])
    assert all(isinstance(leaf, str | int | bool) for leaf in leaves(json.loads(json.dumps(manifests))))


def test_scaling_is_no_change_of_what_runs() -> None:
    few, many = render(replicas=1)["Deployment"], render(replicas=9)["Deployment"]
    assert few["metadata"]["annotations"][HASH] == many["metadata"]["annotations"][HASH]


def test_the_hash_tells_any_other_change() -> None:
    before = render()["Deployment"]["metadata"]["annotations"][HASH]
    after = render(scaling={"maxRequestSeconds": 301})["Deployment"]["metadata"]["annotations"][HASH]
    assert before != after


def test_when_it_was_scaled_stands_on_the_deployment_and_not_in_the_template() -> None:
    at = "2027-01-15T08:00:00Z"
    plain = render()["Deployment"]
    *_, scaled = children(
        make_service(),
        [(make_variant(), 2)],
        SETTINGS,
        needed=1,
        fleet=FLEET,
        scaled_at={"h100-vllm-tp1-bf16": at},
    )
    assert scaled["metadata"]["annotations"]["taas.dev/scaled-at"] == at
    assert scaled["spec"] == plain["spec"]
    assert scaled["metadata"]["annotations"][HASH] == plain["metadata"]["annotations"][HASH]


def test_a_service_that_the_checks_stop_is_not_rendered() -> None:
    with pytest.raises(ValueError, match="no valid spec"):
        render(replace(make_service(), spec=None))
    with pytest.raises(ValueError, match="no image"):
        render(variant=make_variant("Other"))


# --- the template


@every_case
@every_variant
def test_pods_pass_pod_security_restricted(case: str, variant: str) -> None:
    assert violations(pod_of(render(case_service(case), VARIANTS[variant]))) == ()


@every_case
@every_variant
def test_nothing_can_be_changed_in_the_container(case: str, variant: str) -> None:
    security = pod_of(render(case_service(case), VARIANTS[variant]))["containers"][0]["securityContext"]
    assert security["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("securityContext", "runAsNonRoot"), False),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}),
        (("securityContext", "runAsUser"), 0),
        (("hostNetwork",), True),
        (("volumes", 0), {"name": "cache", "hostPath": {"path": "/"}}),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("containers", 0, "securityContext", "capabilities"), {"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
        (("containers", 0, "securityContext", "privileged"), True),
        (("containers", 0, "ports", 0, "hostPort"), 80),
    ],
)
def test_the_rules_of_restricted_see_what_breaks_them(path: tuple[str | int, ...], value: Any) -> None:
    pod = copy.deepcopy(pod_of(render()))
    *way, last = path
    target: Any = pod
    for step in way:
        target = target[step]
    target[last] = value
    assert violations(pod)


@every_case
@every_variant
def test_the_template_holds_nothing_that_would_roll_engines_or_pin_them(case: str, variant: str) -> None:
    template = render(case_service(case), VARIANTS[variant])["Deployment"]["spec"]["template"]
    assert not {"schedulingGates", "readinessGates", "nodeName", "nodeSelector"} & set(template["spec"])
    assert set(template["metadata"]["labels"]) == {
        "taas.dev/service",
        "taas.dev/variant",
        "taas.dev/engine",
        "taas.dev/tier",
        "app.kubernetes.io/managed-by",
    }


def test_nothing_measured_reaches_the_template() -> None:
    measured = {"kv_capacity_tokens": 1, "cold_start_seconds": 9999.0}
    assert pod_of(render(variant=make_variant(**measured))) == pod_of(render())


def test_the_profile_is_named_on_pods_that_were_planned_with_one() -> None:
    named = render()["Deployment"]["spec"]["template"]["metadata"]
    assert named["annotations"] == {"taas.dev/profile": "profile-a"}
    assert "annotations" not in render(variant=make_variant(profile=None))["Deployment"]["spec"]["template"]["metadata"]


def test_selectors_are_of_labels_that_never_change() -> None:
    deployment = render(tier="Spot")["Deployment"]
    assert deployment["spec"]["selector"]["matchLabels"] == {
        "taas.dev/service": "chat",
        "taas.dev/variant": "h100-vllm-tp1-bf16",
    }


@pytest.mark.parametrize(
    ("tier", "spec", "want"),
    [
        ("Elastic", {}, 5 + 300 + 15),
        ("Elastic", {"scaling": {"maxRequestSeconds": 900}}, 5 + 900 + 15),
        ("Spot", {}, 5 + 10 + 15),
    ],
)
def test_the_grace_period_outlasts_hook_and_drain(tier: str, spec: dict[str, Any], want: int) -> None:
    pod = pod_of(render(tier=tier, **spec))
    assert pod["terminationGracePeriodSeconds"] == want
    args = pod["containers"][0]["args"]
    drain = int(args[args.index("--shutdown-timeout") + 1])
    hook = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert hook + drain < want
    assert pod["priorityClassName"] == f"taas-{tier.lower()}"


def expressions(terms: list[Json]) -> list[dict[str, list[str]]]:
    return [{f"{e['key']} {e['operator']}": e["values"] for e in term["matchExpressions"]} for term in terms]


def test_class_residency_regions_and_zones_are_hard_and_all_hold() -> None:
    (term,) = node_terms(spec_of("guaranteed, in residence, with wishes"), make_variant(), FLEET)
    found = [(e["key"], e["values"]) for e in term["matchExpressions"]]
    assert found == [
        ("nvidia.com/gpu.product", ["NVIDIA-H100-80GB-HBM3"]),
        ("topology.kubernetes.io/region", ["eu-central-1"]),
        ("topology.kubernetes.io/region", ["eu-central-1", "eu-west-1"]),
        ("topology.kubernetes.io/zone", ["eu-central-1a"]),
    ]


def test_what_the_fleet_must_not_touch_holds_with_the_operator_away() -> None:
    fleet = TokenFleetSpec.model_validate(
        {"acceleratorNodes": {"pool": "inference"}, "neverTouch": {"nodeLabels": {"team": "research", "env": "lab"}}}
    )
    product = {"nvidia.com/gpu.product In": ["NVIDIA-H100-80GB-HBM3"], "pool In": ["inference"]}
    assert expressions(node_terms(make_spec(), make_variant(), fleet)) == [
        product | {"env NotIn": ["lab"]},
        product | {"team NotIn": ["research"]},
    ]


def test_pods_pack_and_the_default_spreading_is_off() -> None:
    pod = pod_of(render())
    (preferred,) = pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert preferred["podAffinityTerm"]["namespaceSelector"] == {}
    packed = preferred["podAffinityTerm"]["labelSelector"]["matchLabels"]
    labels = render()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert packed.items() <= labels.items()
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["maxSkew"] > 10**6


def test_pods_tolerate_their_accelerators_taint_and_leave_lost_nodes_soon() -> None:
    own, *lost = pod_of(render(variant=make_variant(accelerator=MI300X)))["tolerations"]
    assert own == {"key": "amd.com/gpu", "operator": "Exists"}
    assert {(t["key"], t["tolerationSeconds"]) for t in lost} == {
        ("node.kubernetes.io/not-ready", 30),
        ("node.kubernetes.io/unreachable", 30),
    }


def test_a_rollout_never_goes_below_what_serves() -> None:
    spec = render()["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["revisionHistoryLimit"] == 3


def test_waiting_for_room_is_no_stuck_rollout() -> None:
    spec = render()["Deployment"]["spec"]
    probe = spec["template"]["spec"]["containers"][0]["startupProbe"]
    assert spec["progressDeadlineSeconds"] >= 3600 + probe["failureThreshold"] * probe["periodSeconds"] - 5


@pytest.mark.parametrize(
    ("uri", "weight_bytes", "want"),
    [
        ("hf://a/b", 140e9, 3 * (280 + 180)),
        ("s3://a/b", 140e9, 3 * (280 + 180)),
        ("pvc://a/b", 140e9, 3 * (70 + 180)),
        ("oci://a/b@sha256:" + "0" * 64, 140e9, 3 * (70 + 180)),
    ],
)
def test_a_start_may_take_what_its_bytes_and_source_need(uri: str, weight_bytes: float, want: float) -> None:
    spec, variant = make_spec(model={"uri": uri}), make_variant(weight_bytes=weight_bytes)
    assert startup_seconds(spec, variant) == pytest.approx(want)
    probe = pod_of(render(variant=variant, model={"uri": uri}))["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= want


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_engines_are_asked_how_they_are(probe: str) -> None:
    for variant in VARIANTS.values():
        container = pod_of(render(variant=variant))["containers"][0]
        assert container[probe]["httpGet"] == {"path": "/health", "port": 8000, "scheme": "HTTP"}


def test_resources_follow_from_accelerators_and_weights() -> None:
    variant = make_variant(accelerator=MI300X, tp=4, pp=2, weight_bytes=100 * 2**30)
    container = pod_of(render(variant=variant))["containers"][0]
    assert container["resources"] == {
        "limits": {"amd.com/gpu": "8", "memory": "66Gi"},
        "requests": {"amd.com/gpu": "8", "cpu": "32", "ephemeral-storage": "140Gi", "memory": "66Gi"},
    }
    shm = next(v for v in pod_of(render(variant=variant))["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


def test_disk_and_start_are_for_the_checkpoint_that_is_downloaded() -> None:
    made, same = make_variant(weight_bytes=50e9, checkpoint_bytes=100e9), make_variant(weight_bytes=100e9)
    made_pod, same_pod = (pod_of(render(variant=variant))["containers"][0] for variant in (made, same))
    asked, plain = made_pod["resources"]["requests"], same_pod["resources"]["requests"]
    assert asked["ephemeral-storage"] == plain["ephemeral-storage"]
    assert asked["memory"] != plain["memory"]
    assert made_pod["startupProbe"] == same_pod["startupProbe"]


def test_given_resources_are_written_as_the_server_writes_them() -> None:
    pod = pod_of(render(case_service("every knob of the engine")))
    assert pod["containers"][0]["resources"]["requests"] == {
        "nvidia.com/gpu": "1",
        "cpu": "500m",
        "ephemeral-storage": "100000Mi",
        "memory": "2Gi",
    }
    assert next(v for v in pod["volumes"] if v["name"] == "shm")["emptyDir"]["sizeLimit"] == "1536Mi"


@every_case
@every_variant
def test_every_mount_has_its_volume_and_every_volume_is_mounted(case: str, variant: str) -> None:
    pod = pod_of(render(case_service(case), VARIANTS[variant]))
    names = [volume["name"] for volume in pod["volumes"]]
    mounts = pod["containers"][0]["volumeMounts"]
    before = [mount for one in pod.get("initContainers", ()) for mount in one["volumeMounts"]]
    assert len(names) == len(set(names))
    assert {mount["name"] for mount in [*mounts, *before]} == set(names)
    assert len({mount["mountPath"] for mount in before}) == len(before)
    assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
    writable = {mount["name"] for mount in mounts if not mount.get("readOnly")}
    assert writable == {"cache", "shm", "tmp"}


def test_the_engine_has_no_token_and_secrets_by_reference_only() -> None:
    for case in SPECS:
        manifests = render(case_service(case))
        assert pod_of(manifests)["automountServiceAccountToken"] is False
        assert manifests["ServiceAccount"]["automountServiceAccountToken"] is False
        assert pod_of(manifests)["serviceAccountName"] == manifests["ServiceAccount"]["metadata"]["name"]
    assert pod_of(render(case_service("an image by digest")))["imagePullSecrets"] == [{"name": "registry"}]


def test_a_service_named_like_an_engine_does_not_configure_it() -> None:
    assert pod_of(render())["enableServiceLinks"] is False


def test_the_image_is_the_users_else_the_administrators_for_the_vendor() -> None:
    assert pod_of(render())["containers"][0]["image"] == "example.org/vllm-nvidia:1"
    amd = make_variant("SGLang", accelerator=MI300X)
    assert pod_of(render(variant=amd))["containers"][0]["image"] == "example.org/sglang-amd:1"
    own = "example.org/own@sha256:" + "0" * 64
    assert pod_of(render(engine={"image": own}))["containers"][0]["image"] == own


def test_the_administrators_patch_comes_last() -> None:
    patch = {
        "metadata": {"annotations": {"cost-center": "7"}},
        "spec": {"runtimeClassName": "nvidia", "affinity": None},
    }
    template = render(settings=replace(SETTINGS, pod_patch=patch))["Deployment"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"taas.dev/profile": "profile-a", "cost-center": "7"}
    assert template["spec"]["runtimeClassName"] == "nvidia"
    assert "affinity" not in template["spec"]
    assert template["spec"]["containers"]


def test_merging_is_rfc_7386() -> None:
    base = {"a": 1, "b": {"c": 2, "d": [1, 2]}}
    assert merged(base, {"b": {"c": None, "d": [3], "e": {"f": None}}}) == {"a": 1, "b": {"d": [3], "e": {}}}
    assert base == {"a": 1, "b": {"c": 2, "d": [1, 2]}}


# --- what is shared


def test_the_service_leads_from_80_to_the_engines_port() -> None:
    spec = render()["Service"]["spec"]
    assert spec["selector"] == {"taas.dev/service": "chat"}
    assert spec["ports"] == [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}]
    (port,) = pod_of(render())["containers"][0]["ports"]
    assert (port["name"], port["containerPort"]) == ("http", 8000)


def test_the_endpoint_is_a_url_that_resolves() -> None:
    assert endpoint(ServiceKey("tenant", "chat"), "cluster.local") == "http://chat.tenant.svc.cluster.local/v1"


@pytest.mark.parametrize(
    ("replicas", "needed", "want"), [(0, 1, 0), (1, 1, 0), (2, 1, 1), (2, 2, 2), (3, 9, 3), (4, 0, 0)]
)
def test_evictions_stop_at_what_is_needed_but_one_replica_drains(replicas: int, needed: int, want: int) -> None:
    spec = disruption_spec(ServiceKey("tenant", "chat"), replicas, needed)
    assert spec["minAvailable"] == want
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_only_peers_reach_the_engines_and_only_on_their_port() -> None:
    peers = ({"namespaceSelector": {"matchLabels": {"gateway": "yes"}}},)
    policy = render(settings=replace(SETTINGS, gateway_peers=peers, metrics_peers=()))["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"from": list(peers), "ports": [{"port": 8000, "protocol": "TCP"}]}]


def test_without_peers_nobody_comes_in() -> None:
    policy = render(settings=replace(SETTINGS, gateway_peers=(), metrics_peers=()))["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy


@pytest.mark.parametrize(
    ("case", "ports"),
    [
        ("the least one can say", [443]),
        ("a claim, offline", None),
        ("an image by digest", None),
        ("spot from a bucket", [443, 9000]),
        ("every knob of the engine", [443]),
    ],
)
def test_engines_reach_their_source_and_nothing_when_it_is_local(case: str, ports: list[int] | None) -> None:
    policy = render(case_service(case))["NetworkPolicy"]["spec"]
    assert ("egress" in policy) is (ports is not None)
    if ports is None:
        return
    dns, source = policy["egress"]
    assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert [port["port"] for port in source["ports"]] == ports


CREDENTIALS = {
    "most clouds": "169.254.169.254",
    "AWS, of a pod": "169.254.170.2",
    "AWS": "fd00:ec2::254",
    "GCP": "fd20:ce::254",
    "Oracle": "fd00:c1::a9fe:a9fe",
    "Alibaba": "100.100.100.200",
    "Azure": "168.63.129.16",
    "link-local": "fe80::a9fe:a9fe",
}


@pytest.mark.parametrize("address", CREDENTIALS.values(), ids=CREDENTIALS.keys())
def test_no_engine_reaches_the_credentials_of_its_node(address: str) -> None:
    """Where the source has a port of its own, that port is open too: AWS_ENDPOINT_URL may say any."""
    host = f"[{address}]" if ":" in address else address
    engine = {"env": [{"name": "AWS_ENDPOINT_URL", "value": f"http://{host}"}]}
    policy = render(make_service(model={"uri": "s3://a/b"}, engine=engine))["NetworkPolicy"]["spec"]
    _, source = policy["egress"]
    asked = ipaddress.ip_address(address)
    blocks = [peer["ipBlock"] for peer in source["to"] if "ipBlock" in peer]
    inside = [block for block in blocks if _within(asked, [block["cidr"]]) and not _within(asked, block["except"])]
    assert blocks
    assert inside == []


@pytest.mark.parametrize(
    ("endpoint", "ports"),
    [
        ("http://[fd00::10]", [80, 443]),
        ("https://[fd00::10]:9000/path", [443, 9000]),
        ("http://user:1234@minio", [80, 443]),
        ("https://minio:port", [443]),
        ("https://[fd00::10", [443]),
    ],
)
def test_the_port_of_an_endpoint_is_read_as_a_client_reads_it(endpoint: str, ports: list[int]) -> None:
    """The last group of an IPv6 address was once taken for one, and the engine could not fetch its model."""
    engine = {"env": [{"name": "AWS_ENDPOINT_URL", "value": endpoint}]}
    _, source = render(make_service(model={"uri": "s3://a/b"}, engine=engine))["NetworkPolicy"]["spec"]["egress"]
    assert [port["port"] for port in source["ports"]] == ports


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, blocks: list[str]) -> bool:
    return any(address in ipaddress.ip_network(block) for block in blocks)


def test_a_pod_monitor_exists_only_where_its_kind_does() -> None:
    assert "PodMonitor" not in render()
    monitor = render(settings=replace(SETTINGS, pod_monitors=True))["PodMonitor"]["spec"]
    assert monitor["podMetricsEndpoints"][0]["port"] == "http"
    assert "taas.dev/service" in monitor["podTargetLabels"]


def test_a_pod_monitor_has_the_labels_that_prometheus_selects_by_and_keeps_its_own() -> None:
    asked = {"release": "stack", "taas.dev/service": "another"}
    made = render(settings=replace(SETTINGS, pod_monitors=True, monitor_labels=asked))
    labels = made["PodMonitor"]["metadata"]["labels"]
    assert labels["release"] == "stack"
    assert labels["taas.dev/service"] == render()["Service"]["metadata"]["labels"]["taas.dev/service"]
    assert "release" not in made["Service"]["metadata"]["labels"]


# --- quantities


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("0.5", "500m"),
        ("1000", "1k"),
        ("4", "4"),
        ("1500m", "1500m"),
        ("2000m", "2"),
        ("0", "0"),
        ("0.5Ki", "512"),
    ],
)
def test_quantities_are_written_as_the_server_writes_them(text: str, want: str) -> None:
    assert canonical(text) == want


@settings(deadline=None)  # a busy machine is no failure
@given(st.decimals(min_value=0, max_value=10**6, places=3), st.sampled_from(["", "m", "k", "Ki", "M", "Mi", "G", "Gi"]))
def test_canonical_text_means_the_same_and_is_stable(number: Any, suffix: str) -> None:
    text = canonical(f"{number}{suffix}")
    before, after = amount(f"{number}{suffix}"), amount(text)
    assert before is not None
    assert after is not None
    assert 0 <= after - before < 1
    assert canonical(text) == text


def test_what_is_no_quantity_is_none() -> None:
    assert amount("several") is None
    assert gibibytes(1) == "1Gi"
    assert H100.spec.resource_name == "nvidia.com/gpu"
