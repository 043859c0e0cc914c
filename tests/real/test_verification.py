"""What the run on real nodes does to a model, against the verifier that its pods run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from e2e.real import verification

VERIFIER = Path(__file__).parents[2] / "images/model-verifier/verify_model.py"
VERIFIED, REFUSED = 0, 3


def test_a_changed_bit_is_refused_by_the_file_and_taken_back_it_is_what_was_signed(tmp_path: Path) -> None:
    models = [tmp_path / "one/tiny", tmp_path / "two/tiny"]
    for model in models:
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / verification.WEIGHTS).write_bytes(bytes(64))
    key = tmp_path / "model.pub"
    key.write_text(verification.signed(models, tmp_path)["data"]["model.pub"])

    def verify(model: Path) -> tuple[int, str]:
        command = [sys.executable, str(VERIFIER), "--folder", str(model), "--key", str(key)]
        ran = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=60, check=False)
        return ran.returncode, ran.stderr.strip()

    assert verify(models[1]) == (VERIFIED, "")
    with verification.changed(models):
        assert verify(models[1]) == (REFUSED, f"refused: Hash mismatch for '{verification.WEIGHTS}'")
    assert verify(models[0]) == (VERIFIED, "")
