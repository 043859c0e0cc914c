"""`python -m release.audit` (`make audit`): known vulnerabilities in what the lock files pin.

Who answers is asked for a release that is known to be vulnerable first: an index without advisories, or none at all,
must not pass for a clean bill. Then nothing is judged and one sentence says so; `--required` makes that an error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = (
    "requirements/operator.txt",
    "requirements/build.txt",
    "images/model-verifier/requirements.txt",
    "requirements/dev.txt",
)
VULNERABLE = "jinja2==2.10"
"""CVE-2019-10906 and others."""

SKIPPED = "audit skipped: no advisories can be reached from here, so the lock files were not judged"


def main(arguments: list[str] | None = None, vulnerable: str = VULNERABLE) -> int:
    """0 when nothing is known against any lock, or nobody could be asked and that is allowed."""
    parser = argparse.ArgumentParser(prog="python -m release.audit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--required", action="store_true", help="fail where nobody can be asked")
    parser.add_argument("locks", nargs="*", default=LOCKS, help="lock files with hashes")
    asked = parser.parse_args(arguments)
    if not answers(vulnerable):
        print(SKIPPED)
        return int(asked.required)
    return max(_audit("--require-hashes", "-r", str(ROOT / lock)).returncode for lock in asked.locks)


def answers(vulnerable: str) -> bool:
    """Whether what is known to be vulnerable is called so."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(vulnerable + "\n")
        found = _audit("--no-deps", "--format=json", "-r", str(file), quiet=True)
    try:
        return any(one.get("vulns") for one in json.loads(found.stdout)["dependencies"])
    except (ValueError, KeyError):
        return False


def _audit(*arguments: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Strict: what could not be judged is a failure, and not left out."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--progress-spinner=off", "--timeout=15"]
    strict = [] if quiet else ["--strict"]
    return subprocess.run([*command, *strict, *arguments], capture_output=quiet, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
