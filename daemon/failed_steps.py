"""What ``--on-error`` does with a failed RUN: a shell in all that the step had, or its file system kept as an image.

Owns both. How the terminal is shared with the progress is the caller's business.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeAlias

from pybuild.builder.exec_settings import FailedProcess, OnFailure
from pybuild.builder.protocols import Executor, Terminal
from pybuild.errors import Cancelled, PybuildError, UsageError
from pybuild.values import replace

if TYPE_CHECKING:
    from .engine import Engine

AroundShell: TypeAlias = Callable[[str], AbstractContextManager[Terminal]]
"""Shows a text and then leaves the terminal, which it gives, alone until the context ends."""


def on_failure(engine: Engine, mode: str, *, around: AroundShell | None, cancel: threading.Event) -> OnFailure:
    """The handler for ``shell`` or ``keep``. Raises UsageError for a shell where there is no terminal to share."""
    if mode == "keep":
        return FailureKeeper(engine)
    if around is None:
        raise UsageError("--on-error=shell needs a terminal", hint="use --on-error=keep")
    return FailureShell(engine.executor, around=around, cancel=cancel)


def _shell(failed: FailedProcess) -> str:
    """The step's own shell if it had one."""
    args = failed.op.args
    return args[0] if len(args) > 2 else "/bin/sh"


class FailureShell:
    """Opens a shell in the failed step: the same files, mounts, secrets, user, network and limits."""

    def __init__(self, executor: Executor, *, around: AroundShell, cancel: threading.Event) -> None:
        self._executor = executor
        self._around = around
        self._cancel = cancel
        self._one_at_a_time = threading.Lock()

    def __call__(self, failed: FailedProcess) -> str | None:
        text = f"{failed.error.message}\nThis is a shell in the failed step; the build ends when you leave it."
        with self._one_at_a_time, self._around(text) as terminal:
            env = {"TERM": terminal.kind, **dict(failed.spec.env)}
            spec = replace(failed.spec, args=(_shell(failed),), env=tuple(env.items()), terminal=terminal)
            try:
                self._executor.run(spec, on_output=lambda stream, data: None, cancel=self._cancel)
            except Cancelled:
                raise
            except PybuildError as error:
                return f"no shell could be started in the failed step: {error.message}"
        return None


class FailureKeeper:
    """Keeps the failed step's file system as an image of the local store, with the step's environment, directory and user."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, failed: FailedProcess) -> str | None:
        from pybuild.builder.assemble import AssembleOptions, BuiltImage, write_manifest
        from pybuild.layers.image import History, ImageConfig

        from .image_keeper import StoreLayers

        store, op = self._engine.store, failed.op
        layer = failed.commit()
        name = f"failed-step:{os.urandom(4).hex()}"
        image = BuiltImage(
            platform=op.platform,
            # The environment is the step's, without what secrets added to it.
            config=ImageConfig(
                op.platform,
                env=tuple(f"{key}={value}" for key, value in op.env),
                working_dir=op.cwd,
                user=op.user,
                cmd=(_shell(failed),),
            ),
            history=(History(created_by=" ".join(op.args), comment="failed"),),
            stack=(*failed.stack, layer.diff_id),
            layer_times=(*(None for _ in failed.stack), store.clock()),
        )
        layers = StoreLayers(store, lazy=self._engine.lazy_layers())
        written = write_manifest(image, options=AssembleOptions(), layers=layers, blobs=store.blobs)
        store.images.put(f"docker.io/library/{name}", written.descriptor)
        return f"the failed step's file system is kept as the image {name}; enter it with: pybuild run -t {name}"
