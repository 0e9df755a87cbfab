"""The calls that ``pybuild -H`` makes, carried out on an engine: the same methods that the command line uses in its own process.

Owns which methods there are and what goes back. Knows no HTTP: a ``Call`` has streams, events and arguments.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pybuild.builder.outputs import OutputType
from pybuild.builder.progress import Event
from pybuild.errors import UsageError
from pybuild.values import dataclass, replace

from .client_terminal import client_agents, client_input, client_terminal
from .context_listing import rows_from
from .kept_contexts import kept_context
from .remote_values import BuildCauses, ImageHistory, PullSummary
from .wire import WireError, dumps, frame

if TYPE_CHECKING:
    from pybuild.builder.outputs import Output
    from pybuild.builder.request import BuildRequest
    from pybuild.registry_client.transfers import Transfer

    from .cache_places import Layouts
    from .channels import CallChannels
    from .engine import Engine

_PIECE: Final = 1 << 18


class _Data(io.RawIOBase):
    """Bytes as frames of one kind."""

    def __init__(self, out: Callable[[bytes], object], kind: bytes) -> None:
        self._out = out
        self._kind = kind

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:  # Any: the buffer protocol
        self._out(frame(self._kind, bytes(data)))
        return len(data)


@dataclass(slots=True, eq=False)
class Call:
    """One call. ``arguments``: decoded; ``body``: what follows them; ``send`` takes whole frames; ``context_bytes``: received so far."""

    engine: Engine
    arguments: Mapping[str, Any]  # Any: values of ours
    body: BinaryIO
    send: Callable[[bytes], None]
    cancel: threading.Event
    channels: CallChannels
    context_bytes: int = 0

    def event(self, value: Event | Transfer) -> None:
        """Something happened."""
        self.send(frame(b"E", dumps(value)))

    def stdout(self) -> io.BufferedWriter:
        """A stream to the client's standard output; to be flushed."""
        return io.BufferedWriter(_Data(self.send, b"D"), _PIECE)


def images(call: Call) -> Any:  # Any here and below: a value that the wire knows
    return call.engine.image_rows(**call.arguments)


def inspect(call: Call) -> Any:
    return call.engine.inspect(**call.arguments)


def history(call: Call) -> ImageHistory:
    return call.engine.history(**call.arguments)


def base_config(call: Call) -> bytes | None:
    found = call.engine.base_config(**call.arguments)
    return None if found is None else found.to_bytes()


def tag(call: Call) -> None:
    call.engine.tag(**call.arguments)


def remove_image(call: Call) -> Any:
    return call.engine.remove_image(**call.arguments)


def tags_of(call: Call) -> Any:
    return call.engine.tags_of(**call.arguments)


def raw_manifest(call: Call) -> bytes:
    return call.engine.raw_manifest(**call.arguments)


def build_usage(call: Call) -> Any:
    return call.engine.build_usage()


def usage(call: Call) -> Any:
    return call.engine.usage()


def prune(call: Call) -> Any:
    return call.engine.prune(**call.arguments)


def prune_images(call: Call) -> Any:
    return call.engine.prune_images(**call.arguments)


def build_records(call: Call) -> Any:
    return call.engine.build_records()


def build_causes(call: Call) -> BuildCauses | None:
    return call.engine.build_causes(**call.arguments)


def save_images(call: Call) -> None:
    out = call.stdout()
    call.engine.save_images(**call.arguments, dest=None, stdout=out, cancel=call.cancel)
    out.flush()


def load_images(call: Call) -> Any:
    return call.engine.load_images(call.body)


def import_image(call: Call) -> Any:
    return call.engine.import_image(**call.arguments, stdin=call.body)


def run_image(call: Call) -> Any:
    arguments = dict(call.arguments)
    with_input, with_terminal = arguments.pop("stdin"), arguments.pop("terminal")
    with ExitStack() as stack:
        return call.engine.run_image(
            **arguments,
            on_output=lambda stream, data: call.send(frame(b"D" if stream == 1 else b"O", data)),
            cancel=call.cancel,
            stdin=stack.enter_context(client_input(call.channels)) if with_input else None,
            terminal=stack.enter_context(client_terminal(call.channels, cancel=call.cancel)) if with_terminal else None,
        )


def pull(call: Call) -> PullSummary:
    pulled = call.engine.pull(**call.arguments, on_transfer=call.event, cancel=call.cancel)
    return PullSummary(pulled.reference, pulled.descriptor, pulled.bytes_received, pulled.layers_existing)


def push(call: Call) -> Any:
    return call.engine.push(**call.arguments, on_transfer=call.event, cancel=call.cancel)


class _Events:
    """A Progress that sends."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def emit(self, event: Event) -> None:
        """See Progress."""
        self._call.event(event)


def build(call: Call) -> Any:
    """Bring the contexts up to date, build, send back what was exported."""
    with ExitStack() as stack:
        request: BuildRequest = call.arguments["request"]
        definition = call.arguments["definition"]
        scratch = stack.enter_context(call.engine.store.active.make())
        request = _with_contexts(call, request, stack)
        request = _with_definition(request, definition, call.body, scratch)
        request = _with_agents(call, request, scratch, stack)
        outputs = request.outputs
        local = tuple(_redirected(output, scratch / f"output-{number}") for number, output in enumerate(outputs))
        out = call.stdout()
        result = call.engine.build(
            replace(request, outputs=local),
            progress=_Events(call),
            cancel=call.cancel,
            stdout=out,
            around_shell=lambda text: client_terminal(call.channels, text, cancel=call.cancel),
            layouts=_layouts(call),
        )
        out.flush()
        for number, output in enumerate(outputs):
            if output.dest is not None and output.dest != "-":
                _send_output(call, number, scratch / f"output-{number}")
        return replace(result, outputs=outputs or result.outputs, images=())


def predict(call: Call) -> Any:
    """As ``build``, but only what would run, and why."""
    from pybuild.builder.graph import Scratch, Vertex

    with ExitStack() as stack:
        scratch = stack.enter_context(call.engine.store.active.make())
        request = _with_contexts(call, call.arguments["request"], stack)
        request = _with_definition(request, call.arguments["definition"], call.body, scratch)
        request = _with_agents(call, request, scratch, stack)
        found = call.engine.predict(request, progress=_Events(call), cancel=call.cancel, layouts=_layouts(call))
        # Only what is shown of a step goes back: not the graph below it.
        return [replace(step, vertex=Vertex(Scratch(), (), step.vertex.note)) for step in found]


def _layouts(call: Call) -> Layouts:
    """Caches in directories are the client's."""
    from .client_places import ClientPlace

    directory = str(call.arguments["directory"])
    return lambda path, reference: ClientPlace(
        os.path.join(directory, path), reference=reference, channels=call.channels, cancel=call.cancel
    )


def _with_agents(call: Call, request: BuildRequest, scratch: Path, stack: ExitStack) -> BuildRequest:
    if not request.ssh:
        return request
    return replace(request, ssh=stack.enter_context(client_agents(request.ssh, call.channels, scratch)))


def _with_contexts(call: Call, request: BuildRequest, stack: ExitStack) -> BuildRequest:
    """The request with each context that the client lists as a tree of ours, complete."""
    listings: Mapping[str, Any] = call.arguments["listings"]
    if not listings:
        return request
    remotes = call.engine.store.root / "remotes"
    open_trees = {}
    needed = {}
    for name, listing in listings.items():
        tree = stack.enter_context(
            kept_context(remotes, client=str(call.arguments["client"]), place=str(listing["place"]))
        )
        fresh = bool(listing["fresh"])
        rows = None if not fresh and tree.is_current(str(listing["rows"])) else rows_from(str(listing["rows"]))
        open_trees[name] = (tree, rows)
        needed[name] = [] if rows is None else tree.missing(rows)
    call.send(frame(b"N", dumps({name: tuple(row.path for row in rows) for name, rows in needed.items()})))
    named = dict(request.named_contexts)
    for name, (tree, rows) in open_trees.items():
        with _Section(call.body) as section:
            call.context_bytes += tree.fill(needed[name], section)
        if rows is not None:
            tree.finish(rows)
        if name == "":
            request = replace(request, context=str(tree.root), directory="/")
            if request.dockerfile is not None and call.arguments["dockerfile_inside"]:
                request = replace(request, dockerfile=str(tree.root / request.dockerfile))
        else:
            named[name] = listings[name]["prefix"] + str(tree.root) + listings[name]["suffix"]
    return replace(request, named_contexts=named)


def _with_definition(
    request: BuildRequest, definition: Any, body: BinaryIO, scratch: Path
) -> BuildRequest:  # Any: bytes by name, or None
    if definition is None:
        return replace(request, stdin=body)
    if "stdin" in definition:
        return replace(request, stdin=io.BytesIO(definition["stdin"]))
    # A Dockerfile beside the context, with the ignore file that belongs to it.
    directory = scratch / "definition"
    directory.mkdir()
    for name, content in definition.items():
        if "/" in name or name in (".", ".."):
            raise WireError("a Dockerfile's name can't be understood")
        (directory / name).write_bytes(content)
    return replace(request, dockerfile=str(directory / next(iter(definition))), stdin=body)


def _redirected(output: Output, place: Path) -> Output:
    if output.dest is None or output.dest == "-":
        return output
    if output.type in (OutputType.IMAGE, OutputType.REGISTRY):
        raise UsageError("an image output has no destination file")
    return replace(output, dest=str(place))


def _send_output(call: Call, number: int, place: Path) -> None:
    """An exported file as it is, a directory as a tar."""
    is_directory = place.is_dir()
    call.send(frame(b"F", dumps({"number": number, "directory": is_directory})))
    out = io.BufferedWriter(_Data(call.send, b"D"), _PIECE)
    if is_directory:
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            archive.add(place, arcname=".")
    else:
        with place.open("rb") as source:
            while piece := source.read(_PIECE):
                out.write(piece)
    out.flush()


class _Section(io.RawIOBase):
    """One of several archives in a body: pieces with their length (8 bytes, big-endian) in front, a length of 0 at the end."""

    def __init__(self, body: BinaryIO) -> None:
        self._body = body
        self._left = 0
        self._over = False

    def __enter__(self) -> BinaryIO:  # type: ignore[override]  # read like a file, and read to the end on leaving
        return io.BufferedReader(self, _PIECE)

    def __exit__(self, *_: object) -> None:
        while self.read(_PIECE):
            pass

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:  # Any: the buffer protocol
        if not self._left and not self._over:
            head = self._body.read(8)
            if len(head) < 8:
                raise WireError("the build context ends early")
            self._left = int.from_bytes(head, "big")
            self._over = not self._left
        if self._over:
            return 0
        data = self._body.read(min(len(buffer), self._left))
        if not data:
            raise WireError("the build context ends early")
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


METHODS: Final[Mapping[str, Callable[[Call], Any]]] = {
    function.__name__: function
    for function in (
        images,
        inspect,
        history,
        base_config,
        tag,
        remove_image,
        tags_of,
        raw_manifest,
        usage,
        build_usage,
        prune,
        prune_images,
        build_records,
        build_causes,
        save_images,
        load_images,
        import_image,
        run_image,
        pull,
        push,
        build,
        predict,
    )
}
