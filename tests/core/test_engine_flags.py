"""What can be rendered for vLLM, against its own command line.

The file in `golden` says each flag's name, how many values it takes, its choices and whether it is deprecated;
`record_vllm.py` there made it from the parser of the installed package. SGLang's flags have a test of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.core.rendering import SPECS, VARIANTS, make_variant, spec_of
from tests.support.build import make_spec
from tokenservice.api.token_service import KVCacheDtype, Quantization, SpeculativeMethod, TokenServiceSpec
from tokenservice.core.engines import command
from tokenservice.core.engines import vllm as vllm_engine
from tokenservice.core.engines.base import Vocabulary
from tokenservice.core.model import ServiceKey

KEY = ServiceKey("tenant", "chat")
GOLDEN = Path(__file__).parent / "golden"
RECORDED: dict[str, dict[str, Any]] = {
    "vLLM": json.loads((GOLDEN / "vllm-0.32.0.json").read_text()),
}
VOCABULARIES = {"vLLM": vllm_engine.VOCABULARY}
ENGINES = pytest.mark.parametrize("engine", RECORDED)
VLLM_PYTHON = os.environ.get("TAAS_VLLM_PYTHON", "")

OPTIMIZED: dict[str, dict[str, Any]] = {
    **{f"weights {kind}": {"quantization": kind.value} for kind in Quantization},
    **{f"KV cache {kind}": {"kvCacheDtype": kind.value} for kind in KVCacheDtype},
    **{
        f"speculation {kind}": {"speculative": {"method": kind.value, "draftModel": "hf://acme/draft@v2"}}
        for kind in SpeculativeMethod
    },
    "no prefix caching": {"prefixCaching": False},
    "prefix caching": {"prefixCaching": True},
    "bounded": {"maxNumSeqs": 16, "maxModelLen": 4096},
}
"""Every value of every optimization that the API knows."""


class DeprecatedFlagWarning(UserWarning):
    """A flag that works and will be removed."""


class RefusedError(Exception):
    """The engine's parser would not take the command line."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RefusedError(message)


def parser_of(engine: str) -> Parser:
    """A parser with the flags of an engine as they were recorded."""
    parser = Parser(allow_abbrev=False, add_help=False)
    if engine == "vLLM":
        parser.add_argument("model")
    for name, flag in RECORDED[engine]["flags"].items():
        if flag["values"] == "none":
            parser.add_argument(name, dest=name, action="store_true")
        else:
            nargs = {"one": None, "maybe": "?", "many": "+"}[flag["values"]]
            words = [str(choice) for choice in flag["choices"]] if "choices" in flag else None
            parser.add_argument(name, dest=name, nargs=nargs, choices=words)
    return parser


def warn_of_deprecated(engine: str, words: set[str]) -> None:
    theirs = RECORDED[engine]["flags"]
    for word in sorted(words):
        if "deprecated" in theirs.get(word, {}):
            warnings.warn(f"{engine}: {word}: {theirs[word]['deprecated']}", DeprecatedFlagWarning, stacklevel=2)


def rendered(engine: str) -> dict[str, tuple[str, ...]]:
    """Command lines that together hold everything that can be rendered."""
    variants = [variant for variant in VARIANTS.values() if variant.engine == engine] + [make_variant(engine, tp=2)]
    groups = [(make_variant(engine, tp=8, pp=2), worker) for worker in (False, True)]
    ways = [*((variant, False) for variant in variants), *groups]
    specs: dict[str, TokenServiceSpec] = {case: spec_of(case) for case in SPECS}
    specs |= {case: make_spec(engine=knobs) for case, knobs in OPTIMIZED.items()}
    return {
        f"{case} on {variant.name}{', a worker' * worker}": command(spec, variant, KEY, worker=worker).args
        for case, spec in specs.items()
        for variant, worker in ways
    }


def allowed(vocabulary: Vocabulary) -> dict[str, str]:
    """What users may add, and how many values each takes."""
    return {
        **dict.fromkeys(vocabulary.switches, "none"),
        **dict.fromkeys(vocabulary.valued, "one"),
        **dict.fromkeys(vocabulary.listed, "many"),
    }


@ENGINES
@pytest.mark.filterwarnings("default::tests.core.test_engine_flags.DeprecatedFlagWarning")
def test_the_engine_takes_everything_that_is_rendered(engine: str) -> None:
    parser = parser_of(engine)
    for case, args in rendered(engine).items():
        try:
            parser.parse_args(args)
        except RefusedError as refused:
            pytest.fail(f"{engine} {RECORDED[engine]['version']}, {case}: {refused}")
        warn_of_deprecated(engine, {word for word in args if word.startswith("--")})


@ENGINES
@pytest.mark.filterwarnings("default::tests.core.test_engine_flags.DeprecatedFlagWarning")
def test_the_engine_knows_everything_that_users_may_add(engine: str) -> None:
    ours, theirs = allowed(VOCABULARIES[engine]), RECORDED[engine]["flags"]
    assert not set(ours) - set(theirs), f"unknown to {engine} {RECORDED[engine]['version']}"
    taken = {name: theirs[name]["values"].replace("maybe", "one") for name in ours}
    assert taken == ours
    warn_of_deprecated(engine, set(ours))


@ENGINES
def test_every_rendered_flag_has_a_field_that_users_are_sent_to(engine: str) -> None:
    words = {word for args in rendered(engine).values() for word in args if word.startswith("--")}
    positive = {f"--{word.removeprefix('--').removeprefix('no-')}" for word in words}
    known = VOCABULARIES[engine]
    assert positive <= {*known.rendered, *known.refused} | known.roomy


@ENGINES
def test_an_unknown_flag_is_noticed(engine: str) -> None:
    model = ["model"] if engine == "vLLM" else ["--model-path", "model"]
    with pytest.raises(RefusedError, match="--no-such-flag"):
        parser_of(engine).parse_args([*model, "--no-such-flag"])


def test_a_value_that_is_no_choice_is_noticed() -> None:
    with pytest.raises(RefusedError, match="invalid choice: 'fp7'"):
        parser_of("vLLM").parse_args(["model", "--kv-cache-dtype", "fp7"])


def test_a_deprecated_flag_is_noticed() -> None:
    with pytest.warns(DeprecatedFlagWarning, match="has no effect"):
        warn_of_deprecated("vLLM", {"--disable-cascade-attn"})


@pytest.mark.timeout(600)
@pytest.mark.skipif(not VLLM_PYTHON, reason="needs the Python of an installed vLLM in TAAS_VLLM_PYTHON")
def test_the_installed_vllm_takes_everything_that_is_rendered() -> None:
    cases = rendered("vLLM")
    lines = "".join(f"{json.dumps(args)}\n" for args in cases.values())
    asked = [VLLM_PYTHON, str(GOLDEN / "record_vllm.py"), "--check"]
    said = subprocess.run(asked, input=lines, capture_output=True, text=True, check=True).stdout
    answers = [json.loads(line) for line in said.splitlines()]
    wrong = {case: answer for case, answer in zip(cases, answers, strict=True) if answer is not None}
    assert not wrong
