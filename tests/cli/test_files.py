"""Files that commands cannot use: each is named in a line or two, and no traceback is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenservice.cli.main import app

NO_TEXT = b"\xff\xfe\xfd"

READ = {
    "lint": ["lint", "{file}"],
    "run": ["run", "--config", "{file}"],
    "simulate": ["simulate", "{file}"],
    "compare": ["compare", "{file}"],
    "bench policies": ["bench", "policies", "--list", "{file}"],
    "capacity validate": ["capacity", "validate", "--fit", "{file}"],
    "capacity mlperf": ["capacity", "mlperf", "{file}"],
}


@pytest.mark.parametrize("command", READ)
@pytest.mark.parametrize("what", ["nothing", "a folder", "no text"])
def test_a_file_that_cannot_be_read_is_named(
    command: str, what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "f"
    if what == "a folder":
        file.mkdir()
    elif what == "no text":
        file.write_bytes(NO_TEXT)
    done = CliRunner().invoke(app, [it.format(file=file) for it in READ[command]], env={"COLUMNS": "300"})
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (1, 2)
    assert str(file) in done.output + caplog.text


def test_standard_input_that_is_no_text_is_no_traceback() -> None:
    done = CliRunner().invoke(app, ["lint", "-"], input=NO_TEXT)
    assert done.exit_code == 2
    assert "standard input" in done.output


def test_an_error_names_a_file_once(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["lint", str(tmp_path / "none")], env={"COLUMNS": "300"})
    assert done.output.count("none") == 1
    assert "Errno" not in done.output


@pytest.mark.parametrize("option", ["--output", "--chart", "--docs"])
def test_a_place_that_cannot_be_written_is_named(option: str, tmp_path: Path) -> None:
    place = tmp_path / "p"
    place.mkdir() if option == "--docs" else place.touch()
    done = CliRunner().invoke(app, ["crd", option, str(place)], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert f"'{place}'" in done.output
