"""`python -m release.chart`: the chart as it is released: its version, and every image in it by digest.

A copy is written; the chart of the repository names no digest, since the image that it would name is built from it. The
loader of adapters is released beside it and not named: naming it gives the operator rights on ConfigMaps.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts/tokenservice"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?")


class ReleaseError(ValueError):
    """What was given cannot be put into the chart."""


def main(arguments: list[str] | None = None) -> int:
    """Writes the chart, or lists the images that are to be pinned."""
    parser = argparse.ArgumentParser(prog="python -m release.chart", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engines", action="store_true", help="print the engine images, one a line, and end")
    parser.add_argument("--version", default="", help="of the chart and of the operator")
    parser.add_argument("--operator", default="", metavar="IMAGE@DIGEST", help="the operator's image")
    parser.add_argument("--verifier", default="", metavar="IMAGE@DIGEST", help="the image that verifies models")
    parser.add_argument("--pin", action="append", default=[], metavar="IMAGE@DIGEST", help="an engine image's digest")
    parser.add_argument(
        "--to", type=Path, default=ROOT / "dist/chart", help="the folder to write the chart's folder to"
    )
    asked = parser.parse_args(arguments)
    if asked.engines:
        print("\n".join(engine_images()))
        return 0
    try:
        pins = dict(_pin(text) for text in asked.pin)
        print(written(asked.to, asked.version, asked.operator, asked.verifier, pins))
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def engine_images() -> tuple[str, ...]:
    """The images of engines in the chart's values, each once."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return tuple(dict.fromkeys(image for vendors in values["engineImages"].values() for image in vendors.values()))


def written(to: Path, version: str, operator: str, verifier: str, pins: Mapping[str, str]) -> Path:
    """The folder of the released chart. Raises ReleaseError where an image would be left without its digest."""
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"--version {version!r}: give MAJOR.MINOR.PATCH")
    if missing := [image for image in engine_images() if image not in pins]:
        raise ReleaseError(f"--pin: no digest for {', '.join(missing)}")
    for image, digest in (_pin(operator), _pin(verifier), *pins.items()):
        if not image or not _DIGEST.fullmatch(digest):
            raise ReleaseError(f"{image}@{digest}: give IMAGE@sha256: and 64 hexadecimal digits")
    folder = to / CHART.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CHART, folder)
    shutil.copy(ROOT / "LICENSE", folder)
    _edit(folder / "values.yaml", _values(operator, verifier, pins))
    _edit(
        folder / "Chart.yaml",
        [(r"^version: .*$", f"version: {version}"), (r"^appVersion: .*$", f'appVersion: "{version}"')],
    )
    return folder


def _values(operator: str, verifier: str, pins: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Lines of the values and what becomes of them; comments stay, they are the chart's documentation."""
    repository, digest = _pin(operator)
    yield r"^  repository: .*$", f"  repository: {repository}"
    yield r'^  digest: ""$', f"  digest: {digest}"
    yield r'(^modelVerifier:\n(?:  #.*\n)*  image: )""$', rf"\g<1>{verifier}"
    for image, pinned in pins.items():
        yield rf"^(    \w+: ){re.escape(image)}$", rf"\g<1>{image}@{pinned}"


def _edit(file: Path, changes: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> None:
    text = file.read_text(encoding="utf-8")
    for pattern, line in changes:
        text, count = re.subn(pattern, line, text, flags=re.MULTILINE)
        if count != 1:
            raise ReleaseError(f"{file.name}: {count} lines match {pattern}, where one should")
    file.write_text(text, encoding="utf-8")


def _pin(text: str) -> tuple[str, str]:
    image, _, digest = text.partition("@")
    return image, digest


if __name__ == "__main__":
    sys.exit(main())
