"""One hypothesis profile for all: examples are counted, not timed, so that a busy machine fails nothing."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("counted", deadline=None)
settings.load_profile("counted")
