"""`python -m release.sbom` (`make sbom`): what a lock file pins, or what an image holds, as CycloneDX 1.6.

An image is read from its unpacked root file system (`docker export`, or whatever unpacks layers): the distribution's
packages from dpkg's records, Python from its header, Python packages from their metadata. What came in by none of these
is not seen.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from email.parser import HeaderParser
from importlib.metadata import distributions
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements/operator.txt"

_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
_PLACES = ("opt/*/lib/python3*/site-packages", "usr/local/lib/python3*/site-packages", "usr/lib/python3*/dist-packages")


class SbomError(ValueError):
    """There is nothing to list: the lock pins nothing, or the folder is no root file system."""


def main(arguments: list[str] | None = None) -> int:
    """Writes one bill."""
    parser = argparse.ArgumentParser(prog="python -m release.sbom", description=(__doc__ or "").partition("\n")[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--lock", type=Path, default=LOCK, help="a lock file (default: the operator's)")
    source.add_argument("--root", type=Path, help="the unpacked root file system of an image")
    parser.add_argument("--name", default="tokenservice-operator", help="of what is described")
    parser.add_argument("--version", default="0", help="its version, or an image's digest")
    parser.add_argument("--to", type=Path, required=True, help="the file to write")
    asked = parser.parse_args(arguments)
    try:
        found = of_image(asked.root) if asked.root else of_lock(asked.lock.read_text(encoding="utf-8"))
    except SbomError as error:
        print(f"{asked.root or asked.lock}: {error}", file=sys.stderr)
        return 1
    kind = ComponentType.CONTAINER if asked.root else ComponentType.APPLICATION
    asked.to.parent.mkdir(parents=True, exist_ok=True)
    asked.to.write_text(rendered(asked.name, asked.version, kind, found), encoding="utf-8")
    print(f"{asked.to}: {len(found)} components")
    return 0


def rendered(name: str, version: str, kind: ComponentType, found: Iterable[PackageURL]) -> str:
    """The bill as JSON."""
    bom = Bom(components=[_component(purl) for purl in found])
    bom.metadata.component = Component(name=name, version=version, type=kind, bom_ref="subject")
    bom.register_dependency(bom.metadata.component, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def of_lock(text: str) -> tuple[PackageURL, ...]:
    """Every release that a lock file pins, whatever its marker."""
    found = {PackageURL("pypi", name=name.lower(), version=version) for name, version in _PINNED.findall(text)}
    return _listed(found)


def of_image(root: Path) -> tuple[PackageURL, ...]:
    """Everything that an unpacked image has a record of."""
    return _listed({*_debian(root), *_interpreter(root), *_python(root)})


def _listed(found: set[PackageURL]) -> tuple[PackageURL, ...]:
    if not found:
        raise SbomError("nothing to list was found in it")
    return tuple(sorted(found, key=str))


def _debian(root: Path) -> Iterator[PackageURL]:
    """Installed packages; images without dpkg itself keep a record each in status.d."""
    records = [root / "var/lib/dpkg/status", *sorted((root / "var/lib/dpkg/status.d").glob("*"))]
    release = _release(root)
    for record in (file for file in records if file.is_file() and file.suffix != ".md5sums"):
        for block in record.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            said = HeaderParser().parsestr(block.lstrip("\n"))
            name, version = said["Package"], said["Version"]
            if name and version and "deinstall" not in said.get("Status", ""):
                told = {"arch": said.get("Architecture", ""), "distro": "-".join(filter(None, release))}
                yield PackageURL("deb", release[0], name, version, {key: value for key, value in told.items() if value})


def _release(root: Path) -> tuple[str, str]:
    file = root / "etc/os-release"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    said = dict(line.split("=", 1) for line in lines if "=" in line)
    return said.get("ID", "debian").strip('"'), said.get("VERSION_ID", "").strip('"')


def _interpreter(root: Path) -> Iterator[PackageURL]:
    """A Python that no package manager knows."""
    for header in root.glob("usr/local/include/python3*/patchlevel.h"):
        for version in re.findall(r'PY_VERSION\s+"([^"]+)"', header.read_text(encoding="utf-8")):
            yield PackageURL("generic", name="python", version=version)


def _python(root: Path) -> Iterator[PackageURL]:
    places = [str(place) for pattern in _PLACES for place in sorted(root.glob(pattern))]
    for found in distributions(path=places):
        yield PackageURL("pypi", name=found.metadata["Name"].lower(), version=found.version)


def _component(purl: PackageURL) -> Component:
    kind = ComponentType.PLATFORM if purl.type == "generic" else ComponentType.LIBRARY
    return Component(name=purl.name, version=purl.version, type=kind, purl=purl, bom_ref=str(purl))


if __name__ == "__main__":
    sys.exit(main())
