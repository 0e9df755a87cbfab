"""How lists are shown: docker's tables, sizes and ages, ``--format`` templates and JSON lines. Formats only."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # Any: what a template may show


def human_size(count: float) -> str:
    """``4.42MB`` with three significant digits and powers of 1000, as docker shows sizes."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(count) < 999.5 or unit == "PB":
            return f"{count:.3g}{unit}" if unit != "B" else f"{count:.0f}B"
        count /= 1000
    raise AssertionError("unreachable")


def human_age(seconds: float) -> str:
    """``3 hours``, ``2 weeks``: how long ago, without the "ago"."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return f"{int(seconds)} seconds" if int(seconds) != 1 else "1 second"
    minutes = int(seconds / 60)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    for limit, size, unit in ((14, 1, "days"), (60, 7, "weeks"), (730, 30, "months")):
        if days < limit:
            return f"{days // size} {unit}"
    return f"{days // 365} years"


def parse_time(text: str | None) -> float | None:
    """Seconds since the epoch of RFC 3339 text, None if there is none or it can't be read."""
    from pybuild.layers.rfc3339 import parse_rfc3339

    return None if not text else parse_rfc3339(text)


def age_of(text: str | None, now: float) -> str:
    """``3 hours ago`` for RFC 3339 text, ``N/A`` without."""
    seconds = parse_time(text)
    return "N/A" if seconds is None else f"{human_age(max(0.0, now - seconds))} ago"


def docker_time(seconds: float) -> str:
    """``2026-01-31 12:00:00 +0000 UTC``, as docker's templates print times."""
    return time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(seconds))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns three blanks apart, headers in capitals."""
    widths = [max(len(cell) for cell in column) for column in zip(headers, *rows)]
    for row in (headers, *rows):
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_rows(rows: Sequence[Row], columns: Mapping[str, str], *, form: str | None) -> None:
    """Print ``rows`` as ``--format`` asks: None or ``table``: ``columns`` (field → header); ``json``: a line of JSON a row;
    ``table TEMPLATE``: tab-separated template as columns; else a template a row."""
    if not form or form == "table":
        print_table(list(columns.values()), [[str(row[field]) for field in columns] for row in rows])
        return
    if form == "json":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    # What templates need is imported only for them.
    from .templates import render

    if form.startswith("table "):
        template = form.removeprefix("table ").replace("\\t", "\t").replace("\\n", "\n")
        headers = {field: columns.get(field, field.upper()) for row in rows[:1] for field in row} or dict(columns)
        lines = [render(template, headers).split("\t"), *(render(template, row).split("\t") for row in rows)]
        print_table(lines[0], lines[1:])
    else:
        template = form.replace("\\t", "\t").replace("\\n", "\n")
        for row in rows:
            sys.stdout.write(render(template, row) + "\n")
