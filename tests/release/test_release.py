"""What a release is made with: images by digest, bills of materials that are whole, an audit that does not pretend."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from release import audit, chart, sbom
from release.chart import ReleaseError, engine_images, written

ROOT = Path(__file__).parents[2]
DIGEST = f"sha256:{'ab' * 32}"
OPERATOR, VERIFIER = f"example.org/operator@{DIGEST}", f"example.org/model-verifier@sha256:{'cd' * 32}"
PINS = {image: f"sha256:{number:064x}" for number, image in enumerate(engine_images())}
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())


def test_a_released_chart_names_every_image_by_digest(tmp_path: Path) -> None:
    folder = written(tmp_path, "1.2.3", OPERATOR, VERIFIER, PINS)
    values = yaml.safe_load((folder / "values.yaml").read_text())
    assert (values["image"]["repository"], values["image"]["digest"]) == ("example.org/operator", DIGEST)
    assert (values["modelVerifier"]["image"], values["adapterLoader"]["image"]) == (VERIFIER, "")
    engines = [image for vendors in values["engineImages"].values() for image in vendors.values()]
    assert engines == [f"{image}@{PINS[image]}" for image in engine_images()]
    said = yaml.safe_load((folder / "Chart.yaml").read_text())
    assert (said["version"], said["appVersion"]) == ("1.2.3", "1.2.3")
    before, after = ((it / "values.yaml").read_text().count("#") for it in (chart.CHART, folder))
    assert before == after, "comments stay"


WRONG = {
    "no digest of the operator": ("1.2.3", "example.org/operator", VERIFIER, PINS),
    "a tag for a digest": ("1.2.3", "example.org/operator@latest", VERIFIER, PINS),
    "no repository": ("1.2.3", f"@{DIGEST}", VERIFIER, PINS),
    "no verifier": ("1.2.3", OPERATOR, "", PINS),
    "no digest of the verifier": ("1.2.3", OPERATOR, "example.org/model-verifier:1.2.3", PINS),
    "an engine left out": ("1.2.3", OPERATOR, VERIFIER, dict(list(PINS.items())[1:])),
    "an engine without a digest": ("1.2.3", OPERATOR, VERIFIER, PINS | {engine_images()[0]: ""}),
    "an image that is not there": ("1.2.3", OPERATOR, VERIFIER, PINS | {"other:1": DIGEST}),
    "no version": ("main", OPERATOR, VERIFIER, PINS),
}


@pytest.mark.parametrize("case", WRONG)
def test_nothing_is_released_without_a_digest(tmp_path: Path, case: str) -> None:
    version, operator, verifier, pins = WRONG[case]
    with pytest.raises(ReleaseError):
        written(tmp_path, version, operator, verifier, pins)


LOCKS = {"operator": "requirements/operator.txt", "model-verifier": "images/model-verifier/requirements.txt"}
"""Of each image that is released and installs something."""


@pytest.mark.parametrize("image", LOCKS)
def test_everything_the_image_installs_is_pinned_with_hashes(image: str) -> None:
    lock = (ROOT / LOCKS[image]).read_text()
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in lock.splitlines() if not line.lstrip().startswith("#")))
    assert len(entries) > 20
    assert [entry.split()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []
    install, *_ = re.findall(r"--require-hashes -r (\S+)", (ROOT / "images" / image / "Dockerfile").read_text())
    assert LOCKS[image].endswith(install.removeprefix("/src/"))
    assert LOCKS[image] in audit.LOCKS


def test_every_image_of_the_project_is_released() -> None:
    built = sorted(file.parent.name for file in ROOT.glob("images/*/Dockerfile") if file.parent.name != "vllm-cpu")
    assert sorted(WORKFLOW["jobs"]["image"]["strategy"]["matrix"]["image"]) == built
    assert sorted(WORKFLOW["jobs"]["image"]["outputs"]) == built


def test_what_is_released_has_its_licence_with_it(tmp_path: Path) -> None:
    """Apache-2.0 asks for a copy in whatever is handed on."""
    last = [file.read_text().rpartition("\nFROM ")[2] for file in ROOT.glob("images/*/Dockerfile")]
    assert all("\nCOPY LICENSE /\n" in stage for stage in last if "licenses=" in stage)
    assert sum("licenses=" in stage for stage in last) >= 3
    folder = written(tmp_path, "1.2.3", OPERATOR, VERIFIER, PINS)
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_no_image_installs_what_no_lock_names() -> None:
    commands = [
        f"{file.parent.name}: {command.strip()}"
        for file in ROOT.glob("images/*/Dockerfile")
        for command in file.read_text().replace("\\\n", " ").replace("&&", "\n").splitlines()
        if "pip install" in command
    ]
    assert len(commands) >= 5
    assert [command for command in commands if not re.search("--require-hashes|--no-deps", command)] == []


def test_a_lock_is_listed_in_full(tmp_path: Path) -> None:
    file = tmp_path / "bill.json"
    assert sbom.main(["--to", str(file)]) == 0
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(file.read_text()) is None
    listed = {component["purl"] for component in json.loads(file.read_text())["components"]}
    lines = (ROOT / "requirements/operator.txt").read_text().splitlines()
    assert len(listed) == sum("==" in line.split("#")[0].split(";")[0] for line in lines)
    assert any(purl.startswith("pkg:pypi/kopf@1.") for purl in listed)


def test_an_image_is_listed_by_its_records(tmp_path: Path) -> None:
    records = {
        "etc/os-release": 'ID=debian\nVERSION_ID="13"\n',
        "var/lib/dpkg/status": "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.41-1\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n",
        "usr/local/include/python3.11/patchlevel.h": '#define PY_VERSION      "3.11.13"\n',
        "opt/tokenservice/lib/python3.11/site-packages/kopf-1.45.2.dist-info/METADATA": "Name: kopf\nVersion: 1.45.2\n",
    }
    for name, text in records.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [str(purl) for purl in sbom.of_image(tmp_path)] == [
        "pkg:deb/debian/libc6@2.41-1?arch=amd64&distro=debian-13",
        "pkg:generic/python@3.11.13",
        "pkg:pypi/kopf@1.45.2",
    ]


def test_an_empty_folder_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sbom.main(["--root", str(tmp_path), "--to", str(tmp_path / "bill.json")]) == 1
    assert "nothing to list" in capsys.readouterr().err


def test_an_audit_that_cannot_ask_says_so_and_fails_where_it_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([], vulnerable="") == 0
    assert capsys.readouterr().out == f"{audit.SKIPPED}\n"
    assert audit.main(["--required"], vulnerable="") == 1


MAY = {
    "check": {"contents": "read"},
    "image": {"contents": "read", "packages": "write", "id-token": "write"},
    "chart": {"contents": "read", "packages": "write", "id-token": "write"},
    "publish": {"contents": "write"},
}


def test_every_action_is_pinned_and_no_job_may_do_more_than_it_does() -> None:
    assert WORKFLOW["permissions"] == {}
    assert {name: job["permissions"] for name, job in WORKFLOW["jobs"].items()} == MAY
    used = [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step]
    assert len(used) > 8
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []


def test_the_provenance_is_asked_for_signed_and_verified_in_one_version() -> None:
    """BuildKit has its own where none is asked for, since 2026 another; cosign refuses what is of another type."""
    steps = WORKFLOW["jobs"]["image"]["steps"]
    (build,) = (step["with"] for step in steps if "provenance" in step.get("with", {}))
    (signed,) = (step["run"] for step in steps if "provenance.json" in step.get("run", ""))
    asked = dict(part.split("=") for part in build["provenance"].split(","))
    verified = (ROOT / "SECURITY.md").read_text()
    types = [re.findall(r"--type (slsaprovenance\w*)", text) for text in (signed, verified)]
    assert (asked, types) == ({"mode": "max", "version": "v1"}, [["slsaprovenance1"]] * 2)


COMMANDS = ("README.md", "docs/operations.md")
"""Pages that say how an image is built and pushed."""


def test_project_chart_and_commands_speak_of_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert (said["version"], said["appVersion"]) == (version, version)
    shown = [re.findall(r"tokenservice-operator:(\S+)", (ROOT / page).read_text()) for page in COMMANDS]
    assert [set(versions) for versions in shown] == [{version}] * len(COMMANDS)
