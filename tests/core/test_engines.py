from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.rendering import DIGEST, MI300X, SPECS, VARIANTS, make_variant, spec_of
from tests.support.build import make_spec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.engines import EngineCommand, command, engine_problems, pinned_digest, source_problems, sources
from tokenservice.core.engines import sglang as sglang_engine
from tokenservice.core.engines import vllm as vllm_engine
from tokenservice.core.engines.base import argument_problems, flag_name, literal
from tokenservice.core.model import Reason, ServiceKey

KEY = ServiceKey("tenant", "chat")
VLLM, SGLANG = make_variant("vLLM"), make_variant("SGLang")
DATA = Path(os.environ.get("TAAS_DATA", Path(__file__).parents[3] / "shared" / "data"))


def after(run: EngineCommand, flag: str) -> str:
    return run.args[run.args.index(flag) + 1]


def variables(run: EngineCommand) -> dict[str, object]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in run.env}


def with_args(engine: str, *args: str) -> TokenServiceSpec:
    return make_spec(engine={"name": engine, "extraArgs": list(args)})


# --- vLLM


def test_vllm_serves_the_model_under_its_served_name() -> None:
    run = command(spec_of("a private repository with adapters"), VLLM, KEY)
    assert run.command == ("vllm", "serve")
    assert run.args[0] == "meta-llama/Llama-3.3-70B-Instruct"
    assert after(run, "--served-model-name") == "llama-70b"
    # pragma: allowlist nextline secret
    assert after(run, "--revision") == "6f6073b423013f6a7d4d9f39144961bfbfbc386b"
    assert run.port == 8000
    assert after(run, "--port") == "8000"


def test_without_a_served_name_the_service_names_the_model() -> None:
    for variant in (VLLM, SGLANG):
        assert after(command(make_spec(), variant, KEY), "--served-model-name") == "chat"


def test_every_knob_reaches_vllm() -> None:
    run = command(spec_of("every knob of the engine"), make_variant(tp=4, pp=2), KEY)
    assert after(run, "--tensor-parallel-size") == "4"
    assert after(run, "--pipeline-parallel-size") == "2"
    assert after(run, "--quantization") == "fp8"
    assert after(run, "--kv-cache-dtype") == "fp8"
    assert after(run, "--max-model-len") == "16384"
    assert after(run, "--max-num-seqs") == "64"
    assert after(run, "--max-num-batched-tokens") == "8192"
    assert "--no-enable-prefix-caching" in run.args
    assert json.loads(after(run, "--speculative-config")) == {
        "method": "eagle3",
        "model": "acme/eagle3",
        "num_speculative_tokens": 4,
        "revision": "v2",
    }


def test_without_a_longest_request_vllm_takes_what_its_cache_holds() -> None:
    """A model whose own length does not fit beside its weights would not start; with SGLang it does."""
    assert after(command(make_spec(), VLLM, KEY), "--max-model-len") == "auto"
    assert "--context-length" not in command(make_spec(), SGLANG, KEY).args


def test_vllm_runs_as_many_sequences_as_the_capacity_was_planned_with() -> None:
    assert after(command(make_spec(), make_variant(max_num_seqs=48), KEY), "--max-num-seqs") == "48"


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({"scaling": {"maxRequestSeconds": 600}}, "600"),
        ({"tier": "Spot"}, "10"),
        ({"tier": "Spot", "scaling": {"spotDrainSeconds": 0}}, "1"),
    ],
    ids=["requests finish", "spot drains briefly", "never the abort that 0 means"],
)
def test_vllm_drains(spec: dict[str, object], want: str) -> None:
    assert after(command(make_spec(**spec), VLLM, KEY), "--shutdown-timeout") == want


def test_every_stream_of_vllm_can_be_metered() -> None:
    assert "--enable-force-include-usage" in command(make_spec(), VLLM, KEY).args


def test_vllm_counts_at_the_objectives_themselves() -> None:
    run = command(spec_of("guaranteed, in residence, with wishes"), VLLM, KEY)
    bounds = json.loads(after(run, "--custom-histogram-buckets"))
    assert 1.7 in bounds["time_to_first_token"]
    assert 0.06 in bounds["inter_token_latency"]
    assert all(family == sorted(set(family)) for family in bounds.values())


def test_vllm_keeps_its_own_bounds_where_they_have_the_objective() -> None:
    spec = make_spec(objectives={"timeToFirstToken": {"target": "2500ms"}, "timePerOutputToken": {"target": "200ms"}})
    assert "--custom-histogram-buckets" not in command(spec, VLLM, KEY).args


def test_the_bounds_we_take_for_vllms_are_vllms() -> None:
    page = DATA / "engine" / "vllm-0.32-metrics.txt"
    if not page.exists():
        pytest.skip(f"needs a real server's metrics page in TAAS_DATA ({page} is absent)")
    text = page.read_text()
    for metric, ours in (
        ("time_to_first_token_seconds", vllm_engine.TTFT_BOUNDS),
        ("request_time_per_output_token_seconds", vllm_engine.TPOT_BOUNDS),
        ("inter_token_latency_seconds", vllm_engine.TPOT_BOUNDS),
    ):
        theirs = re.findall(rf'^vllm:{metric}_bucket{{.*le="([\d.]+)"', text, re.MULTILINE)
        assert tuple(float(bound) for bound in theirs) == ours, metric


def test_vllm_loads_adapters_by_the_names_that_requests_use() -> None:
    run = command(spec_of("a private repository with adapters"), VLLM, KEY)
    at = run.args.index("--lora-modules")
    assert run.args[at + 1 : at + 4] == ("legal=acme/legal-lora", "code=/adapters/1/code", "chat=/adapters/2")
    assert after(run, "--max-loras") == "3"


# --- SGLang


def test_sglang_listens_to_others_and_is_measured() -> None:
    run = command(make_spec(), SGLANG, KEY)
    assert run.command == ("python3", "-m", "sglang.launch_server")
    assert after(run, "--host") == "0.0.0.0"
    assert "--enable-metrics" in run.args


def test_every_knob_reaches_sglang() -> None:
    run = command(spec_of("every knob of the engine"), make_variant("SGLang", tp=4, pp=2), KEY)
    assert after(run, "--tp-size") == "4"
    assert after(run, "--pp-size") == "2"
    assert after(run, "--quantization") == "fp8"
    assert after(run, "--kv-cache-dtype") == "fp8_e4m3"
    assert after(run, "--context-length") == "16384"
    assert after(run, "--max-running-requests") == "64"
    assert after(run, "--chunked-prefill-size") == "8192"
    assert after(run, "--speculative-algorithm") == "EAGLE3"
    assert after(run, "--speculative-draft-model-path") == "acme/eagle3"
    assert after(run, "--speculative-draft-model-revision") == "v2"
    assert "--disable-radix-cache" in run.args


def test_sglang_counts_at_the_objectives_themselves_and_below_100_ms() -> None:
    run = command(spec_of("guaranteed, in residence, with wishes"), SGLANG, KEY)
    at = run.args.index("--bucket-time-to-first-token") + 1
    until = next(i for i in range(at, len(run.args)) if run.args[i].startswith("--"))
    bounds = [float(word) for word in run.args[at:until]]
    assert bounds == sorted(set(bounds))
    assert 1.7 in bounds
    assert min(bounds) < 0.1


def test_sglang_speculates_by_n_gram_without_a_draft_model() -> None:
    run = command(spec_of("speculation by n-gram"), SGLANG, KEY)
    assert after(run, "--speculative-algorithm") == "NGRAM"
    assert "--speculative-draft-model-path" not in run.args


@pytest.mark.parametrize(
    ("case", "places"),
    [("a private repository with adapters", "4"), ("adapters of every kind, loaded by running engines", "5")],
)
def test_sglang_batches_requests_for_the_model_itself_with_those_for_all_adapters(case: str, places: str) -> None:
    assert after(command(spec_of(case), SGLANG, KEY), "--max-loras-per-batch") == places


@pytest.mark.parametrize("quantization", ["AWQ", "GPTQ"])
def test_sglang_reads_off_the_checkpoint_by_which_kernels_it_can_be_served(quantization: str) -> None:
    assert "--quantization" not in command(make_spec(engine={"quantization": quantization}), SGLANG, KEY).args
    assert after(command(make_spec(engine={"quantization": quantization}), VLLM, KEY), "--quantization")


# --- both


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_flag_is_rendered_twice_nor_left_to_users(case: str, variant: str) -> None:
    run = command(spec_of(case), VARIANTS[variant], KEY)
    words = [word for word in run.args if word.startswith("--")]
    assert len(words) == len(set(words))
    vocabulary = vllm_engine.VOCABULARY if VARIANTS[variant].engine == "vLLM" else sglang_engine.VOCABULARY
    ours = {f"--{word.removeprefix('--').removeprefix('no-')}" for word in words}
    assert ours <= {*vocabulary.rendered, *vocabulary.refused} | vocabulary.roomy


@pytest.mark.parametrize("module", [vllm_engine, sglang_engine], ids=["vLLM", "SGLang"])
def test_a_flag_has_one_fate(module: object) -> None:
    vocabulary = module.VOCABULARY  # type: ignore[attr-defined]
    groups = [
        vocabulary.switches,
        vocabulary.valued,
        vocabulary.listed,
        set(vocabulary.rendered),
        set(vocabulary.refused),
    ]
    every = [flag for group in groups for flag in group]
    assert len(every) == len(set(every))


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_caches_are_where_a_pod_without_root_can_write(case: str, variant: str) -> None:
    env = variables(command(spec_of(case), VARIANTS[variant], KEY))
    wanted = {"HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"}
    assert all(str(env[name]).startswith("/cache") for name in wanted)
    assert env["USER"] == "engine"


def test_amd_and_nvidia_get_what_is_theirs() -> None:
    amd = variables(command(make_spec(), make_variant(accelerator=MI300X), KEY))
    nvidia = variables(command(make_spec(), VLLM, KEY))
    assert amd["VLLM_ROCM_USE_AITER"] == "1"
    assert "VLLM_ROCM_USE_AITER" not in nvidia
    assert "AITER_JIT_DIR" in amd
    assert "CUDA_CACHE_PATH" in nvidia


def test_users_may_overrule_our_tuning() -> None:
    spec = make_spec(engine={"name": "vLLM", "env": [{"name": "VLLM_ROCM_USE_AITER", "value": "0"}]})
    assert engine_problems(spec) == ()
    assert variables(command(spec, make_variant(accelerator=MI300X), KEY))["VLLM_ROCM_USE_AITER"] == "0"


def test_users_words_do_not_read_the_environment() -> None:
    spec = make_spec(
        engine={
            "name": "vLLM",
            "extraArgs": ["--chat-template=$(HF_TOKEN)"],
            "env": [{"name": "NCCL_ALGO", "value": "$(HF_TOKEN)"}],
        }
    )
    run = command(spec, VLLM, KEY)
    assert "--chat-template=$$(HF_TOKEN)" in run.args
    assert variables(run)["NCCL_ALGO"] == "$$(HF_TOKEN)"


def expanded(text: str) -> str:
    """What a kubelet makes of an argument, as k8s.io/kubernetes/third_party/forked/golang/expansion does."""
    made, at = "", 0
    while at < len(text):
        name = re.match(r"\$\(([^)]*)\)", text[at:])
        if text[at : at + 2] == "$$":
            made, at = made + "$", at + 2
        elif name:
            made, at = f"{made}the value of {name[1]}", at + name.end()
        else:
            made, at = made + text[at], at + 1
    return made


@given(st.text("$()H {", max_size=12))
def test_users_words_reach_the_engine_as_they_are(text: str) -> None:
    assert expanded(literal(text)) == text


@pytest.mark.parametrize("word", ["$$(HF_TOKEN)", "$$$(HF_TOKEN)", "$$$$(HF_TOKEN)", "($(($$(HF_TOKEN)"])
def test_no_number_of_dollars_reads_the_environment(word: str) -> None:
    spec = make_spec(
        engine={
            "name": "vLLM",
            "extraArgs": [f"--chat-template={word}"],
            "env": [{"name": "NCCL_ALGO", "value": word}],
        }
    )
    run = command(spec, VLLM, KEY)
    assert f"--chat-template={word}" in [expanded(one) for one in run.args]
    assert expanded(str(variables(run)["NCCL_ALGO"])) == word


def test_environment_is_sorted_and_has_each_name_once() -> None:
    for case in SPECS:
        for variant in VARIANTS.values():
            names = [item["name"] for item in command(spec_of(case), variant, KEY).env]
            assert names == sorted(set(names))


# --- where the model lies


def test_a_repository_is_downloaded_with_a_token_that_only_the_engine_sees() -> None:
    spec = spec_of("a private repository with adapters")
    env = variables(command(spec, VLLM, KEY))
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert "HF_HUB_OFFLINE" not in env
    assert sources(spec)[0].remote


def test_a_bucket_is_streamed_with_a_credentials_file() -> None:
    spec = spec_of("spot from a bucket")
    for variant, path in ((VLLM, 0), (SGLANG, 1)):
        run = command(spec, variant, KEY)
        assert run.args[path] == "s3://weights/qwen/32b"
        assert after(run, "--load-format") == "runai_streamer"
        assert variables(run)["AWS_SHARED_CREDENTIALS_FILE"] == "/credentials/credentials"


def test_a_claim_is_read_offline_and_read_only() -> None:
    spec = spec_of("a claim, offline")
    run = command(spec, VLLM, KEY)
    assert run.args[0] == "/models/qwen/32b"
    assert variables(run)["HF_HUB_OFFLINE"] == "1"
    source = sources(spec)[0]
    assert source.volumes[0]["persistentVolumeClaim"] == {"claimName": "weights", "readOnly": True}
    assert source.mounts[0]["readOnly"] is True


def test_a_claim_without_a_path_is_served_from_its_root() -> None:
    assert sources(make_spec(model={"uri": "pvc://weights"}))[0].path == "/models"


def test_an_image_is_mounted_by_digest() -> None:
    spec = spec_of("an image by digest")
    source = sources(spec)[0]
    assert source.volumes[0]["image"]["reference"] == f"example.org/qwen@{DIGEST}"
    # pragma: allowlist nextline secret
    assert source.pull_secret == "registry"
    assert pinned_digest(spec.model) == DIGEST


@pytest.mark.parametrize(
    ("model", "field", "words"),
    [
        ({"uri": "oci://example.org/qwen"}, "spec.model.uri", "needs a digest"),
        ({"uri": f"oci://e.org/q@{DIGEST}", "digest": "sha256:" + "f" * 64}, "spec.model.digest", "another digest"),
        ({"uri": "hf://a/b", "digest": DIGEST}, "spec.model.digest", "set revision to a commit"),
        ({"uri": "s3://a/b", "revision": "main"}, "spec.model.revision", "no revisions"),
        ({"uri": "hf://a/b@v1", "revision": "v2"}, "spec.model.revision", "another revision"),
        ({"uri": "hf://a/b/c"}, "spec.model.uri", "two names"),
        ({"uri": "pvc://weights/../../etc"}, "spec.model.uri", ".."),
        ({"uri": "pvc://Weights/a"}, "spec.model.uri", "not the name of a claim"),
        ({"uri": "pvc://weights@v1/a"}, "spec.model.uri", "not the name of a claim"),
        ({"uri": "pvc://weights/a@/../../etc"}, "spec.model.uri", ".."),
        ({"uri": "hf://a/b@v1/../v2"}, "spec.model.uri", ".."),
        ({"uri": "hf://a/b@--enforce-eager"}, "spec.model.uri", "not a revision"),
        ({"uri": "hf://a/b:v1"}, "spec.model.uri", "letters, digits"),
        ({"uri": "oci://e.org/q@v1", "digest": DIGEST}, "spec.model.uri", "not an image"),
        ({"uri": f"oci://e.org/Qwen@{DIGEST}"}, "spec.model.uri", "in lower case"),
        ({"uri": f"oci://e.org/qwen/@{DIGEST}"}, "spec.model.uri", "not an image"),
        (
            {"uri": "hf://a/b", "adapters": [{"name": "x", "uri": "s3://a/b"}]},
            "spec.model.adapters[x].uri",
            "for the model itself",
        ),
        (
            {"uri": "hf://a/b", "adapters": [{"name": "x", "uri": "oci://a/b"}]},
            "spec.model.adapters[x].uri",
            "needs a digest",
        ),
        (
            {"uri": "hf://a/b", "adapters": [{"name": "x", "uri": "hf://a/c@v1"}]},
            "spec.model.adapters[x].uri",
            "take no revision",
        ),
    ],
)
def test_a_source_that_could_not_be_loaded_as_promised(model: dict[str, object], field: str, words: str) -> None:
    (problem,) = source_problems(make_spec(model=model))
    assert (problem.reason, problem.field) == (Reason.INVALID_SPEC, field)
    assert words in problem.message


@pytest.mark.parametrize(
    "uri",
    [
        "hf://gpt2",
        "hf://org/Model-3.1_b@refs/pr/1",
        "hf://org/model@v1.0+fp8",
        "pvc://my.claim-1/a//b@v1+x/",
        "s3://bucket/a:b@c+d/",
        f"oci://localhost:5000/a__b/c-d.e:V1_2@{DIGEST}",
        f"oci://qwen@{DIGEST}",
    ],
)
def test_a_source_with_an_odd_but_possible_name_is_loaded(uri: str) -> None:
    assert source_problems(make_spec(model={"uri": uri})) == ()


@pytest.mark.parametrize("case", SPECS)
def test_the_cases_of_this_file_have_no_problems(case: str) -> None:
    spec = spec_of(case)
    assert source_problems(spec) == ()
    assert engine_problems(spec) == ()


# --- what users may add


@pytest.mark.parametrize(
    ("engine", "args"),
    [
        ("vLLM", ["--gpu-memory-utilization", "0.95"]),
        ("vLLM", ["--gpu-memory-utilization=0.95", "--enforce-eager"]),
        ("vLLM", ["--gpu_memory_utilization=0.95"]),
        ("vLLM", ["--seed", "-1"]),
        ("vLLM", ["--hf-overrides", '{"rope_theta": 1e6}']),
        ("vLLM", ["--hf-overrides.rope_theta=1000000"]),
        ("vLLM", ["--cudagraph-capture-sizes", "1", "2", "4", "--enforce-eager"]),
        ("SGLang", ["--mem-fraction-static", "0.9", "--enable-torch-compile"]),
    ],
)
def test_arguments_that_tune_are_let_in(engine: str, args: list[str]) -> None:
    spec = with_args(engine, *args)
    assert engine_problems(spec) == ()
    run = command(spec, VLLM if engine == "vLLM" else SGLANG, KEY)
    assert run.args[-len(args) :] == tuple(args)


@pytest.mark.parametrize(
    ("engine", "arg", "field"),
    [
        ("vLLM", "--tensor-parallel-size=8", "spec.engine.tensorParallelSize"),
        ("vLLM", "--tensor_parallel_size=8", "spec.engine.tensorParallelSize"),
        ("vLLM", "-tp=8", "spec.engine.tensorParallelSize"),
        ("vLLM", "--no-enable-prefix-caching", "spec.engine.prefixCaching"),
        ("vLLM", "--speculative-config.method=ngram", "spec.engine.speculative"),
        ("vLLM", "--served-model-name=gpt", "spec.model.servedName"),
        ("vLLM", "--shutdown-timeout=0", "spec.scaling.maxRequestSeconds"),
        ("SGLang", "--tp=8", "spec.engine.tensorParallelSize"),
        ("SGLang", "--context-length=1", "spec.engine.maxModelLen"),
    ],
)
def test_what_a_field_sets_conflicts_and_the_field_is_named(engine: str, arg: str, field: str) -> None:
    (problem,) = engine_problems(with_args(engine, arg))
    assert problem.reason is Reason.CONFLICTING_ARGUMENTS
    assert problem.field == "spec.engine.extraArgs[0]"
    assert field in problem.message


@pytest.mark.parametrize(
    ("engine", "args", "why"),
    [
        ("vLLM", ["--trust-remote-code"], "runs code"),
        ("vLLM", ["--trust_remote_code"], "runs code"),
        ("vLLM", ["--no-trust-remote-code"], "runs code"),
        ("vLLM", ["--api-key", "secret"], "read pods"),
        ("vLLM", ["--host=127.0.0.1"], "by their Service"),
        ("vLLM", ["--middleware=evil.module"], "loads code"),
        ("vLLM", ["--trust-remote"], "allow-list of vLLM"),
        ("vLLM", ["--allowed-local-media-path=/"], "files"),
        ("vLLM", ["-x"], "allow-list of vLLM"),
        ("vLLM", ["--"], "allow-list of vLLM"),
        ("vLLM", ["other/model"], "follows no flag"),
        ("vLLM", ["--enforce-eager", "other/model"], "follows no flag"),
        ("vLLM", ["--seed", "1", "other/model"], "follows no flag"),
        ("vLLM", ["--seed=1", "other/model"], "follows no flag"),
        ("vLLM", ["--enforce-eager=true"], "takes no value"),
        ("SGLang", ["--trust-remote-code"], "runs code"),
        ("SGLang", ["--gpu-memory-utilization=0.9"], "allow-list of SGLang"),
        ("SGLang", ["--cuda-graph-max-bs=64"], "use --cuda-graph-max-bs-decode"),
    ],
)
def test_what_gives_more_than_running_the_model_is_refused(engine: str, args: list[str], why: str) -> None:
    (problem,) = engine_problems(with_args(engine, *args))
    assert problem.reason is Reason.ARGUMENT_NOT_ALLOWED
    assert why in problem.message


def test_each_wrong_argument_is_told() -> None:
    found = engine_problems(with_args("vLLM", "--host=x", "--seed=1", "--port=1"))
    assert [problem.field for problem in found] == ["spec.engine.extraArgs[0]", "spec.engine.extraArgs[2]"]


def test_with_auto_both_engines_must_take_an_argument() -> None:
    (problem,) = engine_problems(with_args("Auto", "--mem-fraction-static=0.9"))
    assert "allow-list of vLLM" in problem.message
    assert "set spec.engine.name to SGLang" in problem.message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("HOME", Reason.CONFLICTING_ARGUMENTS),
        ("HF_TOKEN", Reason.CONFLICTING_ARGUMENTS),
        ("HF_HUB_OFFLINE", Reason.CONFLICTING_ARGUMENTS),
        ("LD_PRELOAD", Reason.ARGUMENT_NOT_ALLOWED),
        ("PYTHONPATH", Reason.ARGUMENT_NOT_ALLOWED),
        ("VLLM_PLUGINS", Reason.ARGUMENT_NOT_ALLOWED),
        ("VLLM_SERVER_DEV_MODE", Reason.ARGUMENT_NOT_ALLOWED),
        ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", Reason.ARGUMENT_NOT_ALLOWED),
        ("NCCL_NET_PLUGIN", Reason.ARGUMENT_NOT_ALLOWED),
    ],
)
def test_variables_that_open_a_door_are_refused(name: str, reason: Reason) -> None:
    (problem,) = engine_problems(make_spec(engine={"name": "vLLM", "env": [{"name": name, "value": "1"}]}))
    assert (problem.reason, problem.field) == (reason, f"spec.engine.env[{name}]")


@pytest.mark.parametrize("engine", ["vLLM", "SGLang", "Auto"])
def test_a_bucket_of_ones_own_or_open_to_all_can_be_read(engine: str) -> None:
    """Without these the streamer asks for BUCKET.minio.storage, or ends for lack of credentials."""
    own = {
        "AWS_ENDPOINT_URL": "http://minio.storage:9000",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "RUNAI_STREAMER_S3_UNSIGNED": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    env = [{"name": name, "value": value} for name, value in own.items()]
    assert engine_problems(make_spec(model={"uri": "s3://open/chat"}, engine={"name": engine, "env": env})) == ()


words = st.text(alphabet="-_=.@ abcdefgtuz109{}", max_size=20) | st.sampled_from(
    sorted(vllm_engine.VOCABULARY.valued | vllm_engine.VOCABULARY.switches | set(vllm_engine.VOCABULARY.refused))
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(words, max_size=6))
def test_whatever_passes_consists_of_allowed_flags_and_their_values(args: list[str]) -> None:
    vocabulary = vllm_engine.VOCABULARY
    if argument_problems(vocabulary, args):
        return
    takes = False
    for word in args:
        if word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word):
            assert flag_name(word) in vocabulary.switches | vocabulary.valued | vocabulary.listed
            takes = flag_name(word) not in vocabulary.switches
        else:
            assert takes, "a word that no flag takes would be the model"
