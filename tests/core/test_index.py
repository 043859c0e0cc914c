"""Groups that are kept up to date are those that would be made from nothing, and what did not change stays."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tokenservice.core.index import change, grouped, regrouped


@dataclass(eq=False)
class Thing:
    """Told apart by identity alone."""

    where: str | None


def where(thing: Thing) -> str | None:
    return thing.where


PLACES = st.sampled_from(["a", "b", "c", None])
EDITS = st.lists(st.tuples(st.sampled_from(["add", "remove", "exchange"]), st.integers(0, 30), PLACES), max_size=12)


def edited(things: list[Thing], edits: list[tuple[str, int, str | None]]) -> list[Thing]:
    after = list(things)
    for what, number, place in edits:
        at = number % (len(after) + 1)
        if what == "add":
            after.insert(at, Thing(place))
        elif at < len(after):
            after[at : at + 1] = [] if what == "remove" else [Thing(place)]
    return after


@given(st.lists(PLACES, max_size=12), st.lists(EDITS, max_size=4))
def test_groups_after_changes_are_those_made_from_nothing(
    places: list[str | None], rounds: list[list[tuple[str, int, str | None]]]
) -> None:
    things = [Thing(place) for place in places]
    groups = dict(grouped(things, where))
    for edits in rounds:
        after = edited(things, edits)
        groups = dict(regrouped(groups, change(things, after), where))
        assert groups == grouped(after, where)
        things = after


def test_a_group_that_nothing_came_to_and_nothing_left_is_the_same_object() -> None:
    things = [Thing("a"), Thing("b"), Thing("a"), Thing("b")]
    before = grouped(things, where)
    after = regrouped(before, change(things, [things[0], Thing("b"), *things[2:]]), where)
    assert after["a"] is before["a"]
    assert after["b"] is not before["b"]


def test_what_concerns_no_group_leaves_all_of_them_as_they_are() -> None:
    things = [Thing("a"), Thing(None)]
    before = grouped(things, where)
    assert regrouped(before, change(things, [things[0], Thing(None), Thing(None)]), where) is before
