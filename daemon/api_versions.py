"""Versions of the Engine API: which are spoken here, and how a client's is read. Knows no endpoint."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pybuild.errors import PybuildError

_FORM: Final = re.compile(r"v?(\d{1,3})\.(\d{1,3})\Z")


class UnsupportedVersion(PybuildError):
    """A client speaks a version that is older or newer than what is spoken here, or none at all."""


class ApiVersion(NamedTuple):
    """A version such as 1.41; compares as numbers."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @classmethod
    def parse(cls, text: str) -> ApiVersion:
        """Read ``1.41`` or ``v1.41`` and check that it is spoken here. Raises UnsupportedVersion."""
        match = _FORM.match(text)
        if match is None:
            raise UnsupportedVersion(f"{text!r} is not an API version")
        version = cls(int(match[1]), int(match[2]))
        if version < OLDEST:
            raise UnsupportedVersion(
                f"client version {version} is too old. Minimum supported API version is {OLDEST}, please upgrade your client to a newer version"
            )
        if version > NEWEST:
            raise UnsupportedVersion(f"client version {version} is too new. Maximum supported API version is {NEWEST}")
        return version


OLDEST: Final = ApiVersion(1, 24)
NEWEST: Final = ApiVersion(1, 56)
