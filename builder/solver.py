"""Solving the graph: which steps come from the cache, and running those that don't.

Owns the decisions. Definition keys first, from the targets down: a hit needs none of its inputs, and what is above a miss is asked for.
Then the misses run in parallel, as their inputs are there; each asks once more with its content key, and holds that key's lock while
it runs, so that of several processes one does the work. Finished steps are recorded at once: a later failure loses nothing. What this
store misses is looked for elsewhere (``solver_remote.py``), and what is found there brought before the steps that need it run.

How steps run is ``solver_run.py``'s, how keys come about ``solver_steps.py``'s and ``keys.py``'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING

from pybuild.errors import Cancelled, PybuildError
from pybuild.layers.digest import Digest
from pybuild.layers.entries import CacheRecord
from pybuild.layers.views import FileView
from pybuild.values import dataclass

from .content import ContentReader
from .exec_settings import EntitlementMissing, ExecSettings, entitlements_of
from .graph import ContextSource, Exec, ImageSource, Merge, Scratch, Vertex
from .keys import content_key
from .progress import Progress, StepDone, StepLog, StepStarted
from .protocols import CacheIndex, Executor, RemoteSources, ResolvedImage, Snapshots
from .protocols import ImageSource as Images
from .solver_steps import Result, Step, StepFailed, StepMaker, StepReport
from .why import Explainer

if TYPE_CHECKING:
    from .solver_remote import DistantLayers, Elsewhere, RemoteCache
    from .solver_run import StepRunner

__all__ = ["CacheRequired", "Result", "Solver", "StepFailed", "StepReport"]

_OUTPUT_BYTES = 16 << 10
_OUTPUT_LINES = 20


class CacheRequired(PybuildError):
    """``--require-cache``: a step would have to run."""

    def __init__(self, title: str, reason: str) -> None:
        super().__init__(
            f"{title} is not cached: {reason}", hint="the build was asked to take every step from the cache"
        )
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Prediction:
    """What would become of a step. ``reason``: why it is not cached."""

    vertex: Vertex
    runs: bool
    reason: str


class Solver:
    """Solves graphs for one build.

    ``contexts``: local trees by name; ``images``: where base images come from, ``resolved`` those that are resolved already;
    ``settings``: secrets and agents; ``entitlements``: privileges that steps may ask for; ``cancel``: stops the build; ``explain``:
    finds out why a step was not cached; ``require_cache``: fail instead of running anything; ``preload``: loads what the stat index knows
    below a directory; ``remote_cache``: caches elsewhere; ``distant``: brings layers that this store only knows, where there are none; ``before_running``: told of the steps that are about to run. A context
    manager: copies of contexts are kept until it ends.
    """

    def __init__(
        self,
        *,
        executor: Executor,
        snapshots: Snapshots,
        cache: CacheIndex,
        images: Images,
        contexts: Mapping[str, FileView],
        progress: Progress,
        clock: Callable[[], float],
        cancel: threading.Event,
        resolved: Sequence[ResolvedImage] = (),
        remotes: RemoteSources | None = None,
        settings: ExecSettings | None = None,
        max_parallelism: int = 4,
        entitlements: frozenset[str] = frozenset(),
        explain: Explainer | None = None,
        require_cache: bool = False,
        preload: Callable[[str], object] | None = None,
        remote_cache: RemoteCache | None = None,
        distant: DistantLayers | None = None,
        before_running: Callable[[Sequence[Step]], None] | None = None,
    ) -> None:
        self._cache = cache
        self._before_running = before_running
        self._progress = progress
        self._clock = clock
        self._cancel = cancel
        self._stop = threading.Event()
        self._max_parallelism = max_parallelism
        self._entitlements = entitlements
        self._explain = explain or Explainer()
        self._explaining = threading.Lock()
        self._explained = False
        self._require_cache = require_cache
        self.reports: list[StepReport] = []
        """How each step went, in the order of their ends; complete after ``solve``, whether or not it failed."""
        self.steps: dict[Vertex, Step] = {}
        """Which step each vertex was, after ``solve``."""
        self._held = ExitStack()
        self._reader = ContentReader(cache, cancel=cancel, preload=preload)
        self._maker = StepMaker(
            contexts=contexts,
            reader=self._reader,
            remotes=remotes,
            progress=progress,
            clock=clock,
            cancel=cancel,
        )
        self._executor = executor
        self._snapshots = snapshots
        self._images = images
        self._resolved = resolved
        self._remotes = remotes
        self._settings = settings or ExecSettings({}, {})
        self._remote_cache = remote_cache
        self._distant = distant
        self._opened: Elsewhere | None = None
        if remote_cache is not None:
            self._open_elsewhere()

    def __enter__(self) -> Solver:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def solve(self, targets: Sequence[Vertex], *, files: Collection[Vertex] = ()) -> dict[Vertex, Result]:
        """Bring every target about. Returns their results; sources that are no stacks can't be targets. ``files``: the targets whose layers
        are wanted in this store; the others' need only be known, so that they can be fetched.

        Raises StepFailed (the first one; steps that had finished stay in the cache), EntitlementMissing, Cancelled.
        """
        steps, by_vertex = self._maker.make(targets)
        self.steps.update(by_vertex)
        self._check_entitlements(steps)
        wanted = [by_vertex[target] for target in targets]
        kept = {by_vertex[target] for target in targets if target in files}
        missing = self._find(steps, wanted, kept=kept)
        if any(isinstance(step.op, Exec) for step in missing):
            self._executor.start()
        pulls = self._runner.pulls(steps, missing) if missing else []
        self._announce(steps, missing.union(pulls))
        if self._before_running is not None and missing:
            self._before_running([step for step in steps if step in missing])
        self._run(steps, missing, pulls)
        self._have_bases(steps, wanted, kept)
        results: dict[Vertex, Result] = {}
        for target, step in zip(targets, wanted):
            assert step.result is not None
            results[target] = step.result
        return results

    def _have_bases(self, steps: Sequence[Step], wanted: Sequence[Step], kept: set[Step]) -> None:
        """Pull, or at least know, the base images that results consist of without any step having needed their files."""
        for step in wanted:
            if step.result is None or self._snapshots.has(step.result.stack):
                continue
            self._runner.know_bases(steps)
            if step in kept:
                self._runner.ensure_base(step.result.stack)
            else:
                self._runner.know_base(step.result.stack)

    @property
    def _elsewhere(self) -> Elsewhere:
        return self._opened or self._open_elsewhere()

    def _open_elsewhere(self) -> Elsewhere:
        from .solver_remote import Elsewhere

        self._opened = Elsewhere(
            self._remote_cache, self._cache, layers=self._distant, snapshots=self._snapshots, runner=self._runner
        )
        return self._opened

    @cached_property
    def _runner(self) -> StepRunner:
        """What runs steps, imported when there is one to run: a build that is cached throughout needs no more of the builder."""
        from .solver_run import StepRunner

        return StepRunner(
            executor=self._executor,
            snapshots=self._snapshots,
            images=self._images,
            resolved=self._resolved,
            remotes=self._remotes,
            maker=self._maker,
            reader=self._reader,
            settings=self._settings,
            progress=self._progress,
            clock=self._clock,
            held=self._held,
        )

    def predict(self, targets: Sequence[Vertex]) -> list[Prediction]:
        """What ``solve`` would do with each step that leaves layers, by what can be known without running any, inputs first."""
        steps, by_vertex = self._maker.make(targets)
        self.steps.update(by_vertex)
        missing = self._look_up(steps, [by_vertex[target] for target in targets])
        self._foresee(steps, missing)
        return [
            Prediction(step.vertex, step in missing, self._reason(step) if step in missing else "")
            for step in steps
            if not step.is_source and not isinstance(step.op, Merge)
        ]

    def _check_entitlements(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step.op, Exec):
                for entitlement in entitlements_of(step.op):
                    if entitlement not in self._entitlements:
                        raise StepFailed(step.vertex, EntitlementMissing(entitlement))

    # --- looking up ------------------------------------------------------------------------------------------------------

    def _find(self, steps: Sequence[Step], wanted: Sequence[Step], *, kept: set[Step]) -> set[Step]:
        """The steps that have to run. Everything that these need, and what is to be ``kept``, is in this store then, as far as it is known
        at all and no base image's."""
        if self._remote_cache is not None:
            self._runner.know_bases(steps)
        while True:
            missing = self._look_up(steps, wanted)
            inputs = {source for step in missing if not isinstance(step.op, Merge) for source in step.inputs}
            results = _within_merges(kept, missing)
            below, above = self._stacks(steps, inputs), self._stacks(steps, results)
            if self._remote_cache is None and not below and not above:
                return missing
            self._runner.know_bases(steps)
            whole = self._elsewhere.bring(below, unpack=True)
            whole = self._elsewhere.bring(above, unpack=False) and whole
            if whole and self._elsewhere.settle(self._stacks(steps, {*wanted})):
                return missing

    def _stacks(self, steps: Sequence[Step], among: set[Step]) -> list[tuple[Digest, ...]]:
        """The results of those steps that come from a cache and are not all here."""
        return [
            step.result.stack
            for step in steps
            if step in among
            and step.result is not None
            and not step.is_source
            and not self._snapshots.has(step.result.stack)
        ]

    def _known(self, key: str) -> CacheRecord | None:
        """This store's record of a key, unless it turned out that a layer of it can't be had."""
        record = self._cache.get(key)
        return None if record is not None and self._opened is not None and self._opened.is_lost(record) else record

    def _look_up(self, steps: Sequence[Step], wanted: Sequence[Step]) -> set[Step]:
        """Ask for definition keys, from the targets down; returns the steps that are needed and not known."""
        missing: set[Step] = set()
        seen: set[Step] = set()
        pending = list(wanted)
        while pending:
            step = pending.pop()
            if step in seen:
                continue
            seen.add(step)
            if isinstance(step.op, ImageSource):
                step.result = Result(step.op.chain, len(step.op.chain), True, step.key)
                continue
            if isinstance(step.op, Scratch):
                step.result = Result((), 0, True, step.key)
                continue
            if step.is_view:
                continue
            record = None if step.tainted else self._known(step.recipe.key)
            if record is None and not step.tainted and self._remote_cache is not None:
                record = self._elsewhere.find(step, steps)
            if record is not None:
                step.result = _result(record, step)
                continue
            step.result = None
            missing.add(step)
            pending.extend(step.inputs)
        return missing

    def _foresee(self, steps: Sequence[Step], missing: set[Step]) -> None:
        """Take out of ``missing`` what its content key finds here: all inputs' results must be known and here for that."""
        for step in steps:
            if step not in missing or step.forced or isinstance(step.op, Merge):
                continue
            if any(not source.is_view and not self._is_here(source) for source in step.inputs):
                continue
            try:
                with self._runner.inputs(step) as inputs:
                    record = self._cache.get(content_key(step.op, inputs.identities()).key)
            except PybuildError:
                continue  # what is wrong with it is for the build to tell
            if record is not None:
                step.result = _result(record, step)
                missing.discard(step)

    def _is_here(self, step: Step) -> bool:
        return step.result is not None and self._runner.has(step.result.stack)

    def _announce(self, steps: Sequence[Step], missing: set[Step]) -> None:
        """Tell of all that needn't run: hits, and what is above them."""
        now = self._clock()
        needed = {source for step in missing for source in step.inputs}
        for step in steps:
            if step in missing or isinstance(step.op, (Scratch, ContextSource)):
                continue
            if step.is_view and (step in needed or self._maker.was_downloaded(step)):
                continue
            if step.result is None and not step.tainted and not step.is_source:
                # What only a hit was made from counts as used as well: the next change may need it.
                record = self._cache.get(step.recipe.key)
                if record is not None:
                    step.result = _result(record, step)
            if self._remote_cache is not None and not step.is_source and not step.tainted:
                record = self._cache.get(step.recipe.key)
                if record is not None:
                    self._elsewhere.tell(step, record)
            self._start(step)
            self._end(StepDone(step.key, now, cached=True), step)
            self.reports.append(StepReport(step, True, now, now))

    def _start(self, step: Step) -> None:
        note = step.vertex.inputs[-1].note if step.vertex.note.grouped else step.vertex.note
        if not _is_told_elsewhere(step):
            self._progress.emit(
                StepStarted(step.key, note.title, self._clock(), tuple(i.key for i in step.inputs), note.lines)
            )

    def _end(self, event: StepDone, step: Step) -> None:
        if not _is_told_elsewhere(step):
            self._progress.emit(event)

    # --- running ---------------------------------------------------------------------------------------------------------

    def _run(self, steps: Sequence[Step], missing: set[Step], pulls: Sequence[Step]) -> None:
        tasks = [step for step in steps if step in missing]
        if not tasks:
            return
        from .scheduler import run_tasks

        after: dict[Step, Sequence[Step]] = {step: step.inputs for step in tasks}
        run_tasks(
            [*pulls, *tasks],
            after=after,
            work=self._work,
            parallelism=self._max_parallelism,
            cancel=self._cancel,
            stop=self._stop,
        )

    def _work(self, step: Step) -> None:
        if isinstance(step.op, ImageSource):
            self._runner.pull(step)
            return
        self._start(step)
        started = self._clock()
        tail = _Tail(started)
        try:
            reason = self._bring_about(step, tail)
        except PybuildError as error:
            stopped = self._cancel.is_set() or (self._stop.is_set() and isinstance(error, Cancelled))
            now, message = self._clock(), "canceled" if stopped else error.message
            self._end(StepDone(step.key, now, error=message), step)
            self.reports.append(StepReport(step, False, started, now, error=message))
            if stopped:
                raise Cancelled from error
            if isinstance(error, StepFailed):
                raise
            raise StepFailed(step.vertex, error, output=tail.lines(), times=tail.times()) from error
        assert step.result is not None
        now, cached = self._clock(), step.result.cached
        self._end(StepDone(step.key, now, cached=cached, reason=reason), step)
        self.reports.append(StepReport(step, cached, started, now, reason))

    def _bring_about(self, step: Step, tail: _Tail) -> str:
        """Set the step's result, from the cache by content or by running it; returns why it ran."""
        if isinstance(step.op, Merge):
            self._record(step, *self._runner.merge(step), aliases=())
            return ""
        with self._runner.inputs(step) as inputs:
            key = content_key(step.op, inputs.identities()).key
            if not step.forced and self._take_over(step, key):
                return ""
            reason = self._reason(step)
            if self._require_cache:
                raise CacheRequired(step.vertex.note.title, reason)
            with self._cache.lock(key, cancel=self._stop):
                # Another process may have done it while this one waited.
                if not step.forced and self._take_over(step, key):
                    return ""

                def on_output(stream: int, data: bytes) -> None:
                    now = self._clock()
                    tail.add(data, now)
                    self._progress.emit(StepLog(step.key, stream, data, now))

                stack, own = self._runner.execute(inputs, on_output=on_output, cancel=self._stop)
                self._record(step, stack, own, aliases=(key,))
        return reason

    def _reason(self, step: Step) -> str:
        with self._explaining:
            if not self._explained:
                self._explained = True
                steps = [other for other in self.steps.values() if not other.is_source]
                known = [other for other in steps if not isinstance(other.op, Merge)]
                self._explain.know(
                    [other.vertex for other in known],
                    [other.recipe.key for other in known],
                    merged={
                        other.recipe.key: [source.recipe.key for source in other.inputs]
                        for other in steps
                        if isinstance(other.op, Merge)
                    },
                )
            return self._explain.reason(step.vertex, step.recorded_recipe(), key=step.recipe.key, forced=step.forced)

    def _take_over(self, step: Step, key: str) -> bool:
        record = self._known(key)
        if record is not None and not self._snapshots.has(record.layers):
            record = record if self._elsewhere.bring((record.layers,), unpack=True) else None
        if record is None and self._remote_cache is not None:
            record = self._elsewhere.take_content(key)
        if record is None:
            return False
        self._record(step, record.layers, record.own, aliases=(key,), created=record.created)
        assert step.result is not None
        step.result = Result(record.layers, record.own, True, step.key)
        return True

    def _record(
        self,
        step: Step,
        stack: tuple[Digest, ...],
        own: int,
        *,
        aliases: Sequence[str],
        created: float | None = None,
    ) -> None:
        when = self._clock() if created is None else created
        record = CacheRecord(step.recipe.key, stack, own, step.recorded_recipe(), when)
        self._cache.put(record, aliases=aliases)
        step.result = Result(stack, own, False, step.key)
        if self._remote_cache is not None:
            self._elsewhere.tell(step, record)


def _within_merges(kept: set[Step], missing: set[Step]) -> set[Step]:
    """``kept``, with what merges among it that have to be made consist of."""
    out: set[Step] = set()
    pending = list(kept)
    while pending:
        step = pending.pop()
        if step in missing and isinstance(step.op, Merge):
            pending.extend(step.inputs)
        else:
            out.add(step)
    return out


def _result(record: CacheRecord, step: Step) -> Result:
    return Result(record.layers, record.own, True, step.key)


class _Tail:
    """The last lines that a step printed, for its error, each behind the seconds since ``started``."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._data = bytearray(b"\n")

    def add(self, data: bytes, now: float) -> None:
        mark = b"%.3f " % max(0.0, now - self._started)
        if self._data.endswith(b"\n"):
            self._data += mark
        self._data += data[:-1].replace(b"\n", b"\n" + mark) + data[-1:]
        if len(self._data) > 2 * _OUTPUT_BYTES:
            del self._data[:-_OUTPUT_BYTES]

    def lines(self) -> list[bytes]:
        # Of a line that was drawn again (a progress bar), what a terminal shows last.
        return [line.rstrip(b"\r").rpartition(b"\r")[2] for _, _, line in self._timed()]

    def times(self) -> list[str]:
        """Seconds, as they are shown before each line."""
        return [mark.decode() for mark, _, _ in self._timed()]

    def _timed(self) -> list[tuple[bytes, bytes, bytes]]:
        rest, newline, kept = bytes(self._data[-_OUTPUT_BYTES:]).partition(b"\n")
        if not newline:  # a line without end, whose beginning is gone
            return [(b"", b"", rest)]
        return [line.partition(b" ") for line in kept.split(b"\n") if line][-_OUTPUT_LINES:]


def _is_told_elsewhere(step: Step) -> bool:
    """True for the second half of a linked copy; but where its first half is another instruction's step, this is all there is of it."""
    return step.vertex.note.grouped and step.inputs[-1].vertex is step.vertex.inputs[-1]
