"""Reading Link headers (RFC 8288) for the pages of lists. Values only."""

from __future__ import annotations

import re

_LINK = re.compile(r"<([^<>]*)>((?:[ \t]*;[ \t]*[^\s,;=]+(?:[ \t]*=[ \t]*(?:\"(?:[^\"\\]|\\.)*\"|[^\s,;\"]*))?)*)")
_PARAMETER = re.compile(r";[ \t]*([^\s,;=]+)[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,;\"]*))")
_LIMIT = 16 << 10


def next_link(header: str) -> str | None:
    """The target of the link whose relation is ``next``, as it is written (perhaps relative); None if there is none."""
    for match in _LINK.finditer(header[:_LIMIT]):
        for parameter in _PARAMETER.finditer(match.group(2)):
            value = parameter.group(2) if parameter.group(2) is not None else parameter.group(3)
            if parameter.group(1).lower() == "rel" and "next" in value.lower().split():
                return match.group(1).strip() or None
    return None
