"""Results that a client of BuildKit's API gets: files written beside a build, sent when the build is over, and what the answer says of them.

Owns where they are written meanwhile. What is exported is the builder's business.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pybuild.builder.outputs import OutputType
from pybuild.values import dataclass

from .attributes import output_of
from .client_layouts import pieces, send_layout
from .session_content import Content
from .session_exports import FileSend

if TYPE_CHECKING:
    from pybuild.builder.outputs import Output

    from .sessions import Session

_FILES: Final = ("oci", "docker", "tar", "local")
_STORE: Final = "export"


@dataclass(frozen=True, slots=True)
class ClientOutput:
    """One output of a build. ``place``: what is to be sent, None if it stays here or goes to a registry."""

    output: Output
    number: int
    place: Path | None


def client_outputs(exporters: Sequence[tuple[str, Mapping[str, str]]], *, scratch: Path) -> tuple[ClientOutput, ...]:
    """The outputs that exporters (type and attributes) are; what goes to the client is written below ``scratch``. Raises PybuildError."""
    found = []
    for number, (kind, attributes) in enumerate(exporters):
        place = scratch / f"output-{number}" if kind in _FILES else None
        found.append(
            ClientOutput(output_of(kind, attributes, dest=None if place is None else str(place)), number, place)
        )
    return tuple(found)


async def send_outputs(outputs: Sequence[ClientOutput], session: Session, *, response: Mapping[str, str]) -> None:
    """Send what was written, in order. ``response``: what the client is told of the result. Raises RpcError, OSError."""
    for each in outputs:
        if each.place is None:
            continue
        files = FileSend(session, exporter=each.number)
        if each.output.type is OutputType.LOCAL:
            await files.directory(each.place)
        elif not each.output.tar:
            await send_layout(each.place, Content(session, _STORE))
        else:
            async with files.archive(response) as sink:
                async for piece in pieces(each.place):
                    await sink.write(piece)


def exporter_response(metadata: Mapping[str, Any]) -> dict[str, str]:  # Any: the JSON edge
    """A build's metadata as exporters answer with it: text by name, documents as BuildKit encodes them."""
    found: dict[str, str] = {}
    for name, value in metadata.items():
        if name.startswith("buildx."):
            continue  # the client's own
        if isinstance(value, str):
            found[name] = value
        elif name == "containerimage.descriptor":
            found[name] = base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode("ascii")
        else:
            found[name] = json.dumps(value, separators=(",", ":"))
    return found
