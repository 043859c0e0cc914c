"""The ways to run a model: accelerator x engine x tensor parallel size x precision, and which of them to prefer.

A replica stays within a node wherever one can hold it: only where none can, its pipeline stages take a node each.

A CapacityProfile that matches is always better than a guess, so once any profile matches, ways without one are left
out; only an accelerator that the user names and that has none is still estimated. A model without a matching profile
is estimated from its architecture and the accelerator's data sheet: the roofline prior, good for a first placement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from tokenservice.api.accelerator_class import Vendor
from tokenservice.api.capacity_profile import CapacityProfileSpec, Provenance
from tokenservice.api.quantity import quantity
from tokenservice.api.token_service import Architecture, EngineName, KVCacheDtype, Quantization, TokenServiceSpec
from tokenservice.core.capacity import Capacity, Limit, Targets, Workload, best_reachable, capacity
from tokenservice.core.learning import pinned_step, refined_step
from tokenservice.core.model import Accelerator, Problem, Profile, Reason, Variant
from tokenservice.core.names import LEADER_WORKER_SET_CRD, variant_name
from tokenservice.core.roofline import BANDWIDTH_SHARE, BYTES, Layout, kv_bytes_per_token, roofline, weight_bytes
from tokenservice.core.step import StepModel

Ranked = tuple[tuple[Variant, Capacity], ...]

_TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
_PRECISIONS = {
    Quantization.FP8: "fp8",
    Quantization.AWQ: "int4",
    Quantization.GPTQ: "int4",
    Quantization.MXFP4: "mxfp4",
}
_QUANTIZED_BEFORE = (Quantization.AWQ, Quantization.GPTQ, Quantization.MXFP4)  # engines read these, and make none
_TRUST = {Provenance.MEASURED: 0, Provenance.CALIBRATED: 1, Provenance.ROOFLINE: 2}

_MEMORY_SHARE = 0.9  # the engines' default
_OTHER_MEMORY_BYTES = 3.75e9  # activations, graphs, communication buffers
_MAX_NUM_SEQS, _MAX_NUM_BATCHED_TOKENS = 256, 8192
_START_SECONDS = 33.0  # bootstrap and KV profiling 20, cached compilation 8, graphs 5: vLLM startup profile, MLSys'26
_DISK_BYTES_PER_SECOND = 2e9  # local NVMe
_SMALLEST_KV_TOKENS = 2048  # less holds no conversation

_AS_DEAR = 1.02
"""Prices per token that differ by less are equal: the step model errs by 3.5 % at the median (docs/capacity.md)."""

_GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class _Choice:
    """A way that may or may not be possible."""

    accelerator: Accelerator
    engine: str
    tensor_parallel_size: int
    precision: str


@dataclass(frozen=True, slots=True)
class _Request:
    """The parts of a spec that decide what can run it."""

    spec: TokenServiceSpec
    repository: str
    architecture: Architecture | None
    allowed: tuple[Accelerator, ...]
    profiles: tuple[Profile, ...]  # of this model, most trusted first
    groups: bool
    known_as: str | None  # the catalogue's name where only capitals differ

    @property
    def pipeline(self) -> int:
        return self.spec.engine.pipeline_parallel_size

    @property
    def precision(self) -> str:
        """Number format of the weights; for a checkpoint that nobody described, what it was measured in."""
        asked = _PRECISIONS.get(self.spec.engine.quantization)
        if asked is not None:
            return asked
        if self.architecture is not None:
            return self.architecture.dtype
        measured = {profile.spec.precision for profile in self.profiles}
        return "bf16" if "bf16" in measured or not measured else min(measured)


def candidates(
    spec: TokenServiceSpec,
    accelerators: Sequence[Accelerator],
    profiles: Sequence[Profile],
    architectures: Mapping[str, Architecture],
    *,
    groups: bool = False,
) -> tuple[tuple[Variant, ...], tuple[Problem, ...]]:
    """Ways to run the model, in order of the accelerators that the spec allows, and what is wrong with the spec.

    `architectures` is by model repository; `groups` is whether pods on several nodes can be one replica. An accelerator
    that does not exist is a problem even beside others that do. Region, residency and whether nodes exist are judged
    elsewhere.
    """
    unknown = _unknown_accelerators(spec, accelerators)
    request = _request(spec, accelerators, profiles, architectures, groups=groups)
    unquantized = _unquantized(request, architectures.get(request.repository))
    if unquantized is not None:
        return (), (*unknown, unquantized)
    found = _variants(request) or (_variants(request, across=True) if groups else ())
    if found or (unknown and not request.allowed):
        return found, unknown
    return (), (*unknown, _nothing_runs(request))


def ranked(
    spec: TokenServiceSpec, variants: Sequence[Variant], workload: Workload, targets: Targets
) -> tuple[Ranked, tuple[Problem, ...]]:
    """Variants that reach the objectives: the user's order of accelerators first, then price per token.

    Of those that cost about as much as the cheapest, and run on its class, the smallest comes first.
    """
    judged = [(variant, capacity(variant, workload, targets)) for variant in variants]
    able = [pair for pair in judged if pair[1].requests_per_second > 0]
    if judged and not able:
        return (), (_unreachable(judged, workload, targets),)
    affordable = [pair for pair in able if _affordable(spec, *pair, workload)]
    if able and not affordable:
        return (), (_too_dear(spec, able, workload),)
    return _smallest_first(sorted(affordable, key=lambda pair: _preference(spec, *pair)), spec), ()


def cost_per_million_tokens(variant: Variant, capacity: Capacity, workload: Workload) -> float:
    """US dollars per million output tokens of a replica that is always at its capacity."""
    tokens_per_hour = capacity.requests_per_second * workload.output_tokens * 3600
    return variant.price_per_hour / tokens_per_hour * 1e6 if tokens_per_hour > 0 else inf


def repository(uri: str) -> str:
    """The model repository that profiles name: `Qwen/Qwen3-32B` of `hf://Qwen/Qwen3-32B`."""
    return uri.partition("://")[2].partition("@")[0].rstrip("/") if uri.startswith("hf://") else uri


def tensor_parallel_fits(accelerator: Accelerator, tensor_parallel_size: int, pipeline_parallel_size: int = 1) -> bool:
    """Whether one node of the class holds a replica, with tensor parallelism inside the fast interconnect."""
    whole = tensor_parallel_size * pipeline_parallel_size
    return tensor_parallel_size <= _largest_size(accelerator) and whole <= accelerator.spec.accelerators_per_node


# --- What could run ------------------------------------------------------------------------------------------------


def _request(
    spec: TokenServiceSpec,
    accelerators: Sequence[Accelerator],
    profiles: Sequence[Profile],
    architectures: Mapping[str, Architecture],
    *,
    groups: bool,
) -> _Request:
    repo = repository(spec.model.uri)
    mine = sorted((p for p in profiles if p.spec.model == repo), key=_distrust)
    architecture = spec.model.architecture or architectures.get(repo)
    known_as = next((name for name in architectures if name.lower() == repo.lower() and name != repo), None)
    return _Request(spec, repo, architecture, _allowed(spec, accelerators), tuple(mine), groups, known_as)


def _distrust(profile: Profile) -> tuple[int, float, str]:
    error = profile.spec.error_fraction
    return (_TRUST[profile.spec.provenance], inf if error is None else error, profile.name)


def _allowed(spec: TokenServiceSpec, accelerators: Sequence[Accelerator]) -> tuple[Accelerator, ...]:
    """Classes in the user's order, or all by name."""
    by_name = {accelerator.name: accelerator for accelerator in sorted(accelerators, key=lambda a: a.name)}
    names = dict.fromkeys(spec.placement.accelerators or by_name)
    return tuple(by_name[name] for name in names if name in by_name)


def _variants(request: _Request, *, across: bool = False) -> tuple[Variant, ...]:
    """Ways within a node, or those across several."""
    profiled, estimated = list[Variant](), list[Variant]()
    for choice in _choices(request, across=across):
        profile = _profile(request, choice)
        if profile is not None:
            profiled.append(_from_profile(request, choice, profile))
        elif request.architecture is not None and choice.engine == _estimated_engine(request):
            estimated.append(_from_roofline(request, request.architecture, choice))
    covered = {variant.accelerator.name for variant in profiled}
    named = set(request.spec.placement.accelerators)
    kept = [v for v in estimated if not profiled or (v.accelerator.name in named - covered)]
    order = {accelerator.name: place for place, accelerator in enumerate(request.allowed)}
    holding = [v for v in (*profiled, *kept) if v.kv_capacity_tokens >= _needed_kv_tokens(request.spec)]
    return tuple(sorted(holding, key=lambda v: (order[v.accelerator.name], v.name)))


def _choices(request: _Request, *, across: bool) -> Iterator[_Choice]:
    for accelerator in request.allowed:
        for size in _sizes(request):
            whole = tensor_parallel_fits(accelerator, size, request.pipeline)
            fits = not whole and size <= _largest_size(accelerator) if across else whole
            if fits and _computes(accelerator, request.precision) and _caches(accelerator, request.spec):
                for engine in _engines(request.spec):
                    if _reads(engine, accelerator, request.precision):
                        yield _Choice(accelerator, engine, size, request.precision)


def _sizes(request: _Request) -> tuple[int, ...]:
    given = request.spec.engine.tensor_parallel_size
    sizes = {given} if given else {*_TENSOR_PARALLEL_SIZES, *(p.spec.tensor_parallel_size for p in request.profiles)}
    return tuple(sorted(size for size in sizes if request.architecture is None or _divides(size, request.architecture)))


def _divides(size: int, architecture: Architecture) -> bool:
    """Engines deal key-value heads out evenly, or each of them to as many shards: 10 heads take 2 or 20, but not 4."""
    kv_heads = architecture.kv_heads
    return architecture.heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


def _engines(spec: TokenServiceSpec) -> tuple[str, ...]:
    """Auto takes vLLM for adapters: to an adapter's own name SGLang answers as the model itself."""
    if spec.engine.name != EngineName.AUTO:
        return (spec.engine.name.value,)
    return ("vLLM",) if spec.model.adapters or spec.model.runtime_adapters else ("vLLM", "SGLang")


def _estimated_engine(request: _Request) -> str:
    """An estimate cannot tell engines apart: with Auto it is made for vLLM only."""
    return _engines(request.spec)[0]


def _computes(accelerator: Accelerator, precision: str) -> bool:
    """FP8 needs the arithmetic; int8, int4 and mxfp4 weights are widened to bf16 where it is missing."""
    return precision != "fp8" or accelerator.spec.dense_teraflops.fp8 is not None


def _reads(engine: str, accelerator: Accelerator, precision: str) -> bool:
    """SGLang ends over MXFP4 on accelerators of AMD that do not compute in it (`Mxfp4Config` of 0.5.18)."""
    widened = precision == "mxfp4" and accelerator.spec.dense_teraflops.fp4 is None
    return not (widened and engine == "SGLang" and accelerator.spec.vendor is Vendor.AMD)


def _caches(accelerator: Accelerator, spec: TokenServiceSpec) -> bool:
    return spec.engine.kv_cache_dtype != KVCacheDtype.FP8 or accelerator.spec.dense_teraflops.fp8 is not None


def _needed_kv_tokens(spec: TokenServiceSpec) -> int:
    """Engines refuse to start when the cache does not hold one sequence of full length."""
    return max(_SMALLEST_KV_TOKENS, spec.engine.max_model_len or 0)


# --- Figures -------------------------------------------------------------------------------------------------------


def _profile(request: _Request, choice: _Choice) -> Profile | None:
    key = (choice.engine, choice.accelerator.name, choice.tensor_parallel_size, choice.precision)
    if request.pipeline > 1:
        return None
    return next((profile for profile in request.profiles if _key(profile.spec) == key), None)


def _key(spec: CapacityProfileSpec) -> tuple[str, str, int, str]:
    return (spec.engine, spec.accelerator, spec.tensor_parallel_size, spec.precision)


def _from_profile(request: _Request, choice: _Choice, profile: Profile) -> Variant:
    """Profiles hold for the engine's own KV format; an FP8 cache halves what a token takes to keep and to read."""
    known = profile.spec
    halved = 2 if request.spec.engine.kv_cache_dtype == KVCacheDtype.FP8 and choice.precision == "bf16" else 1
    pinned, refined = pinned_step(profile), refined_step(profile)
    measured = known.provenance == Provenance.MEASURED
    return _variant(
        request,
        choice,
        profile=profile.name,
        step=_with_cache(refined or pinned, halved),
        pinned=_with_cache(pinned, halved) if refined is not None else None,
        kv_capacity_tokens=known.kv_capacity_tokens * halved,
        max_num_seqs=known.max_num_seqs,
        max_num_batched_tokens=known.max_num_batched_tokens,
        cold_start_seconds=known.cold_start_seconds,
        weight_bytes=_known_weight_bytes(request, choice, pinned.alpha_ms),
        provenance=Provenance.CALIBRATED if measured and halved > 1 else known.provenance,
    )


def _with_cache(step: StepModel, halved: int) -> StepModel:
    return replace(step, kappa_ms=step.kappa_ms / halved)


def _from_roofline(request: _Request, architecture: Architecture, choice: _Choice) -> Variant:
    weights = weight_bytes(architecture, choice.precision)
    return _variant(
        request,
        choice,
        profile=None,
        step=_roofline(request, architecture, choice),
        kv_capacity_tokens=_kv_capacity_tokens(request, architecture, choice),
        max_num_seqs=_MAX_NUM_SEQS,
        max_num_batched_tokens=_MAX_NUM_BATCHED_TOKENS,
        cold_start_seconds=_START_SECONDS + weights / _DISK_BYTES_PER_SECOND,
        weight_bytes=weights,
        provenance=Provenance.ROOFLINE,
    )


def _variant(
    request: _Request,
    choice: _Choice,
    *,
    profile: str | None,
    step: StepModel,
    kv_capacity_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    cold_start_seconds: float,
    weight_bytes: float,
    provenance: Provenance,
    pinned: StepModel | None = None,
) -> Variant:
    size, sequences = choice.tensor_parallel_size, request.spec.engine.max_num_seqs or max_num_seqs
    return Variant(
        name=variant_name(choice.accelerator.name, choice.engine, size, choice.precision, _nodes(request, choice)),
        accelerator=choice.accelerator,
        engine=choice.engine,
        tensor_parallel_size=size,
        pipeline_parallel_size=request.pipeline,
        precision=choice.precision,
        profile=profile,
        step=step,
        kv_capacity_tokens=kv_capacity_tokens,
        max_num_seqs=sequences,
        max_num_batched_tokens=max(max_num_batched_tokens, sequences),
        cold_start_seconds=cold_start_seconds,
        weight_bytes=weight_bytes,
        provenance=provenance,
        pinned=pinned,
        checkpoint_bytes=_checkpoint_bytes(request, choice, weight_bytes),
    )


def _checkpoint_bytes(request: _Request, choice: _Choice, loaded: float) -> float | None:
    """FP8 is made of a larger checkpoint, if of an unknown one too: room and time too much rather than too little."""
    held = request.architecture.dtype if request.architecture is not None else "bf16"
    if request.spec.engine.quantization != Quantization.FP8 or held == choice.precision:
        return None
    return loaded * BYTES[held] / BYTES[choice.precision]


def _nodes(request: _Request, choice: _Choice) -> int:
    """Nodes of one replica: one, or one for each pipeline stage."""
    return (
        1
        if tensor_parallel_fits(choice.accelerator, choice.tensor_parallel_size, request.pipeline)
        else request.pipeline
    )


def _roofline(request: _Request, architecture: Architecture, choice: _Choice) -> StepModel:
    """Pipeline stages work in turn, so they add memory and no speed."""
    layout = Layout(choice.tensor_parallel_size)
    return roofline(architecture, choice.accelerator.spec, layout, choice.precision, _kv_element_bytes(request.spec))


def _known_weight_bytes(request: _Request, choice: _Choice, alpha_ms: float) -> float:
    """From the architecture, else what an iteration has time to read: too much rather than too little."""
    if request.architecture is not None:
        return weight_bytes(request.architecture, choice.precision)
    bytes_per_ms = choice.accelerator.spec.bandwidth_gigabytes_per_second * 1e6 * BANDWIDTH_SHARE
    return alpha_ms * bytes_per_ms * choice.tensor_parallel_size


def _kv_element_bytes(spec: TokenServiceSpec) -> int:
    return 1 if spec.engine.kv_cache_dtype == KVCacheDtype.FP8 else 2


def _kv_bytes_per_token(spec: TokenServiceSpec, architecture: Architecture, tensor_parallel_size: int) -> float:
    return kv_bytes_per_token(architecture, tensor_parallel_size, _kv_element_bytes(spec))


def _kv_capacity_tokens(request: _Request, architecture: Architecture, choice: _Choice) -> int:
    free = -_shortage_bytes(choice, weight_bytes(architecture, choice.precision), request.pipeline)
    return int(max(0.0, free) / _kv_bytes_per_token(request.spec, architecture, choice.tensor_parallel_size))


def _shortage_bytes(choice: _Choice, weights: float, pipeline: int) -> float:
    """What a replica lacks before any KV cache; negative is room."""
    count = choice.tensor_parallel_size * pipeline
    memory = quantity(choice.accelerator.spec.memory)
    return weights - count * (_MEMORY_SHARE * memory - _OTHER_MEMORY_BYTES)


# --- What is wrong -------------------------------------------------------------------------------------------------


def _unknown_accelerators(spec: TokenServiceSpec, accelerators: Sequence[Accelerator]) -> tuple[Problem, ...]:
    known = sorted(accelerator.name for accelerator in accelerators)
    return tuple(
        Problem(
            Reason.UNKNOWN_ACCELERATOR,
            f"spec.placement.accelerators[{index}]",
            f"there is no AcceleratorClass {name!r}: use one of {_listed(known)}, or create it",
        )
        for index, name in enumerate(spec.placement.accelerators)
        if name not in known
    )


def _nothing_runs(request: _Request) -> Problem:
    """The first reason why no way is left."""
    if not request.allowed:
        return Problem(
            Reason.UNKNOWN_ACCELERATOR,
            "spec.placement.accelerators",
            "the cluster has no AcceleratorClass: create one, or let the operator apply its catalogue",
        )
    return (
        _model_unknown(request)
        or _size_impossible(request)
        or _heads_indivisible(request)
        or _format_missing(request)
        or _format_unread(request)
        or _unmeasured(request)
        or _ungrouped(request)
        or _too_large(request)
    )


def _model_unknown(request: _Request) -> Problem | None:
    if request.architecture is not None or request.profiles:
        return None
    if request.known_as is not None:
        return Problem(
            Reason.UNKNOWN_MODEL,
            "spec.model.uri",
            f"nothing is known of {request.spec.model.uri}; did you mean hf://{request.known_as}? Names are compared"
            " with their capitals",
        )
    return Problem(
        Reason.UNKNOWN_MODEL,
        "spec.model.architecture",
        f"nothing is known of {request.spec.model.uri}: give parameters, layers, heads, kvHeads and headDim"
        " in spec.model.architecture, or create a CapacityProfile for it",
    )


def _size_impossible(request: _Request) -> Problem | None:
    size = request.spec.engine.tensor_parallel_size or 1
    if any(size <= _largest_size(accelerator) for accelerator in request.allowed):
        return None
    limits = [f"{a.name} {_largest_size(a)}" for a in request.allowed]
    return Problem(
        Reason.TENSOR_PARALLEL_TOO_LARGE,
        "spec.engine.tensorParallelSize",
        f"no node holds {size} accelerators within one fast interconnect: the largest tensorParallelSize is"
        f" {_listed(limits)} (pipelineParallelSize may take further nodes)",
    )


def _largest_size(accelerator: Accelerator) -> int:
    """The largest tensor parallel size: a stage stays within a node and within its fast interconnect."""
    return min(accelerator.spec.interconnect_domain, accelerator.spec.accelerators_per_node)


def _ungrouped(request: _Request) -> Problem | None:
    """A replica across nodes would do, and nothing makes one: `_too_large` would advise what was done already."""
    across = () if request.groups else _variants(request, across=True)
    if not across:
        return None
    one = across[0]
    return Problem(
        Reason.NO_LEADER_WORKER_SET,
        "spec.engine.pipelineParallelSize",
        f"a replica of {one.tensor_parallel_size} x {one.pipeline_parallel_size} accelerators (tensor x pipeline"
        f" parallel) spans nodes of {one.accelerator.name}, which takes a LeaderWorkerSet, and the cluster has no CRD"
        f" {LEADER_WORKER_SET_CRD}: install it (https://lws.sigs.k8s.io/docs/installation), or lower"
        f" tensorParallelSize x pipelineParallelSize to at most {one.accelerator.spec.accelerators_per_node}",
    )


def _heads_indivisible(request: _Request) -> Problem | None:
    size, architecture = request.spec.engine.tensor_parallel_size, request.architecture
    if size is None or architecture is None or _divides(size, architecture):
        return None
    largest = max(_largest_size(accelerator) for accelerator in request.allowed)
    sizes = [str(n) for n in range(1, largest + 1) if _divides(n, architecture)]
    heads = f"{architecture.heads} attention heads"
    if architecture.heads % size == 0:
        heads = f"{architecture.kv_heads} key-value heads, nor they it"
    return Problem(
        Reason.INVALID_SPEC,
        "spec.engine.tensorParallelSize",
        f"{size} does not divide the model's {heads}: use one of {_listed(sizes)}",
    )


def _unquantized(request: _Request, known: Architecture | None) -> Problem | None:
    """Engines end at once when such a checkpoint has no configuration of the format, or leave its weights as large as
    they are (MXFP4); of unknown ones none can tell."""
    asked = request.spec.engine.quantization
    if asked not in _QUANTIZED_BEFORE or request.spec.model.architecture or known is None:
        return None
    if known.dtype == _PRECISIONS[asked]:
        return None
    instead = "use FP8, which an engine makes when it loads" if known.dtype == "bf16" else "leave this out"
    return Problem(
        Reason.INVALID_SPEC,
        "spec.engine.quantization",
        f"{request.repository} has {known.dtype} weights, and {asked} takes a checkpoint that was quantized so:"
        f" name such a one in spec.model.uri, or {instead}",
    )


def _format_missing(request: _Request) -> Problem | None:
    if any(_computes(a, request.precision) and _caches(a, request.spec) for a in request.allowed):
        return None
    quantized = request.precision == "fp8"
    return Problem(
        Reason.INVALID_SPEC,
        "spec.engine.quantization" if quantized else "spec.engine.kvCacheDtype",
        f"none of {_listed([a.name for a in request.allowed])} has FP8:"
        f" allow an accelerator that has it, or choose another {'model' if quantized else 'kvCacheDtype'}",
    )


def _format_unread(request: _Request) -> Problem | None:
    engines = _engines(request.spec)
    if any(_reads(engine, a, request.precision) for engine in engines for a in request.allowed):
        return None
    return Problem(
        Reason.INVALID_SPEC,
        "spec.engine.name",
        f"{_listed(engines)} does not read {request.precision} weights on {_listed([a.name for a in request.allowed])}:"
        " use vLLM, or allow another accelerator",
    )


def _unmeasured(request: _Request) -> Problem | None:
    if request.architecture is not None:
        return None
    measured = sorted({"{1} on {0} tp{2} {3}".format(*_reordered(p.spec)) for p in request.profiles})
    return Problem(
        Reason.UNKNOWN_MODEL,
        "spec.model.architecture",
        f"{request.repository} has CapacityProfiles only for {_listed(measured)}: allow one of these,"
        " or give spec.model.architecture for an estimate",
    )


def _reordered(spec: CapacityProfileSpec) -> tuple[str, str, int, str]:
    return (spec.accelerator, spec.engine, spec.tensor_parallel_size, spec.precision)


def _too_large(request: _Request) -> Problem:
    """By how much, on each class with the replica that comes closest."""
    weights = weight_bytes(request.architecture, request.precision) if request.architecture is not None else 0.0
    length = request.spec.engine.max_model_len
    best = sorted(
        _closest(request, accelerator, weights, _needed_kv_tokens(request.spec)) for accelerator in request.allowed
    )
    lacking = [f"{_gib(lack)} GiB on {name} x {count}" for lack, count, name in best if lack < inf]
    fewer = "spec.engine.quantization FP8 or " if request.precision == "bf16" else ""
    cut = any(_closest(request, accelerator, weights, _SMALLEST_KV_TOKENS)[0] <= 0 for accelerator in request.allowed)
    if length is not None and cut:
        return Problem(
            Reason.MODEL_TOO_LARGE,
            "spec.engine.maxModelLen",
            f"the KV cache does not hold one sequence of {length} tokens; missing: {_listed(lacking)}."
            " Lower maxModelLen, or allow a larger accelerator or tensorParallelSize",
        )
    return Problem(
        Reason.MODEL_TOO_LARGE,
        "spec.model",
        f"{_gib(weights)} GiB of {request.precision} weights do not fit; missing: {_listed(lacking)}."
        " Allow a larger accelerator or tensorParallelSize, or have fewer bytes of weights:"
        f" {fewer}a checkpoint in spec.model.uri that is quantized already",
    )


def _closest(request: _Request, accelerator: Accelerator, weights: float, kv_tokens: int) -> tuple[float, int, str]:
    """(bytes missing, accelerators, class) of the replica that lacks least; infinite where none is possible."""
    lacks = [
        (_missing_bytes(request, choice, weights, kv_tokens), choice.tensor_parallel_size * request.pipeline)
        for across in (False, True)
        for choice in _choices(request, across=across)
        if choice.accelerator.name == accelerator.name
    ]
    lack, count = min(lacks, default=(inf, 0))
    return (lack, count, accelerator.name)


def _missing_bytes(request: _Request, choice: _Choice, weights: float, kv_tokens: int) -> float:
    cache = 0.0
    if request.architecture is not None:
        cache = kv_tokens * _kv_bytes_per_token(request.spec, request.architecture, choice.tensor_parallel_size)
    return max(0.0, _shortage_bytes(choice, weights, request.pipeline) + cache)


def _unreachable(judged: Sequence[tuple[Variant, Capacity]], workload: Workload, targets: Targets) -> Problem:
    """Names the objective that the best variant misses, and what it reaches."""
    reached = [(best_reachable(variant, workload, targets), variant.name, found) for variant, found in judged]
    first_bound = all(found.limited_by != Limit.TPOT for _, _, found in reached)
    if first_bound:
        best, name = min((latency.ttft_seconds, name) for latency, name, _ in reached)
        field, wanted, what = "timeToFirstToken", targets.ttft_seconds, "to the first token"
    else:
        best, name = min((latency.tpot_seconds, name) for latency, name, _ in reached)
        field, wanted, what = "timePerOutputToken", targets.tpot_seconds, "per output token"
    return Problem(
        Reason.OBJECTIVES_UNREACHABLE,
        f"spec.objectives.{field}.target",
        f"{_ms(wanted)} {what} is out of reach with prompts of {workload.input_tokens:.0f} tokens: a lone request takes"
        f" {_ms(best)} on {name}, the best allowed. Raise the target above that or allow a faster accelerator",
    )


def _too_dear(spec: TokenServiceSpec, able: Sequence[tuple[Variant, Capacity]], workload: Workload) -> Problem:
    best, name = min((cost_per_million_tokens(*pair, workload), pair[0].name) for pair in able)
    return Problem(
        Reason.OBJECTIVES_UNREACHABLE,
        "spec.objectives.maxCostPerMillionTokens",
        f"${spec.objectives.max_cost_per_million_tokens:g} per million output tokens is out of reach: {name} costs"
        f" ${best:.2f} when always full. Raise the bound, relax the latency or allow a cheaper accelerator",
    )


def _affordable(spec: TokenServiceSpec, variant: Variant, found: Capacity, workload: Workload) -> bool:
    bound = spec.objectives.max_cost_per_million_tokens
    return bound is None or cost_per_million_tokens(variant, found, workload) <= bound


def _preference(spec: TokenServiceSpec, variant: Variant, found: Capacity) -> tuple[int, float, float, int, str]:
    """User's order, price per request, accelerators per request (prices may be zero), trust, name with vLLM first."""
    rate = found.requests_per_second
    tie = f"{variant.engine != 'vLLM'} {variant.name}"
    return (
        _place(spec, variant),
        variant.price_per_hour / rate,
        variant.accelerators / rate,
        _TRUST[variant.provenance],
        tie,
    )


def _smallest_first(order: Sequence[tuple[Variant, Capacity]], spec: TokenServiceSpec) -> Ranked:
    """Smaller replicas fit demand more closely, and one that is kept for a service without requests holds less."""
    best: dict[int, tuple[Variant, Capacity]] = {}
    for pair in order:
        best.setdefault(_place(spec, pair[0]), pair)

    def size(pair: tuple[Variant, Capacity]) -> tuple[int, float]:
        place = _place(spec, pair[0])
        return place, pair[0].accelerators if _as_dear(pair, best[place]) else inf

    return tuple(sorted(order, key=size))


def _as_dear(pair: tuple[Variant, Capacity], best: tuple[Variant, Capacity]) -> bool:
    held, least = (variant.accelerators / found.requests_per_second for variant, found in (pair, best))
    return pair[0].accelerator.name == best[0].accelerator.name and held <= least * _AS_DEAR


def _place(spec: TokenServiceSpec, variant: Variant) -> int:
    named = spec.placement.accelerators
    return named.index(variant.accelerator.name) if variant.accelerator.name in named else len(named)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g}ms"
