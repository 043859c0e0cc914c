"""No engine starts with a model that is not the one that was promised, and `ModelVerified` says what was checked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.core.rendering import DIGEST, IMAGES, SETTINGS, SPECS, VARIANTS, spec_of
from tests.core.test_rollback import Story, conditions
from tests.edge.objects import pod as pod_object
from tests.support.build import make_pod, make_service, make_spec
from tests.support.pod_security import violations
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.deployment import egress_ports
from tokenservice.core.engines import engine_problems, source_problems
from tokenservice.core.engines.base import SOURCE_ENVIRONMENT
from tokenservice.core.manifests import engines_of
from tokenservice.core.model import Json, Pod, Settings
from tokenservice.core.names import MODEL_VOLUME
from tokenservice.core.verification import promise, verified
from tokenservice.edge.projections import pod as projected

SIGNED = [case for case in SPECS if "signed" in case]
KEY: dict[str, Any] = {"publicKey": {"name": "signers"}}
SIGNED_CLAIM: dict[str, Any] = {"uri": "pvc://weights/qwen", "verification": KEY}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def template(case: str, variant: str = "vLLM on one H100", settings: Settings = SETTINGS) -> Json:
    service = replace(make_service(), spec=spec_of(case))
    body = engines_of(service, VARIANTS[variant], 1, settings, fleet=TokenFleetSpec())
    made: Json = body["spec"]["template"]
    return made


def verifier_of(case: str, **more: Any) -> Json:
    first: Json = template(case, **more)["spec"]["initContainers"][0]
    return first


# --- The pod


@pytest.mark.parametrize("case", [case for case in SPECS if case not in SIGNED])
@every_variant
def test_a_service_that_asks_for_no_verification_has_the_template_that_it_always_had(case: str, variant: str) -> None:
    """Any difference would roll every engine when the verifier's image is set or exchanged."""
    without = replace(SETTINGS, images=replace(IMAGES, verifier=None))
    assert template(case, variant) == template(case, variant, without)
    assert "verify-model" not in json.dumps(template(case, variant))


@pytest.mark.parametrize("case", SIGNED)
@every_variant
def test_the_verifier_comes_first_and_is_as_restricted_as_the_engine(case: str, variant: str) -> None:
    made = template(case, variant)
    (container,) = made["spec"]["initContainers"]
    assert (container["name"], container["image"]) == ("verify-model", IMAGES.verifier)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert not violations(made["spec"])
    assert made["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("case", SIGNED)
@every_variant
def test_what_outlives_the_verifier_cannot_write_to_the_model(case: str, variant: str) -> None:
    """The kubelet restarts an engine in its pod without the init containers: it reads what they left."""
    pod = template(case, variant)["spec"]
    verifier, *others = [*pod["initContainers"], *pod["containers"]]
    mounts = [mount for it in others for mount in it["volumeMounts"] if mount["name"] == MODEL_VOLUME]
    assert verifier["name"] == "verify-model"
    assert mounts
    assert all(mount["readOnly"] for mount in mounts)


@pytest.mark.parametrize("case", SIGNED)
def test_the_verifier_takes_no_more_than_the_engine_and_no_accelerator(case: str) -> None:
    made = template(case)["spec"]
    asked, engine = made["initContainers"][0]["resources"], made["containers"][0]["resources"]
    for bound in ("limits", "requests"):
        assert asked[bound] == {name: amount for name, amount in engine[bound].items() if "/" not in name}


def test_a_repository_is_downloaded_by_the_verifier_and_the_engine_reads_it_offline_without_a_token() -> None:
    made = template("a private repository, signed with a key")["spec"]
    before, engine = made["initContainers"][0], made["containers"][0]
    words = " ".join(before["args"])
    assert "--folder /models/verified --repository meta-llama/Llama-3.3-70B-Instruct --revision 6f6073b4230" in words
    env = {item["name"]: item for item in engine["env"]}
    assert engine["args"][0] == "/models/verified"
    assert "--revision" not in engine["args"]
    assert env["HF_HUB_OFFLINE"]["value"] == "1"
    assert "HF_TOKEN" not in env
    assert "HF_TOKEN" in {item["name"] for item in before["env"]}
    mounts = {mount["name"]: mount for mount in engine["volumeMounts"]}
    assert mounts["model"]["readOnly"] is True
    assert "readOnly" not in next(mount for mount in before["volumeMounts"] if mount["name"] == "model")
    assert egress_ports(spec_of("a private repository, signed with a key")) == (443,)


def test_a_claim_is_verified_where_the_engine_reads_it_and_without_network() -> None:
    case = "a claim, signed by an identity"
    words = " ".join(verifier_of(case)["args"])
    assert "--folder /models/qwen/32b --signature signatures/model.sig --identity https://github.com/acme" in words
    assert "--issuer https://token.actions.githubusercontent.com" in words
    assert all(mount.get("readOnly") for mount in verifier_of(case)["volumeMounts"] if mount["name"] != "tmp")
    assert egress_ports(spec_of(case)) == ()


@pytest.mark.parametrize(
    ("reference", "volume"),
    [
        (
            {"name": "signers"},
            {"configMap": {"name": "signers", "items": [{"key": "model.pub", "path": "key.pub"}], "optional": True}},
        ),
        (
            {"kind": "Secret", "name": "s", "key": "k"},
            {"secret": {"secretName": "s", "items": [{"key": "k", "path": "key.pub"}], "optional": True}},
        ),
    ],
)
def test_the_key_is_mounted_by_reference_and_a_missing_one_is_for_the_verifier_to_tell(
    reference: Json, volume: Json
) -> None:
    spec = make_spec(model={"uri": "pvc://weights", "verification": {"publicKey": reference}})
    made = verified({"metadata": {}, "spec": {"containers": []}}, spec, "verifier")
    assert made["spec"]["volumes"] == [{"name": "signer"} | volume]
    assert "--key /signer/key.pub" in " ".join(made["spec"]["initContainers"][0]["args"])


@pytest.mark.parametrize("case", SIGNED)
def test_only_safetensors_are_read_unless_pickle_is_allowed(case: str) -> None:
    for variant in VARIANTS:
        words = " ".join(template(case, variant)["spec"]["containers"][0]["args"])
        allowed = "pickled" in case
        assert ("--load-format safetensors" in words) is not allowed
        assert ("--allow-pickle" in verifier_of(case)["args"]) is allowed


def test_the_administrators_patch_of_init_containers_does_not_drop_the_verifier() -> None:
    patch = {"spec": {"initContainers": [{"name": "warm"}, {"name": "verify-model", "image": "example.org/true"}]}}
    made = template(SIGNED[0], settings=replace(SETTINGS, pod_patch=patch))["spec"]
    assert [(one["name"], one.get("image")) for one in made["initContainers"]] == [
        ("verify-model", IMAGES.verifier),
        ("warm", None),
    ]


# --- What is refused before


@pytest.mark.parametrize(
    ("model", "field", "words"),
    [
        ({"uri": "s3://bucket/model"}, "spec.model.verification", "cannot be verified before"),
        (
            {"adapters": [{"name": "legal", "uri": "hf://acme/legal"}]},
            "spec.model.adapters[legal].uri",
            "bring this by oci:// with a digest, too",
        ),
    ],
)
def test_what_no_signature_can_hold_to_is_refused_with_the_way_out(model: Json, field: str, words: str) -> None:
    (problem,) = source_problems(make_spec(model=SIGNED_CLAIM | model))
    assert (problem.field, words in problem.message) == (field, True), problem


def test_a_draft_model_that_nobody_verifies_is_refused() -> None:
    spec = make_spec(
        model=SIGNED_CLAIM, engine={"speculative": {"method": "DraftModel", "draftModel": "pvc://drafts/small"}}
    )
    assert [problem.field for problem in source_problems(spec)] == ["spec.engine.speculative.draftModel"]


def test_without_an_image_of_the_verifier_the_service_is_stalled_and_told_which_value_to_set() -> None:
    found = conditions(Story().plan({"model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "verification": KEY}}))
    assert (found["Stalled"]["status"], found["Stalled"]["reason"]) == ("True", "NoVerifierImage")
    assert "modelVerifier.image" in found["Stalled"]["message"]


@pytest.mark.parametrize("engine", ["vLLM", "SGLang"])
@pytest.mark.parametrize(
    "word",
    [
        "--trust-remote-code",
        "--trust_remote_code",
        "--trust-remote-code=true",
        "--no-trust-remote-code",
        "--trust-remote",
        "--trust",
        "--load-format=pt",
        "--load-format=auto",
        "--load_format=pt",
        "--load",
        "--model-loader-extra-config={}",
        "--pt-load-map-location=cpu",
        "--download-dir=x",
        "--tokenizer=another",
        "--code-revision=main",
        "--tokenizer-revision=main",
        "--hf-config-path=another",
        "--custom-weight-loader=x",
    ],
)
def test_no_argument_lets_code_of_a_repository_run_or_weights_be_read_otherwise(engine: str, word: str) -> None:
    assert engine_problems(make_spec(engine={"name": engine, "extraArgs": [word]}))


@pytest.mark.parametrize("name", [*SOURCE_ENVIRONMENT, "HF_ENDPOINT", "HF_HUB_TRUST_REMOTE_CODE", "VLLM_PLUGINS"])
def test_no_variable_leads_to_another_source(name: str) -> None:
    assert engine_problems(make_spec(engine={"name": "vLLM", "env": [{"name": name, "value": "0"}]}))


# --- What is told


SAID = "verify-model ended with 3 (Error): refused: Hash mismatch for 'model.safetensors'"
PROMISED = "hf://meta-llama/Llama-3.1-8B-Instruct signed by key model.pub of ConfigMap signers"
WANTED: dict[str, Any] = {
    "replicas": 2,
    "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "verification": KEY},
}
WITH_VERIFIER = Settings(images=replace(IMAGES, verifier="example.org/verifier:1"))


class SignedStory(Story):
    """A service whose model begins to be verified."""

    def asked(self, **more: Any) -> dict[str, Json]:
        """The conditions, two passes later."""
        self.plan(WANTED | more, settings=WITH_VERIFIER)
        return conditions(self.plan(WANTED | more, settings=WITH_VERIFIER))

    def refuse(self) -> None:
        self.pods.append(
            make_pod(
                "c", template_hash="new", ready=False, containers_ready=False, restarts=3, failure=SAID, unverified=True
            )
        )


def verdict(found: dict[str, Json], kind: str = "ModelVerified") -> tuple[str, str]:
    return found[kind]["status"], found[kind]["reason"]


def test_a_model_that_nobody_is_to_verify_is_unknown() -> None:
    story = Story()
    story.pods.append(make_pod("c"))
    assert verdict(conditions(story.plan({"replicas": 3}))) == ("Unknown", "NotChecked")


def test_a_refused_model_is_told_in_the_verifiers_words_and_the_last_good_version_serves_on() -> None:
    story = SignedStory()
    story.plan(WANTED, settings=WITH_VERIFIER)
    story.refuse()
    found = story.asked()
    assert verdict(found) == ("False", "VerificationFailed")
    assert verdict(found, "Stalled") == ("True", "VerificationFailed")
    assert verdict(found, "Ready") == ("False", "VerificationFailed")
    for kind in ("ModelVerified", "Stalled"):
        assert SAID in found[kind]["message"]
        assert "2 replicas of the last good version serve on" in found[kind]["message"]


def test_a_model_that_changed_is_told_while_replicas_that_started_before_serve() -> None:
    """One more replica of the same version is asked for, and its verifier refuses what the others have loaded."""
    story = SignedStory()
    story.plan(WANTED, settings=WITH_VERIFIER)
    story.pods = [replace(pod, template_hash="new", held_to=PROMISED) for pod in story.pods]
    story.refuse()
    found = story.asked(replicas=3)
    assert verdict(found) == ("False", "VerificationFailed")
    assert found["ModelVerified"]["message"] == f"c: {SAID}; 2 replicas that started before serve on"
    story.pods.pop()
    assert verdict(story.asked(replicas=3)) == ("True", "Verified")


def test_a_replica_of_an_older_version_says_nothing_of_the_model_now() -> None:
    story = SignedStory()
    story.refuse()
    story.pods += [make_pod(name, template_hash="newer", held_to=PROMISED, created_at=2e9) for name in "de"]
    story.pods = story.pods[2:]
    assert verdict(story.asked()) == ("True", "Verified")


def test_an_engine_that_fails_says_nothing_of_its_model() -> None:
    story = SignedStory()
    story.refuse()
    story.pods[-1] = replace(story.pods[-1], unverified=False)
    found = story.asked()
    assert verdict(found, "Stalled") == ("True", "EngineFailed")
    assert verdict(found) == ("Unknown", "Pending")


def test_replicas_from_before_do_not_count_as_verified() -> None:
    assert verdict(SignedStory().asked()) == ("Unknown", "Pending")


def test_verified_says_what_was_checked_once_every_replica_that_serves_was() -> None:
    story = SignedStory()
    story.pods = [replace(pod, held_to=PROMISED) for pod in story.pods]
    found = story.asked()
    assert (verdict(found), found["ModelVerified"]["message"]) == (("True", "Verified"), PROMISED)
    story.pods[0] = replace(story.pods[0], held_to=None)
    assert verdict(story.asked()) == ("Unknown", "Pending")
    story.pods[0] = replace(story.pods[0], held_to=PROMISED.replace("signers", "others"))
    assert verdict(story.asked()) == ("Unknown", "Pending")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"uri": "hf://a/b"}, None),
        ({"uri": f"oci://a/b@{DIGEST}"}, DIGEST),
        (
            {"uri": "hf://a/b", "revision": "v1", "verification": KEY},
            "hf://a/b@v1 signed by key model.pub of ConfigMap",
        ),
        ({"uri": "hf://a/b@v1", "revision": "v1", "verification": KEY}, "hf://a/b@v1 signed by"),
        ({"uri": "oci://a/b", "digest": DIGEST, "verification": KEY}, f"oci://a/b@{DIGEST} signed by"),
        ({"uri": "pvc://a", "verification": KEY | {"allowPickle": True}}, "pvc://a signed by key model.pub"),
        (
            {"uri": "pvc://a", "verification": {"identity": "me@example.com", "issuer": "https://issuer.example.com"}},
            "pvc://a signed by me@example.com, as https://issuer.example.com says",
        ),
    ],
)
def test_a_promise_names_the_model_its_version_and_the_signer(model: Json, words: str | None) -> None:
    said = promise(make_spec(model=model).model)
    assert said is None if words is None else (said or "").startswith(words)


# --- What is read of pods


def seen(annotations: Json | None = None, volumes: list[Json] | None = None, **state: Any) -> Pod:
    status = {"name": "verify-model", "ready": False, "restartCount": 0, "state": {}} | state
    obj = pod_object(
        metadata={"annotations": annotations or {}},
        spec={"volumes": volumes or []},
        status={"initContainerStatuses": [status]} if state else {},
    )
    found = projected(obj)
    assert isinstance(found, Pod)
    return found


def test_a_pod_is_held_to_its_promise_once_its_verifier_has_ended_well() -> None:
    promised = {"taas.dev/verification": PROMISED}
    done = {"ready": True, "state": {"terminated": {"exitCode": 0}}}
    assert seen(promised, **done).held_to == PROMISED
    assert seen(promised, state={"running": {}}).held_to is None
    assert seen(promised).held_to is None, "without a verifier nobody has looked"
    assert seen(None, **done).held_to is None


def test_a_pod_is_held_to_the_digest_of_its_image_volume() -> None:
    assert seen(None, [{"name": "model", "image": {"reference": f"a/b@{DIGEST}"}}]).held_to == DIGEST
    assert seen(None, [{"name": "model", "emptyDir": {}}]).held_to is None
    assert seen(None, [{"name": "adapter-0", "image": {"reference": f"a/b@{DIGEST}"}}]).held_to is None


def test_the_verifiers_last_words_are_told_apart_from_an_engines() -> None:
    ended = {"exitCode": 3, "reason": "Error", "message": "refused: Hash mismatch for 'model.safetensors'"}
    crashing = {
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }
    found = seen(None, **crashing)
    assert (found.unverified, found.failure) == (True, SAID)
    engine = seen(None, **crashing, name="engine")
    assert (engine.unverified, engine.failure is not None) == (False, True)
    assert not seen(None, ready=True, state={"terminated": {"exitCode": 0}}).unverified
