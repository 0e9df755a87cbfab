"""The ``syntax`` line: which frontend a Dockerfile asks for, and whether this one can take its place.

Owns BuildKit's detection (``# syntax=``, ``// syntax=``, JSON, behind a ``#!`` line) and the list of frontends that are the
same language. Never pulls a frontend.
"""

from __future__ import annotations

import re

from pybuild.values import pattern

from .dockerfile import Syntax
from .lines import ParseWarning
from .source import BOM, Source

LANGUAGE_VERSION = (1, 26)
"""The newest release of docker/dockerfile whose language is implemented."""

_DIRECTIVE = pattern(r"([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*(.+?)[\t\n\f\r ]*")
_KNOWN = frozenset({"syntax", "escape", "check"})
_OWN = pattern(
    r"(?:dockerfile\.v0|(?:[^/]+/)*docker/dockerfile(?:-upstream)?)(?::(?P<tag>[\w][\w.-]*))?(?:@(?P<digest>[\w:+.-]+))?"
)


def detect_directive(text: str, name: str, *, any_form: bool) -> Syntax | None:
    """The first ``name`` directive of a text. ``any_form``: also as ``// name=value`` and as a key of a JSON document."""
    body = text.removeprefix(BOM)
    line = 1
    if body.startswith("#!"):
        body = body.partition("\n")[2]
        line = 2
    for prefix in ("#", "//") if any_form else ("#",):
        found = _scan(body, prefix, name, line)
        if found is not None:
            return found
    if any_form and body.lstrip().startswith("{"):
        import json  # almost no Dockerfile needs it

        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return None
        value = document.get(name) if isinstance(document, dict) else None
        if isinstance(value, str):
            return Syntax(value, value, line)
    return None


def _scan(body: str, prefix: str, name: str, line: int) -> Syntax | None:
    at = 0
    seen: set[str] = set()
    while body.startswith(prefix, at):
        end = body.find("\n", at)
        row = body[at : len(body) if end < 0 else end].rstrip("\r")
        match = _DIRECTIVE.fullmatch(row[len(prefix) :].lstrip())
        if match is None or match[1].lower() not in _KNOWN or match[1].lower() in seen:
            return None
        if match[1].lower() == name:
            return Syntax(match[2].partition(" ")[0], match[2], line)
        seen.add(match[1].lower())
        if end < 0:
            return None
        at, line = end + 1, line + 1
    return None


def is_own_frontend(reference: str) -> bool:
    """True if the language of the frontend ``reference`` is this one's, whatever its version."""
    return _OWN.fullmatch(reference) is not None


def frontend_warning(syntax: Syntax, source: Source) -> ParseWarning | None:
    """None where the frontend's language is this one."""
    span = source.span(source.starts[min(syntax.line, len(source.starts)) - 1], source.line_end(syntax.line))
    match = _OWN.fullmatch(syntax.reference)
    if match is None:
        return ParseWarning(
            "UnknownFrontend",
            f"The frontend {syntax.reference} is not known; the file is read as a Dockerfile",
            span,
            hint="Remove the syntax line, or ask for docker/dockerfile:1",
        )
    version = re.match(r"(\d{1,4})(?:\.(\d{1,4}))?", match["tag"] or "")
    if version is not None:
        asked = (int(version[1]), int(version[2] or 0))
        if asked > LANGUAGE_VERSION:
            known = ".".join(map(str, LANGUAGE_VERSION))
            return ParseWarning(
                "NewerFrontend",
                f"The file asks for version {match['tag']} of the Dockerfile language; {known} is implemented",
                span,
                hint="What the newer version added will not be understood",
            )
    return None
