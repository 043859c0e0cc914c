"""Every object in its own turn, so that what is done now and then for many of them is not done for all at once."""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32


@lru_cache(maxsize=16_384)
def turn(uid: str) -> float:
    """At least 0 and less than 1, always the same for the same object; 0 for one without a uid."""
    return crc32(uid.encode()) % 1000 / 1000
