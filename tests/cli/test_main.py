"""The command itself."""

from __future__ import annotations

from importlib.metadata import version

from typer.testing import CliRunner

from tokenservice.cli.main import app


def test_the_command_says_its_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"tokenservice {version('tokenservice')}\n")
