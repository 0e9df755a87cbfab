"""A whole build: opens the contexts, reads and checks the Dockerfile, lowers, solves, exports, remembers what happened.

Owns the order of these, nothing of how each is done. Every part that touches the machine is handed in as ``BuildParts``; the command
line, the daemon and Python callers all come through ``build``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

from pybuild.errors import Cancelled, PybuildError, UsageError
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.views import FileView
from pybuild.parser import Dockerfile, parse
from pybuild.parser.ast import Run
from pybuild.parser.errors import DockerfileError, DockerfileSyntaxError
from pybuild.values import dataclass, replace

from .assemble import BuiltImage
from .build_parts import BuildParts as BuildParts
from .build_parts import BuildResult as BuildResult
from .build_warnings import warning_json
from .check_rules import CheckSettings
from .checks import CheckOptions, findings_before, findings_of_build
from .contexts import ContextKind, OpenedContext, open_context
from .contexts_named import NamedContexts, open_named_contexts, policed
from .exec_settings import EntitlementRefused, ExecSettings
from .exporters import Exporters
from .failure import BuildFailed
from .frontend_choice import require_own_frontend
from .graph import Network, Vertex
from .internal_steps import InternalSteps
from .lower import LoweredImage, LowerOptions, lower
from .named_context import LocalContextRef, NamedContext
from .outputs import Output, OutputType
from .platforms import normalize_platform
from .progress import BuildWarning, Progress
from .recording import Recording, previous_steps, subject_of
from .request import BuildRequest, GraphDefinition
from .solver import Prediction, Result, Solver
from .solver_steps import Step, StepReport
from .why import Explainer

if TYPE_CHECKING:
    from .attest import Attester, Inputs
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be solved: a graph per platform, the local trees that they read, and what provenance says of the request."""

    lowered: Sequence[LoweredImage]
    views: Mapping[str, FileView]
    inputs: Callable[[], Inputs]


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
        self._on_dockerfile = on_dockerfile
        self._request = request
        self._parts = parts
        self._recording = Recording(ref=parts.nonce(), subject=subject_of(request), started=parts.clock())
        self._progress = progress
        self._cancel = cancel
        self._stdout = stdout
        self._steps = InternalSteps(progress, parts.clock)
        self._warnings: dict[tuple[str, str, tuple[int, int] | None], BuildWarning] = {}
        self._dockerfile: Dockerfile | None = None
        self._reports: Sequence[StepReport] = ()
        self._settings = CheckSettings()

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
            if error.text is None and self._dockerfile is not None:
                error = error.at(filename=self._dockerfile.filename, text=self._dockerfile.text)
            return BuildFailed.of_dockerfile(error)
        return BuildFailed.of_step(error, self._dockerfile)

    def _run(self, stack: ExitStack) -> BuildResult:
        request, parts = self._request, self._parts
        for entitlement in sorted(request.entitlements - parts.entitlements):
            raise EntitlementRefused(entitlement)
        # Before anything is read: repositories are reached by way of an agent, too.
        sockets = stack.enter_context(parts.ssh.serve(request.ssh)) if request.ssh else {}
        plan = self._plan_dockerfile(stack) if request.definition is None else self._plan_graph(request.definition)
        attester = self._attester()
        scans = [] if attester is None or attester.choice is None else self._scans(attester, plan.lowered)
        outputs = request.outputs or (Output(type=OutputType.IMAGE),)
        results, steps = self._solve(
            plan, scans, sockets, files=any(output.type is not OutputType.CACHE_ONLY for output in outputs)
        )
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
        warnings = tuple(self._warnings.values())
        if warnings:
            metadata["buildx.build.warnings"] = [warning_json(warning, self._dockerfile) for warning in warnings]
        metadata["buildx.build.ref"] = f"default/default/{self._recording.ref}"
        return BuildResult(self._recording.ref, report.image_id, metadata, outputs, warnings, images)

    def _plan_dockerfile(self, stack: ExitStack) -> _Plan:
        request, parts = self._request, self._parts
        opened, dockerfile = self._open(stack)
        self._dockerfile = dockerfile
        if self._on_dockerfile is not None:
            self._on_dockerfile(dockerfile)
        if parts.cold and any(isinstance(each, Run) for each in dockerfile.instructions):
            # Steps will run for sure: what runs them starts while the rest is read. Otherwise the solver tells as soon as it knows.
            parts.executor.start()
        require_own_frontend(dockerfile, request.build_args)
        named = open_named_contexts(request.named_contexts, directory=request.directory)
        if request.source_policy is not None:
            named = policed(named, request.source_policy, main=opened.kind is ContextKind.LOCAL)
        platforms = self._platforms()
        self._settings = CheckSettings.of(dockerfile, request.build_args)
        self._check(dockerfile, opened, platforms[0])
        try:
            lowered = [self._lower(dockerfile, opened, named, platform) for platform in platforms]
        except DockerfileError:
            # What lowering had found until then went with it.
            self._check(dockerfile, opened, platforms[0], lowered=True)
            raise
        self._settings.enforce(self._warnings.values())

        def inputs() -> Inputs:
            from .attest import inputs_of_dockerfile

            return inputs_of_dockerfile(request, opened, named.contexts)

        return _Plan(lowered, {"context": opened.view, **named.views}, inputs)

    def _platforms(self) -> tuple[Platform, ...]:
        """What to build for, each once, under the names that TARGETPLATFORM and the like have: linux/arm is linux/arm/v7."""
        return tuple(dict.fromkeys(map(normalize_platform, self._request.platforms))) or (self._parts.platform,)

    def _plan_graph(self, definition: GraphDefinition) -> _Plan:
        request = self._request
        epoch = {} if request.source_date_epoch is None else {"SOURCE_DATE_EPOCH": request.source_date_epoch}
        options = self._lower_options({**epoch, **request.build_args}, contexts={})
        platforms = self._platforms()
        lowered = [definition.lower(replace(options, platform=platform)) for platform in platforms]

        def inputs() -> Inputs:
            from .attest import inputs_of_graph

            return inputs_of_graph(request)

        return _Plan(lowered, definition.open_contexts(request.directory), inputs)

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

    # --- reading -----------------------------------------------------------------------------------------------------

    def _open(self, stack: ExitStack) -> tuple[OpenedContext, Dockerfile]:
        request, parts = self._request, self._parts
        name = "Dockerfile" if request.dockerfile in (None, "-") else request.dockerfile.rpartition("/")[2]
        step = self._steps.begin(f"[internal] load build definition from {name}")
        try:
            opened = stack.enter_context(
                open_context(
                    request.context,
                    directory=request.directory,
                    dockerfile=request.dockerfile,
                    stdin=request.stdin,
                    remotes=parts.remotes,
                    scratch=parts.scratch,
                    keep_git_dir=request.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "") in ("1", "true"),
                    hide_ignored_definition=request.hide_ignored_definition,
                )
            )
            dockerfile = parse(opened.dockerfile, filename=opened.dockerfile_name)
        except PybuildError as error:
            self._steps.end(step, error)
            if isinstance(error, DockerfileSyntaxError):
                for warning in findings_before(error, build_args=request.build_args):
                    self._warn(warning)
            raise
        self._steps.count(step, "transferring dockerfile:", len(opened.dockerfile))
        self._steps.end(step)
        if opened.kind is ContextKind.LOCAL:
            step = self._steps.begin(f"[internal] load {opened.ignore_name or '.dockerignore'}")
            self._steps.count(
                step, "transferring context:", 2 if opened.ignore is None else len(opened.ignore_name) + 2
            )
            self._steps.end(step)
        return opened, dockerfile

    def _lower(
        self, dockerfile: Dockerfile, opened: OpenedContext, named: NamedContexts, platform: Platform
    ) -> LoweredImage:
        request = self._request
        arguments = dict(request.build_args)
        epoch = request.source_date_epoch
        if epoch is not None and "SOURCE_DATE_EPOCH" not in arguments:
            arguments["SOURCE_DATE_EPOCH"] = epoch
        if arguments.get("SOURCE_DATE_EPOCH") == "context" and opened.time is not None:
            arguments["SOURCE_DATE_EPOCH"] = str(int(opened.time))
        options = self._lower_options(arguments, contexts=named.contexts)
        lowered = lower(dockerfile, replace(options, platform=platform))
        for warning in lowered.warnings:
            self._warn(warning)
        if lowered.unused_build_args:
            names = " ".join(lowered.unused_build_args)
            self._warn(BuildWarning("", f"[Warning] One or more build-args [{names}] were not consumed"))
        return lowered

    def _lower_options(self, arguments: Mapping[str, str], *, contexts: Mapping[str, NamedContext]) -> LowerOptions:
        """What the request says to lowering, for this machine's platform."""
        request, parts = self._request, self._parts
        return LowerOptions(
            image_resolver=parts.images,
            platform=parts.platform,
            build_platform=parts.platform,
            implicit_platform=not request.platforms,
            several_platforms=len(request.platforms) > 1,
            target=request.target,
            build_args=arguments,
            labels=request.labels,
            contexts=contexts,
            main_context=LocalContextRef("context"),
            remote_sources=parts.remotes,
            epoch_source=parts.epochs,
            pull=request.pull,
            no_cache=request.no_cache,
            no_cache_stages=request.no_cache_filter,
            nonce=lambda: self._recording.ref,
            network=Network(request.network),
            extra_hosts=request.extra_hosts,
            shm_size=request.shm_size,
            ulimits=request.ulimits,
            cgroup_parent=request.cgroup_parent,
            resources=request.resources,
            proxies=request.proxies,
            progress=self._progress,
            clock=parts.clock,
            wanted_check=self._settings.wanted,
        )

    def _check(
        self, dockerfile: Dockerfile, opened: OpenedContext, platform: Platform, *, lowered: bool = False
    ) -> None:
        """Emit what the build checks find. ``lowered``: also what lowering finds."""
        options = CheckOptions(
            platform=platform,
            build_platform=self._parts.platform,
            build_args=self._request.build_args,
            target=self._request.target,
            all_stages=False,
            ignore=opened.ignore,
            lowered=lowered,
        )
        for warning in findings_of_build(dockerfile, options=options):
            self._warn(warning)

    def _warn(self, warning: BuildWarning) -> None:
        key = (warning.rule, warning.message, warning.lines)
        if key not in self._warnings:
            self._warnings[key] = warning
            self._progress.emit(warning)

    # --- running -----------------------------------------------------------------------------------------------------

    def _solve(
        self, plan: _Plan, scans: Sequence[Vertex], sockets: Mapping[str, str], *, files: bool
    ) -> tuple[dict[Vertex, Result], dict[Vertex, Step]]:
        """Solve the results and the scans of them; returns the results, and the step that each vertex was."""
        targets = [*(each.vertex for each in plan.lowered), *scans]
        with self._solver(plan, sockets) as solver:
            try:
                solved = solver.solve(targets, files=files)
            finally:
                self._recording.add(solver.reports)
                self._reports = solver.reports
        return solved, solver.steps

    def predict(self) -> list[Prediction]:
        """What a build would run. Raises as ``run``."""
        try:
            with ExitStack() as stack:
                definition = self._request.definition
                plan = self._plan_dockerfile(stack) if definition is None else self._plan_graph(definition)
                with self._solver(plan, {}) as solver:
                    return solver.predict([each.vertex for each in plan.lowered])
        except PybuildError as failure:
            raise self._told(failure) from failure

    def _solver(self, plan: _Plan, sockets: Mapping[str, str]) -> Solver:
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
            before_running=None if parts.caches is None else parts.caches.before_running,
        )

    def _secrets(self) -> dict[str, bytes]:
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
        return values

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
