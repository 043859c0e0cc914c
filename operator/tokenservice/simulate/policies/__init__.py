"""The policies that people use today, each from its published description, with its defaults and a few settings.

`POLICIES[name].sweep[0].make()` is a new policy with the published defaults, ready for one run; the other choices are
there so that a peer is shown at its best: the one that keeps its promises at the least cost. Static fleets need their
sizes: `static.Static(name, sizes)`. Aegaeon's pool is an estimate: `aegaeon.pooled_accelerators`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenservice.simulate.policies import (
    aibrix,
    chiron,
    dynamo,
    knative,
    kubeai,
    llmd,
    melange,
    sageserve,
    thresholds,
    tokenscale,
    wva,
)
from tokenservice.simulate.policies.base import Choice, Peer

__all__ = ["POLICIES", "Choice", "Peer"]

_FAMILIES = (thresholds, knative, kubeai, llmd, wva, aibrix, dynamo, sageserve, chiron, tokenscale, melange)

POLICIES: Mapping[str, Peer] = {peer.name: peer for family in _FAMILIES for peer in family.PEERS}
