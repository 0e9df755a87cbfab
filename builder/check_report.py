"""Showing the result of the build checks: the text that ``docker buildx build --check`` prints, and its JSON.

Owns these two forms (``frontend.lint`` of BuildKit, version 1.0.0). Prints nothing itself.
"""

from __future__ import annotations

import base64
import json

from pybuild.parser.errors import excerpt

from .check_rules import RULES
from .checks import CheckResult

Json = dict[str, object]


def warnings_text(result: CheckResult) -> str:
    """What goes to standard output: a summary, then each finding with its lines, in the order of lines."""
    count = len(result.warnings)
    if not count:
        return "" if result.error is not None else "Check complete, no warnings found.\n"
    found = "1 warning has been found!" if count == 1 else f"{count} warnings have been found!"
    out = [f"Check complete, {found}\n"]
    for warning in sorted(result.warnings, key=lambda warning: warning.lines[0] if warning.lines else 0):
        page = f" - {warning.url}" if warning.url else ""
        out.append(f"\nWARNING: {warning.rule}{page}\n{warning.message}\n")
        if warning.lines is not None:
            out.append(excerpt(result.text, warning.lines, filename=result.filename))
    return "".join(out)


def error_text(result: CheckResult) -> str:
    """What the checks ended with: the message and the lines, "" without an error."""
    error = result.error
    if error is None:
        return ""
    where = "" if error.lines is None else excerpt(result.text, error.lines, filename=result.filename)
    return f"{error.message}\n{where}"


def result_json(result: CheckResult) -> str:
    """The JSON document, indented by two."""
    warnings: list[Json] = []
    for warning in result.warnings:
        rule = RULES.get(warning.rule)
        entry: Json = {"ruleName": warning.rule}
        description = rule.description if rule is not None else warning.detail
        if description:
            entry["description"] = description
        if warning.url:
            entry["url"] = warning.url
        if warning.message:
            entry["detail"] = warning.message
        entry["location"] = location_json(warning.lines)
        warnings.append(entry)
    value: Json = {"warnings": warnings, "sources": [source_json(result)]}
    if result.error is not None:
        value["buildError"] = {"message": result.error.message, "location": location_json(result.error.lines)}
    return json.dumps(value, indent=2, ensure_ascii=False)


def location_json(lines: tuple[int, int] | None) -> Json:
    """A place as BuildKit gives it: a range for each line."""
    if lines is None:
        return {}
    first, last = lines
    ranges = [{"start": {"line": line}, "end": {"line": line}} for line in range(first, max(first, last) + 1)]
    return {"ranges": ranges}


def source_json(result: CheckResult) -> Json:
    data = base64.b64encode(result.text.encode("utf-8", "surrogateescape")).decode()
    return {"filename": result.filename, "data": data, "language": "Dockerfile"}
