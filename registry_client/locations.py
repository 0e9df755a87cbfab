"""Where an image is copied from or to: the transports that skopeo and podman write in front of a name.

    [docker://]REFERENCE          a registry
    oci:DIRECTORY[:NAME]          an OCI image layout
    oci-archive:FILE[:NAME]       the same as a tar
    docker-archive:FILE[:NAME]    what docker save writes

Owns parsing; opens nothing.
"""

from __future__ import annotations

from typing import TypeAlias

from pybuild.errors import PybuildError
from pybuild.layers.references import Reference
from pybuild.values import dataclass


class InvalidLocation(PybuildError):
    """The text names no place for an image."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class InRegistry:
    """A reference."""

    reference: Reference

    def __str__(self) -> str:
        return self.reference.familiar


@dataclass(frozen=True, slots=True)
class InLayout:
    """An OCI layout's directory, and the image's name, tag or digest in it (empty: the only one)."""

    path: str
    name: str = ""

    def __str__(self) -> str:
        return f"oci:{self.path}{':' if self.name else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class InOciArchive:
    """A tar of an OCI layout."""

    path: str
    name: str = ""

    def __str__(self) -> str:
        return f"oci-archive:{self.path}{':' if self.name else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class InDockerArchive:
    """A tar of ``docker save``."""

    path: str
    name: str = ""

    def __str__(self) -> str:
        return f"docker-archive:{self.path}{':' if self.name else ''}{self.name}"


Location: TypeAlias = InRegistry | InLayout | InOciArchive | InDockerArchive


def parse_location(text: str) -> Location:
    """Read a location; without a transport it is a registry's reference. Raises InvalidLocation, InvalidReference.

    A path ends at the first colon, as in skopeo: one that contains a colon can't be written.
    """
    transport, colon, rest = text.partition(":")
    if not colon or transport not in ("docker", "oci", "oci-archive", "docker-archive"):
        return InRegistry(Reference.parse(text))
    if transport == "docker":
        # docker:5000 could be a tag of the image named docker; only the slashes make it a transport.
        return InRegistry(Reference.parse(rest.removeprefix("//") if rest.startswith("//") else text))
    path, _, name = rest.partition(":")
    if not path:
        raise InvalidLocation(f"{text!r} has no path", hint=f"write {transport}:PATH[:NAME]")
    match transport:
        case "oci":
            return InLayout(path, name)
        case "oci-archive":
            return InOciArchive(path, name)
        case _:
            return InDockerArchive(path, name)
