"""What ships with the operator: accelerators, measured capacities and model architectures, each with its source.

The operator applies the first two as objects, server-side and without force, so that what a user sets survives.
The files are data; a test recomputes what can be computed in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import yaml

from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.capacity_profile import CapacityProfileSpec
from tokenservice.api.token_service import Architecture

Json = dict[str, Any]


def accelerator_class_objects() -> tuple[Json, ...]:
    """The AcceleratorClasses, ready to apply."""
    return tuple(yaml.safe_load_all(_text("accelerators.yaml")))


def capacity_profile_objects() -> tuple[Json, ...]:
    """The CapacityProfiles, ready to apply."""
    return tuple(yaml.safe_load_all(_text("profiles.yaml")))


@cache
def accelerator_classes() -> Mapping[str, AcceleratorClassSpec]:
    """Name -> spec of every shipped AcceleratorClass."""
    parsed = {_name(it): AcceleratorClassSpec.model_validate(it["spec"]) for it in accelerator_class_objects()}
    return MappingProxyType(parsed)


@cache
def capacity_profiles() -> Mapping[str, CapacityProfileSpec]:
    """Name -> spec of every shipped CapacityProfile."""
    parsed = {_name(it): CapacityProfileSpec.model_validate(it["spec"]) for it in capacity_profile_objects()}
    return MappingProxyType(parsed)


@cache
def architectures() -> Mapping[str, Architecture]:
    """Hugging Face repository id -> architecture of every model known by name."""
    known = yaml.safe_load(_text("models.yaml"))
    return MappingProxyType({name: Architecture.model_validate(it) for name, it in known.items()})


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _name(resource: Json) -> str:
    name: str = resource["metadata"]["name"]
    return name
