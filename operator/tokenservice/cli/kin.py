"""What is known of a measured configuration before measuring: its model's architecture and its accelerator's sheet.

A model that the catalogue lacks is guessed from its name (`-70B`, `-235B-A22B`), an accelerator that it lacks is taken
for an H100; both are said, and both only move the start of a fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from tokenservice.api.accelerator_class import AcceleratorClassSpec, DenseTeraflops
from tokenservice.api.token_service import Architecture
from tokenservice.catalogue import accelerator_classes, architectures
from tokenservice.core.calibration import Configuration
from tokenservice.core.kinship import Kin
from tokenservice.core.roofline import roofline

_BLACKWELL = {"b300": (2250, 4500, 13500), "gb200": (2500, 5000, 10000), "gb300": (2500, 5000, 15000)}
"""Dense bf16, fp8 and fp4 TFLOPS per accelerator from NVIDIA's data sheets; bandwidth is 8 TB/s, as of a B200."""

_STAND_IN = "h100"
_FORMATS = re.compile(r"[-_](instruct|chat|fp8|fp4|nvfp4|mxfp4|awq|gptq|bf16|int4|w4a16)$")
_SIZE = re.compile(r"(?:^|[-_])(\d+(?:\.\d+)?)b(?:[-_]a(\d+(?:\.\d+)?)b)?(?=$|[-_])")
_GUESSED_BILLIONS = 30.0


@dataclass(frozen=True, slots=True)
class Known:
    """Kin of configurations, and sentences about what had to be guessed."""

    kin: dict[Configuration, Kin]
    guesses: tuple[str, ...]


def known(configurations: Iterable[Configuration]) -> Known:
    """Of all configurations, sorted."""
    kin, guesses = dict[Configuration, Kin](), dict[str, None]()
    for configuration in sorted(set(configurations)):
        architecture, doubt = _architecture(configuration.model)
        accelerator, other_doubt = _accelerator(configuration.accelerator)
        guesses.update(dict.fromkeys(filter(None, (doubt, other_doubt))))
        kin[configuration] = Kin(
            configuration=configuration,
            roofline=roofline(architecture, accelerator, configuration.layout, configuration.precision),
            family=family(configuration.model),
            experts=(architecture.active_parameters or architecture.parameters) < architecture.parameters,
        )
    return Known(kin, tuple(guesses))


def family(model: str) -> str:
    """The repository's name without owner and number format: what runs alike. DeepSeek V3 and R1 are one model."""
    name, before = model.rpartition("/")[2].lower(), ""
    while name != before:
        name, before = _FORMATS.sub("", name), name
    return "deepseek-v3" if re.match(r"deepseek-(v3|r1)", name) else name


@cache
def _families() -> dict[str, Architecture]:
    return {family(name): architecture for name, architecture in architectures().items()}


def _architecture(model: str) -> tuple[Architecture, str | None]:
    found = architectures().get(model) or _families().get(family(model))
    if found is not None:
        return found, None
    match = _SIZE.search(family(model))
    billions = float(match.group(1)) if match else _GUESSED_BILLIONS
    active = float(match.group(2)) if match and match.group(2) else None
    return _guessed(billions, active), f"{model}: not in the catalogue, its architecture is guessed from its name"


def _guessed(billions: float, active: float | None) -> Architecture:
    """Grouped-query attention of 8 heads; layers between Llama 3's 32 at 8 B and 80 at 70 B, by their power law."""
    return Architecture(
        parameters=int(billions * 1e9),
        active_parameters=int(active * 1e9) if active else None,
        layers=max(8, min(96, round(32 * (billions / 8) ** 0.42))),
        heads=64,
        kv_heads=8,
        head_dim=128,
        dtype="bf16",
    )


def _accelerator(name: str) -> tuple[AcceleratorClassSpec, str | None]:
    classes = accelerator_classes()
    if name in classes:
        return classes[name], None
    if name in _BLACKWELL:
        bf16, fp8, fp4 = _BLACKWELL[name]
        return classes["b200"].model_copy(update={"dense_teraflops": DenseTeraflops(bf16=bf16, fp8=fp8, fp4=fp4)}), None
    return classes[_STAND_IN], f"{name}: not in the catalogue, its prior is that of an {_STAND_IN}"
