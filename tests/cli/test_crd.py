"""`tokenservice crd`: what is generated, and where to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from tokenservice.api.resources import KINDS
from tokenservice.cli import crd
from tokenservice.cli.main import app


def test_without_a_place_the_definitions_are_printed() -> None:
    done = CliRunner().invoke(app, ["crd"])
    names = [document["metadata"]["name"] for document in yaml.safe_load_all(done.output)]
    assert names == [kind.crd_name for kind in KINDS]


def write(folder: Path) -> Result:
    """Everything, into a folder."""
    arguments = ["crd", f"--output={folder / 'crds'}", f"--chart={folder / 'chart'}", f"--docs={folder / 'd.md'}"]
    return CliRunner().invoke(app, arguments)


def test_everything_is_written_where_it_was_asked_for(tmp_path: Path) -> None:
    assert write(tmp_path).exit_code == 0
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {*(f"crds/{name}" for name in crd.crd_files()), "chart/templates/crds.yaml", "d.md"}


def test_what_is_fresh_already_is_not_written_again(tmp_path: Path) -> None:
    write(tmp_path)
    stale = tmp_path / "crds" / next(iter(crd.crd_files()))
    stale.write_text("old")
    assert [line for line in write(tmp_path).stderr.splitlines() if line] == [f"wrote {stale}"]


def test_nothing_is_hidden_behind_an_anchor() -> None:
    assert all("&id" not in text and " *id" not in text for text in crd.crd_files().values())


def test_the_chart_keeps_the_definitions_and_can_leave_them_out() -> None:
    first, *rest = crd.chart_template().split("\n---\n")
    assert first.endswith('{{- if .Values.crds.enabled }}\n{{- include "tokenservice.refuseDowngrade" . }}')
    assert len(rest) == len(KINDS)
    assert rest[-1].endswith("{{- end }}\n")
    for document in rest:
        text = document.removesuffix("{{- end }}\n").replace("{{ .Chart.Version | quote }}", '"0.1.0"')
        annotations = {"helm.sh/resource-policy": "keep", "taas.dev/chart-version": "0.1.0"}
        assert yaml.safe_load(text)["metadata"]["annotations"] == annotations


def test_a_description_that_helm_would_take_for_a_template_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crd, "custom_resource_definition", lambda kind: {"metadata": {"name": "{{ x }}"}})
    with pytest.raises(ValueError, match="Helm"):
        crd.chart_template()


def test_the_reference_names_every_kind_and_every_rule() -> None:
    text = crd.reference()
    for kind in KINDS:
        assert f"## {kind.kind}\n" in text
    assert "`spec.scaling.minReplicas`: minReplicas is above maxReplicas" in text
    assert "| `spec.objectives.timeToFirstToken.target` | integer or string |" in text
