"""How two runs are compared second by second."""

from __future__ import annotations

import pytest

from e2e.agreement.counts import Run, agreement, table


@pytest.mark.parametrize(
    ("one", "other", "start", "share"),
    {
        "the same": ([1, 2, 3], [1, 2, 3], 0, 1.0),
        "one more or less": ([1, 2, 3], [2, 1, 3], 0, 1.0),
        "two more": ([1, 2, 3, 4], [3, 2, 3, 4], 0, 0.75),
        "before the start": ([9, 2, 3], [1, 2, 3], 1, 1.0),
        "of different length": ([1, 2, 3, 9], [1, 2, 3], 0, 1.0),
    }.values(),
)
def test_counts_agree_within_one(one: list[int], other: list[int], start: int, share: float) -> None:
    assert agreement(one, other, start=start) == share


def test_the_table_shows_both_asked_and_ready() -> None:
    simulation, reality = (Run(asked={"chat": [n, n]}, ready={"chat": [1, n]}) for n in (2, 3))
    assert table(simulation, reality, every=1).splitlines()[1].split() == ["0", "2", "(1)", "3", "(1)"]
