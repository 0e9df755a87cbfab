"""Shows errors: the listing of the Dockerfile where there is one, then one line that starts with ``ERROR:``, then the remedy."""

from __future__ import annotations

import os
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


def report_unexpected(error: Exception) -> int:
    """Tell of an error that is none of pybuild's own, without a traceback, and return the exit status. The system's word (a disk is full, a
    file may not be written) is taken as it is; anything else is a defect of pybuild, and is called that."""
    if isinstance(error, OSError) and error.strerror:
        # Standard output's name is known to nobody else: it has no file name.
        place = error.filename2 or error.filename
        what = (
            "can't write the output"
            if place is None
            else os.fsdecode(place)
            if not isinstance(place, int)
            else "input or output"
        )
        report_error(PybuildError(f"{what}: {error.strerror}"))
        return 1
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    at = f", at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace is not None else ""
    hint = "this is a defect of pybuild: please report it, with what 'pybuild --debug …' prints"
    report_error(PybuildError(f"internal error: {type(error).__name__}: {error}{at}", hint=hint))
    return 1
