"""A whole build: plans (``planning.py``), solves, attests, exports, remembers what happened.

Owns the order of these, nothing of how each is done. Every part that touches the machine is handed in as ``BuildParts``; the command
line, the daemon and Python callers all come through ``build``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

from pybuild.errors import Cancelled, PybuildError, UsageError
from pybuild.layers.digest import Digest
from pybuild.layers.remote_layers import LayersLost
from pybuild.parser import Dockerfile
from pybuild.parser.errors import DockerfileError
from pybuild.values import dataclass

from .assemble import BuiltImage
from .build_parts import BuildParts as BuildParts
from .build_parts import BuildResult as BuildResult
from .build_warnings import warning_json
from .exec_settings import EntitlementRefused, ExecSettings
from .exporters import Exporters
from .failure import BuildFailed
from .graph import Vertex
from .internal_steps import InternalSteps
from .lower import LoweredImage
from .outputs import Output, OutputType
from .planning import BuildPlan, Planner
from .progress import Again, BuildWarning, Progress
from .protocols import Secrets
from .recording import Recording, previous_steps, subject_of
from .request import BuildRequest
from .solver import Prediction, Result, Solver
from .solver_steps import Step, StepReport
from .why import Explainer

if TYPE_CHECKING:
    from .attest import Attester
    from .cache_build import BuildCaches


def build(
    request: BuildRequest,
    parts: BuildParts,
    *,
    progress: Progress,
    cancel: threading.Event,
    stdout: BinaryIO | None = None,
    on_dockerfile: Callable[[Dockerfile], None] | None = None,
) -> BuildResult:
    """Build and export. ``stdout`` takes what an output with ``dest=-`` writes; ``on_dockerfile`` gets the parsed Dockerfile.

    Raises BuildFailed (with the Dockerfile's listing) when the Dockerfile or a step is wrong, Cancelled, and other PybuildErrors for
    what is wrong around it (contexts, outputs, registries).
    """
    return _Build(request, parts, progress=progress, cancel=cancel, stdout=stdout, on_dockerfile=on_dockerfile).run()


def predict(
    request: BuildRequest, parts: BuildParts, *, progress: Progress, cancel: threading.Event
) -> list[Prediction]:
    """What ``build`` would run, as far as can be told without running anything. Raises as ``build``."""
    return _Build(request, parts, progress=progress, cancel=cancel, stdout=None, on_dockerfile=None).predict()


class _Build:
    def __init__(
        self,
        request: BuildRequest,
        parts: BuildParts,
        *,
        progress: Progress,
        cancel: threading.Event,
        stdout: BinaryIO | None,
        on_dockerfile: Callable[[Dockerfile], None] | None,
    ) -> None:
        self._request = request
        self._parts = parts
        self._recording = Recording(ref=parts.nonce(), subject=subject_of(request), started=parts.clock())
        self._progress = progress
        self._cancel = cancel
        self._stdout = stdout
        self._steps = InternalSteps(progress, parts.clock)
        self._planner = Planner(request, parts, ref=self._recording.ref, progress=progress, on_dockerfile=on_dockerfile)
        self._reports: Sequence[StepReport] = ()

    def run(self) -> BuildResult:
        error: str = ""
        result: BuildResult | None = None
        try:
            with ExitStack() as stack:
                result = self._run(stack)
            return result
        except PybuildError as failure:
            error = failure.message
            raise self._told(failure) from failure
        finally:
            self._recording.finish(
                self._parts.builds,
                finished=self._parts.clock(),
                names=self._request.tags,
                result=(result.image_id or "") if result is not None else "",
                error=error,
            )

    def _told(self, error: PybuildError) -> PybuildError:
        """The error as a person needs it: with the step and the Dockerfile's lines."""
        if isinstance(error, (BuildFailed, Cancelled, UsageError)):
            return error
        if self._cancel.is_set():
            return Cancelled()
        if isinstance(error, DockerfileError):
            dockerfile = self._planner.dockerfile
            if error.text is None and dockerfile is not None:
                error = error.at(filename=dockerfile.filename, text=dockerfile.text)
            return BuildFailed.of_dockerfile(error)
        return BuildFailed.of_step(error, self._planner.dockerfile)

    def _run(self, stack: ExitStack) -> BuildResult:
        request, parts = self._request, self._parts
        for entitlement in sorted(request.entitlements - parts.entitlements):
            raise EntitlementRefused(entitlement)
        # Before anything is read: repositories are reached by way of an agent, too.
        sockets = stack.enter_context(parts.ssh.serve(request.ssh)) if request.ssh else request.agents or {}
        plan = self._planner.plan(stack)
        attester = self._attester()
        scans = [] if attester is None or attester.choice is None else self._scans(attester, plan.lowered)
        outputs = request.outputs or (Output(type=OutputType.IMAGE),)
        kept = [each.vertex for each in plan.lowered if any(_needs_layers(output, request) for output in outputs)]
        try:
            return self._solve_and_export(plan, attester, scans, sockets, outputs=outputs, kept=kept)
        except LayersLost as error:
            # Only now a registry turns out to have lost what it promised: with everything wanted here, such steps count as missing.
            self._progress.emit(BuildWarning("", error.message))
            self._progress = Again(self._progress)
            kept = [each.vertex for each in plan.lowered]
            return self._solve_and_export(plan, attester, scans, sockets, outputs=outputs, kept=kept)

    def _solve_and_export(
        self,
        plan: BuildPlan,
        attester: Attester | None,
        scans: Sequence[Vertex],
        sockets: Mapping[str, str],
        *,
        outputs: Sequence[Output],
        kept: Sequence[Vertex],
    ) -> BuildResult:
        request, parts = self._request, self._parts
        results, steps = self._solve(plan, scans, sockets, kept=kept)
        images = tuple(self._built(each, results[each.vertex]) for each in plan.lowered)
        caching = _Caching(parts.caches, plan.lowered, results, self._reports)
        images = caching.with_inline(images)
        attested = None
        if attester is not None:
            attested = attester.attest(
                plan.lowered,
                plan.inputs(),
                steps=steps,
                scanned=[results[scan] for scan in scans],
                view_of=parts.snapshots.view,
            )
        exporters = Exporters(
            parts.exports,
            request=request,
            lowered=plan.lowered,
            progress=self._progress,
            clock=parts.clock,
            cancel=self._cancel,
            attested=() if attested is None else attested.of_images,
        )
        report = exporters.run(outputs, images, stdout=self._stdout)
        exported = caching.export()
        metadata = {**report.metadata, **exported, **({} if attested is None else attested.metadata)}
        warnings = self._planner.warnings
        if warnings:
            dockerfile = self._planner.dockerfile
            metadata["buildx.build.warnings"] = [warning_json(warning, dockerfile) for warning in warnings]
        metadata["buildx.build.ref"] = f"default/default/{self._recording.ref}"
        return BuildResult(self._recording.ref, report.image_id, metadata, tuple(outputs), warnings, images)

    # --- attestations ------------------------------------------------------------------------------------------------

    def _attester(self) -> Attester | None:
        request = self._request
        if request.provenance is None and request.sbom is None and not request.metadata_provenance:
            return None
        from .attest import Attester

        return Attester(
            request,
            machine=self._parts.platform,
            ref=self._recording.ref,
            started=self._recording.started,
            clock=self._parts.clock,
            environment=self._parts.provenance_environment,
        )

    def _scans(self, attester: Attester, lowered: Sequence[LoweredImage]) -> list[Vertex]:
        assert attester.choice is not None  # callers ask only if a scanner was chosen
        name = attester.choice.generator
        step = self._steps.begin(f"[internal] load metadata for {name}")
        try:
            image = self._parts.images.resolve(name, platform=self._parts.platform, pull=self._request.pull)
        except PybuildError as error:
            self._steps.end(step, error)
            raise
        self._steps.end(step)
        return attester.scans(lowered, image)

    # --- running -----------------------------------------------------------------------------------------------------

    def _solve(
        self, plan: BuildPlan, scans: Sequence[Vertex], sockets: Mapping[str, str], *, kept: Sequence[Vertex]
    ) -> tuple[dict[Vertex, Result], dict[Vertex, Step]]:
        """Solve the results and the scans of them; returns the results, and the step that each vertex was. ``kept``: the results whose layers
        are wanted in this store."""
        targets = [*(each.vertex for each in plan.lowered), *scans]
        with self._solver(plan, sockets) as solver:
            try:
                solved = solver.solve(targets, files={*kept, *scans})
            finally:
                self._recording.add(solver.reports)
                self._reports = solver.reports
        return solved, solver.steps

    def predict(self) -> list[Prediction]:
        """What a build would run. Raises as ``run``."""
        try:
            with ExitStack() as stack:
                plan = self._planner.plan(stack)
                with self._solver(plan, {}) as solver:
                    return solver.predict([each.vertex for each in plan.lowered])
        except PybuildError as failure:
            raise self._told(failure) from failure

    def _solver(self, plan: BuildPlan, sockets: Mapping[str, str]) -> Solver:
        request, parts = self._request, self._parts
        return Solver(
            executor=parts.executor,
            snapshots=parts.snapshots,
            cache=parts.cache,
            images=parts.images,
            resolved=tuple(image for each in plan.lowered for image in each.images),
            remotes=parts.remotes,
            contexts=plan.views,
            settings=ExecSettings(
                self._secrets(),
                sockets,
                root_owner=parts.exports.owner,
                host=parts.platform,
                on_failure=parts.on_failure,
            ),
            progress=self._progress,
            max_parallelism=request.max_parallelism or parts.max_parallelism,
            entitlements=request.entitlements & parts.entitlements,
            cancel=self._cancel,
            clock=parts.clock,
            explain=Explainer(
                lambda: (
                    previous_steps(parts.builds, self._recording.subject)
                    or ([] if parts.caches is None else parts.caches.previous_steps())
                ),
                recipe_of=parts.recipes.recipe_of,
                evicted=parts.recipes.evicted,
                find=None if parts.caches is None else parts.caches.latest_step,
            ),
            require_cache=request.require_cache,
            preload=parts.preload,
            remote_cache=parts.caches,
            distant=parts.distant,
            before_running=None if parts.caches is None else parts.caches.before_running,
        )

    def _secrets(self) -> Secrets:
        """The secrets' values. Raises PybuildError for a file that can't be read any more."""
        values: dict[str, bytes] = {}
        for secret in self._request.secrets:
            if secret.path is None:
                values[secret.id] = secret.value or b""
                continue
            try:
                with open(secret.path, "rb") as file:
                    values[secret.id] = file.read()
            except OSError as error:
                raise PybuildError(f"secret {secret.id}: can't read {secret.path}: {error.strerror}") from error
        more = self._request.secret_values
        return values if more is None else _Both(values, more)

    def _built(self, lowered: LoweredImage, result: Result) -> BuiltImage:
        times = self._parts.layer_times.created(result.stack)
        return BuiltImage(
            platform=lowered.platform,
            config=lowered.config,
            history=lowered.history,
            stack=result.stack,
            layer_times=(*(None for _ in range(lowered.base_layers)), *times[lowered.base_layers :]),
            base_history=lowered.base_history,
            base_layers=lowered.base_layers,
        )


def _needs_layers(output: Output, request: BuildRequest) -> bool:
    """Whether an output needs the layers' bytes on this machine: what is only pushed may stay where it is (docs/decisions/lazy-layers.md)."""
    match output.type:
        case OutputType.CACHE_ONLY:
            return False
        case OutputType.IMAGE | OutputType.REGISTRY:
            changed = request.squash or output.rewrite_timestamp or output.force_compression
            return changed or (output.store and not output.push)
        case _:
            return True


@dataclass(slots=True)
class _Caching:
    """What a solved build gives to caches elsewhere."""

    caches: BuildCaches | None
    lowered: Sequence[LoweredImage]
    solved: Mapping[Vertex, Result]
    reports: Sequence[StepReport]

    @property
    def _results(self) -> list[Result]:
        return [self.solved[each.vertex] for each in self.lowered]

    @property
    def _bases(self) -> list[tuple[Digest, ...]]:
        return [image.config.diff_ids for each in self.lowered for image in each.images]

    def with_inline(self, images: tuple[BuiltImage, ...]) -> tuple[BuiltImage, ...]:
        if self.caches is None:
            return images
        return self.caches.with_inline(images, self._results, reports=self.reports, bases=self._bases)

    def export(self) -> dict[str, str]:
        """Send the caches; returns what the metadata file says of that."""
        if self.caches is None:
            return {}
        sent = self.caches.export(reports=self.reports, results=self._results, bases=self._bases)
        # As text, like BuildKit's response has it.
        return {} if sent is None else {"cache.manifest": json.dumps(sent.to_json(), separators=(",", ":"))}


class _Both(Mapping[str, bytes]):
    """Secrets that are there, and then others, which are only known one by one."""

    def __init__(self, known: Mapping[str, bytes], others: Mapping[str, bytes]) -> None:
        self._known = known
        self._others = others

    def __getitem__(self, id: str) -> bytes:
        return self._known[id] if id in self._known else self._others[id]

    def __iter__(self) -> Iterator[str]:
        yield from self._known
        yield from (id for id in self._others if id not in self._known)

    def __len__(self) -> int:
        return sum(1 for _ in self)
