"""`tokenservice engine check` before it asks anything."""

from __future__ import annotations

import os
import subprocess
import sys

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


def test_a_process_that_is_not_there_is_told_before_anything_is_asked() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = CliRunner().invoke(app, ["engine", "check", "http://127.0.0.1:1", f"--pid={gone.pid}"])
    assert done.exit_code == 2
    assert f"no process {gone.pid}" in done.output


def test_a_process_of_somebody_else_is_told_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    done = CliRunner().invoke(app, ["engine", "check", "http://127.0.0.1:1", "--pid=4711"])
    assert done.exit_code == 2
    assert "4711 is another user's" in done.output
