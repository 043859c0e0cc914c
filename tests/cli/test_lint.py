"""`tokenservice lint` on files: lines, suggestions, and the operator's own checks, all without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.api.bad_input import ACCELERATOR, BAD, GOOD, PROFILE, SERVICE, Bad, changed
from tokenservice.cli.lint import linted
from tokenservice.cli.main import app

ROOT = Path(__file__).parents[2]
HEAD = "apiVersion: taas.dev/v1alpha1\nkind: TokenService\nmetadata: {name: chat}\n"
FOREIGN = "apiVersion: v1\nkind: Secret\nmetadata: {name: hugging-face}\nstringData: {token: x}\n"
MODEL = "spec:\n  model: {uri: 'hf://Qwen/Qwen3-32B'}\n"


def told(*texts: str) -> list[str]:
    """Everything that is found in files called 0, 1, ..."""
    return [str(finding) for finding in linted([(str(n), text) for n, text in enumerate(texts)]).findings]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_everything_that_the_server_refuses_is_found(bad: Bad) -> None:
    (line,) = told(yaml.safe_dump(bad.resource))
    assert bad.field in line
    assert bad.says in line


OUT_OF_REACH = {
    "one millisecond": "spec.objectives.timePerOutputToken.target: 1ms per output token is out of reach",
    "a thousandth of a second": "spec.objectives.timePerOutputToken.target: 1ms per output token is out of reach",
    "every source": "spec.model",
    "a profile": "spec.accelerator: there is no AcceleratorClass 'x100'; use",
}
"""What only the operator's own checks can tell: the server accepts these."""


@pytest.mark.parametrize("name", GOOD)
def test_what_the_server_accepts_is_found_wanting_by_the_operators_checks_alone(name: str) -> None:
    sentences = told(yaml.safe_dump(GOOD[name]))
    if name not in OUT_OF_REACH:
        assert sentences == []
    assert all(OUT_OF_REACH[name] in sentence for sentence in sentences)
    assert bool(sentences) == (name in OUT_OF_REACH)


FOUND = {
    "a typo with its line": (
        HEAD + MODEL + "  scaling:\n    minReplica: 2\n",
        "0:7: spec.scaling.minReplica: unknown field, it would be dropped; did you mean minReplicas?",
    ),
    "a missing field at its parent": (HEAD + "spec:\n  tier: Spot\n", "0:4: spec.model: is required"),
    "the second document": (
        HEAD + MODEL + "---\n" + HEAD + MODEL + "  tier: Gold\n",
        "0:12: spec.tier: unsupported value 'Gold': use one of Guaranteed, Elastic, Spot",
    ),
    "an item of a list": (
        HEAD + "spec:\n  model:\n    uri: hf://Qwen/Qwen3-32B\n    adapters:\n    - {name: a, uri: 'hf://a'}\n"
        "    - name: b\n      uri: ftp://b\n",
        "0:10: spec.model.adapters[1].uri: unknown source:",
    ),
    "a key that is there twice": (
        HEAD + MODEL + "  tier: Spot\n  tier: Elastic\n",
        "0:7: tier is there twice, only the last would count",
    ),
    "text that is not YAML": (HEAD + "spec: {model: [}\n", "0:4: not YAML:"),
    "a tag that kubectl does not know": (
        HEAD + "spec: !!python/object:os.system {}\n",
        "0:1: not YAML that kubectl reads:",
    ),
    "a list without resources": ("- 1\n- 2\n", "0:1: not a resource:"),
    "an old version": (
        HEAD.replace("v1alpha1", "v1") + MODEL,
        "0:1: apiVersion: TokenService is of taas.dev/v1alpha1, not taas.dev/v1",
    ),
    "a misspelt group": (HEAD.replace("taas", "tass") + MODEL, "0:1: apiVersion: TokenService is of taas.dev/v1alpha1"),
    "a misspelt kind": (
        HEAD.replace("TokenService", "TokenServise") + MODEL,
        "0:2: kind: taas.dev has no TokenServise; did you mean TokenService?",
    ),
    "a kind of many": (
        HEAD.replace("TokenService", "TokenServices").replace("taas.dev", "example.org") + MODEL,
        "0:2: kind: example.org/v1alpha1 TokenServices; did you mean taas.dev/v1alpha1 TokenService?",
    ),
    "a group nearly right, a kind of nobody": (
        HEAD.replace("TokenService", "Model").replace("taas.dev", "taas.io") + MODEL,
        "0:1: apiVersion: taas.io/v1alpha1; did you mean taas.dev/v1alpha1?",
    ),
    "regions outside residency": (
        HEAD + MODEL + "  placement:\n    residency: {regions: [eu]}\n    regions: [us]\n",
        "0:8: spec.placement.regions: residency allows eu only",
    ),
    "a limit to a class that does not exist": (
        HEAD.replace("TokenService", "TokenFleet").replace("chat", "default")
        + "spec:\n  namespaces:\n  - name: team\n    accelerators: [h100, h1O0]\n",
        "0:7: spec.namespaces[0].accelerators[1]: there is no AcceleratorClass 'h1O0'; use h100",
    ),
    "no resource at all": ("foo: bar\n", "0:1: not a resource: give apiVersion, kind, metadata and spec"),
    "an empty field": (
        HEAD + MODEL + "  placement:\n    accelerators:\n",
        "0:7: spec.placement.accelerators: is empty",
    ),
    "an accelerator class that does not exist": (HEAD + MODEL + "  placement: {accelerators: [h1000]}\n", "h1000"),
    "a model too large for what is allowed": (
        HEAD + "spec:\n  model: {uri: 'hf://deepseek-ai/DeepSeek-R1'}\n  placement: {accelerators: [l4]}\n",
        "do not fit; missing: 560.2 GiB on l4 x 4",
    ),
    "conflicting arguments": (
        HEAD + MODEL + "  engine: {name: vLLM, extraArgs: [--tensor-parallel-size=4]}\n",
        "extraArgs",
    ),
    "a tensor parallel size that no node can host": (
        HEAD + MODEL + "  engine: {tensorParallelSize: 64}\n",
        "0:6: spec.engine.tensorParallelSize",
    ),
}


@pytest.mark.parametrize(("text", "beginning"), FOUND.values(), ids=FOUND)
def test_found_with_file_line_and_the_way_out(text: str, beginning: str) -> None:
    lines = told(text)
    assert any(beginning in line for line in lines), lines


def test_all_faults_of_all_files_are_told_in_order() -> None:
    lines = told(HEAD + MODEL + "  tier: Gold\n  mode: Off\n", HEAD + MODEL + "  paused: maybe\n")
    assert [line.split(": ")[0] for line in lines] == ["0:6", "0:7", "1:6"]


def test_two_services_cannot_have_one_served_name() -> None:
    other = changed(SERVICE, {"metadata": {"name": "assistant"}, "spec": {"model": {"servedName": "chat"}}})
    (line,) = told(yaml.safe_dump(SERVICE), yaml.safe_dump(other))
    assert line.startswith("1:")
    assert "'chat' belongs to TokenService chat" in line
    elsewhere = changed(other, {"metadata": {"namespace": "elsewhere"}})
    assert told(yaml.safe_dump(SERVICE), yaml.safe_dump(elsewhere)) == []


def test_a_class_of_the_files_counts_as_existing() -> None:
    service = changed(SERVICE, {"spec": {"placement": {"accelerators": ["x100"]}}})
    assert "x100" in told(yaml.safe_dump(service))[0]
    assert told(yaml.safe_dump(service), yaml.safe_dump(ACCELERATOR)) == []


def test_a_profile_is_of_a_class_that_is_known_or_comes_along() -> None:
    profile = yaml.safe_dump(PROFILE)
    assert told(profile, yaml.safe_dump(ACCELERATOR)) == []
    assert told(yaml.safe_dump(changed(PROFILE, {"spec": {"accelerator": "h100"}}))) == []
    (line,) = told(yaml.safe_dump(changed(PROFILE, {"spec": {"accelerator": "H100"}})))
    assert line.startswith("0:6: spec.accelerator: there is no AcceleratorClass 'H100'; use h100")


def test_items_of_a_list_are_judged_one_by_one() -> None:
    wrong = changed(SERVICE, {"spec": {"tier": "Gold"}})
    (line,) = told(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [SERVICE, wrong]}))
    assert "spec.tier" in line


def test_kinds_of_others_are_none_of_our_business() -> None:
    assert told(FOREIGN, HEAD + MODEL + "---\n" + FOREIGN) == []


def test_files_with_kinds_of_others_alone_are_noted_and_no_error(tmp_path: Path) -> None:
    file = tmp_path / "secret.yaml"
    file.write_text(FOREIGN + "---\n" + FOREIGN)
    done = CliRunner().invoke(app, ["lint", str(file)])
    assert done.exit_code == 0
    assert f"{file}: nothing of taas.dev/v1alpha1 to judge, only Secret\n0 resources" in done.output


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", "{}", "apiVersion: v1\nkind: List\nitems: []\n"])
def test_a_file_without_resources_is_an_error(text: str) -> None:
    assert told(HEAD + MODEL, text) == ["1:1: holds no resource: give apiVersion, kind, metadata and spec"]


def test_an_object_that_is_there_twice_is_an_error() -> None:
    assert told(HEAD + MODEL, "\n" + HEAD + MODEL) == [
        "1:4: metadata.name: TokenService chat is there twice, first in 0:3: remove one"
    ]
    elsewhere = HEAD.replace("name: chat", "name: chat, namespace: a")
    assert told(HEAD + MODEL, elsewhere + MODEL) == []
    (line,) = told(yaml.safe_dump(ACCELERATOR), yaml.safe_dump(changed(ACCELERATOR, {"metadata": {"namespace": "a"}})))
    assert "AcceleratorClass x100 is there twice" in line


def test_dates_stay_text_as_kubectl_reads_them() -> None:
    text = yaml.safe_dump(ACCELERATOR) + "  sources: [{figure: memory, source: data sheet, date: 2024-03-01}]\n"
    assert told(text) == []


@given(st.text(max_size=60))
def test_no_text_breaks_the_command(text: str) -> None:
    linted([("f", text), ("g", HEAD + "spec: " + text)])


def test_the_examples_and_the_catalogue_are_sound() -> None:
    files = [*(ROOT / "docs" / "examples").glob("*.yaml")]
    files += [ROOT / "operator/tokenservice/catalogue" / name for name in ("accelerators.yaml", "profiles.yaml")]
    done = CliRunner().invoke(app, ["lint", *map(str, files)])
    assert done.exit_code == 0, done.output
    assert "no errors" in done.output


def test_errors_are_the_exit_status(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(HEAD + MODEL + "  tier: Gold\n")
    done = CliRunner().invoke(app, ["lint", str(file)])
    assert done.exit_code == 1
    assert f"{file}:6: spec.tier" in done.output


def test_standard_input_is_a_file_too() -> None:
    done = CliRunner().invoke(app, ["lint", "-"], input=HEAD + MODEL + "  tier: Gold\n")
    assert done.exit_code == 1
    assert "-:6: spec.tier" in done.output


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["lint", str(tmp_path / "none.yaml")])
    assert done.exit_code == 2
    assert "none.yaml" in done.output
