"""Figures on pages for people stand between markers, and a command writes them: none is typed by hand."""

from __future__ import annotations

import re
from pathlib import Path


def write_block(page: Path, name: str, text: str) -> None:
    """Puts `text` between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; ValueError where there is no such place."""
    between = re.compile(rf"(?s)(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)")
    written, count = between.subn(lambda match: match.group(1) + text + match.group(2), page.read_text())
    if count != 1:
        raise ValueError(f"{page}: needs <!-- {name}:begin --> and <!-- {name}:end --> once each, has {count}")
    page.write_text(written)
