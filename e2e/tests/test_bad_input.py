"""Bad input at `kubectl apply` time, on a real API server, and that `tokenservice lint` judges as the server does.

The corpus is tests/api/bad_input.py, which the tests without a cluster use too.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from e2e.testbed.cluster import Cluster, TestbedError
from tests.api.bad_input import BAD, FLEET, GOOD, SERVICE, Bad, changed
from tests.core.test_mutations import INVALID, VALID, Mutation
from tokenservice.api.resources import KINDS
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.api.validation import violations
from tokenservice.cli.lint import linted

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("definitions")]


@pytest.fixture(scope="module")
def definitions(cluster: Cluster) -> Iterator[None]:
    """The CRDs; taken away again if they came from here, so that a chart may bring its own."""
    crds = [f"crd/{kind.crd_name}" for kind in KINDS]
    present = cluster.kubectl("get", *crds, "-o", "name", "--ignore-not-found").split()
    if not present:
        cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *crds)
    yield
    if not present:
        cluster.kubectl("delete", *crds, "--timeout=60s")


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[requests.Session]:
    """HTTP to the API server as kubectl does it, a hundred times as fast."""
    token = yaml.safe_load(cluster.kubeconfig.read_text())["users"][0]["user"]["token"]
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {token}"
        session.verify = str(cluster.certificate)
        yield session


def create(cluster: Cluster, server: requests.Session, resource: Json) -> Json:
    """What the server answers when this is created, on trial and as strictly as kubectl asks it to be."""
    kind = next(it for it in KINDS if it.kind == resource["kind"])
    scope = f"/namespaces/{resource['metadata']['namespace']}" if kind.namespaced else ""
    url = f"{cluster.server}/apis/{resource['apiVersion']}{scope}/{kind.plural}"
    answer = server.post(url, params={"dryRun": "All", "fieldValidation": "Strict"}, json=resource, timeout=30)
    body: Json = answer.json()
    return body


def refusal(cluster: Cluster, *arguments: str, stdin: str | None = None) -> str:
    """The error of a command that must fail."""
    with pytest.raises(TestbedError) as failed:
        cluster.kubectl(*arguments, stdin=stdin)
    return str(failed.value)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_is_refused_with_its_field_and_the_way_out(
    cluster: Cluster, server: requests.Session, bad: Bad
) -> None:
    answer = create(cluster, server, bad.resource)
    assert answer["status"] == "Failure"
    assert (bad.server or bad.says) in answer["message"]
    assert bad.field in answer["message"]


@pytest.mark.parametrize("resource", GOOD.values(), ids=GOOD)
def test_sound_input_is_accepted(cluster: Cluster, server: requests.Session, resource: Json) -> None:
    answer = create(cluster, server, resource)
    taken = answer.get("reason") == "AlreadyExists"  # judged first, then looked up: beside a bed there is a fleet
    assert taken or answer["kind"] == resource["kind"]


def test_kubectl_shows_the_refusal(cluster: Cluster) -> None:
    service = changed(SERVICE, {"spec": {"tier": "Guaranteed"}})
    said = refusal(cluster, "apply", "-f", "-", stdin=yaml.safe_dump(service))
    assert "spec.objectives: Invalid value: tier Guaranteed needs objectives.volume.guaranteedTokensPerSecond" in said


# --- servedName ------------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str | None, str | None]] = {
    "changed": ("chat", "other"),
    "removed": ("chat", None),
    "added": (None, "chat"),
}


def _service(namespace: str, served_name: str | None, **spec: Any) -> Json:
    model = {"servedName": served_name} if served_name else {}
    return changed(SERVICE, {"metadata": {"namespace": namespace}, "spec": {"model": model, **spec}})


@pytest.mark.parametrize("how", ["apply", "apply --server-side --force-conflicts", "replace"])
@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_the_served_name_cannot_be(
    cluster: Cluster, namespace: str, how: str, before: str | None, after: str | None
) -> None:
    arguments = [*how.replace("replace", "apply").split(), "-f", "-"]
    cluster.kubectl(*arguments, stdin=yaml.safe_dump(_service(namespace, before)))
    said = refusal(cluster, *how.split(), "-f", "-", stdin=yaml.safe_dump(_service(namespace, after)))
    assert "spec.model.servedName" in said
    assert "servedName is immutable, clients and metrics use it: put it back" in said


@pytest.mark.parametrize("served_name", [None, "chat"])
def test_everything_else_of_the_model_can_change(cluster: Cluster, namespace: str, served_name: str | None) -> None:
    cluster.apply(_service(namespace, served_name))
    cluster.apply(changed(_service(namespace, served_name, tier="Spot"), {"spec": {"model": {"revision": "v2"}}}))
    assert cluster.get("tsvc", "chat", "-n", namespace)["spec"]["model"]["revision"] == "v2"


# --- What a new object looks like ------------------------------------------------------------------------------------


def test_defaults_of_the_server_are_those_of_the_models(cluster: Cluster, namespace: str) -> None:
    given = changed(SERVICE, {"spec": {"objectives": {"timeToFirstToken": {"target": "1s"}}, "engine": {}}})
    cluster.apply(changed(given, {"metadata": {"namespace": namespace}}))
    stored = cluster.get("tsvc", "chat", "-n", namespace)["spec"]
    assert TokenServiceSpec.model_validate(stored) == TokenServiceSpec.model_validate(given["spec"])
    assert stored["objectives"]["timePerOutputToken"] == {"percentile": "p99", "target": "200ms"}
    assert stored["scaling"]["maxReplicas"] == 64


def test_an_empty_fleet_has_every_default(cluster: Cluster) -> None:
    cluster.apply(FLEET)
    try:
        stored = cluster.get("tokenfleet", "default")
    finally:
        cluster.kubectl("delete", "tokenfleet", "default")
    assert TokenFleetSpec.model_validate(stored["spec"]) == TokenFleetSpec()
    assert stored["spec"]["consolidation"]["enabled"] is True


def test_a_new_service_is_never_taken_for_finished(cluster: Cluster, namespace: str) -> None:
    """Tools call an object without conditions current, so it has one before the operator has looked."""
    cluster.apply(_service(namespace, None))
    (condition,) = cluster.get("tsvc", "chat", "-n", namespace)["status"]["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Ready", "Unknown", "Pending")


def test_kubectl_knows_its_short_names_columns_and_scale(cluster: Cluster, namespace: str) -> None:
    cluster.apply(_service(namespace, None))
    cluster.kubectl("scale", "tsvc/chat", "--replicas=3", "-n", namespace)
    assert cluster.get("tokenservice", "chat", "-n", namespace)["spec"]["replicas"] == 3
    assert "tokenservice.taas.dev/chat" in cluster.kubectl("get", "taas", "-n", namespace, "-o", "name")
    header, row = cluster.kubectl("get", "tokenservices", "-n", namespace).splitlines()[:2]
    assert " ".join(header.split()) == "NAME REPLICAS VARIANT TOKENS/S UTILIZATION TTFT/TPOT $/MTOK READY AGE"
    assert "Unknown" in row
    assert "Unit: duration with ms or s" in cluster.kubectl("explain", "tsvc.spec.objectives.timeToFirstToken.target")
    for short in ("accel", "cprof", "tfleet"):
        cluster.kubectl("get", short)


# --- The same judgement with and without a cluster -------------------------------------------------------------------


def _refused(answer: Json) -> set[str]:
    """Fields that the server names."""
    causes = answer.get("details", {}).get("causes", []) if answer["kind"] == "Status" else []
    return {cause["field"] for cause in causes}


def test_texts_are_judged_alike_by_server_and_lint(cluster: Cluster, server: requests.Session) -> None:
    """Regular expressions of RE2 and of Python, durations of CEL and of ours, on half-sound texts."""
    chance = random.Random(20261122)
    refused = 0
    for _ in range(300):
        service = _random_service(chance)
        by_lint = {violation.field for violation in violations(service)}
        refused += bool(by_lint)
        assert _refused(create(cluster, server, service)) == by_lint, yaml.safe_dump(service)
    assert 100 < refused < 290


def _random_service(chance: random.Random) -> Json:
    def text(*parts: str, length: int = 4) -> str:
        return "".join(chance.choice(parts) for _ in range(chance.randint(1, length)))

    number = ("0", "1", "25", ".", "0.0", "-", "e3")
    unit = ("ms", "s", "m", "", " s", "\n")
    latency = [f"{text(*number)}{chance.choice(unit)}" if chance.random() < 0.3 else f"{n}ms" for n in (20, 200)]
    amounts = {
        name: f"{text(*number, length=3)}{chance.choice(('Gi', 'G', 'm', '', 'GB'))}"
        if chance.random() < 0.2
        else "4Gi"
        for name in ("cpu", "memory", "sharedMemory", "ephemeralStorage")
    }
    names = {text("a", "B", "0", ".", "-", "/", "_", "é", " ") if chance.random() < 0.1 else f"a{n}" for n in range(4)}
    adapters = [
        {
            "name": adapter,
            "uri": f"hf://{text('a', '/', '.', '@', ':', '%', 'ü')}" if chance.random() < 0.1 else "hf://a",
        }
        for adapter in sorted(names)
    ]
    return changed(
        SERVICE,
        {
            "spec": {
                "model": {"adapters": adapters},
                "engine": {"resources": amounts},
                "objectives": {
                    "timeToFirstToken": {"target": latency[0]},
                    "timePerOutputToken": {"target": latency[1]},
                },
            },
        },
    )


# --- every field, mutated ------------------------------------------------------------------------------------------


def _sample() -> dict[str, list[Mutation]]:
    """Of each field of a TokenService one mutation that is valid and one that is not, where there are such.

    They are the mutations that tests/core/test_mutations.py draws from the schema. Which ones is drawn with the field's
    name for a seed, so that the fields together try every way. What JSON cannot say (NaN) is left out.
    """
    chosen: dict[str, list[Mutation]] = {}
    for some in (VALID, INVALID):
        for field in dict.fromkeys(mutation.field for mutation in some):
            sayable = [it for it in some if it.field == field and it.how not in ("not a number", "1 MB")]
            if sayable:
                chosen.setdefault(field, []).append(random.Random(field).choice(sayable))
    return chosen


SAMPLE = _sample()


@pytest.mark.parametrize("field", SAMPLE)
def test_a_mutated_field_is_judged_alike_by_the_server_and_by_lint(
    cluster: Cluster, server: requests.Session, field: str
) -> None:
    """Server-side apply, on trial. What lint alone finds, beyond the schema, the server cannot know."""
    for mutation in SAMPLE[field]:
        resource = SERVICE | {"spec": mutation.spec}
        answer, wrong = applied(cluster, server, resource), violations(resource)
        refused = answer.get("status") == "Failure" or not answer.get("kind")
        assert refused == bool(wrong), f"{mutation}: {answer.get('message')} / {wrong}"
        done = linted([("file", json.dumps(resource))])
        assert done.judged == 1, mutation
        if refused:
            said = re.sub(r'\[name="[^"]*"\]|: element 0', "[0]", answer["message"])  # apply names items by their keys
            assert any(_names(said, it.field) for it in wrong), f"{mutation}: {wrong} / {said}"
            assert any(it.field in str(one) for it in wrong for one in done.findings), f"{mutation}: {done}"


def _names(said: str, field: str) -> bool:
    """Whether an answer names a field: whole, or in an item without its key as a part that the item lacks."""
    outer, _, last = field.rpartition(".")
    return field in said or (outer in said and f'"{last}"' in said)


def applied(cluster: Cluster, server: requests.Session, resource: Json) -> Json:
    """What the server answers when this is applied, on trial."""
    namespace, name = resource["metadata"]["namespace"], resource["metadata"]["name"]
    url = f"{cluster.server}/apis/{resource['apiVersion']}/namespaces/{namespace}/tokenservices/{name}"
    asked = {"dryRun": "All", "fieldValidation": "Strict", "fieldManager": "test", "force": "true"}
    headers = {"Content-Type": "application/apply-patch+yaml"}
    answer = server.patch(
        url, params=asked, data=json.dumps(resource, ensure_ascii=False).encode(), headers=headers, timeout=30
    )
    body: Json = answer.json()
    return body
