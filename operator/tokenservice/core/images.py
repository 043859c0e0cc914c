"""What an image's name tells: its repository, and for which vendor's accelerators it was built."""

from __future__ import annotations

import re

from tokenservice.api.accelerator_class import Vendor
from tokenservice.core.model import EngineImages

_NAMED = {Vendor.AMD: re.compile(r"rocm", re.IGNORECASE), Vendor.NVIDIA: re.compile(r"cuda|cu1\d\d", re.IGNORECASE)}


def repository(image: str) -> str:
    """The image without digest and tag; the port of a registry stays."""
    folder, _, last = image.partition("@")[0].rpartition("/")
    return f"{folder}/{last.partition(':')[0]}".removeprefix("/")


def built_for(image: str, images: EngineImages) -> Vendor | None:
    """The vendor whose accelerators alone the image can use; None where nobody can tell.

    An engine is compiled for CUDA or for ROCm. The administrator says which by giving the chart a repository for one
    vendor alone; else upstream's name does, for ROCm at least.
    """
    told = {vendor for (_, vendor), default in images.defaults.items() if repository(default) == repository(image)}
    if len(told) == 1:
        return Vendor(told.pop())
    named = image.partition("@")[0]
    return next((vendor for vendor, words in _NAMED.items() if words.search(named)), None)
