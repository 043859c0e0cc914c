"""`tokenservice crd`: everything that is generated from the models, written where it is kept.

The files are checked in, for GitOps and for readers, and a test fails when they are stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tokenservice.api import GROUP
from tokenservice.api.reference import reference
from tokenservice.api.resources import KINDS, custom_resource_definition

Json = dict[str, Any]

_HEADER = "# Generated from the models by `make generate`.\n"
_VERSION = "VERSION-OF-THE-CHART"
_ANNOTATIONS = {"helm.sh/resource-policy": "keep", "taas.dev/chart-version": _VERSION}
"""By the second, the chart knows whether an older one would take fields away."""


class _Dumper(yaml.SafeDumper):
    """Writes every value out, without anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def as_yaml(document: Json) -> str:
    """`document` in its own order, without anchors, ending in one newline."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def crd_files() -> dict[str, str]:
    """Name and text of every CRD file, one kind each, named as controller-gen names them."""
    return {f"{GROUP}_{kind.plural}.yaml": _HEADER + as_yaml(custom_resource_definition(kind)) for kind in KINDS}


def chart_template() -> str:
    """The CRDs as a template: upgraded with the chart, unlike those in `crds/`, and kept on uninstall."""
    documents = [custom_resource_definition(kind) for kind in KINDS]
    body = "---\n".join(as_yaml(_kept(document)) for document in documents)
    if "{{" in body:
        raise ValueError("a description holds {{, which Helm would take for a template")
    body = body.replace(_VERSION, "{{ .Chart.Version | quote }}")
    guarded = '{{- if .Values.crds.enabled }}\n{{- include "tokenservice.refuseDowngrade" . }}'
    return f"{_HEADER}{guarded}\n---\n{body}{{{{- end }}}}\n"


def _kept(document: Json) -> Json:
    metadata = document["metadata"] | {"annotations": _ANNOTATIONS}
    return document | {"metadata": metadata}


def generated_files(crds: Path | None, chart: Path | None, docs: Path | None) -> dict[Path, str]:
    """Path and text of all that is wanted."""
    files = {crds / name: text for name, text in crd_files().items()} if crds else {}
    if chart:
        files[chart / "templates" / "crds.yaml"] = chart_template()
    if docs:
        files[docs] = reference()
    return files


def crd(
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the CustomResourceDefinitions.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(file_okay=False, help="Chart whose templates/crds.yaml is written.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(dir_okay=False, help="File for the API reference.")] = None,
) -> None:
    """Write the CustomResourceDefinitions, or print them when no place is named."""
    files = generated_files(output, chart, docs)
    if not files:
        typer.echo("---\n".join(crd_files().values()), nl=False)
    for path, text in files.items():
        if path.exists() and path.read_text() == text:
            continue  # whoever reads it meanwhile finds it whole
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        typer.echo(f"wrote {path}", err=True)
