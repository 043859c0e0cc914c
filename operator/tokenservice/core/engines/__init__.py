"""Engines: from a spec and a variant to a command line, one module an engine.

Adding one means a module with `command`, `own_environment`, `problems` and `VOCABULARY`, and a line in `_ENGINES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from tokenservice.api.accelerator_class import Vendor
from tokenservice.api.token_service import EngineName, TokenServiceSpec
from tokenservice.core.engines import sglang, vllm
from tokenservice.core.engines.base import (
    SOURCE_ENVIRONMENT,
    EngineCommand,
    Vocabulary,
    argument_problems,
    drain_seconds,
    environment_problems,
    room_problems,
    served_name,
)
from tokenservice.core.engines.sources import Source, model_source, pinned_digest, source_problems, sources
from tokenservice.core.model import Problem, ServiceKey, Variant

__all__ = [
    "EngineCommand",
    "Source",
    "command",
    "drain_seconds",
    "engine_problems",
    "model_source",
    "pinned_digest",
    "served_name",
    "source_problems",
    "sources",
]


class _Engine(Protocol):
    """What a module of an engine offers."""

    VOCABULARY: Vocabulary

    def command(
        self, spec: TokenServiceSpec, variant: Variant, service: ServiceKey, *, worker: bool = False
    ) -> EngineCommand: ...

    def own_environment(self, spec: TokenServiceSpec, vendor: Vendor) -> dict[str, str]: ...

    def problems(self, spec: TokenServiceSpec) -> Iterable[Problem]: ...


_ENGINES: dict[EngineName, _Engine] = {EngineName.VLLM: vllm, EngineName.SGLANG: sglang}


def command(spec: TokenServiceSpec, variant: Variant, service: ServiceKey, *, worker: bool = False) -> EngineCommand:
    """The command line of one variant of a service; of a replica that spans nodes the leader's, or a worker's."""
    return _ENGINES[EngineName(variant.engine)].command(spec, variant, service, worker=worker)


def engine_problems(spec: TokenServiceSpec) -> tuple[Problem, ...]:
    """What an engine would not start with; with Auto each engine must take the spec, for either may be chosen."""
    if spec.engine.name is not EngineName.AUTO:
        return _problems(spec, _ENGINES[spec.engine.name])
    by_engine = {name: _problems(spec, engine) for name, engine in _ENGINES.items()}
    takers = [name for name, found in by_engine.items() if not found]
    hint = f", or set spec.engine.name to {takers[0]}" if takers else ""
    every = dict.fromkeys(problem for found in by_engine.values() for problem in found)
    return tuple(replace(problem, message=problem.message + hint) for problem in every)


def _problems(spec: TokenServiceSpec, engine: _Engine) -> tuple[Problem, ...]:
    ours = {name: "the operator" for vendor in Vendor for name in engine.own_environment(spec, vendor)}
    return (
        *argument_problems(engine.VOCABULARY, spec.engine.extra_args),
        *environment_problems(engine.VOCABULARY, ours | SOURCE_ENVIRONMENT, spec.engine.env),
        *(room_problems(engine.VOCABULARY, spec.engine.extra_args) if spec.model.runtime_adapters is not None else ()),
        *engine.problems(spec),
    )
