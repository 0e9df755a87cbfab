"""``pybuild doctor``: what this machine offers, and what pybuild falls back to."""

from __future__ import annotations

import json
import sys

from .environment import Environment
from .options import Parser

_MARKS = {"ok": "✓", "fallback": "~", "missing": "✗"}


def doctor(arguments: list[str], environment: Environment) -> int:
    """``pybuild doctor``. Exit status 1 if steps can't be run here."""
    parser = Parser(
        "doctor",
        usage="[OPTIONS]",
        description="Show what this machine offers for building, and what pybuild does where something is missing.",
    )
    parser.flag("--json", help="print JSON")
    options = parser.parse(arguments)
    from pybuild.daemon.doctor import probe

    report = probe(root=environment.root)
    rows = [(one.topic, one.level.value, one.found, one.consequence, one.remedy) for one in report.findings]
    rows.append(_configuration(environment))
    if options.json:
        keys = ("topic", "level", "found", "consequence", "remedy")
        print(json.dumps([dict(zip(keys, row)) for row in rows], indent=2))
        return 0 if report.able else 1
    width = max(len(row[0]) for row in rows)
    for topic, level, found, consequence, remedy in rows:
        mark = _MARKS[level] if (sys.stdout.encoding or "").lower().startswith("utf") else level
        print(f"{mark} {topic:<{width}}  {found}")
        if consequence:
            print(f"  {'':<{width}}  → {consequence}")
        if remedy:
            print(f"  {'':<{width}}  remedy: {remedy}")
    print("\nSteps can be run here." if report.able else "\nSteps can't be run here.")
    return 0 if report.able else 1


def _configuration(environment: Environment) -> tuple[str, str, str, str, str]:
    settings = environment.settings()
    where = str(environment.config_file) if environment.config_file is not None else "no configuration file"
    hosts = ", ".join(sorted(settings.registry)) or "none configured"
    return ("registries", "ok", f"{hosts} ({where})", "", "")
