"""``pybuild context ls``: what a build context holds after the ignore file, and which rule decided about a path."""

from __future__ import annotations

import json
import os
import sys

from pybuild.errors import UsageError

from .environment import Environment
from .options import Parser
from .tables import human_size, print_table


def context(arguments: list[str], environment: Environment) -> int:
    """``pybuild context``."""
    parser = Parser(
        "context", usage="ls [OPTIONS] [PATH]", description="Show what a build context holds after .dockerignore."
    )
    parser.add_argument("action", choices=["ls"], metavar="ls", help="list the context")
    parser.add_argument("path", nargs="?", default=".", metavar="PATH", help="the context (default: .)")
    parser.add_argument("-f", "--file", metavar="FILE", help="the Dockerfile, whose own ignore file counts first")
    parser.add_argument("--explain", metavar="PATH", help="tell whether PATH is in the context, and which rule decided")
    parser.add_argument(
        "--biggest", type=int, default=10, metavar="N", help="how many of the biggest directories to show (default 10)"
    )
    parser.flag("--all", help="list every file")
    parser.flag("--json", help="print JSON")
    options = parser.parse(arguments)
    from pybuild.builder.contexts import open_local_context
    from pybuild.builder.contexts_listing import explain_path, list_context

    opened = open_local_context(options.path, directory=os.getcwd(), dockerfile=options.file)
    if options.explain is not None:
        found = explain_path(options.explain, root=opened.root, ignore=opened.ignore, ignore_name=opened.ignore_name)
        if options.json:
            print(json.dumps({"path": found.path, "kept": found.kept, "exists": found.exists, "rule": found.rule, "line": found.line, "file": found.ignore_name}))  # fmt: skip
        else:
            print(found)
        return 0 if found.kept else 1
    if options.biggest < 0:
        raise UsageError("--biggest can't be negative")
    listing = list_context(opened.view, biggest=options.biggest)
    if options.json:
        value = {
            "ignoreFile": opened.ignore_name or None,
            "size": listing.size,
            "entries": [{"path": e.path, "kind": e.kind.value, "size": e.size} for e in listing.entries],
            "directories": [{"path": d.path, "size": d.size, "entries": d.entries} for d in listing.directories],
        }
        print(json.dumps(value, ensure_ascii=True))
        return 0
    if options.all:
        for entry in listing.entries:
            sys.stdout.write(f"{human_size(entry.size):>8}  {entry.path}".encode("utf-8", "surrogateescape").decode("utf-8", "replace") + "\n")  # fmt: skip
    elif listing.directories:
        print_table(
            ["SIZE", "ENTRIES", "DIRECTORY"],
            [[human_size(row.size), str(row.entries), row.path] for row in listing.directories],
        )
    rules = f", rules of {opened.ignore_name}" if opened.ignore_name else ", no ignore file"
    print(f"\n{len(listing.entries)} entries, {human_size(listing.size)}{rules}")
    return 0
