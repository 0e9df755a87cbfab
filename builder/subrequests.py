"""What can be asked about a Dockerfile besides building it: the list that ``--call=subrequests.describe`` shows (BuildKit's
``frontend.subrequests.describe``, version 1.0.0). Answers none of the questions itself."""

from __future__ import annotations

import json
from typing import Final

_TEXTS: Final = ("result.json", "result.txt")
_REQUESTS: Final = (
    ("frontend.outline", "List all parameters current build target supports", ("target",), _TEXTS),
    ("frontend.targets", "List all targets current build supports", (), _TEXTS),
    ("frontend.lint", "Lint a Dockerfile", (), (*_TEXTS, "result.statuscode")),
    ("frontend.subrequests.describe", "List available subrequest types", (), _TEXTS),
)
_OPTIONS: Final = {"target": "Target build stage"}
_VERSION: Final = "1.0.0"


def describe_json() -> str:
    """The JSON document, indented by two."""
    value = [
        {
            "name": name,
            "version": _VERSION,
            "type": "rpc",
            "description": description,
            "opts": [{"name": option, "description": _OPTIONS[option]} for option in options],
            "inputs": None,
            "metadata": [{"name": item, "description": ""} for item in metadata],
            "refs": None,
        }
        for name, description, options, metadata in _REQUESTS
    ]
    return json.dumps(value, indent=2)


def describe_text() -> str:
    """The table that buildx prints."""
    rows = [("NAME", "VERSION", "DESCRIPTION")]
    rows += [(name.removeprefix("frontend."), _VERSION, description) for name, description, _, _ in _REQUESTS]
    widths = [max(len(row[column]) for row in rows) + 1 for column in range(2)]
    return "".join(f"{row[0]:<{widths[0]}}{row[1]:<{widths[1]}}{row[2]}\n" for row in rows)
