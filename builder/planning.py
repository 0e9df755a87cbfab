"""Planning a build: from a request to the graphs that are to be solved, one per platform.

Owns opening the contexts, reading and checking the Dockerfile, and what lowering is told; collects the findings, each once. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.layers.views import FileView
from pybuild.parser import Dockerfile, parse
from pybuild.parser.ast import Run
from pybuild.parser.errors import DockerfileError, DockerfileSyntaxError
from pybuild.values import dataclass, replace

from .build_parts import BuildParts
from .check_rules import CheckSettings
from .checks import CheckOptions, findings_before, findings_of_build
from .contexts import ContextKind, OpenedContext, open_context
from .contexts_named import NamedContexts, open_named_contexts, policed
from .frontend_choice import require_own_frontend
from .graph import Network
from .internal_steps import InternalSteps
from .late_context import EVERYTHING, LateViews, paths_read
from .lower import LoweredImage, LowerOptions, lower
from .named_context import LocalContextRef, NamedContext
from .platforms import normalize_platform
from .progress import BuildWarning, Progress
from .request import BuildRequest, GraphDefinition

if TYPE_CHECKING:
    from .attest import Inputs


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What is to be solved: a graph per platform, the local trees that they read, and what provenance says of the request."""

    lowered: Sequence[LoweredImage]
    views: Mapping[str, FileView]
    inputs: Callable[[], Inputs]


class Planner:
    """Plans one build. ``ref`` keeps ``--no-cache`` steps of this build apart from all others; ``on_dockerfile`` gets the parsed Dockerfile."""

    def __init__(
        self,
        request: BuildRequest,
        parts: BuildParts,
        *,
        ref: str,
        progress: Progress,
        on_dockerfile: Callable[[Dockerfile], None] | None,
    ) -> None:
        self._request = request
        self._parts = parts
        self._ref = ref
        self._progress = progress
        self._on_dockerfile = on_dockerfile
        self._steps = InternalSteps(progress, parts.clock)
        self._warnings: dict[tuple[str, str, tuple[int, int] | None], BuildWarning] = {}
        self._settings = CheckSettings()
        self._ignore_file_told = False
        self.dockerfile: Dockerfile | None = None
        """The Dockerfile, once it has been read: errors show its lines."""

    @property
    def warnings(self) -> tuple[BuildWarning, ...]:
        """What was found so far."""
        return tuple(self._warnings.values())

    def plan(self, stack: ExitStack) -> BuildPlan:
        """Plan what the request asks for; contexts stay open until ``stack`` ends. Raises DockerfileError and what opening and resolving raise."""
        definition = self._request.definition
        return self._plan_dockerfile(stack) if definition is None else self._plan_graph(definition)

    def _plan_dockerfile(self, stack: ExitStack) -> BuildPlan:
        request, parts = self._request, self._parts
        opened, dockerfile = self._open(stack)
        self.dockerfile = dockerfile
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
            # As with BuildKit, only the first platform is warned about: the others have mostly the same to tell.
            self._warn_of(lowered[0])
        except DockerfileError:
            # What lowering had found until then went with it.
            self._check(dockerfile, opened, platforms[0], lowered=True)
            raise
        self._settings.enforce(self._warnings.values())

        def inputs() -> Inputs:
            from .attest import inputs_of_dockerfile

            return inputs_of_dockerfile(request, opened, named.contexts)

        return BuildPlan(lowered, self._views(opened, named, lowered), inputs)

    def _views(
        self, opened: OpenedContext, named: NamedContexts, lowered: Sequence[LoweredImage]
    ) -> Mapping[str, FileView]:
        views = {"context": opened.view, **named.views}
        late = self._request.late_context
        if late is None or opened.kind is not ContextKind.LOCAL:
            return views
        scanned = any(each.scan.context for each in lowered)
        paths = (EVERYTHING,) if scanned else paths_read((each.vertex for each in lowered), "context")
        return LateViews(views, "context", late=late, paths=paths)

    def _platforms(self) -> tuple[Platform, ...]:
        """What to build for, each once, under the names that TARGETPLATFORM and the like have: linux/arm is linux/arm/v7."""
        return tuple(dict.fromkeys(map(normalize_platform, self._request.platforms))) or (self._parts.platform,)

    def _plan_graph(self, definition: GraphDefinition) -> BuildPlan:
        request = self._request
        epoch = {} if request.source_date_epoch is None else {"SOURCE_DATE_EPOCH": request.source_date_epoch}
        options = self._lower_options({**epoch, **request.build_args}, contexts={})
        platforms = self._platforms()
        lowered = [definition.lower(replace(options, platform=platform)) for platform in platforms]

        def inputs() -> Inputs:
            from .attest import inputs_of_graph

            return inputs_of_graph(request)

        return BuildPlan(lowered, definition.open_contexts(request.directory), inputs)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _open(self, stack: ExitStack) -> tuple[OpenedContext, Dockerfile]:
        request, parts = self._request, self._parts
        late = request.late_context
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
                    ignore_directory=None if late is None else late.ignore_directory,
                )
            )
        except PybuildError as error:
            self._steps.end(step, error)
            raise
        self._steps.count(step, "transferring dockerfile:", len(opened.dockerfile))
        self._steps.end(step)
        try:
            return opened, parse(opened.dockerfile, filename=opened.dockerfile_name)
        except DockerfileSyntaxError as error:
            for warning in findings_before(error, build_args=request.build_args):
                self._warn(warning)
            raise

    def _tell_ignore_file(self, opened: OpenedContext) -> None:
        """The ignore file has long been read; clients know this step, and where it stands among the others."""
        if opened.kind is not ContextKind.LOCAL or self._ignore_file_told:
            return
        self._ignore_file_told = True
        step = self._steps.begin(f"[internal] load {opened.ignore_name or '.dockerignore'}")
        self._steps.count(step, "transferring context:", 2 if opened.ignore is None else len(opened.ignore_name) + 2)
        self._steps.end(step)

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
        return lower(
            dockerfile, replace(options, platform=platform, on_resolved=lambda: self._tell_ignore_file(opened))
        )

    def _warn_of(self, lowered: LoweredImage) -> None:
        for warning in lowered.warnings:
            self._warn(warning)
        if lowered.unused_build_args:
            names = " ".join(lowered.unused_build_args)
            self._warn(BuildWarning("", f"[Warning] One or more build-args [{names}] were not consumed"))

    def _lower_options(self, arguments: Mapping[str, str], *, contexts: Mapping[str, NamedContext]) -> LowerOptions:
        """What the request says to lowering, for this machine's platform."""
        request, parts = self._request, self._parts
        return LowerOptions(
            image_resolver=parts.images,
            platform=parts.platform,
            build_platform=parts.platform,
            implicit_platform=not request.platforms,
            several_platforms=request.several_platforms(),
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
            nonce=lambda: self._ref,
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
