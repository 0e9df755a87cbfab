"""``du`` and ``prune``: what the store holds, and freeing it."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from pybuild.errors import UsageError

from .environment import Environment
from .options import Parser, as_usage
from .tables import human_age, human_size, print_rows
from .templates import render

if TYPE_CHECKING:
    from pybuild.layers.usage import CacheUsage

_COLUMNS = {"ID": "ID", "Reclaimable": "RECLAIMABLE", "Size": "SIZE", "LastUsedSince": "LAST ACCESSED"}
_IMAGE_COLUMNS = {"Image": "IMAGE", "Size": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE"}
_BUILD_COLUMNS = {
    "Build": "BUILD",
    "Started": "STARTED",
    "Names": "NAMES",
    "Steps": "STEPS",
    "Size": "SIZE",
    "SharedSize": "SHARED SIZE",
}


def du(arguments: list[str], environment: Environment) -> int:
    """``pybuild du``."""
    parser = Parser("du", usage="[OPTIONS]", description="Show what the build cache and the images hold.")
    parser.flag("--verbose", help="all fields of each record")
    parser.flag("--images", help="the images' share instead of the cache's records")
    parser.flag("--builds", help="what the steps of each remembered build hold, instead of the cache's records")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="EXPR",
        help="only records that match: id~=…, type==…, inuse, shared, until=24h",
    )
    parser.add_argument("--format", metavar="FORMAT", help="json (a line a record), or a Go template")
    options = parser.parse(arguments)
    from pybuild.layers.usage import UsageFilter

    filters = [UsageFilter.parse(text) for text in options.filter]
    if options.builds:
        return _builds(environment, form=options.format)
    with environment.workbench() as engine:
        usage = engine.usage()
    if options.images:
        images: list[dict[str, object]] = [
            {
                "Image": image.image.names[0] if image.image.names else "<none>",
                "Size": human_size(image.size),
                "SharedSize": human_size(image.shared),
                "UniqueSize": human_size(image.size - image.shared),
            }
            for image in usage.images
        ]
        print_rows(images, _IMAGE_COLUMNS, form=options.format)
        return 0
    records = [row for row in usage.cache if not filters or any(one.matches(row, now=time.time()) for one in filters)]
    if options.format:
        for row in records:
            fields = _fields(row)
            print(json.dumps(fields) if options.format == "json" else render(options.format, fields))
        return 0
    if options.verbose:
        for row in records:
            for name, value in _fields(row).items():
                print(f"{name}:\t{value}")
            print()
    else:
        print_rows([_shown(row) for row in records], _COLUMNS, form=None)
    shared = sum(row.size for row in records if row.shared)
    total = sum(row.size for row in records)
    if shared:
        print(f"Shared:\t\t{human_size(shared)}\nPrivate:\t{human_size(total - shared)}")
    print(
        f"Reclaimable:\t{human_size(sum(row.size for row in records if row.reclaimable))}\nTotal:\t\t{human_size(total)}"
    )
    return 0


def _builds(environment: Environment, *, form: str | None) -> int:
    with environment.workbench() as engine:
        found = engine.build_usage()
    now = time.time()
    rows: list[dict[str, object]] = [
        {
            "Build": one.build.ref[:12],
            "Started": f"{human_age(max(0.0, now - one.build.started))} ago",
            "Names": ", ".join(one.build.names) or "-",
            "Steps": one.steps,
            "Size": human_size(one.size),
            "SharedSize": human_size(one.shared),
        }
        for one in found
    ]
    print_rows(rows, _BUILD_COLUMNS, form=form)
    return 0


def prune(arguments: list[str], environment: Environment) -> int:
    """``pybuild prune``."""
    parser = Parser(
        "prune",
        usage="[OPTIONS]",
        description="Free the build cache and what nothing refers to. Images with a name stay unless --images --all.",
    )
    parser.flag("-a", "--all", help="everything that nothing running needs")
    parser.flag("-f", "--force", help="don't ask")
    parser.flag("--dry-run", help="only tell what would go")
    parser.flag("--images", help="also images without a name; with --all every image")
    parser.flag("--verbose", help="all fields of each record")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="EXPR",
        help="only records that match: id~=…, type==…, until=24h, …",
    )
    parser.add_argument("--keep-duration", metavar="DURATION", help="keep what was used within it, such as 24h")
    parser.add_argument(
        "--max-used-space",
        "--keep-storage",
        dest="max_used",
        metavar="SIZE",
        help="keep the cache below this, least recently used first",
    )
    parser.add_argument("--reserved-space", metavar="SIZE", help="this much may always stay")
    parser.add_argument("--min-free-space", metavar="SIZE", help="free at least so much of the disk")
    options = parser.parse(arguments)
    from pybuild.daemon.settings import parse_duration, parse_size
    from pybuild.layers.gc import PrunePolicy
    from pybuild.layers.usage import UsageFilter

    policy = PrunePolicy(
        filters=tuple(UsageFilter.parse(text) for text in options.filter),
        keep_duration_seconds=as_usage(parse_duration, options.keep_duration, option="--keep-duration")
        if options.keep_duration
        else 0.0,
        max_used_bytes=as_usage(parse_size, options.max_used, option="--max-used-space") if options.max_used else 0,
        reserved_bytes=as_usage(parse_size, options.reserved_space, option="--reserved-space")
        if options.reserved_space
        else 0,
        min_free_bytes=as_usage(parse_size, options.min_free_space, option="--min-free-space")
        if options.min_free_space
        else 0,
        all=options.all,
    )
    if not options.force and not options.dry_run and not _confirmed(options.all, options.images):
        return 1
    freed = 0
    with environment.workbench() as engine:
        if options.images and not options.dry_run:
            images = engine.prune_images(all=options.all)
            freed += images.freed_bytes
            for name in images.untagged:
                print(f"Untagged: {name}")
            for identifier in images.deleted:
                print(f"Deleted: {identifier}")
        report = engine.prune(policy, dry_run=options.dry_run)
    freed += report.freed_bytes
    if options.verbose:
        for row in report.removed:
            for name, value in _fields(row).items():
                print(f"{name}:\t{value}")
            print()
    elif report.removed:
        print_rows([_shown(row) for row in report.removed], _COLUMNS, form=None)
    print(f"{'Would free' if options.dry_run else 'Total'}:\t{human_size(freed)}")
    return 0


def _confirmed(everything: bool, images: bool) -> bool:
    what = "all build cache" if everything else "the build cache that no image needs"
    if images:
        what += " and all images" if everything else " and images without a name"
    if not sys.stdin.isatty():
        raise UsageError("prune asks before it removes, and there is no terminal to ask on", hint="use --force")
    print(
        f"WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _shown(row: CacheUsage) -> dict[str, Any]:  # Any: what a template may show
    ago = "" if row.last_used is None else f"{human_age(max(0.0, time.time() - row.last_used))} ago"
    return {
        "ID": row.id + ("*" if row.mutable else ""),
        "Reclaimable": "true" if row.reclaimable else "false",
        "Size": human_size(row.size),
        "LastUsedSince": ago,
    }


def _fields(row: CacheUsage) -> dict[str, Any]:  # Any: what a template may show
    from pybuild.builder.assemble import rfc3339

    return {
        "ID": row.id,
        "Parents": list(row.parents),
        "CreatedAt": rfc3339(row.created),
        "Mutable": row.mutable,
        "Reclaimable": row.reclaimable,
        "InUse": row.in_use,
        "Shared": row.shared,
        "Size": row.size,
        "Description": row.description,
        "UsageCount": row.usage_count,
        "LastUsedAt": None if row.last_used is None else rfc3339(row.last_used),
        "Type": row.type.value,
    }
