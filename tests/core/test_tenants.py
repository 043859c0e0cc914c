"""Who may write a TokenService runs its model and gains nothing more: every way out that was thought of, tried.

Three walls, in this order: the schema, whose unknown fields reach nobody; the checks, which stall what is asked for;
and what is rendered, which holds whatever passes the other two.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.api.bad_input import SERVICE, changed
from tests.core.rendering import DIGEST, IMAGES, SETTINGS, SPECS, make_variant
from tests.support.build import FLEET, make_service, make_snapshot, make_spec
from tokenservice.api.validation import violations
from tokenservice.core.checks import problems
from tokenservice.core.facts import Facts
from tokenservice.core.manifests import children
from tokenservice.core.model import Json, Service, Settings, Variant
from tokenservice.core.names import LOADER_CONTAINER, MODEL_VOLUME, PRIORITY_CLASSES, VERIFIER_CONTAINER

# --- the first wall: there is no such field

HOST = {"hostPath": {"path": "/"}, "name": "host"}
NO_SUCH_FIELD: dict[str, Json] = {
    "a pod template": {"template": {"spec": {"hostNetwork": True}}},
    "the host's network": {"engine": {"hostNetwork": True}},
    "the host's processes": {"engine": {"hostPID": True}},
    "a path of the host": {"engine": {"volumes": [HOST]}},
    "a mount": {"engine": {"volumeMounts": [{"name": "host", "mountPath": "/host"}]}},
    "a privileged container": {"engine": {"securityContext": {"privileged": True}}},
    "another user": {"engine": {"runAsUser": 0}},
    "a command": {"engine": {"command": ["sh", "-c", "id"]}},
    "an init container": {"engine": {"initContainers": [{"name": "a", "image": "b"}]}},
    "a side car": {"engine": {"containers": [{"name": "a", "image": "b"}]}},
    "a variable from a Secret": {"engine": {"envFrom": [{"secretRef": {"name": "admin"}}]}},
    "another ServiceAccount": {"engine": {"serviceAccountName": "admin"}},
    "its token": {"engine": {"automountServiceAccountToken": True}},
    "a toleration": {"placement": {"tolerations": [{"operator": "Exists"}]}},
    "a node": {"placement": {"nodeName": "control-plane"}},
    "a node selector": {"placement": {"nodeSelector": {"node-role.kubernetes.io/control-plane": ""}}},
    "a priority": {"placement": {"priorityClassName": "system-cluster-critical"}},
    "another scheduler": {"placement": {"schedulerName": "mine"}},
    "a runtime": {"engine": {"runtimeClassName": "kata"}},
    "a namespace": {"namespace": "kube-system"},
    "peers of its own": {"access": {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}},
    "labels of its pods": {"engine": {"labels": {"app": "gateway"}}},
    "a device": {"engine": {"resources": {"devices": ["/dev/mem"]}}},
}


@pytest.mark.parametrize("spec", NO_SUCH_FIELD.values(), ids=NO_SUCH_FIELD)
def test_what_has_no_field_is_told_and_reaches_nobody(spec: Json) -> None:
    resource = changed(SERVICE, {"spec": spec})
    assert any("unknown" in str(found).lower() for found in violations(resource)), "lint and kubectl say so"
    plain, asked = (rendered(make_spec(**it)) for it in (SERVICE["spec"], resource["spec"]))
    assert asked == plain, "an old client that does not ask for strictness gets nothing for it"


# --- the second wall: the field is there, the value is not let in

STALLED: dict[str, tuple[Json, str]] = {
    "another image": ({"engine": {"name": "vLLM", "image": f"evil.org/x@{DIGEST}"}}, "spec.engine.image"),
    "a host that looks allowed": (
        {"engine": {"name": "vLLM", "image": f"example.org.evil.org/engines/x@{DIGEST}"}},
        "spec.engine.image",
    ),
    "a file of the pod": ({"model": {"uri": "pvc://weights/../../etc"}}, "spec.model.uri"),
    "an adapter beside its folder": (
        {"model": {"uri": "hf://a/b", "adapters": [{"name": "x", "uri": "pvc://weights/../other"}]}},
        "spec.model.adapters[x].uri",
    ),
    "a model that can change": ({"model": {"uri": "oci://example.org/m:latest"}}, "spec.model.uri"),
    "code of the model": ({"engine": {"extraArgs": ["--trust-remote-code"]}}, "spec.engine.extraArgs[0]"),
    "code of the model, spelt otherwise": (
        {"engine": {"extraArgs": ["--trust_remote_code"]}},
        "spec.engine.extraArgs[0]",
    ),
    "media of the pod's files": (
        {"engine": {"extraArgs": ["--allowed-local-media-path=/"]}},
        "spec.engine.extraArgs[0]",
    ),
    "a template from a file": ({"engine": {"extraArgs": ["--chat-template=/etc/passwd"]}}, "spec.engine.extraArgs[0]"),
    "a plug-in": ({"engine": {"extraArgs": ["--worker-cls=evil.Worker"]}}, "spec.engine.extraArgs[0]"),
    "another address": ({"engine": {"extraArgs": ["--host=0.0.0.0", "--port=22"]}}, "spec.engine.extraArgs[0]"),
    "a key in the open": ({"engine": {"extraArgs": ["--api-key=secret"]}}, "spec.engine.extraArgs[0]"),
    "prompts in the log": ({"engine": {"extraArgs": ["--enable-log-requests"]}}, "spec.engine.extraArgs[0]"),
    "a library": ({"engine": {"env": [{"name": "LD_PRELOAD", "value": "/tmp/x.so"}]}}, "spec.engine.env[LD_PRELOAD]"),
    "a module": ({"engine": {"env": [{"name": "PYTHONPATH", "value": "/tmp"}]}}, "spec.engine.env[PYTHONPATH]"),
    "plug-ins": ({"engine": {"env": [{"name": "VLLM_PLUGINS", "value": "x"}]}}, "spec.engine.env[VLLM_PLUGINS]"),
    "another hub": (
        {"engine": {"env": [{"name": "HF_ENDPOINT", "value": "http://x"}]}},
        "spec.engine.env[HF_ENDPOINT]",
    ),
    "a proxy": ({"engine": {"env": [{"name": "HTTPS_PROXY", "value": "http://x"}]}}, "spec.engine.env[HTTPS_PROXY]"),
    "another token": ({"engine": {"env": [{"name": "HF_TOKEN", "value": "x"}]}}, "spec.engine.env[HF_TOKEN]"),
    "a NCCL plug-in": (
        {"engine": {"env": [{"name": "NCCL_NET_PLUGIN", "value": "x"}]}},
        "spec.engine.env[NCCL_NET_PLUGIN]",
    ),
}


@pytest.mark.parametrize(("spec", "field"), STALLED.values(), ids=STALLED)
def test_what_is_not_let_in_stalls_with_its_field(spec: Json, field: str) -> None:
    found = judged(make_service(**spec))
    assert field in [problem.field for problem in found]


def test_a_model_of_a_neighbour_cannot_be_claimed_by_its_name() -> None:
    """Model names are unique in a namespace only, and Services answer there: a namesake elsewhere takes nothing."""
    mine, theirs = make_service(namespace="mine"), make_service(namespace="theirs")
    for one in (mine, theirs):
        for manifest in children(one, [(make_variant(), 1)], SETTINGS, needed=1, fleet=FLEET):
            assert manifest["metadata"]["namespace"] == one.key.namespace
            selector = manifest.get("spec", {}).get("selector") or manifest.get("spec", {}).get("podSelector")
            assert selector is None or "namespaceSelector" not in selector


# --- the third wall: what is rendered

VARIANTS = (make_variant(), make_variant("SGLang"), make_variant(tp=8))


def judged(service: Service) -> tuple[Any, ...]:
    facts = Facts(make_snapshot(service, nodes=(), settings=Settings(images=IMAGES)))
    return problems(facts, service, VARIANTS[:1], ())


def rendered(spec: Any, variant: Variant = VARIANTS[0]) -> list[Json]:
    service = make_service("chat", namespace="tenant")
    service = Service(
        key=service.key,
        uid=service.uid,
        generation=1,
        resource_version="1",
        created_at=0.0,
        spec=spec,
    )
    return list(children(service, [(variant, 2)], SETTINGS, needed=1, fleet=FLEET))


def confined(manifests: list[Json]) -> None:
    """What holds of everything that is ever made for a tenant."""
    for manifest in manifests:
        assert manifest["metadata"]["namespace"] == "tenant"
        shared = manifest["kind"] != "Deployment"
        assert not shared or manifest["metadata"]["name"] in ("chat", "chat-engine", "chat-adapters")
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("TokenService", "chat")
    kinds = {manifest["kind"]: manifest for manifest in manifests}
    assert kinds["Service"]["spec"]["type"] == "ClusterIP"
    assert not {"externalIPs", "externalName", "loadBalancerIP"} & kinds["Service"]["spec"].keys()
    assert kinds["ServiceAccount"]["automountServiceAccountToken"] is False
    denied = kinds["NetworkPolicy"]["spec"]
    assert denied["policyTypes"] == ["Ingress", "Egress"]
    assert denied["podSelector"] == {"matchLabels": {"taas.dev/service": "chat"}}
    assert all(rule["from"] for rule in denied.get("ingress", []))
    opened = {it["port"]: rule["from"] for rule in denied.get("ingress", []) for it in rule["ports"]}
    assert opened.keys() <= {8000, 8001}
    assert opened.get(8001, list(SETTINGS.metrics_peers)) == list(SETTINGS.metrics_peers)
    assert all(rule["ports"] for rule in denied.get("egress", []))
    _confined_pod(kinds["Deployment"]["spec"]["template"]["spec"])


def _confined_container(container: Json, *writable: str) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    for mount in container["volumeMounts"]:
        assert ".." not in mount["mountPath"]
        assert mount.get("readOnly") or mount["name"] in writable


def _confined_pod(pod: Json) -> None:
    assert not {"hostNetwork", "hostPID", "hostIPC", "nodeName", "runtimeClassName"} & pod.keys()
    assert (pod["automountServiceAccountToken"], pod["serviceAccountName"]) == (False, "chat-engine")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["priorityClassName"] in PRIORITY_CLASSES.values()
    tolerated = {toleration["key"] for toleration in pod["tolerations"]}
    assert tolerated == {"nvidia.com/gpu", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
    for volume in pod["volumes"]:
        public = {"configMap"} if volume["name"] in ("signer", "adapter-list") else set[str]()
        assert volume.get("configMap", {}).get("name", "chat-adapters") == "chat-adapters" or volume["name"] == "signer"
        assert volume.keys() - {"name"} <= {"emptyDir", "image", "persistentVolumeClaim", "secret"} | public
        assert volume.get("persistentVolumeClaim", {"readOnly": True})["readOnly"] is True
        assert "/" not in volume.get("persistentVolumeClaim", {}).get("claimName", "")
    beside = {VERIFIER_CONTAINER: IMAGES.verifier, LOADER_CONTAINER: IMAGES.loader}
    writable = {VERIFIER_CONTAINER: [MODEL_VOLUME], LOADER_CONTAINER: ["adapter-downloads", "adapter-guard"]}
    for ours in pod.get("initContainers", ()):
        assert ours["image"] == beside[ours["name"]]
        assert "command" not in ours
        _confined_container(ours, "tmp", *writable[ours["name"]])
    (container,) = pod["containers"]
    _confined_container(container, "cache", "shm", "tmp")
    assert "signer" not in {mount["name"] for mount in container["volumeMounts"]}
    assert not any(word.startswith(("--api-key", "--trust-remote-code", "--hf-token")) for word in container["args"])
    plain = json.dumps([container["command"], container["args"], [it.get("value", "") for it in container["env"]]])
    assert "$(" not in plain.replace("$$(", ""), "users' words do not read the environment"


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
@pytest.mark.parametrize("case", SPECS)
def test_whatever_is_served_stays_in_its_place(case: str, variant: Variant) -> None:
    confined(rendered(make_spec(**SPECS[case]), variant))


@pytest.mark.parametrize("uri", ["hf://a/b", "s3://a/b", f"oci://a/b@{DIGEST}", "pvc://a/b"])
def test_a_secret_is_named_and_never_a_value_or_an_argument(uri: str) -> None:
    """The kubelet brings it, from the same namespace; what is in it is seen by the engine alone."""
    spec = make_spec(
        model={"uri": uri, "credentials": {"name": "my-secret", "key": "my-key", "namespace": "kube-system"}}
    )
    (pod,) = [m["spec"]["template"]["spec"] for m in rendered(spec) if m["kind"] == "Deployment"]
    (container,) = pod["containers"]
    assert "my-" not in json.dumps([container["command"], container["args"]])
    assert "kube-system" not in json.dumps(pod)
    by_reference = [it for it in container["env"] if "valueFrom" in it]
    assert all(it["valueFrom"].keys() == {"secretKeyRef"} for it in by_reference)
    assert not [it for it in container["env"] if "my-" in it.get("value", "")]


@pytest.mark.parametrize(
    "words",
    [
        ["--chat-template", "/credentials/credentials"],
        ["--generation-config=../x"],
        ["--hf-overrides", '{"a": [{"b": "/models/evil.py"}]}'],
        ['--hf-overrides={"../x": 1}'],
        ["--hf-overrides", '["/credentials/credentials"]'],
    ],
)
def test_no_value_of_an_argument_is_a_path(words: list[str]) -> None:
    """An engine would take the file for a prompt template, and show it to who asks."""
    assert judged(make_service(engine={"name": "vLLM", "extraArgs": words}))


@pytest.mark.parametrize("value", ['{"reasoning_parser_plugin": "evil.py"}', '{"backend": "xgrammar"}'])
def test_no_field_of_a_flag_loads_code(value: str) -> None:
    """--reasoning-parser-plugin is refused, and is a field of this one too."""
    for words in (["--structured-outputs-config", value], ["--structured-outputs-config.reasoning_parser_plugin=evil"]):
        assert judged(make_service(engine={"name": "vLLM", "extraArgs": words}))


@pytest.mark.parametrize(
    "words",
    [
        ["--chat-template", "{% for m in messages %}{{ m.content }}</s>{% endfor %}"],
        ["--hf-overrides", '{"rope_scaling": {"factor": 4.0, "rope_type": "yarn"}}'],
        ["--limit-mm-per-prompt", '{"image": 2}'],
    ],
)
def test_a_template_in_the_open_is_let_in(words: list[str]) -> None:
    assert judged(make_service(engine={"name": "vLLM", "extraArgs": words})) == ()


def test_a_revision_does_not_read_the_environment() -> None:
    """`$(HF_TOKEN)` in it once put the token on the command line, and so into the log."""
    model = {"uri": "hf://a/b", "revision": "$(HF_TOKEN)", "credentials": {"name": "hub"}}
    assert violations(changed(SERVICE, {"spec": {"model": model}}))
    confined(rendered(make_spec(model=model)))


NASTY = st.lists(
    st.sampled_from(
        ["a", "B", "..", "/", "@", ":", "$(HF_TOKEN)", "$$(X)", "--host", "=", " ", ",", "{", "}", '"', "'"]
    ),
    min_size=1,
    max_size=5,
).map("".join)
WORDS = st.one_of(NASTY, st.sampled_from(["--max-num-batched-tokens=4096", "--seed", "7", "--enforce-eager"]))
VALUES = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {
                "uri": st.one_of(
                    st.builds("{}://{}".format, st.sampled_from(["hf", "oci", "s3", "pvc"]), NASTY), st.just("hf://a/b")
                )
            },
            optional={
                "servedName": NASTY,
                "revision": NASTY,
                "credentials": st.fixed_dictionaries({"name": NASTY, "key": NASTY}),
                "adapters": st.lists(st.fixed_dictionaries({"name": NASTY, "uri": st.just("pvc://c/x")}), max_size=1),
            },
        ),
        "engine": st.fixed_dictionaries(
            {"name": st.sampled_from(["vLLM", "SGLang"])},
            optional={
                "extraArgs": st.lists(WORDS, max_size=3),
                "env": st.lists(
                    st.fixed_dictionaries(
                        {"name": st.sampled_from(["AWS_ENDPOINT_URL", "NCCL_DEBUG", "PATH"]), "value": NASTY}
                    ),
                    max_size=1,
                ),
            },
        ),
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(VALUES)
def test_whatever_passes_schema_and_checks_stays_in_its_place(spec: Json) -> None:
    resource = changed(SERVICE, {"spec": spec})
    assume(not violations(resource))
    parsed = make_spec(**resource["spec"])
    assume(not judged(make_service(**resource["spec"])))
    confined(rendered(parsed, VARIANTS[1] if spec["engine"]["name"] == "SGLang" else VARIANTS[0]))
