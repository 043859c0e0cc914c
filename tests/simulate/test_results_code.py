"""What a kept result holds for: the code that it rests on, definition by definition, its scenario and its data."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from tests.simulate.results_rig import QUICK, foresight, minute, result
from tokenservice.simulate.results.code import FOLDER, code_digest, reached
from tokenservice.simulate.results.store import Kept, Store, figures, key
from tokenservice.simulate.results.unit import Search, Task, Unit, rests_on

MAIN = '''
"""A module."""
from toy.other import helper, unused
from toy import deep, plugin
from toy.resource import Spec

LIMIT = 3
TABLE = {"a": plugin}

class Thing:
    """A class."""
    def run(self):
        return helper(LIMIT) + deep.below() + TABLE["a"].run() + Spec().limit + Spec().dump()["maxAge"]

def begin():
    # says something
    return Thing().run()

def elsewhere():
    return unused()
'''
OTHER = "def helper(x):\n    return x\n\ndef unused():\n    return 1\n"
DEEP = "def below():\n    return 2\n\ndef above():\n    return 3\n"
PLUGIN = "def run():\n    return 5\n"
RESOURCE = """
class Part(ApiModel):
    width: int = 1

class Spec(ApiModel):
    limit: int = 2
    max_age: int = 3
    part: Part = 4
"""
Files = dict[str, str]
FILES: Files = {"main": MAIN, "other": OTHER, "deep": DEEP, "plugin": PLUGIN, "resource": RESOURCE}


def digest(folder: Path, files: Files, without: frozenset[tuple[str, str]] = frozenset()) -> str:
    package = folder / str(len(list(folder.iterdir()))) / "toy"
    package.mkdir(parents=True)
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return code_digest([("toy.main", "begin")], without=without, package="toy", folder=package)


COUNTS = {
    "a method": ("main", "deep.below()", "7 + deep.below()"),
    "a constant": ("main", "LIMIT = 3", "LIMIT = 4"),
    "an imported function": ("other", "return x", "return x + 1"),
    "a function of an imported module": ("deep", "return 2", "return 7"),
    "anything of a module that stands in a table": ("plugin", "return 5", "return 6"),
    "a resource's field that is asked for": ("resource", "limit: int = 2", "limit: int = 5"),
    "one that is asked for in JSON": ("resource", "max_age: int = 3", "max_age: int = 5"),
    "a resource's base": ("resource", "class Spec(ApiModel)", "class Spec(ApiModel, Base)"),
}
COUNTS_NOT = {
    "a comment": ("main", "# says something", "# says something else"),
    "a docstring": ("main", "A class.", "One class."),
    "a function that is not reached": ("main", "return unused()", "return unused() + 1"),
    "what only that one uses": ("other", "return 1", "return 2"),
    "what is not taken from an imported module": ("deep", "return 3", "return 4"),
    "a resource's field that nobody asks for": ("resource", "part: Part = 4", "part: Part = 5"),
    "a new one": ("resource", "    part:", "    more: int = 1\n    part:"),
    "what only such a field is made of": ("resource", "width: int = 1", "width: int = 2"),
}


@pytest.mark.parametrize(("module", "old", "new"), COUNTS.values(), ids=COUNTS)
def test_what_is_reached_counts(module: str, old: str, new: str, tmp_path: Path) -> None:
    changed = FILES | {module: FILES[module].replace(old, new)}
    assert changed != FILES
    assert digest(tmp_path, changed) != digest(tmp_path, FILES)


@pytest.mark.parametrize(("module", "old", "new"), COUNTS_NOT.values(), ids=COUNTS_NOT)
def test_what_is_not_reached_or_only_read_by_people_does_not_count(
    module: str, old: str, new: str, tmp_path: Path
) -> None:
    changed = FILES | {module: FILES[module].replace(old, new)}
    assert changed != FILES
    assert digest(tmp_path, changed) == digest(tmp_path, FILES)


def test_what_is_left_out_is_not_followed(tmp_path: Path) -> None:
    without = frozenset({("toy.main", "Thing")})
    changed = FILES | {"other": OTHER.replace("return x", "return x + 1")}
    assert digest(tmp_path, changed, without) == digest(tmp_path, FILES, without)


def modules(unit: Unit) -> set[str]:
    return {module.removeprefix("tokenservice.") for module, _ in reached(*rests_on(unit))}


OURS = {"core.decide", "core.hindsight", "core.margin", "core.scaling"}


def test_the_operators_row_rests_on_its_decision() -> None:
    assert modules(Task(QUICK, 0, "operator")) >= OURS | {"simulate.cluster", "simulate.pool_kernel", "core.step"}


@pytest.mark.parametrize(
    ("unit", "own"),
    [
        (Task(QUICK, 0, "static-p99"), "simulate.policies.static"),
        (Task(QUICK, 0, "static-pooled"), "simulate.run"),
        (Task(QUICK, 0, "melange"), "simulate.policies.melange"),
        (Search(QUICK, "chat"), "simulate.oracle"),
    ],
    ids=lambda value: value.policy if isinstance(value, Task | Search) else "",
)
def test_no_other_row_rests_on_our_decision_but_each_on_engines_cluster_and_its_own_rule(unit: Unit, own: str) -> None:
    found = modules(unit)
    assert not found & OURS
    assert found >= {own, "simulate.pool_kernel", "simulate.steady", "core.step", "core.variants", "catalogue"}
    assert ("simulate.cluster" in found) == isinstance(unit, Task)
    assert "simulate.policies.knative" not in found


EDITS = {
    "the peer's rule": ("simulate/policies/melange.py", {"melange"}),
    "another peer's rule": ("simulate/policies/kubeai.py", set[str]()),
    "our decision": ("core/hindsight.py", {"operator"}),
    "the engines": ("simulate/pool_kernel.py", {"melange", "operator", "oracle"}),
    "the search": ("simulate/oracle.py", {"oracle"}),
}


@pytest.mark.parametrize(("file", "stale"), EDITS.values(), ids=EDITS)
def test_an_edit_of_the_code_makes_those_rows_stale_that_rest_on_it(file: str, stale: set[str], tmp_path: Path) -> None:
    package = tmp_path / "tokenservice"
    copytree(FOLDER, package, ignore=ignore_patterns("__pycache__"))
    _nudge(package / file)
    units = [Task(QUICK, 0, "melange"), Task(QUICK, 0, "operator"), Search(QUICK, "chat")]
    assert {unit.policy for unit in units if key(unit, package=package) != key(unit)} == stale


def _nudge(file: Path) -> None:
    """Every function does something more."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body.append(ast.Pass())
    file.write_text(ast.unparse(tree))


def test_no_peers_run_makes_the_operator_that_it_does_not_rest_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenservice.simulate import assemble
    from tokenservice.simulate.assemble import fleet, setting
    from tokenservice.simulate.run import decider
    from tokenservice.simulate.scenario import load

    made = []
    monkeypatch.setattr(assemble, "operator", lambda setting: made.append(setting))
    read = setting(load(QUICK), seed=0)
    fleet(read, decider(read, "melange"))
    assert made == []
    assert fleet(read, None).controller is None  # as the stand-in answers: there is the one place where it is made
    assert len(made) == 1


# --- Scenario and data ---------------------------------------------------------------------------------------------

TASK = Task(QUICK, 0, "melange")

OTHERS: dict[str, Unit] = {
    "seed": replace(TASK, seed=1),
    "setting": replace(TASK, choice=1),
    "cold start": replace(TASK, cold_start_seconds=10.0),
    "policy": replace(TASK, policy="kubeai"),
    "search": Search(QUICK, "chat"),
    "search of another service": Search(QUICK, "code"),
    "search from somewhere": Search(QUICK, "chat", (1.0, 0.0)),
}


def test_each_unit_has_a_key_of_its_own_and_keeps_it() -> None:
    keys = [key(TASK), *map(key, OTHERS.values())]
    assert len(set(keys)) == len(keys)
    assert key(Task(QUICK, 0, "melange")) == keys[0]


def test_a_changed_scenario_is_another_and_its_description_does_not_matter(tmp_path: Path) -> None:
    same = figures(minute(tmp_path, "a"))
    assert figures(minute(tmp_path, "b", description="Other words.")) == same
    assert figures(minute(tmp_path, "c", nodeStartSeconds=91)) != same


def test_what_a_scenario_extends_is_part_of_it(tmp_path: Path) -> None:
    base = minute(tmp_path, "base")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\nname: over\n")
    before = figures(tmp_path / "over.yaml")
    figures.cache_clear()
    base.write_text(base.read_text().replace("durationSeconds: 60", "durationSeconds: 61"))
    assert figures(tmp_path / "over.yaml") != before


RATES = "t_s,requests_per_minute\n0,60\n60,60\n"


@pytest.mark.parametrize(("rates", "same"), [(RATES, True), (RATES.replace("60,60", "60,90"), False)], ids=str)
def test_data_count_by_what_they_hold_and_not_by_where_they_lie(rates: str, same: bool, tmp_path: Path) -> None:
    def scenario(folder: str, text: str) -> Path:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rates.csv").write_text(text)
        rate = {"file": "rates.csv", "requestsPerMinute": None}
        services = [{"service": {"metadata": {"name": "chat"}}, "workload": {"rate": rate}}]
        return minute(tmp_path / folder, services=services)

    assert (figures(scenario("here", RATES)) == figures(scenario("there", rates))) == same


# --- Keeping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "outcome"), [(TASK, result()), (OTHERS["search"], foresight())], ids=["run", "search"]
)
def test_what_is_kept_comes_back_as_it_was(unit: Unit, outcome: object, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(unit) is None
    store.put(unit, Kept(outcome, 1.5))  # type: ignore[arg-type]
    assert store.get(unit) == Kept(outcome, 1.5)  # type: ignore[arg-type]
    assert all(store.get(other) is None for other in OTHERS.values() if other != unit)


@pytest.mark.parametrize("text", ["", '{"seconds": 1', '{"seconds": 1}', '{"seconds": 1, "outcome": {"policy": "p"}}'])
def test_a_broken_file_is_no_result(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(TASK, Kept(result(), 1.5))
    (file,) = tmp_path.rglob("*.json")
    file.write_text(text)
    assert store.get(TASK) is None
