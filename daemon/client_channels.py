"""The client's side of channels (``channels.py``): comes for each one that the daemon tells of and connects it with what is wanted.

Gives only what the call allows: the agents, the terminal and the standard input that it was made with.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from pybuild.errors import PybuildError

from .connection import Channel, DaemonAddress, open_channel
from .wire import dumps, frame

Serve: TypeAlias = Callable[[Channel, Mapping[str, Any]], None]  # Any: what the daemon asked for, decoded JSON
"""Serves one channel until its end, in a thread of its own."""

_PIECE = 1 << 16
_SIZE_SECONDS = 0.25
_END_SECONDS = 5.0


class ClientChannels:
    """The channels of one call; ``served``: by kind. Leaving the context ends those that are open."""

    def __init__(self, address: DaemonAddress, served: Mapping[str, Serve]) -> None:
        self._address = address
        self._served = served
        self._open: dict[threading.Thread, Channel] = {}

    def __enter__(self) -> ClientChannels:
        return self

    def __exit__(self, *_: object) -> None:
        # A terminal is put back before anything else is shown; the others end with their connections.
        for thread, channel in list(self._open.items()):
            channel.shutdown()
            thread.join(_END_SECONDS)

    def begin(self, wanted: Mapping[str, Any]) -> None:  # Any: decoded JSON
        """The daemon told of a channel. Raises DaemonUnreachable."""
        serve = self._served.get(str(wanted.get("kind")))
        if serve is None:
            return
        channel = open_channel(self._address, str(wanted.get("token")))

        def work() -> None:
            # Its end is all that the daemon has to know.
            with contextlib.suppress(OSError, PybuildError), channel:
                serve(channel, wanted)

        thread = threading.Thread(target=work, name="channel", daemon=True)
        self._open = {thread: other for thread, other in self._open.items() if thread.is_alive()}
        self._open[thread] = channel
        thread.start()


def agents(sockets: Mapping[str, str]) -> Serve:
    """Connections to ssh agents. ``sockets``: paths by id."""

    def serve(channel: Channel, wanted: Mapping[str, Any]) -> None:  # Any: decoded JSON
        path = sockets.get(str(wanted.get("id")))
        if path is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            agent.connect(path)
            back = threading.Thread(
                target=_send_all, args=(channel, iter(lambda: agent.recv(_PIECE), b"")), daemon=True
            )
            back.start()
            while data := channel.read(_PIECE):
                agent.sendall(data)
            agent.shutdown(socket.SHUT_WR)
            back.join()

    return serve


def standard_input(descriptor: int) -> Serve:
    """What comes from ``descriptor``, as long as the process at the other side lives."""

    def serve(channel: Channel, _: Mapping[str, Any]) -> None:  # Any: decoded JSON
        pieces = iter(lambda: os.read(descriptor, _PIECE), b"")
        threading.Thread(target=_send_all, args=(channel, pieces), daemon=True).start()
        while channel.read(_PIECE):
            pass

    return serve


def _send_all(channel: Channel, pieces: Iterable[bytes]) -> None:
    with contextlib.suppress(OSError, PybuildError):
        for piece in pieces:
            channel.write(piece)
        channel.end()


def terminal_session(channel: Channel, *, kind: str) -> None:
    """Connect this process's terminal with the channel: raw, with its size now and whenever it changes. ``kind``: as TERM has it."""
    from .terminal import raw_mode, window_size

    over = threading.Event()

    def take() -> None:
        size = window_size(0)
        try:
            channel.write(frame(b"W", dumps((*size, kind))))
            while not over.is_set():
                ready, _, _ = select.select([0], [], [], _SIZE_SECONDS)
                if over.is_set():
                    return
                if window_size(0) != size:
                    size = window_size(0)
                    channel.write(frame(b"W", dumps((*size, kind))))
                if ready:
                    data = os.read(0, _PIECE)
                    if not data:
                        channel.end()
                        return
                    channel.write(frame(b"D", data))
        except (OSError, PybuildError):
            return

    with raw_mode(0):
        keys = threading.Thread(target=take, name="keys", daemon=True)
        keys.start()
        while data := channel.read(_PIECE):
            os.write(1, data)
        over.set()
        keys.join(_END_SECONDS)
