"""Pulls and pushes as docker's streams show them: status lines by layer, progress bars, and what is said at the end.

Turns transfers into JSON messages; transfers nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pybuild.layers.digest import Digest
from pybuild.layers.references import Reference
from pybuild.registry_client.transfers import Transfer, TransferState

Send = Callable[[Mapping[str, Any]], None]  # Any: the JSON edge
_EVERY_SECONDS: Final = 0.1
_BAR_WIDTH: Final = 50
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def bytes_text(count: float) -> str:
    """``1.234MB``, in powers of 1000 with four digits, as docker prints it."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.4g}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def progress_fields(current: int, total: int) -> dict[str, Any]:  # Any: the JSON edge
    """``progressDetail`` and its picture in text, which old clients print."""
    if not total:
        return {"progressDetail": {"current": current}, "progress": f"{bytes_text(current):>8}"}
    filled = min(_BAR_WIDTH, current * _BAR_WIDTH // total)
    return {
        "progressDetail": {"current": current, "total": total},
        "progress": f"[{'=' * filled}>{' ' * (_BAR_WIDTH - filled)}] {bytes_text(current):>8}/{bytes_text(total)}",
    }


class TransferMessages:
    """An OnTransfer that tells of layers. ``words``: the status for each state; ``head`` is called before the first line; ``is_here``: whether a
    layer needn't be announced."""

    def __init__(
        self,
        send: Send,
        *,
        words: Mapping[TransferState, str],
        head: Callable[[], None],
        is_here: Callable[[Digest], bool] = lambda digest: False,
    ) -> None:
        self._is_here = is_here
        self._send = send
        self._words = words
        self._head = head
        self._lock = threading.Lock()
        self._told: dict[Digest, TransferState] = {}
        self._next: dict[Digest, float] = {}
        self._begun = False

    def begin(self) -> None:
        """Send the line before the first layer, once."""
        with self._lock:
            self._begin()

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._head()

    @property
    def layers(self) -> tuple[Digest, ...]:
        """The layers that were transferred or found, in the order in which they came up."""
        return tuple(self._told)

    def state_of(self, digest: Digest) -> TransferState:
        return self._told[digest]

    def __call__(self, transfer: Transfer) -> None:
        """See OnTransfer."""
        with self._lock:
            self._begin()
            if transfer.kind != "layer":
                return
            known = self._told.get(transfer.digest)
            if transfer.state is TransferState.RUNNING:
                now = time.monotonic()
                if known is TransferState.RUNNING and now < self._next.get(transfer.digest, 0.0):
                    return
                self._next[transfer.digest] = now + _EVERY_SECONDS
            elif known is transfer.state:
                return
            elif transfer.state is TransferState.WAITING and self._is_here(transfer.digest):
                return  # it is going to be said that it exists
            self._told[transfer.digest] = transfer.state
            self._say(transfer)

    def _say(self, transfer: Transfer) -> None:
        fields: dict[str, Any] = {"status": self._words[transfer.state], "id": short_id(transfer.digest)}
        if transfer.state is TransferState.RUNNING:
            fields |= progress_fields(transfer.current, transfer.total)
        else:
            fields["progressDetail"] = {}
        self._send(fields)


PULL_WORDS: Final = {
    TransferState.WAITING: "Pulling fs layer",
    TransferState.EXISTS: "Already exists",
    TransferState.MOUNTED: "Already exists",
    TransferState.SKIPPED: "Skipped",
    TransferState.RUNNING: "Downloading",
    TransferState.DONE: "Download complete",
}
PUSH_WORDS: Final = {
    TransferState.WAITING: "Preparing",
    TransferState.EXISTS: "Layer already exists",
    TransferState.MOUNTED: "Mounted",
    TransferState.SKIPPED: "Skipped foreign layer",
    TransferState.RUNNING: "Pushing",
    TransferState.DONE: "Pushed",
}


def pull_messages(send: Send, reference: Reference, *, is_here: Callable[[Digest], bool]) -> TransferMessages:
    """The messages of one pull; ``is_here``: whether the store has a layer's blob."""
    path = reference.repository if reference.host == "docker.io" else reference.name.partition("/")[2]

    def head() -> None:
        target = {"id": reference.target} if reference.digest is None else {}
        send(
            {
                "status": f"Pulling from {path}"
                if target
                else f"{reference.name}@{reference.digest}: Pulling from {path}",
                **target,
            }
        )

    return TransferMessages(send, words=PULL_WORDS, head=head, is_here=is_here)


def end_of_pull(send: Send, messages: TransferMessages, reference: Reference, *, digest: Digest, changed: bool) -> None:
    """What docker says when an image is there."""
    messages.begin()
    for layer in messages.layers:
        if messages.state_of(layer) is TransferState.DONE:
            send({"status": "Pull complete", "progressDetail": {}, "id": short_id(layer)})
    send({"status": f"Digest: {digest}"})
    words = "Downloaded newer image for" if changed else "Image is up to date for"
    send({"status": f"Status: {words} {reference.familiar}"})


def push_messages(send: Send, reference: Reference) -> TransferMessages:
    """The messages of one push."""
    return TransferMessages(
        send,
        words=PUSH_WORDS,
        head=lambda: send({"status": f"The push refers to repository [{reference.name}]"}),
    )


def end_of_push(send: Send, *, tag: str, digest: Digest, size: int) -> None:
    """What docker says when a tag is there, for people and for programs."""
    send({"status": f"{tag}: digest: {digest} size: {size}"})
    send({"progressDetail": {}, "aux": {"Tag": tag, "Digest": str(digest), "Size": size}})


def short_id(digest: Digest) -> str:
    """The twelve digits that docker shows."""
    return digest.hex[:12]
