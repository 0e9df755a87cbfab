"""Names that both sides of ``pybuild -H`` share. Imports nothing, so that the client needs no server."""

from __future__ import annotations

from typing import Final

CONTENT_TYPE: Final = "application/vnd.pybuild.frames.v1"
