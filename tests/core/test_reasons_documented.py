"""docs/reasons.md explains every reason, and no other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tokenservice.core.model import Reason

TEXT = (Path(__file__).parents[2] / "docs/reasons.md").read_text(encoding="utf-8")
HEADING = re.compile(r"^### (\w+)\n\n(.+?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
DOCUMENTED = HEADING.findall(TEXT)

_FEWEST_WORDS = 12


def test_every_reason_has_a_paragraph_and_every_paragraph_a_reason() -> None:
    assert {name for name, _ in DOCUMENTED} == {reason.value for reason in Reason}


def test_no_heading_is_without_a_paragraph() -> None:
    assert re.findall(r"^### (.+)$", TEXT, re.MULTILINE) == [name for name, _ in DOCUMENTED]


def test_no_reason_is_explained_twice() -> None:
    assert [name for name, count in Counter(name for name, _ in DOCUMENTED).items() if count > 1] == []


@pytest.mark.parametrize(("name", "paragraph"), DOCUMENTED, ids=[name for name, _ in DOCUMENTED])
def test_each_says_what_it_means_and_what_to_do(name: str, paragraph: str) -> None:
    meaning, todo, _ = paragraph.partition("**Do:**")
    assert len(meaning.split()) >= _FEWEST_WORDS, f"{name} is not explained"
    assert todo, f"{name} does not say what to do"
