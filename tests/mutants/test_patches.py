"""A mutant whose patch applies no more breaks nothing, and would be noticed only by a run of all of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("patch", sorted(HERE.glob("*.patch")), ids=lambda patch: patch.stem)
def test_every_patch_still_applies(patch: Path) -> None:
    checked = subprocess.run(
        ["git", "apply", "--check", str(patch)], cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, f"renew it against the code of now: {checked.stderr}"
