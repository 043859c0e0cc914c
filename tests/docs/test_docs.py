"""What the documentation names is there, and what it shows is valid."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tokenservice.api.schema import structural_schema
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.catalogue import accelerator_classes, architectures, capacity_profiles
from tokenservice.cli.lint import linted
from tokenservice.core.capacity import DEFAULT, targets
from tokenservice.core.engines.sglang import VOCABULARY as SGLANG
from tokenservice.core.engines.vllm import VOCABULARY as VLLM
from tokenservice.core.model import Accelerator, Profile
from tokenservice.core.variants import candidates, ranked
from tokenservice.edge import promql
from tokenservice.edge.metrics import DESCRIPTIONS, Metrics

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("charts/*/*.md")])
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)]+)\)")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Of the headings, as Git hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page: Path) -> Iterator[str]:
    for link in _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not link.startswith("https://") and (not target.exists() or (anchor and anchor not in anchors(target))):
            yield link


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


@each_page
def test_resources_that_are_shown_are_valid(page: Path) -> None:
    shown = [body for kind, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "yaml"]
    ours = [body for body in shown if "apiVersion: taas.dev" in body]
    assert [linted([(page.name, body)]).findings for body in ours] == [()] * len(ours)


@each_page
def test_yaml_that_is_shown_is_yaml(page: Path) -> None:
    for kind, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "yaml":
            yaml.safe_load(body)


@pytest.mark.parametrize(
    ("name", "said"),
    [("assistant-mi300x", "two give a token for less"), ("reasoner-120b", "takes two accelerators whenever it runs")],
)
def test_what_an_example_says_of_its_replicas_is_what_is_chosen(name: str, said: str) -> None:
    example = text(f"docs/examples/{name}.yaml")
    assert said in example.splitlines()[0]
    spec = TokenServiceSpec.model_validate(yaml.safe_load(example)["spec"])
    classes = [Accelerator(name=name, spec=it) for name, it in accelerator_classes().items()]
    profiles = [Profile(name=name, spec=it) for name, it in capacity_profiles().items()]
    variants, _ = candidates(spec, classes, profiles, architectures())
    order, _ = ranked(spec, variants, DEFAULT, targets(spec.objectives))
    assert order[0][0].accelerators == 2


def test_the_operators_own_metrics_are_all_listed() -> None:
    listed = {name for row in re.findall(r"^\| (`(?:tokenservice|_).*?) \|", text("docs/operations.md"), re.MULTILINE)
              for name in re.findall(r"`(\w+)`", row)}  # fmt: skip
    prefixes = ("tokenservice_service", "tokenservice_fleet")
    families = {family.name for family in Metrics().registry.collect()}
    exported = {f"tokenservice_{name}" for name in DESCRIPTIONS} | families
    full = {name for name in listed if name.startswith("tokenservice_")}
    full |= {f"{prefixes[0]}{name}" for name in listed if name.startswith("_")}
    watched = {f"tokenservice_{name}" for name in ("lease_held", "planning_healthy", "store_age_seconds", "tasks")}
    assert {name.removesuffix("_total") for name in full} == exported | watched


def test_every_field_of_the_fleets_table_is_a_field() -> None:
    table = text("docs/operations.md").partition("| field of `spec` |")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        names = re.findall(r"`([\w.]+)`", row.split("|")[1])
        outer = names[0].rpartition(".")[0]
        for name in names:
            schema = structural_schema(TokenFleetSpec)
            for part in (f"{outer}{name}" if name.startswith(".") else name).split("."):
                schema = schema["properties"][part]


@pytest.mark.parametrize("column", [2, 3])
def test_flags_of_the_engines_table_are_known(column: int) -> None:
    vocabulary = VLLM if column == 2 else SGLANG
    table = text("docs/engines.md").partition("| field of `spec` |")[2].partition("\n\n")[0]
    flags = {flag for row in table.splitlines()[2:] for flag in re.findall(r"--[a-z-]+", row.split("|")[column])}
    known = {*vocabulary.rendered, *vocabulary.refused, *vocabulary.roomy}
    assert {flag.replace("--no-", "--") for flag in flags} - known == set()


def test_metrics_of_the_engines_table_are_those_that_are_asked_for() -> None:
    table = text("docs/engines.md").partition("| what | vLLM (`vllm:`)")[2].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    shown = {column: {name for row in rows for name in re.findall(r"`(\w+)`", row[column])} for column in (2, 3)}
    asked = [value for value in vars(promql).values() if isinstance(value, promql.Dialects)]
    assert shown[2] == {dialects.vllm for dialects in asked}
    assert shown[3] == {dialects.sglang for dialects in asked}


def test_every_boundary_of_the_threat_table_names_tests_that_exist() -> None:
    table = text("docs/security.md").partition("## Threats")[2].partition("## Supply chain")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows
    for row in rows:
        named = re.findall(r"`((?:tests|e2e)/[^`]+)`", row)
        assert named, f"nothing guards {row.split('|')[1]}"
        for test in named:
            file, _, function = test.partition("::")
            assert re.search(rf"^(async )?def {function}\(", text(file), re.MULTILINE), test


CARRIED_OVER = {
    "DeepSeek-R1": "deepseek-ai/DeepSeek-R1",
    "Llama 8B": "meta-llama/Llama-3.1-8B-Instruct",
    "Llama 70B": "meta-llama/Llama-3.1-70B-Instruct",
    "gpt-oss": "openai/gpt-oss-120b",
    "Qwen3 32B FP8": "Qwen/Qwen3-32B",
    "Qwen3 235B": "Qwen/Qwen3-235B-A22B-FP8",
}


def test_the_readme_names_every_model_with_figures_of_another_engine() -> None:
    """Who reads which rows are assumed takes the others for measured."""
    said = text("README.md").partition("Capacity profiles ship")[2].partition("Each says so")[0]
    assumed = {it.model for it in capacity_profiles().values() if it.source.startswith("Assumed equal")}
    assert {model for name, model in CARRIED_OVER.items() if name in said} == assumed


def test_setup_says_which_python_it_needs(tmp_path: Path) -> None:
    """pip's own words for one that is too old speak of a package that it cannot find."""
    for name in ("Makefile", "pyproject.toml", "requirements"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    old = tmp_path / "old"
    old.write_text(f"""#!{sys.executable}
import sys
sys.version_info = (3, 9, 2)
exec(sys.argv[2])
""")
    old.chmod(0o755)
    done = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "is Python 3.9, and 3.11 is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()
