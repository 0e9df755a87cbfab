"""Resolving the base images and git references that a build needs: once each, in parallel, with progress.

Owns the order (deterministic errors) and the memory of what was resolved. Decides nothing about which ones are needed, and pulls
no layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.parser.ast import Span
from pybuild.parser.errors import DockerfileError
from pybuild.parser.suggest import did_you_mean
from pybuild.values import dataclass, replace

from .progress import Progress, StepDone, StepStarted, step_of
from .protocols import ImageSource, RemoteSources, ResolvedImage

_PARALLEL: Final = 8
_COMMON_IMAGES: Final = ("alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora")

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """``location``: as ``ImageSource.resolve`` takes it; ``written``: as the Dockerfile has it; ``title``: the step's name."""

    location: str
    platform: Platform
    written: str
    title: str
    span: Span | None

    @property
    def key(self) -> tuple[str, Platform]:
        return self.location, self.platform


@dataclass(frozen=True, slots=True)
class GitRequest:
    """A git reference whose commit is wanted, or is to be compared with ``checksum``."""

    remote: str
    ref: str
    checksum: str = ""
    span: Span | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.remote, self.ref, self.checksum


class ImageResolver:
    """Answers image requests, each distinct one once."""

    def __init__(
        self,
        source: ImageSource,
        *,
        pull: bool,
        stage_names: Sequence[str],
        progress: Progress,
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._pull = pull
        self._names = (*stage_names, *_COMMON_IMAGES)
        self._progress = progress
        self._clock = clock
        self._answers: dict[tuple[str, Platform], ResolvedImage] = {}

    def resolve(self, requests: Iterable[ImageRequest]) -> None:
        """Resolve those not yet known. Raises DockerfileError for the first (in order) that can't be found."""
        wanted = {request.key: request for request in requests if request.key not in self._answers}
        answers = in_parallel(self._one, list(wanted.values()))
        self._answers.update(zip(wanted, answers, strict=True))

    def answer(self, location: str, platform: Platform) -> ResolvedImage:
        """A resolved image."""
        return self._answers[location, platform]

    @property
    def images(self) -> tuple[ResolvedImage, ...]:
        """Everything resolved, in the order asked for."""
        return tuple(self._answers.values())

    def _one(self, request: ImageRequest) -> ResolvedImage:
        step = step_of(f"{request.title}\0{request.platform}")
        self._progress.emit(StepStarted(step=step, title=request.title, time=self._clock()))
        try:
            answer = self._source.resolve(request.location, platform=request.platform, pull=self._pull)
        except Cancelled:
            raise
        except PybuildError as error:
            self._progress.emit(StepDone(step=step, time=self._clock(), error=str(error)))
            # The words of the reference, which scripts look for.
            told = f"{request.written}: failed to resolve source metadata for {request.location}: {error}"
            message = did_you_mean(told, request.written, self._names)
            raise DockerfileError(message, span=request.span, hint=error.hint) from error
        self._progress.emit(StepDone(step=step, time=self._clock()))
        return replace(answer, asked_for=request.platform)


class CommitResolver:
    """Knows the commits of git references. What is asked for and not yet known is noted and answered by the next ``resolve``."""

    def __init__(self, source: RemoteSources | None) -> None:
        self._source = source
        self._answers: dict[tuple[str, str, str], str] = {}
        self._asked: dict[tuple[str, str, str], GitRequest] = {}

    def commit(self, request: GitRequest) -> str:
        """The commit if known, else "" after noting the request."""
        if request.key not in self._answers:
            self._asked.setdefault(request.key, request)
        return self._answers.get(request.key, "")

    def resolve(self) -> bool:
        """Look up all that was noted; True if there was anything, so that lowering must be repeated."""
        asked, self._asked = self._asked, {}
        if not asked:
            return False
        self._answers.update(zip(asked, in_parallel(self._one, list(asked.values())), strict=True))
        return True

    def _one(self, request: GitRequest) -> str:
        if self._source is None:
            raise DockerfileError(f"git sources are not available here: {request.remote}", span=request.span)
        try:
            return self._source.git_commit(request.remote, request.ref, checksum=request.checksum)
        except Cancelled:
            raise
        except PybuildError as error:
            raise DockerfileError(str(error), span=request.span, hint=error.hint) from error


def in_parallel(work: Callable[[_Request], _Answer], requests: Sequence[_Request]) -> list[_Answer]:
    """``work`` on each request, several at a time; results in order. Raises what the first failing request (in order) raised."""
    if len(requests) < 2:
        return [work(request) for request in requests]
    from concurrent.futures import ThreadPoolExecutor  # costs 10 ms that a build with one base image needn't pay

    with ThreadPoolExecutor(max_workers=min(_PARALLEL, len(requests))) as pool:
        futures = [pool.submit(work, request) for request in requests]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
