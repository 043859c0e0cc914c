"""Public data kept beside the repository; tests that need them are skipped where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("TAAS_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "azure2023").is_dir(), reason="needs TAAS_DATA: the public traces")
