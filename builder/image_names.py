"""Image names in their canonical form, as far as lowering needs it: ``alpine`` is ``docker.io/library/alpine:latest``.

Owns the grammar of the distribution project's reference package for names that a Dockerfile contains. Never contacts a
registry and knows no mirrors; that is ``registry_client``'s.
"""

from __future__ import annotations

import re
from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass, pattern, replace

_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST_PART: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = pattern(rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?\Z")
_PATH: Final = pattern(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG: Final = pattern(r"\w[\w.-]{0,127}\Z", re.ASCII)
_DIGEST: Final = pattern(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}\Z")
_IDENTIFIER: Final = pattern(r"[a-f0-9]{64}\Z")
_NAME_LIMIT: Final = 255


class InvalidImageName(PybuildError):
    """The text is not an image name."""

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(reason, hint=hint)


@dataclass(frozen=True, slots=True)
class ImageName:
    """A parsed name; ``str()`` is the canonical form, host included, without adding a tag."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read any form that ``docker pull`` takes. Raises InvalidImageName."""
        if _IDENTIFIER.match(text):
            raise InvalidImageName(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
        host, rest = _split_host(text)
        name, at, digest = rest.partition("@")
        path, colon, tag = name.partition(":")
        if path.lower() != path:
            raise InvalidImageName(
                f"invalid reference format: repository name ({path}) must be lowercase", hint=f"write {text.lower()}"
            )
        valid = _HOST.match(host) and _PATH.match(path) and len(host) + 1 + len(path) <= _NAME_LIMIT
        if not valid or (colon and not _TAG.match(tag)) or (at and not _DIGEST.match(digest)):
            raise InvalidImageName("invalid reference format", hint=f"{text!r} is not an image name")
        return cls(host, path, tag, digest)

    def tagged(self) -> ImageName:
        """With ``:latest`` if there is neither a tag nor a digest."""
        return self if self.tag or self.digest else replace(self, tag="latest")

    def pinned(self, digest: str) -> ImageName:
        """With ``digest``; a tag is kept."""
        return replace(self, digest=digest)

    @property
    def familiar(self) -> str:
        """The shortest form: ``alpine:3`` for ``docker.io/library/alpine:3``."""
        name = f"{self.host}/{self.path}"
        if self.host == "docker.io":
            rest = self.path.removeprefix("library/")
            name = self.path if "/" in rest else rest
        return name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return f"{self.host}/{self.path}{self._suffix()}"


def _split_host(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash:
        return "docker.io", f"library/{text}"
    if first == "index.docker.io":
        first = "docker.io"
    elif first != "localhost" and not any(mark in first for mark in ".:") and first.lower() == first:
        first, rest = "docker.io", text
    if first == "docker.io" and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest
