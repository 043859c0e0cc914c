"""How often Python looks for cycles of garbage, in processes that hold a fleet in memory.

By default all containers are looked through each time a quarter as many have been added as there are: with the statuses
of a thousand services every few plans, for a fifth of a second. Nothing here makes cycles by the thousand, and what is
in none goes at once without any search, so a hundredth of the searches is enough.
"""

from __future__ import annotations

import gc

_CONTAINERS, _YOUNG, _MIDDLE = 20_000, 20, 100


def seldom() -> None:
    """For the whole process, from now on."""
    gc.set_threshold(_CONTAINERS, _YOUNG, _MIDDLE)
