"""Questions about a Dockerfile over BuildKit's API: lint, outline, targets, and which questions there are. Builds nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pybuild.errors import PybuildError

from .build_errors import unsupported_subrequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pybuild.builder.contexts import ContextRemotes, OpenedContext
    from pybuild.builder.request import BuildRequest
    from pybuild.daemon.engine import Engine
    from pybuild.layers.descriptor import Platform
    from pybuild.layers.image import ImageConfig

_VERSION: Final = b"1.0.0"
DESCRIBE: Final = "frontend.subrequests.describe"
NAMES: Final = ("frontend.lint", "frontend.outline", "frontend.targets", DESCRIBE)


def require_known(name: str) -> None:
    """Raises RpcError for a question that there isn't."""
    if name not in NAMES:
        raise unsupported_subrequest(name)


def describe() -> dict[str, bytes]:
    """Which questions there are."""
    from pybuild.builder.subrequests import describe_json, describe_text

    return _answer(describe_json(), describe_text())


def answer(
    name: str, request: BuildRequest, *, engine: Engine, remotes: ContextRemotes, scratch: Path
) -> Mapping[str, bytes]:
    """The answer as metadata of a result; ``request`` has paths of this machine. Raises PybuildError."""
    from pybuild.builder.contexts import open_context
    from pybuild.daemon.machine import host_platform
    from pybuild.parser import parse

    with open_context(
        request.context,
        directory=request.directory,
        dockerfile=request.dockerfile,
        stdin=request.stdin,
        remotes=remotes,
        scratch=scratch,
    ) as opened:
        here = host_platform()
        platform = request.platforms[0] if request.platforms else here
        if name == "frontend.lint":
            return _lint(opened, request, platform=platform, here=here, engine=engine)
        dockerfile = parse(opened.dockerfile, filename=opened.dockerfile_name)
        if name == "frontend.targets":
            from pybuild.builder.outline import targets

            listed = targets(dockerfile)
            return _answer(listed.to_json(), listed.to_text())
        from pybuild.builder.outline import outline

        found = outline(
            dockerfile,
            platform=platform,
            build_platform=here,
            target=request.target,
            build_args=request.build_args,
            base_config=lambda name, platform: _base(engine, name, platform),
        )
        return _answer(found.to_json(), found.to_text())


def _lint(
    opened: OpenedContext, request: BuildRequest, *, platform: Platform, here: Platform, engine: Engine
) -> Mapping[str, bytes]:
    from pybuild.builder.check_report import result_json, warnings_text
    from pybuild.builder.checks import CheckOptions, check_file

    result = check_file(
        opened.dockerfile,
        filename=opened.dockerfile_name,
        options=CheckOptions(
            platform=platform,
            build_platform=here,
            build_args=request.build_args,
            target=request.target,
            ignore=opened.ignore,
            base_config=lambda name, platform: _base(engine, name, platform),
        ),
    )
    # The summary in front is the client's.
    text = warnings_text(result).partition("\n")[2]
    return {**_answer(result_json(result), text), "result.statuscode": str(result.exit_code).encode()}


def _answer(json_text: str, text: str) -> dict[str, bytes]:
    return {
        "result.json": json_text.encode("utf-8", "replace"),
        "result.txt": text.encode("utf-8", "replace"),
        "version": _VERSION,
    }


def _base(engine: Engine, name: str, platform: Platform) -> ImageConfig | None:
    """The configuration of a base image that the store has: a question asks no registry."""
    from pybuild.daemon.image_list import lookups

    try:
        image = engine.store.images.find(*lookups(name))
        part = None if image is None else image.choose(platform)
        return None if part is None else engine.store.images.config(part)
    except PybuildError:
        return None
