"""A build over a daemon, seen from the client: which contexts are sent, what of them is missing there, and where results go.

Lists contexts with the ignore rules applied, sends the contents that the daemon asks for, and writes exported files on this machine. Builds
nothing.
"""

from __future__ import annotations

import copy
import io
import os
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from pybuild.builder.cache_specs import parse_cache_from, parse_cache_to, parse_mounts_place
from pybuild.builder.contexts import DEFAULT_DOCKERFILE, ContextNotFound, DockerfileNotFound, open_local_context
from pybuild.builder.contexts_local import LocalContext
from pybuild.builder.contexts_named import IGNORE_FILE, NamedContextNotFound, open_named_contexts
from pybuild.builder.failure import BuildFailed
from pybuild.builder.git_reference import parse_git_reference
from pybuild.builder.outputs import OutputType
from pybuild.builder.progress import StepDone, StepStarted, step_of
from pybuild.errors import PybuildError, UsageError
from pybuild.layers.entries import Kind
from pybuild.layers.tar_write import write_tar
from pybuild.values import dataclass, replace

from .client import ended_early, final
from .client_channels import ClientChannels, Serve, agents, terminal_session
from .connection import Channel, DaemonAddress, Exchange
from .context_listing import ListedPath, entries_to_send, list_view, listing_text
from .wire import WireError, dumps, loads

if TYPE_CHECKING:
    from pybuild.builder.outputs import Output
    from pybuild.builder.progress import Progress
    from pybuild.builder.request import BuildRequest

    from .failed_steps import AroundShell

_PIECE: Final = 1 << 18
_DOCKERFILE_LIMIT: Final = 16 << 20
_LAYOUT: Final = "oci-layout://"


@dataclass(frozen=True, slots=True)
class _Listing:
    """A directory of this machine that the daemon gets. ``prefix``, ``suffix``: what is around its path in the named context's value."""

    root: str
    rows: tuple[ListedPath, ...]
    prefix: str = ""
    suffix: str = ""

    def to_wire(self) -> dict[str, Any]:  # Any: the JSON edge
        fresh = any(row.kind is Kind.FILE and not row.stamp for row in self.rows)
        return {
            "place": self.root,
            "prefix": self.prefix,
            "suffix": self.suffix,
            "rows": listing_text(self.rows),
            "fresh": fresh,
        }


class BuildCall:
    """One build."""

    def __init__(
        self,
        request: BuildRequest,
        *,
        progress: Progress,
        cancel: threading.Event,
        stdout: BinaryIO | None,
        address: DaemonAddress,
        around_shell: AroundShell | None = None,
    ) -> None:
        self._given = request
        self._progress = progress
        self._cancel = cancel
        self._stdout = stdout
        self._address = address
        self._around_shell = around_shell
        self._listings: dict[str, _Listing] = {}
        self._definition: dict[str, bytes] | None = None
        self._dockerfile_inside = False

    def run(self, begin: Callable[[Callable[[Exchange], Any]], Any]) -> Any:
        """List, then call through ``begin``. Raises what a build raises, WireError, DaemonUnreachable."""
        request = self._prepare_as_a_step(_checked(self._given))
        arguments = {
            "request": replace(request, stdin=None),
            "listings": {name: listing.to_wire() for name, listing in self._listings.items()},
            "definition": self._definition,
            "dockerfile_inside": self._dockerfile_inside,
            "client": _machine(),
            "directory": self._given.directory,
        }
        with ExitStack() as stack:
            served = {"terminal": self._serve_terminal, "ssh": agents(self._agents(stack)), **self._caches()}
            channels = stack.enter_context(ClientChannels(self._address, served))
            return begin(lambda running: self._talk(running, dumps(arguments) + b"\n", channels))

    def _caches(self) -> dict[str, Serve]:
        """The directories of this machine that the build's caches lie in."""
        given, mounts = self._given, "--cache-mounts"
        sources = [parse_cache_from(text).path for text in given.cache_from]
        sources += [parse_mounts_place(text, option=f"{mounts}-from").path for text in given.cache_mounts_from]
        targets = [parse_cache_to(text).path for text in given.cache_to]
        targets += [parse_mounts_place(text, option=f"{mounts}-to").path for text in given.cache_mounts_to]
        if not any((*sources, *targets)):
            return {}
        from .client_places import serve_caches

        here = given.directory
        return {
            "cache": serve_caches(
                readable=[os.path.join(here, path) for path in sources if path],
                writable=[os.path.join(here, path) for path in targets if path],
            )
        }

    def _agents(self, stack: ExitStack) -> Mapping[str, str]:
        """The agents that the build may use, as sockets: what a step may say to them is checked here. Raises AgentUnusable."""
        if not self._given.ssh:
            return {}
        from .ssh_agent import serve_agents

        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pybuild-"))
        return stack.enter_context(serve_agents(self._given.ssh, directory))

    def _serve_terminal(self, channel: Channel, wanted: Mapping[str, Any]) -> None:  # Any: decoded JSON
        if self._around_shell is not None:
            with self._around_shell(str(wanted.get("text", ""))) as terminal:
                terminal_session(channel, kind=terminal.kind)

    # --- before ------------------------------------------------------------------------------------------------------

    def _prepare_as_a_step(self, request: BuildRequest) -> BuildRequest:
        """``_prepared``; what is missing is told as a build tells it. Raises BuildFailed."""
        try:
            return self._prepared(request)
        except NamedContextNotFound as error:
            raise BuildFailed.of_step(error, None) from error
        except (ContextNotFound, DockerfileNotFound) as error:
            name = "Dockerfile" if request.dockerfile in (None, "-") else os.path.basename(request.dockerfile or "")
            step, now = step_of(name), time.time()
            self._progress.emit(StepStarted(step, f"[internal] load build definition from {name}", now))
            self._progress.emit(StepDone(step, now, error=error.message))
            raise BuildFailed.of_step(error, None) from error

    def _prepared(self, request: BuildRequest) -> BuildRequest:
        """The request as the daemon gets it; notes what goes with it."""
        request = replace(
            request,
            directory="/",
            secrets=tuple(replace(secret, path=None, value=_secret(secret)) for secret in request.secrets),
            named_contexts=self._named(request),
            ssh=tuple(replace(source, paths=(), raw=False) for source in request.ssh),
        )
        if self._given.dockerfile == "-":
            assert self._given.stdin is not None
            self._definition = {"stdin": _bounded(self._given.stdin)}
        root = os.path.join(self._given.directory, request.context)
        if request.context == "-" or (not os.path.isdir(root) and _is_elsewhere(request.context)):
            return request
        return self._with_directory(request, os.path.normpath(root))

    def _with_directory(self, request: BuildRequest, root: str) -> BuildRequest:
        given = self._given
        tree = open_local_context(
            given.context, directory=given.directory, dockerfile=None if given.dockerfile == "-" else given.dockerfile
        )
        elsewhere = given.dockerfile is not None and (given.dockerfile == "-" or "://" in given.dockerfile)
        path = (
            os.path.normpath(os.path.join(given.directory, given.dockerfile))
            if given.dockerfile and not elsewhere
            else None
        )
        inside = os.path.relpath(path or os.path.join(root, DEFAULT_DOCKERFILE), root)
        also = [IGNORE_FILE]
        if not elsewhere:
            _require(path or os.path.join(root, DEFAULT_DOCKERFILE))
        if path is not None and inside.startswith("../"):
            self._definition = _beside(path)
        elif not elsewhere:
            also += [inside, inside.lower() if path is None else inside, f"{inside}.dockerignore"]
            if path is not None:
                self._dockerfile_inside = True
                request = replace(request, dockerfile=inside)
        self._listings[""] = _Listing(root, list_view(tree.view, also=also))
        return replace(request, context=root)

    def _named(self, request: BuildRequest) -> dict[str, str]:
        """Named contexts: directories and layouts of this machine are sent, everything else is the daemon's to find. Raises what a build here
        raises, also for a directory that isn't there: the daemon must not look for it on its own machine."""
        for name, value in request.named_contexts.items():
            local = open_named_contexts({name: value}, directory=request.directory).views
            prefix = _LAYOUT if value.startswith(_LAYOUT) else ""
            path, suffix = value.removeprefix(prefix), ""
            if prefix:
                rest, at, digest = path.partition("@")
                path, colon, tag = rest.partition(":")
                suffix = colon + tag + at + digest
            if not prefix and not local:
                continue
            root = os.path.normpath(os.path.join(request.directory, path))
            view = LocalContext(root) if prefix else next(iter(local.values()))
            self._listings[name] = _Listing(root, list_view(view, also=[IGNORE_FILE]), prefix, suffix)
        return dict(request.named_contexts)

    # --- talking -----------------------------------------------------------------------------------------------------

    def _talk(self, running: Exchange, arguments: bytes, channels: ClientChannels) -> Any:
        running.send(arguments)
        if not self._listings:
            self._send_stdin(running)
            running.end()
        output: _Received | None = None
        try:
            for kind, payload in running.frames():
                match kind:
                    case b"N":
                        self._send_contexts(running, loads(payload))
                        self._send_stdin(running)
                        running.end()
                    case b"C":
                        channels.begin(loads(payload))
                    case b"E":
                        self._progress.emit(loads(payload))
                    case b"F":
                        if output is not None:
                            output.close()
                        output = self._receive(loads(payload))
                    case b"D" if output is not None:
                        output.write(payload)
                    case b"D":
                        if self._stdout is not None:
                            self._stdout.write(payload)
                    case _:
                        result = final(kind, payload, self._cancel)
                        if output is not None:
                            output.close()
                            output = None
                        return result
        finally:
            if output is not None:
                output.abandon()
            if self._stdout is not None:
                self._stdout.flush()
        raise ended_early(self._cancel)

    def _send_stdin(self, running: Exchange) -> None:
        if self._given.context != "-" or self._given.stdin is None:
            return
        while piece := self._given.stdin.read(_PIECE):
            running.send(piece)

    def _send_contexts(self, running: Exchange, needed: Mapping[str, tuple[str, ...]]) -> None:
        for name, paths in needed.items():
            listing = self._listings[name]
            wanted = set(paths)
            entries = entries_to_send(listing.root, [row for row in listing.rows if row.path in wanted])

            def sink(piece: Any) -> None:  # Any: the buffer protocol
                data = bytes(piece)
                if data:
                    running.send(len(data).to_bytes(8, "big") + data)

            if entries:
                write_tar(entries, sink)
            running.send((0).to_bytes(8, "big"))

    def _receive(self, head: Mapping[str, Any]) -> _Received:  # Any: the JSON edge
        try:
            output = self._given.outputs[head["number"]]
        except (KeyError, IndexError, TypeError):
            raise WireError("the daemon sent an output that was not asked for") from None
        assert output.dest is not None
        return _Received(os.path.join(self._given.directory, output.dest), directory=bool(head.get("directory")))


class _Received:
    """An output on its way to its place: a file that appears whole, or a directory that is added to."""

    def __init__(self, dest: str, *, directory: bool) -> None:
        self._dest = dest
        self._directory = directory
        parent = os.path.dirname(os.path.abspath(dest)) or "."
        place = parent if os.path.isdir(parent) else None
        self._file = tempfile.NamedTemporaryFile(prefix=".pybuild-", dir=place, delete=False)  # noqa: SIM115  # closed in close or abandon

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def close(self) -> None:
        """Put it in its place. Raises PybuildError."""
        try:
            if self._directory:
                self._file.seek(0)
                os.makedirs(self._dest, exist_ok=True)
                with tarfile.open(fileobj=cast(BinaryIO, self._file)) as archive:
                    archive.extraction_filter = _unchanged
                    archive.extractall(self._dest, members=_inside(archive, os.path.realpath(self._dest)))
            else:
                self._file.flush()
                os.fchmod(self._file.fileno(), 0o644)
                shutil.move(self._file.name, self._dest)
        except (OSError, tarfile.TarError) as error:
            raise PybuildError(f"can't write {self._dest}: {error}") from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        self._file.close()
        if os.path.exists(self._file.name):
            os.unlink(self._file.name)


def _unchanged(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo:
    """Python's filters since 3.11.4 change modes and refuse links that lead outside, which images are full of."""
    return member


def _inside(archive: tarfile.TarFile, root: str) -> Iterator[tarfile.TarInfo]:
    """The members, each when the ones before are extracted. What is in the place of one is removed, not written through.

    Raises TarError for one that would be written outside of ``root``.
    """
    for member in archive:
        member = copy.copy(member)
        member.name = os.path.relpath(_place(root, member.name), root)
        if member.islnk():
            member.linkname = os.path.relpath(_place(root, member.linkname), root)
        member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
        place = os.path.join(root, member.name)
        if os.path.islink(place) or (os.path.exists(place) and not os.path.isdir(place)):
            os.unlink(place)
        yield member


def _place(root: str, name: str) -> str:
    """Where a member is: links on the way are followed, the last name is not."""
    parent, last = os.path.split(name.strip("/"))
    directory = os.path.realpath(os.path.join(root, parent))
    if last == ".." or os.path.commonpath((root, directory)) != root:
        raise tarfile.TarError(f"{name} leads out of the directory")
    return os.path.normpath(os.path.join(directory, last))


def _is_elsewhere(context: str) -> bool:
    """True for a repository or a URL, which the daemon fetches itself."""
    return (
        context.startswith(("http://", "https://", "git@", "github.com/"))
        or parse_git_reference(context, as_context=True) is not None
    )


def _checked(request: BuildRequest) -> BuildRequest:
    """Raises UsageError for what can't be done over a daemon."""
    for output in request.outputs:
        _check_output(output)
    return request


def _check_output(output: Output) -> None:
    if output.type in (OutputType.OCI, OutputType.DOCKER) and not output.tar and output.dest == "-":
        raise UsageError("a directory can't be written to stdout")


def _secret(secret: Any) -> bytes:  # Any: SecretSource
    if secret.path is None:
        return secret.value or b""
    try:
        return Path(secret.path).read_bytes()
    except OSError as error:
        raise PybuildError(f"secret {secret.id}: can't read {secret.path}: {error.strerror}") from error


def _require(path: str) -> None:
    """Raise DockerfileNotFound here if there is no Dockerfile: the daemon could only name a path of its own."""
    directory, name = os.path.split(path)
    names = (name, name.lower()) if name == DEFAULT_DOCKERFILE else (name,)
    if not any(os.path.isfile(os.path.join(directory, each)) for each in names):
        raise DockerfileNotFound(name, path, "is a directory" if os.path.isdir(path) else "no such file or directory")


def _beside(path: str) -> dict[str, bytes]:
    """A Dockerfile outside the context, and its own ignore file. Raises DockerfileNotFound."""
    name = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            out = {name: _bounded(file)}
    except OSError as error:
        raise DockerfileNotFound(name, path, (error.strerror or str(error)).lower()) from None
    try:
        with open(f"{path}.dockerignore", "rb") as file:
            out[f"{name}.dockerignore"] = _bounded(file)
    except FileNotFoundError:
        pass
    return out


def _bounded(stream: BinaryIO) -> bytes:
    out = io.BytesIO()
    while piece := stream.read(1 << 20):
        out.write(piece)
        if out.tell() > _DOCKERFILE_LIMIT:
            raise PybuildError(f"failed to read dockerfile: it is larger than {_DOCKERFILE_LIMIT >> 20} MiB")
    return out.getvalue()


def _machine() -> str:
    """Tells this machine and user from others: kept contexts of two must not be mixed up."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        machine = os.uname().nodename
    return f"{machine}:{os.geteuid()}"
