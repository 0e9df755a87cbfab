"""``RemoteEngine``: the engine's methods, carried out by a daemon. What ``pybuild -H`` uses instead of the engine in its own process.

Owns how a method becomes a call. Sends credentials for registries with calls that may need them; keeps no state.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pybuild.errors import Cancelled, PybuildError, UsageError
from pybuild.layers.whole_file import whole_file

from .connection import DaemonAddress, Exchange, exchange
from .wire import WireError, dumps, error_from, loads

if TYPE_CHECKING:
    from pathlib import Path

    from pybuild.builder.build import BuildResult
    from pybuild.builder.progress import Progress
    from pybuild.builder.protocols import ExitStatus, Terminal
    from pybuild.builder.request import BuildRequest
    from pybuild.builder.solver import Prediction
    from pybuild.layers.build_usage import BuildUsage
    from pybuild.layers.builds import BuildRecord
    from pybuild.layers.descriptor import Platform
    from pybuild.layers.digest import Digest
    from pybuild.layers.gc import ImagePruneReport, PrunePolicy, PruneReport
    from pybuild.layers.image import ImageConfig
    from pybuild.layers.images import Removal
    from pybuild.layers.usage import Usage
    from pybuild.registry_client.credentials import DockerConfig
    from pybuild.registry_client.push import PushReport
    from pybuild.registry_client.transfers import OnTransfer

    from .client_channels import ClientChannels, Serve
    from .failed_steps import AroundShell
    from .image_list import ImageFilter, ImageRow
    from .one_shot import RunOptions
    from .remote_values import BuildCauses, ImageHistory, LoadedImage, PullSummary

_PIECE: Final = 1 << 18


def default_address(variables: Mapping[str, str]) -> str:
    """Where a daemon listens unless it is told otherwise: ``/run/pybuild.sock``, for an ordinary user in its runtime directory. Raises
    UsageError if it has none: a directory that others can write to would not do."""
    from .userns import identity

    uid = identity().uid
    if uid == 0:
        return "unix:///run/pybuild.sock"
    directory = variables.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    if not os.path.isdir(directory):
        raise UsageError(
            "there is no runtime directory (XDG_RUNTIME_DIR)", hint="give an address, such as --host unix:///PATH"
        )
    return f"unix://{os.path.join(directory, 'pybuild.sock')}"


class RemoteEngine:
    """A daemon's engine. A context manager, like the engine; every method raises what the daemon's raised, as RemoteFailure, and
    DaemonUnreachable."""

    def __init__(
        self,
        address: DaemonAddress,
        *,
        docker_config: Path,
        variables: Mapping[str, str],
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """``docker_config``: the directory of Docker's config.json, whose credentials go with pulls, pushes and builds; ``warn``: see
        DockerConfig."""
        self._warn = warn
        self._config: DockerConfig | None = None
        self._address = address
        self._docker_config = docker_config
        self._variables = variables

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    # --- calls -------------------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        arguments: Mapping[str, Any] | None = None,  # Any here and below: values that the wire knows
        *,
        stdin: BinaryIO | None = None,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
        on_event: Callable[[Any], None] | None = None,
        credentials: bool = False,
        cancel: threading.Event | None = None,
        served: Mapping[str, Serve] | None = None,
    ) -> Any:
        headers = self._credentials() if credentials else ()
        with ExitStack() as stack:
            channels: ClientChannels | None = None
            if served:
                from .client_channels import ClientChannels

                channels = stack.enter_context(ClientChannels(self._address, served))
            running = stack.enter_context(exchange(self._address, method, headers=headers, cancel=cancel))
            running.send(dumps(dict(arguments or {})) + b"\n")
            while stdin is not None and (piece := stdin.read(_PIECE)):
                running.send(piece)
            running.end()
            for kind, payload in running.frames():
                match kind:
                    case b"E" if on_event is not None:
                        on_event(loads(payload))
                    case b"C" if channels is not None:
                        channels.begin(loads(payload))
                    case b"D" if stdout is not None:
                        stdout(payload)
                    case b"O" if stderr is not None:
                        stderr(payload)
                    case _:
                        return final(kind, payload, cancel)
        raise ended_early(cancel)

    def _credentials(self) -> tuple[tuple[str, str], ...]:
        """All that Docker's configuration has, for the daemon to use in this call and to forget."""
        from pybuild.registry_client.credentials import DockerConfig, server_key

        if self._config is None:
            self._config = DockerConfig(
                os.fspath(self._docker_config / "config.json"), environment=self._variables, warn=self._warn
            )
        config = self._config
        found: dict[str, dict[str, str]] = {}
        for host in config.hosts():
            credential = config.get(host)
            if credential is not None:
                found[server_key(host)] = {
                    "username": credential.username,
                    "password": credential.secret,
                    "identitytoken": credential.identity_token,
                    "registrytoken": credential.registry_token,
                }
        if not found:
            return ()
        return (("X-Registry-Config", base64.urlsafe_b64encode(json.dumps(found).encode()).decode("ascii")),)

    # --- images ------------------------------------------------------------------------------------------------------

    def image_rows(self, wanted: ImageFilter) -> list[ImageRow]:
        """See StoreQueries."""
        return list(self._call("images", {"wanted": wanted}))

    def inspect(self, name: str, *, platform: str | None) -> dict[str, Any]:
        """See StoreQueries."""
        found: dict[str, Any] = self._call("inspect", {"name": name, "platform": platform})
        return found

    def history(self, name: str) -> ImageHistory:
        """See StoreQueries."""
        found: ImageHistory = self._call("history", {"name": name})
        return found

    def base_config(self, name: str, *, platform: Platform) -> ImageConfig | None:
        """See StoreQueries."""
        from pybuild.layers.image import ImageConfig

        found: bytes | None = self._call("base_config", {"name": name, "platform": platform})
        return None if found is None else ImageConfig.from_bytes(found)

    def tag(self, source: str, target: str) -> None:
        """See Engine."""
        self._call("tag", {"source": source, "target": target})

    def remove_image(self, name: str, *, force: bool, keep_layers: bool = False) -> Removal:
        """See Engine."""
        found: Removal = self._call("remove_image", {"name": name, "force": force, "keep_layers": keep_layers})
        return found

    def tags_of(self, name: str) -> list[str]:
        """See Engine."""
        return list(self._call("tags_of", {"name": name}))

    def raw_manifest(self, name: str) -> bytes:
        """See Engine."""
        found: bytes = self._call("raw_manifest", {"name": name}, credentials=True)
        return found

    def build_usage(self) -> tuple[BuildUsage, ...]:
        """See StoreQueries."""
        return tuple(self._call("build_usage"))

    def usage(self) -> Usage:
        """See StoreQueries."""
        found: Usage = self._call("usage")
        return found

    def prune(self, policy: PrunePolicy, *, dry_run: bool) -> PruneReport:
        """See StoreQueries."""
        found: PruneReport = self._call("prune", {"policy": policy, "dry_run": dry_run})
        return found

    def prune_images(self, *, all: bool) -> ImagePruneReport:
        """See StoreQueries."""
        found: ImagePruneReport = self._call("prune_images", {"all": all})
        return found

    def build_records(self) -> tuple[BuildRecord, ...]:
        """See StoreQueries."""
        found: tuple[BuildRecord, ...] = self._call("build_records")
        return found

    def build_causes(self, name: str | None, *, with_causes: bool) -> BuildCauses | None:
        """See StoreQueries."""
        found: BuildCauses | None = self._call("build_causes", {"name": name, "with_causes": with_causes})
        return found

    # --- archives ----------------------------------------------------------------------------------------------------

    def save_images(self, names: Sequence[str], *, dest: str | None, stdout: BinaryIO, docker: bool) -> None:
        """See Engine; ``dest`` is on this machine, whole or not there."""
        arguments = {"names": tuple(names), "docker": docker}
        if dest is None:
            self._call("save_images", arguments, stdout=stdout.write)
            stdout.flush()
            return
        try:
            with whole_file(dest) as out:
                self._call("save_images", arguments, stdout=out.write)
        except OSError as error:
            raise PybuildError(f"can't write {dest}: {error.strerror}") from error

    def load_images(self, source: BinaryIO) -> list[LoadedImage]:
        """See Engine."""
        return list(self._call("load_images", stdin=source))

    def import_image(
        self,
        source: str,
        *,
        stdin: BinaryIO,
        name: str | None,
        changes: Sequence[str] = (),
        message: str = "",
        platform: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Digest:
        """See Engine; a path is read on this machine."""
        arguments: dict[str, Any] = {
            "source": source,
            "name": name,
            "changes": tuple(changes),
            "message": message or f"Imported from {source}",
            "platform": platform,
            "labels": labels or {},
        }
        found: Digest
        if source == "-" or "://" in source:
            found = self._call("import_image", arguments, stdin=stdin if source == "-" else None)
            return found
        try:
            with open(source, "rb") as file:
                found = self._call("import_image", {**arguments, "source": "-"}, stdin=file)
        except OSError as error:
            raise UsageError(f"can't read {source!r}: {error.strerror}") from error
        return found

    def run_image(
        self,
        name: str,
        options: RunOptions,
        *,
        on_output: Callable[[int, bytes], None],
        cancel: threading.Event,
        stdin: int | None = None,
        terminal: Terminal | None = None,
    ) -> ExitStatus:
        """See Engine; volumes are directories of the daemon's machine."""
        from pybuild.values import replace

        from .client_channels import standard_input, terminal_session

        # A relative path means what it means here, though the directory is the daemon's.
        given = (text.partition(":") for text in options.volumes)
        volumes = ((os.path.abspath(path) if mark else path) + mark + rest for path, mark, rest in given)
        options = replace(options, volumes=tuple(volumes))
        served: dict[str, Serve] = {}
        if stdin is not None:
            served["stdin"] = standard_input(stdin)
        if terminal is not None:
            served["terminal"] = lambda channel, _: terminal_session(channel, kind=terminal.kind)
        found: ExitStatus = self._call(
            "run_image",
            {"name": name, "options": options, "stdin": stdin is not None, "terminal": terminal is not None},
            served=served,
            stdout=lambda data: on_output(1, data),
            stderr=lambda data: on_output(2, data),
            cancel=cancel,
        )
        return found

    # --- registries --------------------------------------------------------------------------------------------------

    def pull(
        self,
        name: str,
        *,
        platform: Platform | None = None,
        all_platforms: bool = False,
        on_transfer: OnTransfer,
        cancel: threading.Event | None = None,
    ) -> PullSummary:
        """See Engine."""
        found: PullSummary = self._call(
            "pull",
            {"name": name, "platform": platform, "all_platforms": all_platforms},
            on_event=on_transfer,
            credentials=True,
            cancel=cancel,
        )
        return found

    def push(
        self,
        name: str,
        *,
        platform: Platform | None = None,
        compression: str = "gzip",
        level: int | None = None,
        force: bool = False,
        on_transfer: OnTransfer,
        cancel: threading.Event | None = None,
    ) -> PushReport:
        """See Engine."""
        found: PushReport = self._call(
            "push",
            {"name": name, "platform": platform, "compression": compression, "level": level, "force": force},
            on_event=on_transfer,
            credentials=True,
            cancel=cancel,
        )
        return found

    # --- building ----------------------------------------------------------------------------------------------------

    def build(
        self,
        request: BuildRequest,
        *,
        progress: Progress,
        cancel: threading.Event,
        stdout: BinaryIO | None = None,
        around_shell: AroundShell | None = None,
    ) -> BuildResult:
        """See Engine: contexts, secrets and destinations are this machine's."""
        found: BuildResult = self._build("build", request, progress, cancel, stdout, around_shell)
        return found

    def predict(self, request: BuildRequest, *, progress: Progress, cancel: threading.Event) -> list[Prediction]:
        """See Engine."""
        return list(self._build("predict", request, progress, cancel, None, None))

    def _build(
        self,
        method: str,
        request: BuildRequest,
        progress: Progress,
        cancel: threading.Event,
        stdout: BinaryIO | None,
        around_shell: AroundShell | None,
    ) -> Any:
        from .client_build import BuildCall

        def begin(call: Callable[[Exchange], Any]) -> Any:
            with exchange(self._address, method, headers=self._credentials(), cancel=cancel) as running:
                return call(running)

        return BuildCall(
            request,
            progress=progress,
            cancel=cancel,
            stdout=stdout,
            address=self._address,
            around_shell=around_shell,
        ).run(begin)


def final(kind: bytes, payload: bytes, cancel: threading.Event | None) -> Any:
    """The value of a result frame. Raises the error of an error frame, WireError for any other."""
    if kind == b"R":
        return loads(payload)
    if kind == b"X":
        if cancel is not None and cancel.is_set():
            raise Cancelled
        raise error_from(payload)
    raise WireError(f"the daemon sent something unexpected ({kind!r})")


def ended_early(cancel: threading.Event | None) -> PybuildError:
    """What an answer without a result means."""
    if cancel is not None and cancel.is_set():
        return Cancelled()
    return WireError("the daemon ended the call without a result", hint="its log tells more")
