"""Values between ``pybuild -H`` and the daemon: dataclasses as tagged JSON, and frames for what happens while a call runs.

Owns both forms. Only the classes listed here are ever made from what the other side sent; anything else is refused.

    frame = kind (1 byte) · length (4 bytes, big-endian) · payload
    E event (JSON)   D bytes for standard output   O bytes for standard error   N what is needed of contexts (JSON)
    F a file or directory output begins (JSON)     R result (JSON)              X error (JSON)
    C a channel waits for the client (JSON, see ``channels.py``)
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from pybuild.errors import PybuildError, UsageError
from pybuild.values import fields

MAX_FRAME_BYTES: Final = 64 << 20
_HEAD: Final = struct.Struct(">cI")

_CLASSES: Final[Mapping[str, tuple[str, ...]]] = {
    "pybuild.builder.assemble": ("Annotations",),
    "pybuild.builder.build": ("BuildResult",),
    "pybuild.builder.graph": ("Note", "Scratch", "Vertex"),
    "pybuild.builder.outputs": ("Output", "OutputType"),
    "pybuild.builder.progress": ("BuildWarning", "StepDone", "StepLog", "StepProgress", "StepStarted"),
    "pybuild.builder.protocols": ("ExitStatus",),
    "pybuild.builder.request": ("BuildRequest", "SecretSource", "SshSource"),
    "pybuild.builder.solver": ("Prediction",),
    "pybuild.daemon.image_list": ("ImageFilter", "ImageRow"),
    "pybuild.daemon.one_shot": ("RunOptions",),
    "pybuild.daemon.engine": ("LoadedImage",),
    "pybuild.daemon.remote_values": ("BuildCauses", "ImageHistory", "PullSummary"),
    "pybuild.layers.build_usage": ("BuildUsage",),
    "pybuild.layers.builds": ("BuildRecord", "BuildStep"),
    "pybuild.layers.descriptor": ("Descriptor", "Platform"),
    "pybuild.layers.digest": ("Digest",),
    "pybuild.layers.gc": ("ImagePruneReport", "PrunePolicy", "PruneReport"),
    "pybuild.layers.image": ("History",),
    "pybuild.layers.images": ("HistoryEntry", "Removal", "StoredImage", "StoredLayer", "StoredPlatform"),
    "pybuild.layers.usage": ("CacheUsage", "ImageUsage", "Usage", "UsageFilter", "UsageType"),
    "pybuild.registry_client.push": ("PushReport",),
    "pybuild.layers.references": ("Reference",),
    "pybuild.registry_client.transfers": ("Transfer", "TransferState"),
}
_MODULE_OF: Final = {name: module for module, names in _CLASSES.items() for name in names}


class WireError(PybuildError):
    """What the other side sent can't be understood: another version of pybuild, or no pybuild at all."""


def encode(value: Any) -> Any:  # Any: any value of ours to JSON's
    """The JSON form of a value."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return {"$b": base64.b64encode(value).decode("ascii")}
        case list() | tuple():
            return [encode(item) for item in value]
        case frozenset() | set():
            return {"$s": [encode(item) for item in value]}
        case Mapping():
            return {"$m": [[encode(key), encode(item)] for key, item in value.items()]}
        case Enum():
            return {"$e": [type(value).__name__, value.name]}
        case Path():
            return {"$p": str(value)}
    name = type(value).__name__
    if name not in _MODULE_OF:
        raise WireError(f"a {name} can't be sent")
    return {"$d": name, **{item.name: encode(getattr(value, item.name)) for item in fields(value)}}


def decode(value: Any) -> Any:  # Any: JSON's to any value of ours
    """The value of a JSON form; arrays become tuples. Raises WireError."""
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    try:
        if "$d" in value:
            kind = _class(value["$d"])
            return kind(**{key: decode(item) for key, item in value.items() if key != "$d"})
        if "$m" in value:
            return {decode(key): decode(item) for key, item in value["$m"]}
        if "$e" in value:
            return _class(value["$e"][0])[value["$e"][1]]
        if "$b" in value:
            return base64.b64decode(value["$b"], validate=True)
        if "$s" in value:
            return frozenset(decode(item) for item in value["$s"])
        if "$p" in value:
            return Path(value["$p"])
    except (TypeError, ValueError, KeyError, LookupError) as error:
        raise WireError(
            f"a message can't be understood: {error}", hint="are both sides of the same version?"
        ) from error
    raise WireError("a message can't be understood: it has no known form")


@cache
def _class(name: str) -> Any:  # Any: one of the listed classes
    module = _MODULE_OF.get(name)
    if module is None:
        raise WireError(f"a message holds a {name!r}, which is not expected")
    return getattr(import_module(module), name)


def dumps(value: Any) -> bytes:  # Any: any value of ours
    """``encode`` as bytes of one line."""
    return json.dumps(encode(value), separators=(",", ":")).encode("ascii")


def loads(data: bytes) -> Any:  # Any: any value of ours
    """``decode`` from bytes. Raises WireError."""
    try:
        return decode(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise WireError(f"a message is not valid JSON: {error}") from error


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame."""
    return _HEAD.pack(kind, len(payload)) + payload


def read_frames(read: Callable[[int], bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of each frame until the end. ``read`` gives exactly as much as it is asked for, less only at the end. Raises
    WireError for what is no frame and for one that ends early."""
    while head := read(_HEAD.size):
        if len(head) < _HEAD.size:
            raise WireError("the connection to the daemon broke in the middle of a message")
        kind, size = _HEAD.unpack(head)
        if size > MAX_FRAME_BYTES:
            raise WireError("a message of the daemon is too long")
        payload = read(size) if size else b""
        if len(payload) < size:
            raise WireError("the connection to the daemon broke in the middle of a message")
        yield kind, payload


class RemoteFailure(PybuildError):
    """An error that was raised in the daemon. ``kind``: its class there; ``text``: the listing above the message."""

    def __init__(self, message: str, *, hint: str | None, kind: str, text: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.text = text
        self.exit_code = exit_code

    def listing(self) -> str:
        """What is shown above the error's line."""
        return self.text


def error_payload(error: PybuildError) -> bytes:
    """An error for the other side."""
    listing = getattr(error, "listing", None) or getattr(error, "excerpt", None)
    value = {
        "message": error.message,
        "hint": error.hint,
        "kind": type(error).__name__,
        "text": listing() if callable(listing) else "",
        "exit_code": error.exit_code,
        "usage": isinstance(error, UsageError),
    }
    return json.dumps(value).encode("ascii")


def error_from(payload: bytes) -> PybuildError:
    """The error that ``error_payload`` was made from, as far as a person sees it. Raises WireError."""
    try:
        value = json.loads(payload)
        return RemoteFailure(
            str(value["message"]),
            hint=value.get("hint"),
            kind=str(value.get("kind", "")),
            text=str(value.get("text", "")),
            exit_code=int(value.get("exit_code", 1)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise WireError("the daemon's error can't be understood") from error
