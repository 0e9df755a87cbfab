"""The registry commands: ``pull``, ``push``, ``copy``, ``ls``, ``manifest``, ``delete``, ``referrers``, ``login``, ``logout``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pybuild.errors import UsageError

from .cancelling import cancelling
from .environment import Environment
from .options import Parser
from .render_plain import human_bytes
from .transfers import TransferDisplay

if TYPE_CHECKING:
    from pybuild.layers.descriptor import Platform


def _platform(text: str | None) -> Platform | None:
    from pybuild.builder.platforms import parse_platform
    from pybuild.daemon.machine import host_platform

    return None if text is None else parse_platform(text, default=host_platform())


def pull(arguments: list[str], environment: Environment) -> int:
    """``pybuild pull``."""
    parser = Parser(
        "pull",
        usage="[OPTIONS] NAME[:TAG|@DIGEST]",
        description="Fetch an image from a registry into the local store, unpacked and ready.",
    )
    parser.add_argument("name", metavar="NAME", help="the image")
    parser.add_argument("--platform", metavar="PLATFORM", help="which image of an index (default: this machine's)")
    parser.flag("--all-platforms", help="every image of an index")
    parser.flag("-q", "--quiet", help="print only the reference and nothing while it runs")
    parser.flag("--offline", help="refuse to contact a registry")
    options = parser.parse(arguments)
    if options.platform and options.all_platforms:
        raise UsageError("--platform and --all-platforms can't be used together")
    with (
        cancelling() as cancel,
        TransferDisplay(quiet=options.quiet) as display,
        environment.workbench(offline=options.offline) as engine,
    ):
        report = engine.pull(
            options.name,
            platform=_platform(options.platform),
            all_platforms=options.all_platforms,
            on_transfer=display,
            cancel=cancel,
        )
    if not options.quiet:
        print(
            f"{report.layers_existing} layers already there, {human_bytes(report.bytes_received)} received",
            file=sys.stderr,
        )
        print(f"Digest: {report.descriptor.digest}", file=sys.stderr)
    print(report.reference.canonical)
    return 0


def push(arguments: list[str], environment: Environment) -> int:
    """``pybuild push``."""
    parser = Parser(
        "push",
        usage="[OPTIONS] NAME[:TAG]",
        description="Send an image of the local store to a registry; only what is missing there is sent.",
    )
    parser.add_argument("name", metavar="NAME", help="the image")
    parser.flag("-a", "--all-tags", help="every tag of this repository")
    parser.add_argument("--platform", metavar="PLATFORM", help="only this image of an index")
    parser.add_argument(
        "--compression",
        choices=["gzip", "zstd", "uncompressed"],
        metavar="KIND",
        help="of layers that are not compressed yet: gzip (default), zstd or uncompressed",
    )
    parser.add_argument("--compression-level", type=int, metavar="N", help="the compressor's level")
    parser.flag("--force-compression", help="compress again what has another form")
    parser.flag("-q", "--quiet", help="print nothing while it runs")
    options = parser.parse(arguments)
    with (
        cancelling() as cancel,
        TransferDisplay(quiet=options.quiet) as display,
        environment.workbench() as engine,
    ):
        names = engine.tags_of(options.name) if options.all_tags else [options.name]
        for name in names:
            report = engine.push(
                name,
                platform=_platform(options.platform),
                compression=options.compression or "gzip",
                level=options.compression_level,
                force=options.force_compression,
                on_transfer=display,
                cancel=cancel,
            )
            if not options.quiet:
                print(
                    f"{name}: digest: {report.descriptor.digest} size: {report.descriptor.size}"
                    + (" (unchanged)" if report.unchanged else ""),
                )
                print(
                    f"{human_bytes(report.bytes_sent)} sent, {report.mounted} blobs mounted, {report.existing} already there",
                    file=sys.stderr,
                )
    return 0


def copy(arguments: list[str], environment: Environment) -> int:
    """``pybuild copy``."""
    parser = Parser(
        "copy",
        usage="[OPTIONS] SOURCE DESTINATION",
        description="Copy an image without the local store. Both are a registry's name, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME].",
    )
    parser.add_argument("source", metavar="SOURCE", help="where from")
    parser.add_argument("destination", metavar="DESTINATION", help="where to")
    parser.add_argument("--platform", metavar="PLATFORM", help="only this image of an index (default: all)")
    parser.flag("-q", "--quiet", help="print nothing while it runs")
    options = parser.parse(arguments)
    from pybuild.daemon.registry_commands import copy as copy_image

    with cancelling() as cancel, TransferDisplay(quiet=options.quiet) as display:
        report = copy_image(
            environment.registries(),
            options.source,
            options.destination,
            platform=_platform(options.platform),
            on_transfer=display,
            cancel=cancel,
        )
    if not options.quiet:
        print(
            f"{human_bytes(report.bytes_sent)} sent, {report.mounted} blobs mounted, {report.existing} already there",
            file=sys.stderr,
        )
    print(report.descriptor.digest)
    return 0


def ls(arguments: list[str], environment: Environment) -> int:
    """``pybuild ls``."""
    parser = Parser(
        "ls",
        usage="[OPTIONS] HOST | NAME",
        description="List a registry's repositories (HOST/ or HOST) or a repository's tags.",
    )
    parser.add_argument("name", metavar="HOST|NAME", help="HOST/ for repositories, else a repository")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="stop after N")
    options = parser.parse(arguments)
    from pybuild.daemon.registry_commands import list_registry

    for count, item in enumerate(list_registry(environment.registries(), options.name), 1):
        print(item)
        if options.limit and count >= options.limit:
            break
    return 0


def manifest(arguments: list[str], environment: Environment) -> int:
    """``pybuild manifest get``."""
    parser = Parser(
        "manifest",
        usage="get NAME[:TAG|@DIGEST]",
        description="Print a manifest or index as the registry has it, byte for byte.",
    )
    parser.add_argument("action", choices=["get"], metavar="get", help="print it")
    parser.add_argument("name", metavar="NAME", help="the image")
    parser.flag("--descriptor", help="print its descriptor (media type, digest, size) instead")
    options = parser.parse(arguments)
    from pybuild.daemon.registry_commands import registry_manifest

    content = registry_manifest(environment.registries(), options.name)
    if options.descriptor:
        print(json.dumps(content.descriptor.to_json()))
    else:
        sys.stdout.buffer.write(content.data)
        sys.stdout.buffer.flush()
    return 0


def print_raw(names: Sequence[str], environment: Environment) -> int:
    """``inspect --raw``: the manifest of the local store, else the registry's."""
    with environment.workbench() as engine:
        for name in names:
            sys.stdout.buffer.write(engine.raw_manifest(name))
            sys.stdout.buffer.flush()
    return 0


def delete(arguments: list[str], environment: Environment) -> int:
    """``pybuild delete``."""
    parser = Parser(
        "delete",
        usage="NAME:TAG|NAME@DIGEST",
        description="Delete a tag or a manifest from a registry that permits it.",
    )
    parser.add_argument("name", metavar="NAME", help="what to delete; a tag or a digest must be given")
    options = parser.parse(arguments)
    from pybuild.daemon.registry_commands import delete as delete_reference

    print(f"Deleted: {delete_reference(environment.registries(), options.name)}")
    return 0


def referrers(arguments: list[str], environment: Environment) -> int:
    """``pybuild referrers``."""
    parser = Parser(
        "referrers",
        usage="[OPTIONS] NAME[:TAG|@DIGEST]",
        description="List what refers to an image: signatures, attestations, SBOMs.",
    )
    parser.add_argument("name", metavar="NAME", help="the image")
    parser.add_argument("--artifact-type", default="", metavar="TYPE", help="only this artifact type")
    options = parser.parse(arguments)
    from pybuild.daemon.registry_commands import referrers as find_referrers

    found = find_referrers(environment.registries(), options.name, artifact_type=options.artifact_type)
    print(json.dumps([descriptor.to_json() for descriptor in found], indent=2))
    return 0


def login(arguments: list[str], environment: Environment) -> int:
    """``pybuild login``."""
    parser = Parser(
        "login",
        usage="[OPTIONS] [SERVER]",
        description="Check credentials with a registry and keep them in Docker's config.json or its credential helper.",
    )
    parser.add_argument(
        "server", nargs="?", default="docker.io", metavar="SERVER", help="the registry's host (default docker.io)"
    )
    parser.add_argument("-u", "--username", metavar="NAME", help="the user name (asked for on a terminal)")
    parser.add_argument(
        "-p",
        "--password",
        metavar="PASSWORD",
        help="the password; visible in process lists, so better --password-stdin",
    )
    parser.flag("--password-stdin", help="read the password from stdin")
    options = parser.parse(arguments)
    if options.password and options.password_stdin:
        raise UsageError("--password and --password-stdin can't be used together")
    if options.password_stdin and not options.username:
        raise UsageError("--password-stdin needs --username")
    username, password = options.username, options.password
    if options.password:
        print("WARNING! Using --password on the command line is insecure. Use --password-stdin.", file=sys.stderr)
    if options.password_stdin:
        password = sys.stdin.read().rstrip("\r\n")
    elif not username or not password:
        if not sys.stdin.isatty():
            raise UsageError("login needs a terminal to ask on", hint="use --username NAME --password-stdin")
        import getpass

        username = username or input("Username: ")
        password = password or getpass.getpass("Password: ")
    if not username or not password:
        raise UsageError("the user name and the password can't be empty")
    from pybuild.daemon.registry_commands import login as log_in

    where = log_in(environment.registries(), options.server, username, password)
    print(f"Login Succeeded (kept in {where})")
    return 0


def logout(arguments: list[str], environment: Environment) -> int:
    """``pybuild logout``."""
    parser = Parser("logout", usage="[SERVER]", description="Forget the credentials of a registry.")
    parser.add_argument(
        "server", nargs="?", default="docker.io", metavar="SERVER", help="the registry's host (default docker.io)"
    )
    options = parser.parse(arguments)
    known = environment.registries().config.erase(options.server)
    print(f"Removing login credentials for {options.server}" if known else f"Not logged in to {options.server}")
    return 0
