"""Running single steps: their inputs as views and mounts, the layers they make.

Owns opening what a step reads (contexts, downloads, stacks whose base may have to be pulled first) for as long as it is needed. Decides
nothing about whether a step runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import Digest
from pybuild.layers.views import FileView
from pybuild.values import dataclass, field

from .content import ContentDigest, ContentReader, Xattrs, contents_by_host_path
from .contexts_local import LocalContext
from .copy import plan_copy, plan_make
from .copy_spool import Spool
from .downloads import DownloadedFile, GitTree
from .execute import ExecRunner, ExecSettings
from .execute_trees import MountTree, StackTree, ViewTree
from .graph import ContextSource, Exec, FileCopy, FileMake, GitSource, HttpSource, ImageSource, Merge, Op, Scratch
from .keys import likeness, stack_identity
from .progress import BuildWarning, Progress, StepDone, StepProgress, StepStarted
from .protocols import Executor, RemoteSources, ResolvedImage, Snapshots
from .protocols import ImageSource as Images
from .selection import Selection, SourceNotFound, check_unchanged
from .solver_steps import Step, StepFailed, StepMaker, source_input, take, why_missing

Output = Callable[[int, bytes], None]

_MANY = 256


@dataclass(slots=True, eq=False)
class _Shared:
    """Something that several steps use and the first one makes."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    view: FileView | None = None
    tree: ViewTree | None = None
    done: bool = False


class StepRunner:
    """Runs the steps of one build."""

    def __init__(
        self,
        *,
        executor: Executor,
        snapshots: Snapshots,
        images: Images,
        resolved: Sequence[ResolvedImage],
        remotes: RemoteSources | None,
        maker: StepMaker,
        reader: ContentReader,
        settings: ExecSettings,
        progress: Progress,
        clock: Callable[[], float],
        held: ExitStack,
    ) -> None:
        self._snapshots = snapshots
        self._images = images
        self._resolved = {image.config.diff_ids: image for image in resolved}
        self._remotes = remotes
        self._maker = maker
        self.reader = reader
        self._settings = settings
        self._progress = progress
        self._clock = clock
        self._held = held
        self._exec = ExecRunner(executor, snapshots, settings=settings)
        self._bases: dict[tuple[Digest, ...], Step] = {}
        self._shared: dict[str, _Shared] = {}
        self._guard = threading.Lock()

    # --- base images -------------------------------------------------------------------------------------------------

    def pulls(self, steps: Sequence[Step], missing: set[Step]) -> list[Step]:
        """The base images whose files the steps in ``missing`` will need for sure and that are not in the store."""
        needed = {
            source
            for step in missing
            if not isinstance(step.op, Merge)
            for source in step.inputs
            if isinstance(source.op, ImageSource)
        }
        self.know_bases(steps)
        return [step for step in steps if step in needed and not self._present(step)]

    def has(self, stack: Sequence[Digest]) -> bool:
        """True if every layer of ``stack`` is in the store."""
        return self._snapshots.has(stack)

    def know_bases(self, steps: Sequence[Step]) -> None:
        """Learn the base images of a build, which stacks are completed from."""
        for step in steps:
            if isinstance(step.op, ImageSource):
                self._bases.setdefault(step.op.chain, step)

    def base_count(self, stack: Sequence[Digest]) -> int:
        """How many layers of a stack, from below, are a base image's."""
        chain = self._base_of(stack)
        return 0 if chain is None else len(chain)

    def _base_of(self, stack: Sequence[Digest]) -> tuple[Digest, ...] | None:
        fitting = [chain for chain in self._bases if chain and tuple(stack[: len(chain)]) == chain]
        return max(fitting, key=len, default=None)

    def ensure_base(self, stack: Sequence[Digest]) -> None:
        """See to it that the layers of the base image that ``stack`` begins with are in the store. Raises StepFailed."""
        chain = self._base_of(stack)
        if chain is not None and not self._snapshots.has(chain):
            self.pull(self._bases[chain])

    def know_base(self, stack: Sequence[Digest]) -> None:
        """See to it that the layers of the base image that ``stack`` begins with can be fetched later. Raises PybuildError."""
        chain = self._base_of(stack)
        if chain is not None and not self._snapshots.has(chain):
            op = self._bases[chain].op
            assert isinstance(op, ImageSource)
            self._images.know_layers(self._image(op))

    def _present(self, step: Step) -> bool:
        assert isinstance(step.op, ImageSource)
        return self._snapshots.has(step.op.chain)

    def pull(self, step: Step) -> None:
        """Bring a base image's layers into the store. Raises StepFailed."""
        op = step.op
        assert isinstance(op, ImageSource)
        shared = self._share(step.key)
        with shared.guard:
            if shared.done:
                return
            note = step.vertex.note
            self._progress.emit(StepStarted(step.key, note.title, self._clock(), (), note.lines))

            def on_progress(layer: str, current: int, total: int) -> None:
                done = bool(total) and current >= total
                self._progress.emit(StepProgress(step.key, layer, current, total, done, self._clock()))

            try:
                self._images.ensure_layers(self._image(op), on_progress=on_progress)
            except PybuildError as error:
                self._progress.emit(StepDone(step.key, self._clock(), error=error.message))
                if isinstance(error, Cancelled):
                    raise
                raise StepFailed(step.vertex, error) from error
            self._progress.emit(StepDone(step.key, self._clock()))
            shared.done = True

    def _image(self, op: ImageSource) -> ResolvedImage:
        known = self._resolved.get(op.chain)
        if known is not None:
            return known
        reference = op.reference
        if op.manifest is not None and "@" not in reference:
            reference = f"{reference}@{op.manifest}"
        return self._images.resolve(reference, platform=op.platform, pull=False)

    def _ensure(self, stack: Sequence[Digest]) -> None:
        """See to it that every layer of ``stack`` is in the store: what is missing can only be a base image's."""
        if stack and not self._snapshots.has(stack):
            self.ensure_base(stack)

    # --- inputs ------------------------------------------------------------------------------------------------------

    @contextmanager
    def inputs(self, step: Step) -> Iterator[StepInputs]:
        """What a step reads, held until the context ends."""
        with ExitStack() as held:
            yield StepInputs(self, step, held)

    @contextmanager
    def view(self, source: Step) -> Iterator[FileView]:
        """The files of a step's result."""
        if source.is_view:
            yield self._source_view(source)
            return
        assert source.result is not None
        self._ensure(source.result.stack)
        with self._snapshots.view(source.result.stack) as view:
            yield view

    def stack(self, source: Step) -> tuple[Digest, ...]:
        """The layers of a step's result, all in the store."""
        assert source.result is not None
        self._ensure(source.result.stack)
        return source.result.stack

    def tree(self, source: Step) -> MountTree:
        """A step's result as something that can be mounted."""
        if not source.is_view:
            return StackTree(self.stack(source))
        view = self._source_view(source)
        shared = self._share(source.key)
        with shared.guard:
            if shared.tree is None:
                owner = self._settings.root_owner
                shared.tree = ViewTree(view, owner, self._held, self._snapshots, source.key)
            return shared.tree

    def _share(self, key: str) -> _Shared:
        with self._guard:
            return self._shared.setdefault(key, _Shared())

    def _source_view(self, source: Step) -> FileView:
        if isinstance(source.op, ContextSource):
            return self._maker.context(source.vertex, source.op.name)
        shared = self._share(source.key)
        with shared.guard:
            if shared.view is None:
                shared.view = self._fetch(source)
            return shared.view

    def _fetch(self, source: Step) -> FileView:
        """Download a source, as a step of its own."""
        if self._maker.was_downloaded(source):
            return self._download(source.op)  # it has had its events
        note = source.vertex.note
        self._progress.emit(StepStarted(source.key, note.title, self._clock(), (), note.lines))
        try:
            view = self._download(source.op)
        except PybuildError as error:
            self._progress.emit(StepDone(source.key, self._clock(), error=error.message))
            if isinstance(error, Cancelled):
                raise
            raise StepFailed(source.vertex, error) from error
        self._progress.emit(StepDone(source.key, self._clock()))
        return view

    def _download(self, op: Op) -> FileView:
        if self._remotes is None:
            raise PybuildError("this build may not download anything")
        if isinstance(op, HttpSource):
            file = self._maker.downloads.get(op.url) or self._remotes.http(op.url, checksum=op.checksum)
            return DownloadedFile(file, op.filename)
        assert isinstance(op, GitSource)
        with self._guard:
            directory = self._held.enter_context(
                self._remotes.git_tree(
                    op.remote,
                    commit=op.commit,
                    ref=op.ref,
                    subdir=op.subdir,
                    keep_git_dir=op.keep_git_dir,
                    submodules=op.submodules,
                )
            )
        return GitTree(LocalContext(directory))

    # --- running -----------------------------------------------------------------------------------------------------

    def merge(self, step: Step) -> tuple[tuple[Digest, ...], int]:
        """The stack of a Merge: the first input's, and on it what each of the others made itself."""
        first, *others = step.inputs
        assert first.result is not None
        stack = first.result.stack
        own = 0
        for other in others:
            assert other.result is not None
            if other.result.own:
                stack += other.result.stack[-other.result.own :]
            own += other.result.own
        return stack, own

    def execute(
        self, inputs: StepInputs, *, on_output: Output, cancel: threading.Event
    ) -> tuple[tuple[Digest, ...], int]:
        """Run a step; returns its stack and how many layers of it are its own."""
        step = inputs.step
        match step.op:
            case Exec():
                stack = self.stack(step.inputs[0])
                trees = {position: self.tree(source) for position, source in enumerate(step.inputs) if position}
                layer = self._exec.run(step.op, stack=stack, trees=trees, on_output=on_output, cancel=cancel)
            case FileCopy():
                return self._copy(inputs, step.op)
            case FileMake():
                stack = self.stack(step.inputs[0])
                with ExitStack() as held:
                    parent = held.enter_context(self.view(step.inputs[0])) if stack else None
                    layer = self._snapshots.write_layer(stack, plan_make(step.op, parent=parent).entries)
            case _:
                raise AssertionError(step.op)
        return (*stack, layer.diff_id), 1

    def _copy(self, inputs: StepInputs, op: FileCopy) -> tuple[tuple[Digest, ...], int]:
        step = inputs.step
        position = source_input(op)
        source = inputs.view(position) if position < len(step.inputs) else None
        stack: tuple[Digest, ...] = () if op.link else self.stack(step.inputs[0])
        with ExitStack() as held:
            parent = held.enter_context(self.view(step.inputs[0])) if stack else None
            spool = held.enter_context(Spool(lambda: held.enter_context(self._snapshots.scratch())))
            plan = plan_copy(
                op,
                parent=parent,
                source=source,
                selection=inputs.selections.get(position),
                xattrs=inputs.xattrs.get(position),
                spool=spool,
                literal=position < len(step.inputs) and is_download(step.inputs[position]),
            )
            for warning in plan.warnings:
                self._progress.emit(BuildWarning("UnknownOwner", warning, step.vertex.note.lines, step=step.key))
            layer = self._snapshots.write_layer(stack, plan.entries)
        selection = inputs.selections.get(position)
        if selection is not None:
            check_unchanged(selection)
            content = inputs.contents.get(position)
            if content is not None and selection.count >= _MANY:
                known = contents_by_host_path(selection, content)
                self._snapshots.resembles(layer, key=likeness(op), contents=known)
        return (*stack, layer.diff_id), 1


@dataclass(slots=True, eq=False)
class StepInputs:
    """What one step reads, opened once: for its content key first, and for its run if it comes to that."""

    runner: StepRunner
    step: Step
    held: ExitStack
    selections: dict[int, Selection] = field(default_factory=dict)
    xattrs: dict[int, Mapping[str, Xattrs]] = field(default_factory=dict)
    contents: dict[int, ContentDigest] = field(default_factory=dict)
    _views: dict[int, FileView] = field(default_factory=dict)

    def view(self, position: int) -> FileView:
        """The files of an input."""
        view = self._views.get(position)
        if view is None:
            view = self._views[position] = self.held.enter_context(self.runner.view(self.step.inputs[position]))
        return view

    def identities(self) -> list[str]:
        """One text per input that says what it is, for the content key."""
        return [self._identity(position, source) for position, source in enumerate(self.step.inputs)]

    def _identity(self, position: int, source: Step) -> str:
        step = self.step
        if position in step.contents:
            if position in step.selections:
                self.selections[position] = step.selections[position]
            self.contents[position] = step.contents[position]
            return step.contents[position].text
        if isinstance(source.op, (HttpSource, GitSource)):
            return source.recipe.key  # made from the checksum or the commit: nothing need be there to know it
        is_root = position == 0 and not (isinstance(step.op, FileCopy) and step.op.link)
        if not is_root and not isinstance(source.op, Scratch):
            try:
                selection, content = take(self.runner.reader, self.view(position), step.op, position, context=False)
            except SourceNotFound as error:
                tree = source.vertex.note.stage or source.vertex.note.title
                raise error.inside(tree, hint=why_missing(self.view(position), error.path)) from error
            if selection is not None:
                self.selections[position] = selection
            if content is not None:
                self.contents[position] = content
                if content.xattrs is not None:
                    self.xattrs[position] = content.xattrs
                return content.text
        assert source.result is not None
        return stack_identity(source.result.stack)


def is_download(step: Step) -> bool:
    """True for a tree whose names are no patterns."""
    return isinstance(step.op, (HttpSource, GitSource))
