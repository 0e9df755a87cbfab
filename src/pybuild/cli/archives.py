"""``save``, ``load`` and ``import``: images as tar archives."""

from __future__ import annotations

import sys

from pybuild.errors import UsageError

from .environment import Environment
from .options import Parser, existing_parent, key_value


def save(arguments: list[str], environment: Environment) -> int:
    """``pybuild save``."""
    parser = Parser(
        "save",
        usage="[OPTIONS] IMAGE [IMAGE…]",
        description="Write images to a tar archive that docker, podman and skopeo read.",
    )
    parser.add_argument("names", nargs="+", metavar="IMAGE", help="a name, an ID or a digest")
    parser.add_argument("-o", "--output", metavar="FILE", help="write to FILE instead of stdout")
    parser.add_argument(
        "--format",
        choices=["docker", "oci"],
        default="docker",
        metavar="FORMAT",
        help="docker (default: readable by docker load and as an OCI layout) or oci",
    )
    options = parser.parse(arguments)
    if options.output is None and sys.stdout.isatty():
        raise UsageError("cowardly refusing to save to a terminal", hint="use -o FILE or redirect")
    if options.output:
        existing_parent(options.output, option="--output")
    with environment.workbench() as engine:
        engine.save_images(
            options.names,
            dest=options.output,
            stdout=sys.stdout.buffer,
            docker=options.format == "docker",
        )
    return 0


def load(arguments: list[str], environment: Environment) -> int:
    """``pybuild load``."""
    parser = Parser(
        "load",
        usage="[OPTIONS]",
        description="Read images from a tar archive: docker save's or an OCI layout, compressed or not.",
    )
    parser.add_argument("-i", "--input", metavar="FILE", help="read FILE instead of stdin")
    parser.flag("-q", "--quiet", help="print nothing")
    options = parser.parse(arguments)
    if options.input is None and sys.stdin.isatty():
        raise UsageError("requested load from stdin, but stdin is empty", hint="use -i FILE or redirect")
    with environment.workbench() as engine:
        try:
            source = open(options.input, "rb") if options.input else sys.stdin.buffer  # noqa: SIM115  # closed below, but stdin isn't ours
        except OSError as error:
            raise UsageError(f"can't read {options.input!r}: {error.strerror}") from error
        try:
            loaded = engine.load_images(source)
        finally:
            if options.input:
                source.close()
    if not options.quiet:
        for image in loaded:
            print(f"Loaded image: {image.name}" if image.name else f"Loaded image ID: {image.id}")
    return 0


def import_(arguments: list[str], environment: Environment) -> int:
    """``pybuild import``."""
    parser = Parser(
        "import",
        usage="[OPTIONS] FILE|URL|- [NAME[:TAG]]",
        description="Make an image of one layer from a tar of a root file system.",
    )
    parser.add_argument(
        "source", metavar="FILE|URL|-", help="the tar (compressed or not), a URL of one, or - for stdin"
    )
    parser.add_argument("name", nargs="?", metavar="NAME[:TAG]", help="the image's name")
    parser.add_argument(
        "-c",
        "--change",
        action="append",
        default=[],
        metavar="INSTRUCTION",
        help="a Dockerfile instruction for the configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, …",
    )
    parser.add_argument("-m", "--message", default="", metavar="TEXT", help="the comment in the history")
    parser.add_argument("--platform", metavar="PLATFORM", help="the image's platform (default: this machine's)")
    parser.add_argument("--label", action="append", default=[], metavar="K=V", help="add a label")
    options = parser.parse(arguments)
    labels = dict(key_value(text, option="--label") for text in options.label)
    with environment.workbench() as engine:
        identifier = engine.import_image(
            options.source,
            stdin=sys.stdin.buffer,
            name=options.name,
            changes=tuple(options.change),
            message=options.message,
            platform=options.platform,
            labels=labels,
        )
    print(identifier)
    return 0
