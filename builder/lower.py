"""Lowering: from a parsed Dockerfile and the client's options to the graph of what must be done, with the image's configuration and
history.

Owns the order of the work: arguments, stages, what is needed, one step of I/O (references resolved in parallel), and then the pure
lowering of each needed stage. Runs nothing, pulls nothing, reads no environment. The same input gives the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from pybuild.errors import PybuildError
from pybuild.layers.descriptor import Platform
from pybuild.layers.image import History, ImageConfig
from pybuild.parser.ast import Instruction, Run, Span
from pybuild.parser.dockerfile import Dockerfile
from pybuild.parser.errors import DockerfileError
from pybuild.parser.expand import expand
from pybuild.values import dataclass, field

from .arguments import EPOCH_ARGUMENT, global_arguments, proxy_environment, unused_build_arguments
from .findings import Findings
from .git_reference import GitReference
from .graph import Network, Vertex
from .image_config import set_labels, with_platform
from .lower_instructions import InstructionLowering, makes_vertex
from .named_context import MAIN_CONTEXT, NamedContext, TargetContextRef
from .onbuild import parse_triggers
from .platforms import platform_arguments
from .progress import BuildWarning, Progress, Silent
from .protocols import ImageSource, RemoteSources, ResolvedImage
from .resolve_images import CommitResolver, GitRequest, ImageRequest, ImageResolver
from .sbom_stages import NO_SCAN, ScanRequest, scan_request
from .source_date_epoch import EpochSource, resolve_epoch
from .stage_roots import Scope, begin, image_request
from .stage_state import StageState, StepSettings
from .stages import StageNode, StagePlan, onbuild_triggers

_DEFAULT_HOSTNAME: Final = "buildkitsandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerOptions:
    """What a client asks for, besides the Dockerfile.

    ``platform``: what is built; ``implicit_platform``: the client didn't name it; ``build_platform``: this machine's; None takes
    ``platform``. ``several_platforms``: titles carry the platform. ``image_resolver`` and ``remote_sources`` do the I/O, several calls
    at once from different threads. ``contexts``: by ``context_key``; ``main_context``: what COPY without ``--from`` reads.
    ``source_date_epoch``: seconds, from outside the build arguments (which win). ``nonce`` makes the text that keeps a ``--no-cache``
    step from being found; it is called once per lowering. ``shm_size`` in bytes; ``ulimits``: (name, soft, hard). ``wanted_check`` says
    of a build check's name and an instruction whether the finding is wanted there. ``on_resolved`` is called when the base images are
    known and before any instruction is looked at.
    """

    image_resolver: ImageSource
    platform: Platform
    build_platform: Platform | None = None
    implicit_platform: bool = True
    several_platforms: bool = False
    target: str | None = None
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    contexts: Mapping[str, NamedContext] = field(default_factory=dict)
    main_context: NamedContext = MAIN_CONTEXT
    remote_sources: RemoteSources | None = None
    epoch_source: EpochSource | None = None
    source_date_epoch: int | None = None
    pull: bool = False
    no_cache: bool = False
    no_cache_stages: frozenset[str] = frozenset()
    nonce: Callable[[], str] = lambda: "no-cache"
    network: Network = Network.DEFAULT
    hostname: str = ""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    shm_size: int = 0
    ulimits: tuple[tuple[str, int, int], ...] = ()
    cgroup_parent: str = ""
    resources: tuple[tuple[str, str], ...] = ()
    cache_mount_namespace: str = ""
    proxies: Mapping[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)
    clock: Callable[[], float] = lambda: 0.0
    wanted_check: Callable[[str, Instruction], bool] = lambda rule, instruction: True
    on_resolved: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredImage:
    """A Dockerfile's target as a graph.

    ``config`` has neither layers, history nor time: the exporter adds them. ``history``: the base's entries, then one per
    instruction; those that are not ``empty_layer`` stand for the layers, one each, in order; new ones have no ``created``. ``base``: the
    image that the target's stage chain begins with. ``images``: everything resolved, for pulling and provenance.
    ``base_history`` and ``base_layers``: how many of ``history``'s first entries, and of the layers, come from what the target's stage
    chain begins with. ``stage_names``: all stages of the file.
    """

    vertex: Vertex
    config: ImageConfig
    history: tuple[History, ...]
    platform: Platform
    base: ResolvedImage | None = None
    base_history: int = 0
    base_layers: int = 0
    images: tuple[ResolvedImage, ...] = ()
    warnings: tuple[BuildWarning, ...] = ()
    unused_build_args: tuple[str, ...] = ()
    stage_names: tuple[str, ...] = ()
    target: str = ""
    source_date_epoch: int | None = None
    scan: ScanRequest = NO_SCAN


def lower(dockerfile: Dockerfile, options: LowerOptions) -> LoweredImage:
    """Lower ``dockerfile``. Raises DockerfileError, with the place, for what is wrong with it or can't be resolved."""
    try:
        return _Lowering(dockerfile, options).run()
    except DockerfileError as error:
        if error.text is not None:
            raise
        raise error.at(filename=dockerfile.filename, text=dockerfile.text) from error.__cause__


class _Lowering:
    def __init__(self, dockerfile: Dockerfile, options: LowerOptions) -> None:
        self._dockerfile = dockerfile
        self._options = options
        self._build_platform = options.build_platform or options.platform
        self._stages = dockerfile.stages
        if not self._stages:
            raise DockerfileError("dockerfile contains no stages to build", hint="begin with FROM")
        target = options.target or self._stages[-1].name or ""
        predefined = platform_arguments(options.platform, self._build_platform, stage=target)
        self._predefined = frozenset(predefined)
        self._given = dict(options.build_args)
        self._globals = global_arguments(dockerfile.global_args, predefined=predefined, given=self._given)
        self._epoch = self._resolve_epoch()
        self._plan = StagePlan(
            self._stages, arguments=self._globals, contexts=options.contexts, target=options.platform
        )
        self._images = ImageResolver(
            options.image_resolver,
            pull=options.pull,
            stage_names=[node.name for node in self._plan.stages],
            progress=options.progress,
            clock=options.clock,
        )
        self._commits = CommitResolver(options.remote_sources)

    def run(self) -> LoweredImage:
        target = self._plan.find_target(self._options.target)
        needed = self._resolve(target)
        self._options.on_resolved()
        while True:
            findings = Findings(self._options.wanted_check, global_lines=self._global_lines())
            states = self._lower_stages(needed, findings)
            if not self._commits.resolve():
                return self._result(target, states, findings)

    def _global_lines(self) -> dict[str, int]:
        return {item.key.text: arg.span.lines[0] for arg in self._dockerfile.global_args for item in arg.args}

    def _resolve_epoch(self) -> int | None:
        value = self._given.get(EPOCH_ARGUMENT)
        if value is None:
            value = self._globals.get(EPOCH_ARGUMENT, "")
        epoch = resolve_epoch(
            value,
            stages=self._stages,
            main_context=self._options.main_context,
            contexts=self._options.contexts,
            arguments=self._globals,
            given=self._given,
            source=self._options.epoch_source,
        )
        for values in (self._given, self._globals):
            if EPOCH_ARGUMENT in values:
                del values[EPOCH_ARGUMENT]
                if epoch is not None:
                    values[EPOCH_ARGUMENT] = str(epoch)
        if value or EPOCH_ARGUMENT in self._options.build_args:
            return epoch
        return self._options.source_date_epoch

    def _resolve(self, target: StageNode) -> list[StageNode]:
        """Resolve what ``target`` needs; ONBUILD triggers may add more, which is resolved in turn."""
        while True:
            needed = self._plan.reachable(target)
            requests = [request for node in needed if (request := self._request(node)) is not None]
            self._images.resolve(requests)
            added = False
            for node in needed:
                if node.stage is None or node.replaced or node.triggers_added:
                    continue
                node.triggers_added = True
                triggers = self._triggers(node)
                if triggers and self._plan.add_triggers(node, triggers):
                    added = True
            if not added:
                return self._plan.reachable(target)

    def _request(self, node: StageNode) -> ImageRequest | None:
        platform = node.platform or self._options.platform
        try:
            return image_request(node, platform, several_platforms=self._options.several_platforms)
        except PybuildError as error:
            raise DockerfileError(
                f'failed to parse stage name "{node.base_name}": {error}', span=node.span, hint=error.hint
            ) from error

    def _triggers(self, node: StageNode) -> tuple[Instruction, ...]:
        if node.base is not None:
            return tuple(instruction.trigger for instruction in onbuild_triggers(node.base))
        if node.context is not None and isinstance(node.context[1], TargetContextRef):
            return parse_triggers(node.context[1].config.on_build, span=node.span)
        request = self._request(node)
        if request is None:
            return ()
        image = self._images.answer(request.location, request.platform)
        return parse_triggers(image.config.on_build, span=node.span)

    def _lower_stages(self, needed: list[StageNode], findings: Findings) -> dict[StageNode, StageState]:
        options = self._options
        nonce = options.nonce() if options.no_cache or options.no_cache_stages else ""
        scope = Scope(
            platform=options.platform,
            build_platform=self._build_platform,
            implicit_platform=options.implicit_platform,
            settings=self._settings(),
            main_context=options.main_context,
            findings=findings,
            nonce_of=lambda node: lambda: nonce if self._ignores_cache(node) else "",
            answer=self._images.answer,
            commit_of=self._commit_of,
        )
        states: dict[StageNode, StageState] = {}
        lowering = InstructionLowering(
            scope, states=states, global_arguments=self._globals, build_arguments=self._given
        )
        for node in needed:
            if node.stage is None:
                states[node] = begin(node, scope, states, label="", steps=0)
        labelled = len(self._plan.nodes) > 1 or any(
            isinstance(command.instruction, Run)
            and command.instruction.mounts  # BuildKit counts what they read as stages
            for node in self._plan.nodes
            for command in node.commands
        )
        for node in needed:
            if node.stage is None:
                continue
            self._check_from(node, findings)
            # Every trigger counts, whatever it is; of the stage's own commands those that make something.
            steps = int(node.is_root) + sum(
                command.trigger or makes_vertex(command.instruction) for command in node.commands
            )
            state = begin(node, scope, states, label=node.name if labelled else "", steps=0 if node.replaced else steps)
            if not node.replaced:
                lowering.stage(state, node.commands)
            states[node] = state
        return states

    def _check_from(self, node: StageNode, findings: Findings) -> None:
        assert node.stage is not None  # callers pass stages only
        from_ = node.stage.from_
        words = (from_.image, from_.platform)
        unset = [name for word in words if word is not None for name in expand(word, self._globals).unset]
        # What is declared without a value has none, but it is declared.
        declared = [argument.key.text for arg in self._dockerfile.global_args for argument in arg.args]
        findings.undeclared_in_from(unset, dict.fromkeys([*declared, *self._globals]), from_)

    def _settings(self) -> StepSettings:
        options = self._options
        return StepSettings(
            network=options.network,
            hostname=self._given.get("BUILDKIT_SANDBOX_HOSTNAME") or options.hostname or _DEFAULT_HOSTNAME,
            extra_hosts=options.extra_hosts,
            shm_size=options.shm_size,
            ulimits=options.ulimits,
            cgroup_parent=options.cgroup_parent,
            resources=options.resources,
            cache_namespace=self._given.get("BUILDKIT_CACHE_MOUNT_NS") or options.cache_mount_namespace,
            proxies=proxy_environment(options.proxies, self._given),
            several_platforms=options.several_platforms,
            escape=self._dockerfile.escape,
            epoch=self._epoch,
        )

    def _ignores_cache(self, node: StageNode) -> bool:
        if self._options.no_cache:
            return True
        return any(name.lower() == node.name for name in self._options.no_cache_stages)

    def _commit_of(self, reference: GitReference, span: Span | None) -> str:
        return reference.known_commit or self._commits.commit(
            GitRequest(reference.remote, reference.ref, checksum=reference.checksum, span=span)
        )

    def _result(self, target: StageNode, states: Mapping[StageNode, StageState], findings: Findings) -> LoweredImage:
        state = states[target]
        vertex = state.root()
        config = set_labels(state.config, self._options.labels)
        config = with_platform(config, self._options.platform, explicit=not self._options.implicit_platform)
        return LoweredImage(
            vertex=vertex,
            config=config,
            history=tuple(state.history),
            platform=config.platform,
            base=state.base,
            base_history=state.base_history,
            base_layers=sum(not entry.empty_layer for entry in state.history[: state.base_history]),
            images=self._images.images,
            warnings=findings.warnings,
            unused_build_args=unused_build_arguments(
                self._options.build_args,
                globals_=self._dockerfile.global_args,
                stages=self._stages,
                predefined=self._predefined,
            ),
            stage_names=tuple(node.name for node in self._plan.stages),
            target=target.name,
            source_date_epoch=self._epoch,
            scan=scan_request(target, states, self._globals, self._given),
        )
