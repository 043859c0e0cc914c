"""What an image's name tells: its repository, what it holds, and for which vendor's accelerators it was built."""

from __future__ import annotations

import re
import sys

from tokenservice.api.accelerator_class import Vendor
from tokenservice.core.model import EngineImages, Json
from tokenservice.core.names import ENGINE_CONTAINER

_NAMED = {Vendor.AMD: re.compile(r"rocm", re.IGNORECASE), Vendor.NVIDIA: re.compile(r"cuda|cu1\d\d", re.IGNORECASE)}


def repository(image: str) -> str:
    """The image without digest and tag; the port of a registry stays."""
    folder, _, last = image.partition("@")[0].rpartition("/")
    return f"{folder}/{last.partition(':')[0]}".removeprefix("/")


def identity(image: str) -> str:
    """What two names of the same image have in common: the digest, else the name in full, as container runtimes say it.

    `vllm/vllm-openai:v1`, which stands in a pod, is `docker.io/vllm/vllm-openai:v1` in the status of a node.
    """
    name, _, digest = image.partition("@")
    if digest:
        return sys.intern(digest)
    host = name.partition("/")[0]
    if host == name:
        name = f"docker.io/library/{name}"
    elif host != "localhost" and "." not in host and ":" not in host:
        name = f"docker.io/{name}"
    tagged = ":" in name.rpartition("/")[2]
    return sys.intern(name if tagged else f"{name}:latest")


def needed_by(pod: Json) -> tuple[str, ...]:
    """Identities of the images that a pod of this spec cannot start without: those mounted as volumes, in the order of
    the spec (the model before its adapters), then the engine's."""
    mounted = [str((volume.get("image") or {}).get("reference", "")) for volume in pod.get("volumes") or ()]
    run = [str(one.get("image", "")) for one in pod.get("containers") or () if one.get("name") == ENGINE_CONTAINER]
    return tuple([identity(image) for image in (*mounted, *run) if image])


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
