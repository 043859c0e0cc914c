"""What the engines have in common: what a command line is, where a model lies, and which words of users' are let in.

Each engine has an allow-list, because writing a TokenService must not give more than running its model. What the
operator itself renders is refused too, and the refusal names the field that sets it: two values for one flag would
make the capacity that is planned differ from the capacity that runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tokenservice.api.accelerator_class import Vendor
from tokenservice.api.token_service import EnvVar, Objectives, Tier, TokenServiceSpec
from tokenservice.core.model import Json, Problem, Reason, ServiceKey

CACHE_PATH = "/cache"
"""An emptyDir: the only place, with /tmp, that an engine can write to."""

LEADER_ADDRESS, WORKER_INDEX = "$(LWS_LEADER_ADDRESS)", "$(LWS_WORKER_INDEX)"
"""Variables that the controller of LeaderWorkerSets gives every container, as Kubernetes expands them in arguments."""

GROUP_PORT = 29500
"""Where the leader of a group waits for its workers; what they open after that has ports of its own."""

GUARD_PATH = "/adapter-guard"
"""Where the loader of adapters puts what keeps others from having an engine load adapters."""

_NUMBER = re.compile(r"-\d+(\.\d+)?")
_EXPANDED = re.compile(r"\$\$+|\$(?=\()")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCommand:
    """What the engine's container runs, and where it can be asked how it is."""

    command: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[Json, ...]
    port: int
    startup_path: str
    readiness_path: str
    liveness_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The flags of one engine, by what becomes of them in extraArgs.

    `rendered` maps a flag to the field that sets it, `refused` to why nobody may. Of the rest only `switches` (no
    value), `valued` (one) and `listed` (one or more) are let in; of these, `roomy` ones are set by
    spec.model.runtimeAdapters where it is there.
    """

    engine: str
    rendered: Mapping[str, str]
    refused: Mapping[str, str]
    switches: frozenset[str]
    valued: frozenset[str]
    listed: frozenset[str]
    roomy: frozenset[str]
    environment: frozenset[str]


def drain_seconds(spec: TokenServiceSpec) -> int:
    """How long requests may still run when their pod goes.

    Never 0: vLLM takes a shutdown timeout of 0 for "abort", also for the request that would end in a moment.
    """
    scaling = spec.scaling
    return max(1, scaling.spot_drain_seconds if spec.tier is Tier.SPOT else scaling.max_request_seconds)


def served_name(spec: TokenServiceSpec, service: ServiceKey) -> str:
    """The model name that requests and metrics use."""
    return spec.model.served_name or service.name


def histogram_bounds(defaults: Iterable[float], target_seconds: float) -> tuple[float, ...]:
    """`defaults` with a bound at the objective itself: else attainment could only be interpolated."""
    return tuple(sorted({*defaults, target_seconds}))


def ttft_bounds(objectives: Objectives, defaults: Iterable[float]) -> tuple[float, ...]:
    return histogram_bounds(defaults, objectives.time_to_first_token.seconds)


def tpot_bounds(objectives: Objectives, defaults: Iterable[float]) -> tuple[float, ...]:
    return histogram_bounds(defaults, objectives.time_per_output_token.seconds)


def literal(text: str) -> str:
    """`text` so that Kubernetes expands no `$(VARIABLE)` in it: users' words may not read the environment.

    `$$` it reads as `$`, so that of `$$(VARIABLE)` each has to be doubled: one more alone would bring it back.
    """
    return _EXPANDED.sub(lambda found: 2 * found[0], text)


def base_environment(vendor: Vendor) -> dict[str, str]:
    """What a process without root and without a writable root file system needs, on any engine.

    USER, because `getpass.getuser()` fails for a user id that the image does not list (vllm#44548).
    """
    cached = {
        "HF_HOME": "huggingface",
        "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
        "TRITON_CACHE_DIR": "triton",
        "XDG_CACHE_HOME": "xdg",
        "XDG_CONFIG_HOME": "config",
    }
    plain = {"DO_NOT_TRACK": "1", "HOME": CACHE_PATH, "LOGNAME": "engine", "TMPDIR": "/tmp", "USER": "engine"}  # noqa: S108
    return plain | _cached(cached | _COMPILER_CACHES[vendor]) | _TUNING[vendor]


_COMPILER_CACHES = {
    Vendor.NVIDIA: {"CUDA_CACHE_PATH": "cuda", "FLASHINFER_WORKSPACE_BASE": "flashinfer"},
    Vendor.AMD: {"AITER_JIT_DIR": "aiter", "MIOPEN_CUSTOM_CACHE_DIR": "miopen", "MIOPEN_USER_DB_PATH": "miopen"},
}
_TUNING: dict[Vendor, dict[str, str]] = {
    Vendor.NVIDIA: {},
    # Without it ROCm gives scratch memory back and takes it again between kernels.
    Vendor.AMD: {"HSA_NO_SCRATCH_RECLAIM": "1"},
}


def _cached(folders: Mapping[str, str]) -> dict[str, str]:
    return {name: f"{CACHE_PATH}/{folder}" for name, folder in folders.items()}


def environment(ours: Mapping[str, str], sources: Iterable[Json], users: Iterable[EnvVar]) -> tuple[Json, ...]:
    """The container's variables by name, so that equal specs give equal templates; users' win over our tuning."""
    given = {item.name: literal(item.value) for item in users}
    plain: list[Json] = [{"name": name, "value": value} for name, value in ({**ours, **given}).items()]
    return tuple(sorted([*plain, *sources], key=lambda item: str(item["name"])))


SHARED_ENVIRONMENT = frozenset(
    {
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_ETAG_TIMEOUT",
        "HF_XET_HIGH_PERFORMANCE",
        "HIP_FORCE_DEV_KERNARG",
        "HSA_NO_SCRATCH_RECLAIM",
        "NCCL_ALGO",
        "NCCL_CUMEM_ENABLE",
        "NCCL_DEBUG",
        "NCCL_IB_DISABLE",
        "NCCL_MIN_NCHANNELS",
        "NCCL_NVLS_ENABLE",
        "NCCL_P2P_DISABLE",
        "NCCL_P2P_LEVEL",
        "NCCL_PROTO",
        "NCCL_SHM_DISABLE",
        "NCCL_SOCKET_IFNAME",
        "OMP_NUM_THREADS",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_HIP_ALLOC_CONF",
        "RUNAI_STREAMER_CONCURRENCY",
        "RUNAI_STREAMER_MEMORY_LIMIT",
        "RUNAI_STREAMER_S3_UNSIGNED",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING",
        "TOKENIZERS_PARALLELISM",
    }
)
"""Variables that tune and neither load code nor open a door. By name: with the prefix NCCL_ there are plug-ins too."""

SOURCE_ENVIRONMENT = {
    "AWS_SHARED_CREDENTIALS_FILE": "spec.model.credentials",
    "HF_HUB_OFFLINE": "spec.model.uri",
    "HF_TOKEN": "spec.model.credentials",
}
"""Variables that follow from the source of the model, and the field that sets each."""


def argument_problems(vocabulary: Vocabulary, extra_args: Iterable[str]) -> tuple[Problem, ...]:
    """What is wrong with extraArgs, word by word."""
    found: list[Problem | None] = []
    room = 0.0
    for index, word in enumerate(extra_args):
        at = f"spec.engine.extraArgs[{index}]"
        if _is_flag(word):
            problem, room = _flag_problem(vocabulary, word, at)
        else:
            problem, room = (None, room - 1) if room else (_stray(word, at), 0.0)
        found += [problem or _path_problem(word, at)]
    return tuple(problem for problem in found if problem is not None)


def _path_problem(word: str, at: str) -> Problem | None:
    """A value that may be a path: engines would read the file and show what is in it, credentials for one.

    Of JSON each text is looked at; what else has braces is a template.
    """
    value = word.partition("=")[2] if _is_flag(word) else word
    named = next((text for text in _texts(value) if "/" in text), None)
    return _not_allowed(named, "it may name a file of the engine's container", at) if named is not None else None


def _texts(value: str) -> Iterator[str]:
    """All texts of JSON; any other value is one, and none where it is a template."""
    if "{" not in value and "[" not in value:
        yield value
        return
    try:
        left = [json.loads(value)]
    except (ValueError, RecursionError):
        if "{" not in value:
            yield value
        return
    while left:
        match left.pop():
            case str(text):
                yield text
            case list(items):
                left += items
            case dict(fields):
                left += [*fields, *fields.values()]


def flag_name(word: str) -> str:
    """The flag in `--flag=value`, as engines read it: `--some_flag` and `--some-flag.key` are `--some-flag`."""
    dashes, name = re.fullmatch(r"(--?)(.*)", word.partition("=")[0], re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{dashes}{str(name).partition('.')[0].replace('_', '-')}"


def _is_flag(word: str) -> bool:
    return word.startswith("-") and _NUMBER.fullmatch(word) is None


def _flag_problem(vocabulary: Vocabulary, word: str, at: str) -> tuple[Problem | None, float]:
    """What is wrong with one flag, and how many values may follow it."""
    flag, inline = flag_name(word), "=" in word
    positive = "--" + flag.removeprefix("--no-") if flag.startswith("--no-") else flag
    for name in (flag, positive):
        if name in vocabulary.rendered:
            return _conflict(flag, vocabulary.rendered[name], at), float("inf")
        if name in vocabulary.refused:
            return _not_allowed(flag, vocabulary.refused[name], at), float("inf")
    if flag in vocabulary.switches:
        return (_not_allowed(word, f"{flag} takes no value", at) if inline else None), 0
    if flag in vocabulary.valued or flag in vocabulary.listed:
        return None, float("inf") if flag in vocabulary.listed else float(not inline)
    return _not_allowed(flag, f"it is not on the allow-list of {vocabulary.engine}", at), float("inf")


def _conflict(flag: str, setter: str, at: str) -> Problem:
    message = f"{flag} is set by {setter}: remove it from spec.engine.extraArgs"
    return Problem(Reason.CONFLICTING_ARGUMENTS, at, message)


def _not_allowed(flag: str, why: str, at: str) -> Problem:
    return Problem(
        Reason.ARGUMENT_NOT_ALLOWED, at, f"{flag} is not allowed: {why}. Remove it from spec.engine.extraArgs"
    )


def _stray(word: str, at: str) -> Problem:
    return _not_allowed(repr(word), "it follows no flag that takes a value", at)


def room_problems(vocabulary: Vocabulary, extra_args: Iterable[str]) -> Iterable[Problem]:
    """Flags in extraArgs that spec.model.runtimeAdapters sets, for a spec that has it."""
    for index, word in enumerate(extra_args):
        if _is_flag(word) and flag_name(word) in vocabulary.roomy:
            yield _conflict(flag_name(word), "spec.model.runtimeAdapters", f"spec.engine.extraArgs[{index}]")


def environment_problems(
    vocabulary: Vocabulary, ours: Mapping[str, str], users: Iterable[EnvVar]
) -> tuple[Problem, ...]:
    """What is wrong with env; `ours` maps variables that the operator sets to the field behind each."""
    found = (_variable_problem(vocabulary, ours, item.name) for item in users)
    return tuple(problem for problem in found if problem is not None)


def _variable_problem(vocabulary: Vocabulary, ours: Mapping[str, str], name: str) -> Problem | None:
    at = f"spec.engine.env[{name}]"
    if name in ours and name not in vocabulary.environment:
        return Problem(
            Reason.CONFLICTING_ARGUMENTS, at, f"{name} is set by {ours[name]}: remove it from spec.engine.env"
        )
    if name not in vocabulary.environment:
        why = f"it is not on the allow-list of {vocabulary.engine}"
        return Problem(Reason.ARGUMENT_NOT_ALLOWED, at, f"{name} is not allowed: {why}. Remove it from spec.engine.env")
    return None
