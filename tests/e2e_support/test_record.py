"""A record of a watch is compared with a list only when it is as far as that."""

from __future__ import annotations

import pytest

from e2e.tests.support.api import Json, Record


def pod(name: str, revision: int) -> Json:
    return {"metadata": {"name": name, "resourceVersion": str(revision)}}


def listed(revision: int, *pods: Json) -> Json:
    return {"metadata": {"resourceVersion": str(revision)}, "items": list(pods)}


SEEN = [("ADDED", pod("a", 1)), ("ADDED", pod("b", 2)), ("MODIFIED", pod("b", 5))]
CASES = {
    "nothing to see": ([], listed(9), True),
    "all of it": (SEEN, listed(9, pod("a", 1), pod("b", 5)), True),
    "one that the watch has not shown": (SEEN, listed(9, pod("a", 1), pod("b", 5), pod("c", 8)), False),
    "a change that it has not shown": (SEEN, listed(9, pod("a", 1), pod("b", 7)), False),
    "a deletion that it has not shown": (SEEN, listed(9, pod("a", 1)), False),
    "a deletion that it has": ([*SEEN, ("DELETED", pod("b", 8))], listed(9, pod("a", 1)), True),
    "one that came after the list": ([*SEEN, ("ADDED", pod("c", 12))], listed(9, pod("a", 1), pod("b", 5)), True),
    "one that went after the list": ([*SEEN, ("DELETED", pod("b", 12))], listed(9, pod("a", 1), pod("b", 5)), True),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_as_far_as_a_list_when_all_that_the_list_tells_was_seen(case: str) -> None:
    events, there, reached = CASES[case]
    assert Record(events=events).has_seen(there) is reached
