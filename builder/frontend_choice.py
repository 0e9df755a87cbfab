"""Which frontend a Dockerfile is read by: this one, or none.

Owns the precedence of ``BUILDKIT_SYNTAX`` over the ``syntax`` line, and the refusal of frontends with a language of their own. Pulls and
runs none.
"""

from __future__ import annotations

from collections.abc import Mapping

from pybuild.errors import PybuildError
from pybuild.parser import Dockerfile
from pybuild.parser.errors import DockerfileError
from pybuild.parser.frontends import is_own_frontend

SYNTAX_ARGUMENT = "BUILDKIT_SYNTAX"

_HINT = f"remove the syntax line, ask for docker/dockerfile:1, or read it as a Dockerfile with --build-arg {SYNTAX_ARGUMENT}=dockerfile.v0"


class UnknownFrontend(DockerfileError):
    """The ``syntax`` line asks for a frontend that is an image of its own."""


def require_own_frontend(dockerfile: Dockerfile, build_args: Mapping[str, str]) -> None:
    """See to it that the language asked for is the one implemented. Raises UnknownFrontend, or PybuildError for the build argument."""
    asked = build_args.get(SYNTAX_ARGUMENT, "").partition(" ")[0]
    if asked:
        if not is_own_frontend(asked):
            raise PybuildError(
                f"the frontend {asked} is not built in, and other frontends can't be run",
                hint=f"leave {SYNTAX_ARGUMENT} away, or give docker/dockerfile:1 or dockerfile.v0",
            )
        return
    for warning in dockerfile.warnings:
        if warning.rule == "UnknownFrontend" and dockerfile.syntax is not None:
            raise UnknownFrontend(
                f"the frontend {dockerfile.syntax.reference} is not built in, and other frontends can't be run",
                span=warning.span,
                filename=dockerfile.filename,
                text=dockerfile.text,
                hint=_HINT,
            )
