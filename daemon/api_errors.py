"""Errors as the Engine API tells them: the HTTP status of every error of ours, and the JSON body. Decides nothing else."""

from __future__ import annotations

from typing import Any

from pybuild.errors import Cancelled, PybuildError, UsageError

from .api_versions import UnsupportedVersion


class ApiError(PybuildError):
    """A request that is answered with a status of its own."""

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class BadParameter(UsageError):
    """A query parameter, a header or a body can't be understood."""


class NotSupportedYet(ApiError):
    """An endpoint of the Engine API that this daemon does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} are not supported by this daemon yet: it builds and distributes images", status=501)


def status_of(error: PybuildError) -> int:
    """The status that the Engine API's description gives for ``error``."""
    from pybuild.builder.contexts import ContextNotFound, DockerfileNotFound
    from pybuild.builder.contexts_archive import BadContextArchive
    from pybuild.builder.failure import BuildFailed
    from pybuild.layers.compression import CorruptStream
    from pybuild.layers.database import StoreBusy
    from pybuild.layers.docker_archive import InvalidArchive
    from pybuild.layers.images import AmbiguousImage, ImageInUse, ImageNotFound
    from pybuild.layers.references import InvalidReference
    from pybuild.layers.tar_read import InvalidTar
    from pybuild.parser.errors import DockerfileError
    from pybuild.registry_client.failures import Denied, NotFound, Unauthorized

    match error:
        case ApiError():
            return error.status
        case UsageError() | InvalidReference() | UnsupportedVersion() | AmbiguousImage() | DockerfileError():
            return 400
        case (
            BadContextArchive()
            | DockerfileNotFound()
            | InvalidArchive()
            | InvalidTar()
            | CorruptStream()
            | ContextNotFound()
        ):
            return 400
        case ImageNotFound() | NotFound():
            return 404
        case ImageInUse():
            return 409
        case Unauthorized():
            return 401
        case Denied():
            return 403
        case StoreBusy():
            return 503
        case Cancelled():
            return 499
        case BuildFailed() if not error.title and isinstance(error.__cause__, PybuildError):
            return status_of(error.__cause__)
        case _:
            return 500


def message_of(error: PybuildError) -> str:
    """What a client shows: the message, and the hint where there is one. Of a missing image it is docker's sentence: clients look for it."""
    from pybuild.layers.images import ImageNotFound

    if isinstance(error, ImageNotFound):
        return f"No such image: {error.reference}"
    message = error.message.removeprefix("failed to build: failed to solve: ")
    return message if not error.hint else f"{message} ({error.hint})"


def stream_error(message: str, *, code: int | None = None) -> dict[str, Any]:  # Any: the JSON edge
    """The last message of a stream that failed. Old clients read ``error``, newer ones ``errorDetail``."""
    detail: dict[str, Any] = {"message": message}
    if code is not None:
        detail["code"] = code
    return {"errorDetail": detail, "error": message}
