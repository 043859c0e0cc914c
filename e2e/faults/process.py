"""`python -m e2e.faults.process …`: the operator as a process of its own, with a Lease and a clock that tests set.

    TAAS_LEASE_SECONDS=3      how long a Lease lasts; its holder trusts it, and renews it, in the usual shares of that
    TAAS_CLOCK_SECONDS=-60    how far its clock is off

Everything else is `python -m tokenservice.app`, kopf included.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenservice.edge.lease import Terms


def main() -> int:
    """Sets what was asked for before the operator's modules take hold of it."""
    off = float(os.environ.get("TAAS_CLOCK_SECONDS", "0"))
    true_time = time.time
    time.time = lambda: true_time() + off
    from tokenservice.app import __main__, runtime
    from tokenservice.edge.lease import Lease

    if lasts := os.environ.get("TAAS_LEASE_SECONDS"):
        runtime.Lease = functools.partial(Lease, terms=terms(float(lasts)))  # type: ignore[attr-defined,assignment]
    return __main__.main()


def terms(seconds: float) -> Terms:
    """The Lease's times in the proportion of the defaults."""
    from tokenservice.edge.lease import Terms

    usual = Terms()
    share = seconds / usual.duration
    return Terms(duration=seconds, trust=usual.trust * share, retry=usual.retry * share)


if __name__ == "__main__":
    sys.exit(main())
