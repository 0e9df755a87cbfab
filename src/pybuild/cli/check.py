"""``pybuild check`` (also ``build --check`` and ``--call=…``) and ``pybuild parse``: a Dockerfile looked at, nothing built."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pybuild.errors import PybuildError, UsageError
from pybuild.layers.whole_file import whole_file

from .environment import Environment
from .options import Parser

if TYPE_CHECKING:
    from pybuild.builder.request import BuildRequest
    from pybuild.layers.descriptor import Platform
    from pybuild.layers.image import ImageConfig
    from pybuild.parser.dockerignore import IgnoreMatcher


def check(arguments: list[str], environment: Environment) -> int:
    """``pybuild check``. Exit status 1 if there is a finding."""
    parser = Parser("check", usage="[OPTIONS] [PATH]", description="Check a Dockerfile for problems, without building.")
    parser.add_argument(
        "context", nargs="?", default=".", metavar="PATH", help="the build context (default: .), or a Dockerfile"
    )
    parser.add_argument("-f", "--file", metavar="FILE", help="the Dockerfile (default: PATH/Dockerfile); - reads stdin")
    parser.add_argument("--build-arg", action="append", default=[], metavar="K[=V]", help="set an ARG")
    parser.add_argument("--target", metavar="STAGE", help="check only what this stage needs")
    parser.add_argument(
        "--format", choices=["text", "json"], default="text", metavar="FORMAT", help="text (default) or json"
    )
    parser.flag("--json", help="the same as --format json")
    parser.flag("--fix", help="rewrite in the Dockerfile what can be rewritten safely, then check the result")
    options = parser.parse(arguments)
    context, file = options.context, options.file
    if file is None and os.path.isfile(context):
        context, file = os.path.dirname(context) or ".", context
    from .build import parser as build_parser
    from .build import request_from

    words = [context, *(["-f", file] if file else []), *(["--target", options.target] if options.target else [])]
    for text in options.build_arg:
        words += ["--build-arg", text]
    request = request_from(build_parser().parse(words), environment.variables)
    if options.fix:
        _fix(request, environment)
    return run_call(request, environment, call="check", as_json=options.json or options.format == "json")


def run_call(request: BuildRequest, environment: Environment, *, call: str, as_json: bool) -> int:
    """``--call=check|outline|targets|subrequests.describe``: print what buildx prints."""
    if call == "subrequests.describe":
        from pybuild.builder.subrequests import describe_json, describe_text

        print(describe_json() if as_json else describe_text(), end="\n" if as_json else "")
        return 0
    from pybuild.builder.contexts import open_context
    from pybuild.daemon.machine import host_platform
    from pybuild.daemon.remotes_on_demand import RemotesOnDemand

    here = host_platform()
    platform = request.platforms[0] if request.platforms else here
    import threading

    registries = environment.registries()
    with tempfile.TemporaryDirectory(prefix="pybuild-") as scratch:
        remotes = RemotesOnDemand(Path(scratch), registries, secrets={}, cancel=threading.Event())
        with open_context(
            request.context,
            directory=request.directory,
            dockerfile=request.dockerfile,
            stdin=request.stdin,
            remotes=remotes,
            scratch=scratch,
        ) as opened:
            bases = _Bases(environment)
            if call == "check":
                return _check(
                    opened.dockerfile,
                    opened.dockerfile_name,
                    request,
                    platform,
                    here,
                    bases,
                    opened.ignore,
                    as_json=as_json,
                )
            from pybuild.parser import parse

            dockerfile = parse(opened.dockerfile, filename=opened.dockerfile_name)
            if call == "targets":
                from pybuild.builder.outline import targets

                listed = targets(dockerfile)
                print(listed.to_json() if as_json else listed.to_text(), end="\n" if as_json else "")
                return 0
            from pybuild.builder.outline import outline

            found = outline(
                dockerfile,
                platform=platform,
                build_platform=here,
                target=request.target,
                build_args=request.build_args,
                base_config=bases.config,
            )
            print(found.to_json() if as_json else found.to_text(), end="\n" if as_json else "")
            return 0


def _check(
    text: bytes,
    name: str,
    request: BuildRequest,
    platform: Platform,
    here: Platform,
    bases: _Bases,
    ignore: IgnoreMatcher | None,
    *,
    as_json: bool,
) -> int:
    from pybuild.builder.check_report import error_text, result_json, warnings_text
    from pybuild.builder.checks import CheckOptions, check_file

    result = check_file(
        text,
        filename=name,
        options=CheckOptions(
            platform=platform,
            build_platform=here,
            build_args=request.build_args,
            target=request.target,
            ignore=ignore,
            base_config=bases.config,
        ),
    )
    if as_json:
        print(result_json(result))
        return result.exit_code
    print(warnings_text(result), end="")
    if result.error is not None:
        message, _, listing = error_text(result).partition("\n")
        if listing:
            print(listing.rstrip("\n"), file=sys.stderr)
        print(f"ERROR: {message}", file=sys.stderr)
    return result.exit_code


class _Bases:
    """Configurations of base images that the store, or the daemon's, has or has seen in a build: a check asks no registry."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def config(self, name: str, platform: Platform) -> ImageConfig | None:
        """The configuration, None if it isn't known here."""
        environment = self._environment
        if environment.host is None and not (environment.root / "version").exists():
            return None
        try:
            with environment.workbench() as engine:
                return engine.base_config(name, platform=platform)
        except (PybuildError, OSError) as error:
            if environment.host is not None:
                from pybuild.daemon.wire import RemoteFailure

                if not isinstance(error, RemoteFailure):
                    raise  # no daemon answers
            return None


def _fix(request: BuildRequest, environment: Environment) -> None:
    from pybuild.builder.check_fixes import fix
    from pybuild.daemon.machine import host_platform
    from pybuild.parser import parse

    path = Path(request.directory, request.dockerfile or Path(request.context, "Dockerfile"))
    if request.dockerfile == "-" or not path.is_file():
        raise UsageError("--fix needs a Dockerfile on this machine", hint="give its directory, or the file with -f")
    before = path.read_bytes()
    dockerfile = parse(before, filename=path.name)
    text = fix(
        dockerfile,
        build_args=request.build_args,
        platform=host_platform(),
        base_config=_Bases(environment).config,
    )
    after = text.encode("utf-8", "surrogateescape")
    if after == before:
        print("nothing to fix", file=sys.stderr)
        return
    with whole_file(path) as out:
        os.fchmod(out.fileno(), path.stat().st_mode & 0o7777)
        out.write(after)
    changed = sum(one != other for one, other in zip(before.splitlines(), after.splitlines()))
    print(f"fixed {changed} lines in {path}", file=sys.stderr)


def parse(arguments: list[str], environment: Environment) -> int:
    """``pybuild parse``."""
    parser = Parser("parse", usage="[OPTIONS] [FILE]", description="Print a Dockerfile's syntax tree.")
    parser.add_argument(
        "file",
        nargs="?",
        default="Dockerfile",
        metavar="FILE",
        help="the Dockerfile (default: ./Dockerfile); - reads stdin",
    )
    parser.flag("--json", help="print JSON (the only form there is)")
    options = parser.parse(arguments)
    from pybuild.parser import parse as parse_text
    from pybuild.parser.serialize import to_json

    try:
        data = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {options.file!r}: {error.strerror}") from error
    print(json.dumps(to_json(parse_text(data, filename=options.file)), indent=2))
    return 0
