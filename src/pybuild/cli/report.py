"""Shows errors: the listing of the Dockerfile where there is one, then one line that starts with ``ERROR:``, then the remedy."""

from __future__ import annotations

import sys
from typing import TextIO

from pybuild.errors import PybuildError


def report_error(error: PybuildError, *, stream: TextIO | None = None) -> None:
    """Write ``error`` to ``stream`` (stderr)."""
    out = sys.stderr if stream is None else stream
    listing = getattr(error, "listing", None) or getattr(error, "excerpt", None)
    text = listing() if callable(listing) else ""
    if text:
        print(text.rstrip("\n"), file=out)
    if error.hint:
        print(f"hint: {error.hint}", file=out)
    print(f"ERROR: {error.message}", file=out)
