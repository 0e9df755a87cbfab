"""Connects a person's terminal with a step's: raw mode, both directions, window size. Restores the person's terminal afterwards.

Makes no terminal (the sandbox does) and starts no process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import termios
import threading
import tty
from collections.abc import Iterator, Mapping

from pybuild.builder.protocols import Terminal

TIOCSWINSZ = termios.TIOCSWINSZ
TIOCGWINSZ = termios.TIOCGWINSZ


def window_size(fd: int) -> tuple[int, int]:
    """Rows and columns of the terminal ``fd``; 24 and 80 if it isn't one."""
    try:
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(fd, TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return 24, 80
    return (rows, columns) if rows and columns else (24, 80)


def own_terminal(variables: Mapping[str, str]) -> Terminal:
    """This process's own."""
    return Terminal(window_size(0), variables.get("TERM") or "xterm")


@contextlib.contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Every key goes through as it is; nothing if ``fd`` is no terminal."""
    if not os.isatty(fd):
        yield
        return
    saved = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


class TerminalBridge:
    """A thread that copies between the caller's ``stdin``/``stdout`` and ``master``, the step's pseudo-terminal.

    Owns ``master``. Window changes are followed when made in the main thread (signal(2) handlers can be set there only).
    """

    def __init__(self, master: int, *, stdin: int = 0, stdout: int = 1) -> None:
        self._master = master
        self._stdin = stdin
        self._stdout = stdout
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._copy, name="terminal-bridge", daemon=True)
        self._leave = contextlib.ExitStack()

    def __enter__(self) -> TerminalBridge:
        self._leave.enter_context(raw_mode(self._stdin))
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(signal.SIGWINCH, lambda number, frame: self._resize())
            self._leave.callback(signal.signal, signal.SIGWINCH, previous)
        self._resize()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join()
        self._leave.close()
        for fd in (self._master, self._stop_read, self._stop_write):
            os.close(fd)

    def _resize(self) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._master, TIOCSWINSZ, struct.pack("4H", *window_size(self._stdin), 0, 0))

    def _copy(self) -> None:
        sources = [self._master, self._stop_read, self._stdin]
        stopping = False
        while True:
            ready, _, _ = select.select(sources, [], [], 0 if stopping else None)
            if self._master in ready:
                try:
                    data = os.read(self._master, 1 << 16)
                except OSError:  # EIO: the last process that had the terminal is gone (pty(7))
                    data = b""
                if not data:
                    return
                _write_all(self._stdout, data)
            elif stopping:
                return
            if self._stop_read in ready:
                stopping = True
                sources.remove(self._stop_read)
            if self._stdin in ready:
                data = os.read(self._stdin, 1 << 16)
                if data:
                    _write_all(self._master, data)
                else:
                    sources.remove(self._stdin)
                    # End of input is a character to a terminal (termios(3), VEOF).
                    _write_all(self._master, b"\x04")


class RemoteTerminalBridge:
    """The same for a terminal elsewhere: ``connection`` is a socket that brings messages (``wire.frame``: D keys, W rows and columns as JSON) and takes
    what the step shows, as it is. Owns ``master``, not the connection."""

    def __init__(self, master: int, *, connection: int) -> None:
        self._master = master
        self._connection = connection
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._threads = [
            threading.Thread(target=work, name="terminal-bridge", daemon=True) for work in (self._show, self._take)
        ]

    def __enter__(self) -> RemoteTerminalBridge:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_write, b"x")
        for thread in self._threads:
            thread.join()
        for fd in (self._master, self._stop_read, self._stop_write):
            os.close(fd)

    def _show(self) -> None:
        stopping = False
        while True:
            waiting = [self._master] if stopping else [self._master, self._stop_read]
            ready, _, _ = select.select(waiting, [], [], 0 if stopping else None)
            if self._master in ready:
                try:
                    data = os.read(self._master, 1 << 16)
                except OSError:  # EIO: the last process that had the terminal is gone (pty(7))
                    return
                _write_all(self._connection, data)
            elif stopping:
                return
            stopping = stopping or self._stop_read in ready

    def _take(self) -> None:
        from .wire import WireError, read_frames

        try:
            for kind, payload in read_frames(self._read):
                if kind == b"W":
                    rows, columns = json.loads(payload)[:2]
                    fcntl.ioctl(self._master, TIOCSWINSZ, struct.pack("4H", rows & 0xFFFF, columns & 0xFFFF, 0, 0))
                else:
                    _write_all(self._master, payload)
        except (WireError, OSError, ValueError, TypeError):
            pass
        if not select.select([self._stop_read], [], [], 0)[0]:
            # The end of input is a character to a terminal (termios(3), VEOF).
            _write_all(self._master, b"\x04")

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            ready, _, _ = select.select([self._connection, self._stop_read], [], [])
            if self._stop_read in ready:
                break
            data = os.read(self._connection, size)
            if not data:
                break
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError:
            return
