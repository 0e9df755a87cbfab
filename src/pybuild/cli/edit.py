"""Images changed in their registry, without a rebuild: ``index``, ``rebase``, ``flatten``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .cancelling import cancelling
from .environment import Environment
from .options import Parser, key_value
from .render_plain import human_bytes
from .transfers import TransferDisplay

if TYPE_CHECKING:
    from pybuild.registry_client.push import PushReport


def _tell(report: PushReport, *, quiet: bool) -> None:
    if not quiet:
        print(
            f"{human_bytes(report.bytes_sent)} sent, {report.mounted} blobs mounted, {report.existing} already there",
            file=sys.stderr,
        )
    print(report.descriptor.digest)


def index(arguments: list[str], environment: Environment) -> int:
    """``pybuild index``."""
    parser = Parser(
        "index",
        usage="create|append [OPTIONS] TARGET IMAGE [IMAGE…]",
        description="Make a multi-platform index of images in registries, or add images to one. Layers are mounted or copied, never rebuilt.",
    )
    parser.add_argument(
        "action",
        choices=["create", "append"],
        metavar="create|append",
        help="make a new index, or add to what TARGET is",
    )
    parser.add_argument("target", metavar="TARGET", help="the name to push the index to")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="images or indexes; of two for one platform the later wins"
    )
    parser.add_argument(
        "-t",
        "--tag",
        action="append",
        default=[],
        metavar="TAG",
        help="further tags of the same repository; repeatable",
    )
    parser.add_argument(
        "--annotation", action="append", default=[], metavar="K=V", help="an annotation of the index; repeatable"
    )
    parser.flag("-q", "--quiet", help="print only the digest")
    options = parser.parse(arguments)
    from pybuild.daemon.registry_commands import create_index

    with cancelling() as cancel, TransferDisplay(quiet=options.quiet) as display:
        report = create_index(
            environment.registries(),
            options.target,
            options.images,
            tags=options.tag,
            append=options.action == "append",
            annotations=dict(key_value(text, option="--annotation") for text in options.annotation),
            on_transfer=display,
            cancel=cancel,
        )
    _tell(report, quiet=options.quiet)
    return 0


def rebase(arguments: list[str], environment: Environment) -> int:
    """``pybuild rebase``."""
    parser = Parser(
        "rebase",
        usage="[OPTIONS] IMAGE [TARGET]",
        description="Put an image's own layers on a new base, in the registry. Without options the image's annotations name the bases.",
    )
    parser.add_argument("image", metavar="IMAGE", help="the image to rebase")
    parser.add_argument("target", nargs="?", metavar="TARGET", help="the name of the result (default: IMAGE)")
    parser.add_argument("--old-base", metavar="IMAGE", help="what the image was made on")
    parser.add_argument("--new-base", metavar="IMAGE", help="what it shall stand on")
    parser.flag("-q", "--quiet", help="print only the digest")
    options = parser.parse(arguments)
    from pybuild.daemon.registry_commands import rebase as rebase_image

    with cancelling() as cancel, TransferDisplay(quiet=options.quiet) as display:
        report = rebase_image(
            environment.registries(),
            options.image,
            options.target or options.image,
            old_base=options.old_base,
            new_base=options.new_base,
            on_transfer=display,
            cancel=cancel,
        )
    _tell(report, quiet=options.quiet)
    return 0


def flatten(arguments: list[str], environment: Environment) -> int:
    """``pybuild flatten``."""
    parser = Parser(
        "flatten", usage="[OPTIONS] IMAGE [TARGET]", description="Merge the layers of an image in a registry into one."
    )
    parser.add_argument("image", metavar="IMAGE", help="the image")
    parser.add_argument("target", nargs="?", metavar="TARGET", help="the name of the result (default: IMAGE)")
    parser.flag("-q", "--quiet", help="print only the digest")
    options = parser.parse(arguments)
    from pybuild.daemon.registry_commands import flatten as flatten_image

    with cancelling() as cancel, TransferDisplay(quiet=options.quiet) as display:
        report = flatten_image(
            environment.registries(),
            options.image,
            options.target or options.image,
            on_transfer=display,
            cancel=cancel,
        )
    _tell(report, quiet=options.quiet)
    return 0
