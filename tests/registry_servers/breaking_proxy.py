"""A TCP relay to a loopback port that breaks connections after a number of bytes, a number of times."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class BreakingProxy:
    """Relays to ``port``. Of the connections, the first ``times`` that carry more than ``after_bytes`` are reset at that point.

    ``broken`` counts them. Bytes in both directions count.
    """

    def __init__(self, port: int, *, after_bytes: int, times: int) -> None:
        self._upstream = port
        self._after = after_bytes
        self._left = times
        self.broken = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> BreakingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._upstream))
            carried = [0]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._relay, args=(source, target, carried), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, carried: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    carried[0] += len(data)
                    breaks = carried[0] > self._after and self._left > 0
                    if breaks:
                        self._left -= 1
                        self.broken += 1
                        carried[0] = -(1 << 60)
                if breaks:
                    for end in (source, target):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        with contextlib.suppress(OSError):
                            end.shutdown(socket.SHUT_RDWR)
                        end.close()
                    return
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
