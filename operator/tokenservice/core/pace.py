"""Every object at its own pace, so that what is done now and then for many of them is not done for all at once."""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32


@lru_cache(maxsize=16_384)
def pace(uid: str) -> float:
    """Between 1 and 1.5, always the same for the same object; 1 for one without a uid."""
    return 1.0 + crc32(uid.encode()) % 1000 / 2000 if uid else 1.0
