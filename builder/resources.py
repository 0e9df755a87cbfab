"""Limits of RUN steps: ``--resource NAME=VALUE`` with BuildKit's names, read into plain numbers. Sets no limit itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from pybuild.errors import UsageError
from pybuild.parser.go_text import parse_size, parse_unsigned

RESOURCES: Final = ("memory", "memory-swap", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems")
_SET: Final = re.compile(r"[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\Z")


def parse_resources(given: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """``NAME=VALUE`` texts as (name, value), sorted; sizes become bytes, later ones win. Raises UsageError."""
    out: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or name not in RESOURCES:
            raise UsageError(
                f"invalid --resource value {text!r}", hint="NAME=VALUE with one of " + ", ".join(RESOURCES)
            )
        out[name] = _value(name, value)
    return tuple(sorted(out.items()))


def _value(name: str, value: str) -> str:
    if name.startswith("cpuset-"):
        if not _SET.match(value):
            raise UsageError(f"invalid {name} value: {value}", hint="write it like 0-3 or 0,1")
        return value
    if name == "memory-swap" and value == "-1":
        return value
    try:
        number = parse_size(value) if name.startswith("memory") else parse_unsigned(value, base=10, bits=64)
    except ValueError:
        raise UsageError(f"invalid {name} value: {value}") from None
    if number <= 0:
        allowed = "must be -1 (unlimited) or > 0" if name == "memory-swap" else "must be > 0"
        raise UsageError(f"invalid {name} value: {value}: {allowed}")
    return str(number)
