"""What the work of a call has from its client's machine by way of channels: a terminal, a standard input, ssh agents.

Owns the daemon's side of what is said there. The client's side is ``client_channels.py``.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pybuild.builder.protocols import Terminal
from pybuild.builder.request import SshSource
from pybuild.values import replace

from .channels import CallChannels, PatientReader
from .forwarding import SocketForwarder
from .wire import WireError, read_frames


@contextmanager
def client_terminal(channels: CallChannels, text: str = "", *, cancel: threading.Event) -> Iterator[Terminal]:
    """The client's terminal, from when its size is known until the context ends. ``text`` is shown there first. Raises Cancelled, WireError."""
    with channels.open("terminal", {"text": text}) as near:
        _, payload = next(read_frames(PatientReader(near, cancel).read), (b"", b""))
        near.settimeout(None)
        try:
            rows, columns, kind = json.loads(payload)
            size = (int(rows) & 0xFFFF, int(columns) & 0xFFFF)
        except (ValueError, TypeError) as error:
            raise WireError("the client has no terminal to give") from error
        yield Terminal(size, str(kind), near.fileno())


@contextmanager
def client_input(channels: CallChannels) -> Iterator[int]:
    """The client's standard input as a pipe's reading end."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with channels.open("stdin") as near:
        thread = threading.Thread(target=_pour, args=(near, write_end), name="standard-input", daemon=True)
        thread.start()
        try:
            yield read_end
        finally:
            os.close(read_end)
            near.shutdown(socket.SHUT_RDWR)
            thread.join()


def _pour(near: socket.socket, write_end: int) -> None:
    try:
        while data := near.recv(1 << 16):
            view = memoryview(data)
            while view:
                view = view[os.write(write_end, view) :]
    except OSError:  # EPIPE: the process doesn't read any more
        pass
    finally:
        os.close(write_end)


@contextmanager
def client_agents(
    sources: Sequence[SshSource], channels: CallChannels, directory: Path
) -> Iterator[tuple[SshSource, ...]]:
    """Sources that lead to the client's agents: sockets in ``directory``, each connection of theirs a channel. What may be said is for the
    client's side to check."""
    with ExitStack() as held:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, descriptor)
        out, listeners = [], []
        for number, source in enumerate(sources):
            # Reached by its directory's descriptor: the path of a socket has little room (unix(7), 108 bytes).
            path = f"/proc/{os.getpid()}/fd/{descriptor}/agent-{number}"
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen()
            listeners.append(listener.detach())
            out.append(replace(source, paths=(path,), raw=True))
        ids = [source.id for source in sources]
        held.enter_context(
            SocketForwarder(listeners, [lambda id=id: channels.open("ssh", {"id": id}) for id in ids])  # type: ignore[misc]  # a lambda's default
        )
        yield tuple(out)
