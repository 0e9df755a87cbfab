"""How a build's failure is told to clients of BuildKit's API: a status with typed details. Decides nothing about the build.

Details are BuildKit's ``solver/errdefs``, as JSON under their type's name.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Final

from pybuild.builder.failure import BuildFailed
from pybuild.errors import Cancelled, PybuildError
from pybuild.parser.errors import DockerfileError

from .rpc import Code, Detail, RpcError
from .status_log import printable

if TYPE_CHECKING:
    from pybuild.parser import Dockerfile

_SOURCE: Final = "github.com/moby/buildkit/errdefs.Source+json"
_SUBREQUEST: Final = "github.com/moby/buildkit/errdefs.Subrequest+json"
_CAPABILITY: Final = "github.com/moby/buildkit/errdefs.FrontendCap+json"


def rpc_error(error: PybuildError, dockerfile: Dockerfile | None) -> RpcError:
    """``error`` as the status of a call; ``dockerfile``: whose lines the client can show."""
    if isinstance(error, RpcError):
        return error
    if isinstance(error, Cancelled):
        return RpcError(Code.CANCELLED, "context canceled")
    if not isinstance(error, BuildFailed):
        return RpcError(Code.UNKNOWN, printable(_with_hint(error.message, error.hint)))
    details = []
    cause = error.__cause__
    if isinstance(cause, DockerfileError) and cause.text is not None:
        # Also of a Dockerfile that can't be parsed.
        details = [_source(cause.filename, cause.text, cause.lines)]
    elif dockerfile is not None:
        details = [_source(dockerfile.filename, dockerfile.text, error.lines)]
    return RpcError(
        Code.UNKNOWN, printable(_with_hint(error.reason, error.hint)), details=[each for each in details if each]
    )


def unsupported_subrequest(name: str) -> RpcError:
    """The client asks something that can't be asked."""
    detail = Detail(_SUBREQUEST, json.dumps({"name": name}).encode())
    return RpcError(Code.UNIMPLEMENTED, f"unsupported request {name}", details=[detail])


def unsupported_capability(name: str) -> RpcError:
    """The client needs what this frontend has not."""
    detail = Detail(_CAPABILITY, json.dumps({"name": name}).encode())
    return RpcError(Code.UNIMPLEMENTED, f"unsupported frontend capability {name}", details=[detail])


def _with_hint(message: str, hint: str | None) -> str:
    # The protocol has one sentence only. Where this machine has looked for something is no business of a client's.
    return f"{message} ({hint})" if hint and not hint.startswith("looked for it at /") else message


def _source(filename: str, text: str, lines: tuple[int, int] | None) -> Detail | None:
    if lines is None:
        return None
    first, last = lines
    value = {
        "info": {
            "filename": printable(filename),
            "data": base64.b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii"),
            "language": "Dockerfile",
        },
        "ranges": [{"start": {"line": first}, "end": {"line": last}}],
    }
    return Detail(_SOURCE, json.dumps(value).encode())
