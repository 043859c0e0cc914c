"""What is rendered for SGLang, against the command line of the pinned version as its wheel has it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.core.golden.record_sglang import Flag, flags, read
from tests.core.rendering import SPECS, make_variant, spec_of
from tests.support.build import make_spec
from tokenservice.core.engines import command, engine_problems, sglang
from tokenservice.core.model import Reason, ServiceKey

GOLDEN = read((Path(__file__).parent / "golden" / "sglang-0.5.18-flags.tsv").read_text())
BY_NAME = {name: flag for flag in GOLDEN for name in flag.names}
VOCABULARY = sglang.VOCABULARY
KEY = ServiceKey("tenant", "chat")


class Parser(argparse.ArgumentParser):
    """SGLang's parser, made from what was recorded; abbreviations are left out, for they may become ambiguous."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        for flag in GOLDEN:
            choices = list(flag.choices) or None
            if flag.kind == "switch":
                self.add_argument(*flag.names, action="store_true")
            else:
                self.add_argument(*flag.names, choices=choices, nargs="+" if flag.kind == "list" else None)

    def error(self, message: str) -> NoReturn:
        raise AssertionError(message)


def rendered(case: str) -> tuple[str, ...]:
    return command(spec_of(case), make_variant("SGLang", tp=2, pp=2), KEY).args


def offered() -> Iterator[tuple[str, str]]:
    """What users may put into extraArgs, with its kind."""
    for kind, names in (
        ("switch", VOCABULARY.switches),
        ("value", VOCABULARY.valued),
        ("list", VOCABULARY.listed),
    ):
        yield from ((name, kind) for name in sorted(names))


@pytest.mark.parametrize("case", SPECS)
def test_sglang_parses_whatever_is_rendered_for_it(case: str) -> None:
    Parser().parse_args(rendered(case))


@pytest.mark.parametrize("worker", [False, True], ids=["leader", "worker"])
def test_sglang_parses_what_is_rendered_for_replicas_that_span_nodes(worker: bool) -> None:
    args = command(spec_of("the least one can say"), make_variant("SGLang", tp=8, pp=2), KEY, worker=worker).args
    Parser().parse_args(args)
    assert not [word for word in args if word.startswith("--") and BY_NAME[word].instead]


@pytest.mark.parametrize("case", SPECS)
def test_nothing_is_rendered_that_sglang_is_about_to_drop(case: str) -> None:
    assert not [word for word in rendered(case) if word.startswith("--") and BY_NAME[word].instead]


def test_every_flag_that_users_may_set_is_one_of_sglangs_of_that_kind_and_here_to_stay() -> None:
    assert [(name, kind) for name, kind in offered() if name not in BY_NAME or BY_NAME[name].kind != kind] == []
    assert [name for name, _ in offered() if BY_NAME[name].instead] == []


def test_every_flag_that_is_spoken_of_exists() -> None:
    abbreviations = {"--tp", "--dp"}  # unique beginnings, which argparse takes
    spoken_of = {*VOCABULARY.rendered, *VOCABULARY.refused} - abbreviations
    assert spoken_of <= set(BY_NAME)


def test_a_flag_that_was_renamed_is_refused_with_its_new_name() -> None:
    spec = make_spec(engine={"name": "SGLang", "extraArgs": ["--disable-cuda-graph"]})
    (problem,) = engine_problems(spec)
    assert problem.reason is Reason.ARGUMENT_NOT_ALLOWED
    assert "--cuda-graph-backend-decode=disabled" in problem.message


def test_adapters_with_a_draft_model_are_refused_before_sglang_refuses_to_start() -> None:
    model = {"uri": "hf://acme/chat", "adapters": [{"name": "legal", "uri": "hf://acme/legal-lora"}]}
    drafted = {"speculative": {"method": "Eagle3", "draftModel": "hf://acme/eagle3"}}
    (problem,) = engine_problems(make_spec(model=model, engine={"name": "SGLang", **drafted}))
    assert problem.field == "spec.engine.speculative.method"
    assert engine_problems(make_spec(model=model, engine={"name": "vLLM", **drafted})) == ()
    (undecided,) = engine_problems(make_spec(model=model, engine={"name": "Auto", **drafted}))
    assert undecided.message.endswith("or set spec.engine.name to vLLM")


@pytest.mark.parametrize(
    "speculative", [{"method": "NGram"}, {"method": "DraftModel", "draftModel": "hf://acme/small"}], ids=str
)
def test_speculation_over_pipeline_stages_is_refused_before_sglang_refuses_to_start(
    speculative: dict[str, str],
) -> None:
    staged = {"pipelineParallelSize": 2, "speculative": speculative}
    (problem,) = engine_problems(make_spec(engine={"name": "SGLang", **staged}))
    assert (problem.reason, problem.field) == (Reason.CONFLICTING_ARGUMENTS, "spec.engine.speculative")
    assert engine_problems(make_spec(engine={"name": "SGLang", **staged, "speculative": None})) == ()
    assert engine_problems(make_spec(engine={"name": "vLLM", **staged})) == ()
    assert engine_problems(make_spec(engine={"name": "Auto", **staged})) == ()


# --- the recorder


SOURCE = """
CHOICES = ["one", "two"]

class ServerArgs:
    model_path: A[str, Arg(help="Where.", aliases=["--model"]), NS("model")]
    tp_size: A[int, Arg(help="How many.", cli_name="--tensor-parallel-size")] = 1
    quiet: A[bool, "Say less."] = False
    level: A[Optional[Literal["low", "high"]], "How much."] = None
    method: A[Optional[str], Arg(help="Which.", choices=CHOICES)] = None
    sizes: A[Optional[List[int]], "Several."] = None
    loras: A[Optional[dict], Arg(help="Several.", action=Own, action_kwargs={"nargs": "*"})] = None
    old: A[bool, "Deprecated. Use --new."] = False
    hidden: A[int, Arg(help="", no_cli=True)] = 1
    plain: int = 3

    def add_cli_args(parser):
        parser.add_argument("--parser", choices=["auto"] + found, help="Made at run time.")
        parser.add_argument("--was", action=DeprecatedAliasStoreAction, new_flag="--is", help="Gone soon.")
"""


def test_the_recorder_reads_fields_and_added_flags_as_sglang_does() -> None:
    assert flags(SOURCE) == [
        Flag(("--level",), "value", ("low", "high")),
        Flag(("--loras",), "list"),
        Flag(("--method",), "value", ("one", "two")),
        Flag(("--model-path", "--model"), "value"),
        Flag(("--old",), "switch", instead="see its help"),
        Flag(("--parser",), "value"),
        Flag(("--quiet",), "switch"),
        Flag(("--sizes",), "list"),
        Flag(("--tensor-parallel-size",), "value"),
        Flag(("--was",), "value", instead="--is"),
    ]
    assert read("\n".join(flag.line for flag in flags(SOURCE))) == flags(SOURCE)
