"""The shipped figures: all of them sourced, and those that follow from others recomputed."""

from __future__ import annotations

import csv
import os
from datetime import date
from pathlib import Path

import pytest

from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.capacity_profile import CapacityProfileSpec, Provenance
from tokenservice.api.quantity import quantity
from tokenservice.catalogue import (
    accelerator_class_objects,
    accelerator_classes,
    architectures,
    capacity_profile_objects,
    capacity_profiles,
)

DATA = Path(os.environ.get("TAAS_DATA", Path(__file__).parents[3] / "shared" / "data"))
FITS = DATA / "engine" / "fit_alpha_beta_kappa_delta.csv"

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "mxfp4": 65.25e9 / 116_829_156_672}
FULL_ATTENTION_LAYERS = {"openai/gpt-oss-120b": 18}
"""Its other 18 layers keep a window of 128 tokens."""
SLICED_EXPERTS = {"Qwen/Qwen3-235B-A22B-FP8": 1536}
"""Width of one expert, in models whose FP8 weights have a scale for each block of 128 x 128."""

each_accelerator = pytest.mark.parametrize(
    ("name", "spec"), accelerator_classes().items(), ids=list(accelerator_classes())
)
each_profile = pytest.mark.parametrize(("name", "spec"), capacity_profiles().items(), ids=list(capacity_profiles()))


def test_the_catalogue_holds_the_accelerators_it_promises() -> None:
    assert set(accelerator_classes()) == {"h100", "h200", "b200", "a100", "l40s", "l4", "mi300x", "mi325x"}


@each_accelerator
def test_every_figure_of_an_accelerator_has_a_dated_source(name: str, spec: AcceleratorClassSpec) -> None:
    sourced = {source.figure for source in spec.sources}
    assert sourced >= {
        "memory",
        "bandwidthGigabytesPerSecond",
        "denseTeraflops",
        "interconnectDomain",
        "pricePerHour",
        "idleWatts",
        "busyWatts",
    }
    for source in spec.sources:
        date.fromisoformat(source.date + "-01" if len(source.date) == 7 else source.date)


def test_no_two_accelerators_match_the_same_node() -> None:
    labels = [tuple(sorted(spec.node_labels.items())) for spec in accelerator_classes().values()]
    assert len(set(labels)) == len(labels)


@each_accelerator
def test_figures_of_an_accelerator_are_plausible(name: str, spec: AcceleratorClassSpec) -> None:
    assert 20e9 < quantity(spec.memory) < 300e9
    assert 0 < spec.idle_watts < spec.busy_watts
    assert spec.dense_teraflops.fp8 is None or 1.9 < spec.dense_teraflops.fp8 / spec.dense_teraflops.bf16 < 2.1
    assert spec.interconnect_domain <= spec.accelerators_per_node


def test_names_of_objects_are_unique() -> None:
    for objects in (accelerator_class_objects(), capacity_profile_objects()):
        names = [it["metadata"]["name"] for it in objects]
        assert len(set(names)) == len(names)


@each_profile
def test_a_profile_is_named_by_what_it_describes(name: str, spec: CapacityProfileSpec) -> None:
    tail = f"{spec.precision}-{spec.engine.lower()}-{spec.accelerator}-tp{spec.tensor_parallel_size}"
    assert name.endswith(tail)
    assert spec.model.split("/")[1].lower().startswith(name.removesuffix(f"-{tail}"))


@each_profile
def test_a_profile_refers_to_what_the_catalogue_knows(name: str, spec: CapacityProfileSpec) -> None:
    assert spec.accelerator in accelerator_classes()
    assert spec.model in architectures()
    assert architectures()[spec.model].heads % spec.tensor_parallel_size == 0
    assert spec.tensor_parallel_size <= accelerator_classes()[spec.accelerator].interconnect_domain


def test_no_profile_is_of_a_size_that_sglang_ends_over() -> None:
    """It takes slices of experts in whole blocks only (`Fp8MoEMethod` of 0.5.18); vLLM 0.32 refines the blocks."""
    sliced = [spec for spec in capacity_profiles().values() if spec.engine == "SGLang" and spec.model in SLICED_EXPERTS]
    assert sliced
    assert [spec for spec in sliced if SLICED_EXPERTS[spec.model] // spec.tensor_parallel_size % 128] == []


@each_profile
def test_an_estimate_says_so_and_claims_no_error(name: str, spec: CapacityProfileSpec) -> None:
    estimate = spec.source.startswith(("SCALED ESTIMATE", "Assumed equal"))
    assert estimate == (spec.provenance is Provenance.ROOFLINE)
    assert estimate == (spec.error_fraction is None)
    assert estimate == (spec.engine_version == "any")
    assert estimate or "measured points" in spec.source


@each_profile
def test_every_profile_makes_prefill_cost_time(name: str, spec: CapacityProfileSpec) -> None:
    assert spec.step.alpha_ms > 0
    assert spec.step.delta_ms > 0


@each_profile
def test_kv_capacity_follows_from_memory_and_weights(name: str, spec: CapacityProfileSpec) -> None:
    model, tp = architectures()[spec.model], spec.tensor_parallel_size
    layers = FULL_ATTENTION_LAYERS.get(spec.model, model.layers)
    token_bytes = 2 * layers * model.kv_heads * model.head_dim * 2
    memory = quantity(accelerator_classes()[spec.accelerator].memory)
    free = 0.9 * memory - model.parameters * WEIGHT_BYTES[spec.precision] / tp - 3.75e9
    assert spec.kv_capacity_tokens == int(free * min(tp, model.kv_heads) / token_bytes)


@each_profile
def test_cold_start_follows_from_the_weights(name: str, spec: CapacityProfileSpec) -> None:
    weights = architectures()[spec.model].parameters * WEIGHT_BYTES[spec.precision]
    assert spec.cold_start_seconds == pytest.approx(20 + weights / 2e9 + 8 + 4, abs=0.05)


@pytest.mark.skipif(not FITS.exists(), reason="the measured fits are not on this machine (TAAS_DATA)")
def test_calibrated_coefficients_are_those_of_the_fits() -> None:
    columns = ("alpha_ms", "beta_ms", "kappa_ms_per_1kctx", "delta_ms_per_tok")
    with FITS.open() as file:
        fits = {tuple(float(f"{float(row[column]):.6g}") for column in columns) for row in csv.DictReader(file)}
    own_fit = "non-negative least squares"
    for name, spec in capacity_profiles().items():
        if spec.provenance is Provenance.CALIBRATED and own_fit not in spec.source:
            step = spec.step
            assert (step.alpha_ms, step.beta_ms, step.kappa_ms, step.delta_ms) in fits, name


def test_models_of_the_profiles_and_ten_more_are_known() -> None:
    with_profiles = {spec.model for spec in capacity_profiles().values()}
    assert len(architectures().keys() - with_profiles) >= 10


@pytest.mark.parametrize("name", architectures(), ids=str)
def test_an_architecture_roughly_adds_up_to_its_parameters(name: str) -> None:
    """Attention alone (query, key, value, output) must fit into the parameters that a token touches."""
    model = architectures()[name]
    assert model.heads % model.kv_heads == 0
    assert (model.active_parameters or model.parameters) <= model.parameters
    width = model.heads * model.head_dim
    attention = model.layers * 2 * width * (width + model.kv_heads * model.head_dim)
    assert attention < model.parameters
