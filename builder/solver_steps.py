"""The steps of a build: vertices with their keys, in an order in which inputs come first.

Owns going through the graph and computing definition keys, for which contexts are walked and downloads resolved; equal steps become one.
Runs nothing and looks nothing up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import Digest
from pybuild.layers.views import FileView
from pybuild.parser.suggest import closest
from pybuild.values import dataclass, field, replace

from .content import ContentDigest, ContentReader, DigestRules
from .contexts_local import LocalContext
from .copy_paths import join
from .graph import (
    BindMount,
    CacheMount,
    ContextSource,
    Exec,
    FileCopy,
    GitSource,
    HttpSource,
    ImageSource,
    Op,
    Scratch,
    Vertex,
)
from .keys import Recipe, definition_key, nonce_of, plain, recipe_of
from .progress import Progress, StepDone, StepProgress, StepStarted, step_of
from .protocols import HttpFile, RemoteSources
from .selection import Selection, SourceNotFound, select_copy, select_path
from .why import recorded_recipe

_PARALLEL_DOWNLOADS = 8
_METADATA_BYTES = 32


class StepFailed(PybuildError):
    """A step failed. ``vertex``: which; ``cause``: why; ``output``: the last lines it printed; ``times``: when, in seconds as they are shown."""

    def __init__(
        self, vertex: Vertex, cause: PybuildError, *, output: Sequence[bytes] = (), times: Sequence[str] = ()
    ) -> None:
        super().__init__(cause.message, hint=cause.hint)
        self.vertex = vertex
        self.cause = cause
        self.output = tuple(output)
        self.times = tuple(times)


@dataclass(frozen=True, slots=True)
class Result:
    """What a step gives: the diff IDs of its whole stack, lowest first; ``own`` of them, at the top, it made itself."""

    stack: tuple[Digest, ...]
    own: int
    cached: bool
    key: str


@dataclass(slots=True, eq=False)
class Step:
    """A vertex (or several equal ones) of a build.

    ``op``: with commits and checksums of sources resolved; ``key``: identifies it in this build; ``recipe``: its definition key without
    nonces, as later builds will compute it; ``forced``: must not come from the cache; ``tainted``: it or something it is made from is
    forced, so that only its content key can say anything; ``selections``, ``contents``: what it takes from contexts, by input.
    """

    vertex: Vertex
    op: Op
    inputs: tuple[Step, ...]
    key: str
    recipe: Recipe
    forced: bool
    tainted: bool
    selections: dict[int, Selection] = field(default_factory=dict)
    contents: dict[int, ContentDigest] = field(default_factory=dict)
    result: Result | None = None

    def recorded_recipe(self) -> str:
        """The recipe as it is kept, for ``why``."""
        op = self.op
        return recorded_recipe(
            self.recipe,
            self.contents,
            image=op if isinstance(op, ImageSource) else None,
            sources={n: source.op for n, source in enumerate(self.inputs) if source.is_source},
            arguments=self.vertex.note.arguments if isinstance(op, Exec) else (),
        )

    @property
    def is_source(self) -> bool:
        """True for what has no layers of its own making: images, contexts, downloads, nothing."""
        return isinstance(self.op, (ImageSource, Scratch, ContextSource, GitSource, HttpSource))

    @property
    def is_view(self) -> bool:
        """True for a tree that is no stack of layers."""
        return isinstance(self.op, (ContextSource, GitSource, HttpSource))


@dataclass(frozen=True, slots=True)
class StepReport:
    """How a step went. Times in seconds since the epoch; ``reason``: why it was not cached; ``error`` empty if all went well."""

    step: Step
    cached: bool
    started: float
    finished: float
    reason: str = ""
    error: str = ""

    @property
    def vertex(self) -> Vertex:
        return self.step.vertex

    @property
    def id(self) -> str:
        """The step's identifier in the progress events."""
        return self.step.key

    @property
    def key(self) -> str:
        """Its definition key."""
        return self.step.recipe.key

    @property
    def recipe(self) -> str:
        """What went into it, as canonical JSON text."""
        return self.step.recorded_recipe()


def source_input(op: FileCopy) -> int:
    """The position of the tree that a copy reads."""
    return 0 if op.link else 1


def topological(targets: Sequence[Vertex]) -> list[Vertex]:
    """Every vertex that ``targets`` need, inputs first, each once. Graphs may be deep: no recursion."""
    order: list[Vertex] = []
    seen: set[Vertex] = set()
    stack: list[tuple[Vertex, int]] = [(target, 0) for target in reversed(targets)]
    while stack:
        vertex, position = stack.pop()
        if not position:
            if vertex in seen:
                continue
            seen.add(vertex)
        if position < len(vertex.inputs):
            stack.append((vertex, position + 1))
            if vertex.inputs[position] not in seen:
                stack.append((vertex.inputs[position], 0))
        else:
            order.append(vertex)
    return order


class StepMaker:
    """Makes the steps of one build."""

    def __init__(
        self,
        *,
        contexts: Mapping[str, FileView],
        reader: ContentReader,
        remotes: RemoteSources | None,
        progress: Progress,
        clock: Callable[[], float],
        cancel: threading.Event,
    ) -> None:
        self._contexts = contexts
        self._reader = reader
        self._remotes = remotes
        self._progress = progress
        self._clock = clock
        self._cancel = cancel
        self.downloads: dict[str, HttpFile] = {}
        """Files that were downloaded to know their content, by URL."""
        self._times: dict[str, tuple[float, float]] = {}

    def make(self, targets: Sequence[Vertex]) -> tuple[list[Step], dict[Vertex, Step]]:
        """The steps that ``targets`` need, inputs first, and which step each vertex is. Raises StepFailed, Cancelled."""
        order = topological(targets)
        resolved = self._resolve_sources(order)
        by_vertex: dict[Vertex, Step] = {}
        by_key: dict[str, Step] = {}
        steps: list[Step] = []
        transfer = _Transfers(self._progress, self._clock)
        for vertex in order:
            inputs = tuple(by_vertex[vertex_in] for vertex_in in vertex.inputs)
            step = self._step(vertex, resolved.get(vertex, vertex.op), inputs, transfer)
            known = by_key.setdefault(step.key, step)
            if known is step:
                steps.append(step)
                self._tell_download(step)
            by_vertex[vertex] = known
        transfer.end()
        return steps, by_vertex

    def context(self, vertex: Vertex, name: str) -> FileView:
        """The view of a context by its name. Raises StepFailed."""
        view = self._contexts.get(name)
        if view is None:
            raise StepFailed(vertex, SourceNotFound(name, hint="the build has no context of this name"))
        return view

    def _step(self, vertex: Vertex, op: Op, inputs: tuple[Step, ...], transfer: _Transfers) -> Step:
        selections: dict[int, Selection] = {}
        contents: dict[int, ContentDigest] = {}
        for position, source in enumerate(inputs):
            if isinstance(source.op, ContextSource):
                self._read_context(vertex, op, position, source, selections, contents, transfer)
        texts = [
            contents[position].text if position in contents else source.recipe.key
            for position, source in enumerate(inputs)
        ]
        recipe = definition_key(plain(op), texts)
        forced = bool(nonce_of(op))
        tainted = forced or any(source.tainted for source in inputs)
        key = recipe.key
        if tainted:
            # Only inside this build: equal forced steps of one build are still one.
            key = recipe_of({"forced": nonce_of(op), "step": recipe.key, "after": [s.key for s in inputs]}).key
        return Step(vertex, op, inputs, key, recipe, forced, tainted, selections, contents)

    # --- contexts --------------------------------------------------------------------------------------------------------

    def _read_context(
        self,
        vertex: Vertex,
        op: Op,
        position: int,
        source: Step,
        selections: dict[int, Selection],
        contents: dict[int, ContentDigest],
        transfer: _Transfers,
    ) -> None:
        assert isinstance(source.op, ContextSource)
        transfer.begin(source)
        try:
            view = self.context(vertex, source.op.name)
            selection, content = take(self._reader, view, op, position, context=True)
        except (Cancelled, StepFailed):
            raise
        except SourceNotFound as missing:
            failure = missing.inside(source.op.name, hint=why_missing(view, missing.path))
            transfer.end()
            transfer.refuse(vertex, failure.message)
            raise StepFailed(vertex, failure) from missing
        except PybuildError as error:
            transfer.end(error.message)
            raise StepFailed(vertex, error) from error
        if selection is not None:
            selections[position] = selection
        if content is not None:
            contents[position] = content
            transfer.add(source, content)

    # --- downloads -------------------------------------------------------------------------------------------------------

    def _resolve_sources(self, order: Sequence[Vertex]) -> dict[Vertex, Op]:
        """Commits of git references and digests of files whose checksum isn't given, all at once."""
        wanted = [
            vertex
            for vertex in order
            if (isinstance(vertex.op, GitSource) and not vertex.op.commit)
            or (isinstance(vertex.op, HttpSource) and vertex.op.checksum is None)
        ]
        if not wanted:
            return {}
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="source") as pool:
            return dict(zip(wanted, pool.map(self._resolve_source, wanted)))

    def was_downloaded(self, step: Step) -> bool:
        """True for a file that had to be downloaded to know its content."""
        return isinstance(step.op, HttpSource) and step.op.url in self.downloads

    def _tell_download(self, step: Step) -> None:
        """Events of a file that was downloaded: only now its step has an identifier."""
        if not isinstance(step.op, HttpSource) or not self.was_downloaded(step):
            return
        note = step.vertex.note
        began, ended = self._times[step.op.url]
        self._progress.emit(StepStarted(step.key, note.title, began, (), note.lines))
        self._progress.emit(StepDone(step.key, ended))

    def _resolve_source(self, vertex: Vertex) -> Op:
        op = vertex.op
        if self._remotes is None:
            raise StepFailed(vertex, SourceNotFound(vertex.note.title, hint="this build may not download anything"))
        if self._cancel.is_set():
            raise Cancelled
        try:
            if isinstance(op, GitSource):
                return replace(op, commit=self._remotes.git_commit(op.remote, op.ref, checksum=op.checksum))
            assert isinstance(op, HttpSource)
            began = self._clock()
            file = self._remotes.http(op.url, checksum=None)
        except Cancelled:
            raise
        except PybuildError as error:
            raise StepFailed(vertex, error) from error
        self.downloads[op.url] = file
        self._times[op.url] = (began, self._clock())
        return replace(op, checksum=file.digest)


def take(
    reader: ContentReader, view: FileView, op: Op, position: int, *, context: bool
) -> tuple[Selection | None, ContentDigest | None]:
    """What ``op`` takes from the tree that is its input ``position``: the selection of a copy, and the digest of all it reads.

    ``context``: the tree is a local one, of which everything becomes root's.
    """
    match op:
        case FileCopy() if position == source_input(op):
            selection = select_copy(view, op)
            return selection, reader.digest(view, selection, DigestRules.of_copy(op))
        case Exec():
            paths = sorted(
                {
                    mount.source
                    for mount in op.mounts
                    if isinstance(mount, (BindMount, CacheMount)) and mount.input == position
                }
            )
            if not paths:
                return None, None
            shown = Selection(tuple(select_path(view, path).sources[0] for path in paths))
            return None, reader.digest(view, shown, DigestRules(owners=not context, xattrs=not context, tops=True))
        case _:
            return None, None


def why_missing(view: FileView, path: str) -> str | None:
    """What may be the cause that ``path`` is not in ``view``: an ignore rule, or a typing error."""
    wanted = path.strip("/")
    if isinstance(view, LocalContext) and view.ignore is not None and os.path.lexists(f"{view.root}/{wanted}"):
        rule = view.ignore.explain(wanted)
        which = "" if rule is None else f" by {rule[0]!r}" + ("" if rule[1] is None else f" in line {rule[1]}")
        return f"{path} exists, but .dockerignore excludes it{which}"
    directory, _, name = wanted.rpartition("/")
    near = closest(name, [other for other, _ in view.children(directory)])
    return None if near is None else f"did you mean {'/' + join(directory, near)}?"


class _Transfers:
    """Events of reading contexts: one step for each, from the first look to the end of all keys."""

    def __init__(self, progress: Progress, clock: Callable[[], float]) -> None:
        self._progress = progress
        self._clock = clock
        self._read: dict[str, int] = {}
        self._names: dict[str, str] = {}

    def begin(self, source: Step) -> None:
        if source.key in self._read:
            return
        self._read[source.key] = 0
        assert isinstance(source.op, ContextSource)
        self._names[source.key] = source.op.name
        note = source.vertex.note
        self._progress.emit(StepStarted(source.key, note.title, self._clock(), (), note.lines))

    def add(self, source: Step, content: ContentDigest) -> None:
        # What is known already is not read again: then only names and metadata come over.
        self._read[source.key] += content.read_bytes + content.total * _METADATA_BYTES

    def refuse(self, vertex: Vertex, error: str) -> None:
        """The context came over and lacks what ``vertex`` names: that step fails, although it has no key yet."""
        note = vertex.note
        step = step_of(note.title)
        self._progress.emit(StepStarted(step, note.title, self._clock(), (), note.lines))
        self._progress.emit(StepDone(step, self._clock(), error=error.removeprefix("failed to compute cache key: ")))

    def end(self, error: str | None = None) -> None:
        now = self._clock()
        for step, read_bytes in self._read.items():
            self._progress.emit(StepProgress(step, f"transferring {self._names[step]}:", read_bytes, 0, True, now))
            self._progress.emit(StepDone(step, now, error=error))
        self._read.clear()
