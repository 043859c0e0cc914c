"""`tokenservice engine check` before it asks anything."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tokenservice.cli.main import app


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "tcp://127.0.0.1:8000"])
def test_an_address_without_its_protocol_is_told_how_to_write_it(url: str) -> None:
    done = CliRunner().invoke(app, ["engine", "check", url], env={"COLUMNS": "150"})
    assert done.exit_code == 2
    assert "write http://127.0.0.1:8000" in done.output


@pytest.mark.parametrize("url", ["http://", "http://:8000", "http://[", "http://127.0.0.1:port"])
def test_an_address_that_is_none_is_not_asked(url: str) -> None:
    done = CliRunner().invoke(app, ["engine", "check", url], env={"COLUMNS": "150"})
    assert done.exit_code == 2
    assert f"{url} is no address" in done.output
