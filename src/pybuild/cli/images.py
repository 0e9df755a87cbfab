"""The local image store's commands: ``images``, ``inspect``, ``history``, ``tag``, ``rmi``."""

from __future__ import annotations

import json
import sys
import time

from pybuild.errors import PybuildError

from .environment import Environment
from .options import Parser
from .tables import age_of, docker_time, human_size, parse_time, print_rows

_COLUMNS = {"Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "CreatedSince": "CREATED", "Size": "SIZE"}


def images(arguments: list[str], environment: Environment) -> int:
    """``pybuild images``."""
    parser = Parser("images", usage="[OPTIONS] [REPOSITORY[:TAG]]", description="List the images in the local store.")
    parser.add_argument("name", nargs="?", metavar="REPOSITORY[:TAG]", help="only images of this name")
    parser.flag("-a", "--all", help="also images without a name")
    parser.flag("-q", "--quiet", help="only IDs")
    parser.flag("--no-trunc", help="whole IDs")
    parser.flag("--digests", help="show digests")
    parser.add_argument(
        "-f",
        "--filter",
        action="append",
        default=[],
        metavar="K=V",
        help="dangling=true|false, label=K[=V], reference=PATTERN, before=IMAGE, since=IMAGE",
    )
    parser.add_argument("--format", metavar="FORMAT", help="table, json, or a Go template")
    options = parser.parse(arguments)
    with environment.workbench() as engine:
        from pybuild.daemon.image_list import ImageFilter

        rows = engine.image_rows(ImageFilter.parse(options.filter, name=options.name))
    now = time.time()
    shown = []
    for row in rows:
        whole = str(row.id)
        created = parse_time(row.created)
        shown.append(
            {
                "Repository": row.repository,
                "Tag": row.tag,
                "ID": whole if options.no_trunc else whole.removeprefix("sha256:")[:12],
                "Digest": row.digest or "<none>",
                "CreatedSince": age_of(row.created, now),
                "CreatedAt": docker_time(created) if created is not None else "N/A",
                "Size": human_size(row.size),
            }
        )
    if options.quiet:
        for identifier in dict.fromkeys(str(row["ID"]) for row in shown):
            print(identifier)
        return 0
    columns = dict(_COLUMNS)
    if options.digests:
        columns = {"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", **_COLUMNS}
    print_rows(shown, columns, form=options.format)
    return 0


def inspect(arguments: list[str], environment: Environment) -> int:
    """``pybuild inspect``."""
    parser = Parser("inspect", usage="[OPTIONS] IMAGE [IMAGE…]", description="Print images' details as JSON.")
    parser.add_argument("names", nargs="+", metavar="IMAGE", help="a name, an ID or a digest")
    parser.add_argument("-f", "--format", metavar="TEMPLATE", help="a Go template, for example '{{.Config.Env}}'")
    parser.flag(
        "--raw", help="the manifest or index as it is stored; with a registry's name in front, as the registry has it"
    )
    parser.add_argument("--platform", metavar="PLATFORM", help="which image of an index")
    options = parser.parse(arguments)
    if options.raw:
        from .registry import print_raw

        return print_raw(options.names, environment)
    found = []
    missing: list[PybuildError] = []
    with environment.workbench() as engine:
        for name in options.names:
            try:
                found.append(engine.inspect(name, platform=options.platform))
            except PybuildError as error:
                missing.append(error)
    if options.format:
        from .templates import render

        for item in found:
            text = json.dumps(item, ensure_ascii=False) if options.format == "json" else render(options.format, item)
            print(text)
    else:
        print(json.dumps(found, indent=4, ensure_ascii=False))
    for problem in missing:
        print(f"ERROR: {problem.message}", file=sys.stderr)
    return 1 if missing else 0


def history(arguments: list[str], environment: Environment) -> int:
    """``pybuild history``."""
    parser = Parser(
        "history", usage="[OPTIONS] IMAGE", description="Show the steps that made an image, the last one first."
    )
    parser.add_argument("name", metavar="IMAGE", help="a name, an ID or a digest")
    parser.flag("--no-trunc", help="whole commands and IDs")
    parser.flag("-q", "--quiet", help="only IDs")
    parser.add_argument(
        "-H",
        "--human",
        nargs="?",
        const="true",
        default="true",
        metavar="BOOL",
        help="ages and sizes for people (default true)",
    )
    parser.add_argument("--format", metavar="FORMAT", help="table, json, or a Go template")
    options = parser.parse(arguments)
    human = str(options.human).lower() not in ("false", "0")
    with environment.workbench() as engine:
        found = engine.history(options.name)
    now = time.time()
    rows = []
    for position, line in enumerate(found.entries):
        command = line.entry.created_by.replace("\t", " ").replace("\n", " ")
        identifier = str(found.id) if position == 0 else "<missing>"
        if not options.no_trunc:
            command = command if len(command) <= 45 else command[:44] + "…"
            identifier = identifier.removeprefix("sha256:")[:12] if position == 0 else identifier
        rows.append(
            {
                "ID": identifier,
                "CreatedSince": age_of(line.entry.created, now) if human else line.entry.created or "N/A",
                "CreatedAt": line.entry.created or "N/A",
                "CreatedBy": command,
                "Size": human_size(line.size) if human else str(line.size),
                "Comment": line.entry.comment,
            }
        )
    if options.quiet:
        for row in rows:
            print(row["ID"])
        return 0
    columns = {
        "ID": "IMAGE",
        "CreatedSince": "CREATED",
        "CreatedBy": "CREATED BY",
        "Size": "SIZE",
        "Comment": "COMMENT",
    }
    print_rows(rows, columns, form=options.format)
    return 0


def tag(arguments: list[str], environment: Environment) -> int:
    """``pybuild tag``."""
    parser = Parser("tag", usage="SOURCE TARGET", description="Give an image another name.")
    parser.add_argument("source", metavar="SOURCE", help="a name, an ID or a digest")
    parser.add_argument("target", metavar="TARGET", help="the new name, NAME[:TAG]")
    options = parser.parse(arguments)
    with environment.workbench() as engine:
        engine.tag(options.source, options.target)
    return 0


def rmi(arguments: list[str], environment: Environment) -> int:
    """``pybuild rmi``."""
    parser = Parser(
        "rmi", usage="[OPTIONS] IMAGE [IMAGE…]", description="Remove names, and images that lose their last one."
    )
    parser.add_argument("names", nargs="+", metavar="IMAGE", help="a name, an ID or a digest")
    parser.flag("-f", "--force", help="remove an ID that has several names; say nothing of what isn't there")
    parser.flag("--no-prune", help="keep the layers until the next prune")
    options = parser.parse(arguments)
    failed: list[PybuildError] = []
    with environment.workbench() as engine:
        for name in options.names:
            try:
                removal = engine.remove_image(name, force=options.force, keep_layers=options.no_prune)
            except PybuildError as error:
                failed.append(error)
                continue
            for untagged in removal.untagged:
                print(f"Untagged: {untagged}")
            for deleted in removal.deleted:
                print(f"Deleted: {deleted}")
    for problem in failed:
        print(f"ERROR: {problem.message}", file=sys.stderr)
    missing = all("ImageNotFound" in (type(error).__name__, getattr(error, "kind", "")) for error in failed)
    return 1 if failed and not (options.force and missing) else 0
