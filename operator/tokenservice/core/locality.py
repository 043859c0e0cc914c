"""Which nodes have the images that replicas need: of models that are mounted as images, and of engines.

A model of 140 GB takes minutes to pull and seconds to read from the node that has it, so where two nodes are as good
for packing the one that has the images gets the replica. The kubelet is asked for none of this: it reports the images
of its node, the largest first (50 of them, unless `nodeStatusMaxImages` says otherwise), image volumes included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.engines import sources
from tokenservice.core.images import identity
from tokenservice.core.memo import Memo
from tokenservice.core.model import EngineImages, Node, Pod, Service

Holders = Mapping[str, frozenset[str]]
"""Names of the nodes that have an image, by its identity."""


def in_use(services: Sequence[Service], images: EngineImages, memo: Memo) -> frozenset[str]:
    """Identities of the images that replicas of these services may need."""
    specs = {service.key: service.spec for service in services}
    named = memo.recall_each(
        "images in use", tuple(specs), (tuple(specs.values()),), lambda new: [_named(specs[key]) for key in new]
    )
    return frozenset([*map(identity, images.defaults.values()), *[one for mine in named.values() for one in mine]])


def _named(spec: TokenServiceSpec | None) -> tuple[str, ...]:
    if spec is None:
        return ()
    mounted = [
        volume["image"]["reference"] for source in sources(spec) for volume in source.volumes if "image" in volume
    ]
    own = [spec.engine.image] if spec.engine.image is not None else []
    return tuple([identity(image) for image in (*mounted, *own)])


def holders(nodes: Sequence[Node], wanted: frozenset[str], memo: Memo) -> Holders:
    """The nodes that have each of the wanted images; images that nobody has are absent.

    Nodes report what they have every few minutes and after each pull, most of it of no interest: of a node whose report
    stayed the same nothing is looked at.
    """
    names, reports = tuple([node.name for node in nodes]), [node.images for node in nodes]
    of_interest = memo.recall_each(
        "images of nodes",
        names,
        (reports,),
        lambda new: _of_interest(new, dict(zip(names, reports, strict=True)), wanted),
        shared=(wanted,),
    )
    return memo.recall("holders", None, (of_interest,), lambda: _inverted(of_interest))


def _of_interest(
    names: Iterable[str], reports: Mapping[str, tuple[str, ...]], wanted: frozenset[str]
) -> list[tuple[str, ...]]:
    return [tuple([image for image in reports[name] if image in wanted]) for name in names]


def _inverted(images: Mapping[str, tuple[str, ...]]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for node, mine in images.items():
        for image in mine:
            found.setdefault(image, set()).add(node)
    return {image: frozenset(nodes) for image, nodes in found.items()}


def told(pod: Pod, node: str, held: Holders) -> str:
    """How much of what the pod needs is on the node, as the end of a sentence; empty where nothing is."""
    there = sum(node in held.get(image, ()) for image in pod.images)
    if not there:
        return ""
    return (
        ", which has its images" if there == len(pod.images) else f", which has {there} of its {len(pod.images)} images"
    )
