"""Names of images, and what they have in common."""

from __future__ import annotations

import pytest

from tokenservice.core.images import identity

DIGEST = f"sha256:{'a' * 64}"

IDENTITIES = {
    "by digest": (f"registry:5000/models/chat@{DIGEST}", DIGEST),
    "by tag and digest": (f"vllm/vllm-openai:v1@{DIGEST}", DIGEST),
    "of Docker Hub, short": ("vllm/vllm-openai:v1", "docker.io/vllm/vllm-openai:v1"),
    "of Docker Hub, in full": ("docker.io/vllm/vllm-openai:v1", "docker.io/vllm/vllm-openai:v1"),
    "of Docker Hub's own": ("busybox", "docker.io/library/busybox:latest"),
    "of a registry with a port": ("registry:5000/vllm", "registry:5000/vllm:latest"),
    "of a registry with a domain": ("ghcr.io/vllm:v1", "ghcr.io/vllm:v1"),
    "of this machine": ("localhost/vllm:v1", "localhost/vllm:v1"),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_two_names_of_an_image_have_one_identity(name: str) -> None:
    image, known_as = IDENTITIES[name]
    assert identity(image) == known_as
