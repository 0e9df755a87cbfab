"""How pulls, pushes and copies are shown: bars on a terminal (tqdm), a line per finished transfer elsewhere, totals at the end."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Never, TextIO

from .render_plain import human_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

    from pybuild.layers.digest import Digest
    from pybuild.registry_client.transfers import Transfer

_MAX_BARS = 12


class TransferDisplay:
    """An OnTransfer, and a context manager that takes the bars away. ``quiet`` shows nothing. Draws on ``stream`` (stderr)."""

    def __init__(self, *, quiet: bool, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._bars_wanted = not quiet and self._stream.isatty()
        self._lock = threading.Lock()
        self._bars: dict[Digest, tqdm[Never]] = {}
        self._last: dict[Digest, int] = {}
        self._told: set[tuple[Digest, str]] = set()

    def __call__(self, transfer: Transfer) -> None:
        if self._quiet:
            return
        from pybuild.registry_client.transfers import TransferState

        with self._lock:
            over = transfer.state not in (TransferState.WAITING, TransferState.RUNNING)
            if self._bars_wanted and transfer.state is TransferState.RUNNING:
                self._draw(transfer)
            if over and (transfer.digest, transfer.kind) not in self._told:
                self._told.add((transfer.digest, transfer.kind))
                self._finish(transfer)

    def _draw(self, transfer: Transfer) -> None:
        bar = self._bars.get(transfer.digest)
        if bar is None:
            if len(self._bars) >= _MAX_BARS:
                return
            from tqdm import tqdm

            bar = tqdm(
                total=transfer.total or None,
                desc=f"{transfer.kind} {transfer.digest.hex[:12]}",
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
                file=self._stream,
            )
            self._bars[transfer.digest] = bar
            self._last[transfer.digest] = 0
        bar.update(transfer.current - self._last[transfer.digest])
        self._last[transfer.digest] = transfer.current

    def _finish(self, transfer: Transfer) -> None:
        bar = self._bars.pop(transfer.digest, None)
        if bar is not None:
            bar.close()
        if transfer.kind in ("layer", "config", "manifest", "index"):
            line = f"{transfer.kind} {transfer.digest.hex[:12]}: {transfer.state.value} {human_bytes(transfer.total)}"
            if self._bars_wanted:
                from tqdm import tqdm

                tqdm.write(line, file=self._stream)
            else:
                self._stream.write(line + "\n")
                self._stream.flush()

    def __enter__(self) -> TransferDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()
