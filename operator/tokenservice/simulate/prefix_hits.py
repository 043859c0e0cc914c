"""Which part of each prompt was there already: a cache of blocks that forgets the least recently used.

Assumes that every prompt sees the same cache, as with prefix-aware routing or a store that all replicas share, and
that a prompt's blocks are there from its arrival on; both flatter the hit rate. Only prompts enter the cache: answers
that come back in the next turn's prompt are computed again, which understates it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from tokenservice.simulate.traffic import Ints

BLOCK_TOKENS = 512
"""Size of the blocks whose hashes the Mooncake traces carry."""


def cached_tokens(input_tokens: Ints, blocks: Sequence[Ints], cache_tokens: float) -> Ints:
    """Tokens of each prompt found in the cache, in order of arrival; at least one of each is always computed.

    Whole blocks from the start of the prompt count until the first that is missing.
    """
    room = int(cache_tokens // BLOCK_TOKENS)
    cache: OrderedDict[int, None] = OrderedDict()
    found = np.zeros(len(input_tokens), dtype=np.int32)
    for number, (tokens, names) in enumerate(zip(input_tokens.tolist(), blocks, strict=True)):
        whole = names[: tokens // BLOCK_TOKENS].tolist()
        found[number] = min(_leading(whole, cache) * BLOCK_TOKENS, tokens - 1)
        _remember(whole, cache, room)
    return found


def _leading(names: list[int], cache: OrderedDict[int, None]) -> int:
    return next((place for place, name in enumerate(names) if name not in cache), len(names))


def _remember(names: list[int], cache: OrderedDict[int, None], room: int) -> None:
    """The start of a prompt is the last to be forgotten: without it the rest is of no use."""
    for name in reversed(names):
        cache[name] = None
        cache.move_to_end(name)
    while len(cache) > room:
        cache.popitem(last=False)
