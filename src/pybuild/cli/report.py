"""Shows errors: the listing of the Dockerfile where there is one, then one line that starts with ``ERROR:``, then the remedy."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from pybuild.errors import PybuildError

_LINE = 1000  # characters of one line of a listing that are shown
_VISIBLE = {
    code: f"\\x{code & 0xFF:02x}" for code in (*range(9), *range(11, 32), *range(127, 160), *range(0xDC80, 0xDD00))
}
"""Control characters except tab and newline, and bytes that are not UTF-8 (surrogateescape, PEP 383)."""


def report_error(error: PybuildError, *, stream: TextIO | None = None) -> None:
    """Write ``error`` to ``stream`` (stderr)."""
    out = sys.stderr if stream is None else stream
    listing = getattr(error, "listing", None) or getattr(error, "excerpt", None)
    text = listing() if callable(listing) else ""
    if text:
        lines = visible(text.rstrip("\n")).split("\n")
        print("\n".join(line if len(line) <= _LINE else f"{line[:_LINE]}…" for line in lines), file=out)
    if error.hint:
        print(f"hint: {visible(error.hint)}", file=out)
    print(f"ERROR: {visible(error.message)}", file=out)


def visible(text: str) -> str:
    """What others wrote, without what would steer a terminal (but for colors); bytes that are not UTF-8 are shown as such."""
    if text.isprintable():
        return text
    import re

    # Colors stay: programs mean something by them. Every second part is one.
    parts = re.split("(\x1b\\[[0-9;]*m)", text)
    return "".join(part if position % 2 else part.translate(_VISIBLE) for position, part in enumerate(parts))


def report_unexpected(error: Exception) -> int:
    """Tell of an error that is none of pybuild's own, without a traceback, and return the exit status. The system's word (a disk is full, a
    file may not be written) is taken as it is; anything else is a defect of pybuild, and is called that."""
    if isinstance(error, OSError) and error.strerror:
        # Standard output's name is known to nobody else: it has no file name.
        place = error.filename2 or error.filename
        what = os.fsdecode(place) if isinstance(place, (str, bytes)) else "can't write the output"
        report_error(PybuildError(f"{what}: {error.strerror}"))
        return 1
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    at = f", at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace is not None else ""
    hint = "this is a defect of pybuild: please report it, with what 'pybuild --debug …' prints"
    report_error(PybuildError(f"internal error: {type(error).__name__}: {error}{at}", hint=hint))
    return 1
