"""Where a stage begins: a base stage, an image, a named context, or nothing.

Owns the first vertex, configuration and history of a stage, and the trees that ``--from`` and mounts read. Everything is resolved
already; nothing here asks a registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

from pybuild.layers.descriptor import Platform
from pybuild.layers.image import History, ImageConfig
from pybuild.layers.references import InvalidReference, Reference
from pybuild.parser.ast import Span
from pybuild.values import dataclass, field

from .findings import Findings
from .git_reference import GitReference
from .graph import ContextSource, GitSource, HttpSource, ImageSource, Note, Scratch, Vertex
from .history import matching_history
from .image_config import base_config, scratch_config
from .named_context import (
    GitContextRef,
    HttpContextRef,
    ImageContextRef,
    LocalContextRef,
    NamedContext,
    ScratchContextRef,
    TargetContextRef,
)
from .platforms import same_machine
from .protocols import ResolvedImage
from .resolve_images import ImageRequest
from .stage_state import StageState, StepSettings
from .stages import StageNode


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What all stages of one lowering share. ``vertexes`` remembers sources, so that each is one vertex."""

    platform: Platform
    build_platform: Platform
    implicit_platform: bool
    settings: StepSettings
    main_context: NamedContext
    findings: Findings
    nonce_of: Callable[[StageNode], Callable[[], str]]
    answer: Callable[[str, Platform], ResolvedImage]
    commit_of: Callable[[GitReference, Span | None], str]
    vertexes: dict[object, Vertex] = field(default_factory=dict)

    def platform_of(self, node: StageNode) -> Platform:
        return node.platform or self.platform

    def once(self, key: object, make: Callable[[], Vertex]) -> Vertex:
        """The vertex for ``key``, made the first time."""
        if key not in self.vertexes:
            self.vertexes[key] = make()
        return self.vertexes[key]


def image_request(node: StageNode, platform: Platform, *, several_platforms: bool) -> ImageRequest | None:
    """What must be resolved before ``node`` can begin; None if nothing. Raises InvalidReference."""
    if node.context is not None:
        key, context = node.context
        if not isinstance(context, ImageContextRef):
            return None
        location = context.location
        title = f"[context {key}] load metadata for {context.reference if context.layout is None else location}"
        return ImageRequest(location, platform, context.reference, title, node.span)
    if not node.is_root:
        return None
    name = Reference.parse(node.base_name).canonical
    prefix = f"[{platform} internal]" if several_platforms else "[internal]"
    return ImageRequest(name, platform, node.base_name, f"{prefix} load metadata for {name}", node.span)


def begin(
    node: StageNode, scope: Scope, states: Mapping[StageNode, StageState], *, label: str, steps: int
) -> StageState:
    """The state of ``node`` before its first instruction."""
    if node.base is not None and not node.replaced:
        return _from_stage(node, states[node.base], scope, label=label, steps=steps)
    state = StageState(
        node=node,
        label=label,
        platform=scope.platform_of(node),
        vertex=scope.once("scratch", lambda: Vertex(Scratch(), (), Note("FROM scratch"))),
        config=scratch_config(scope.platform),
        settings=scope.settings,
        findings=scope.findings,
        nonce=scope.nonce_of(node),
        steps=steps,
    )
    if node.context is not None:
        _from_context(state, *node.context, scope=scope)
    elif node.is_scratch:
        state.platform = scope.platform
    else:
        _from_image(state, scope)
    return state


def context_tree(key: str, context: NamedContext, scope: Scope, *, platform: Platform) -> Vertex:
    """The tree or root file system that a context is."""
    match context:
        case LocalContextRef(name):
            title = "[internal] load build context" if name == "context" else f"[context {key}] load from client"
            return scope.once(("local", name), lambda: Vertex(ContextSource(name), (), Note(title)))
        case GitContextRef(reference):
            source = GitSource(
                remote=reference.remote,
                ref=reference.ref,
                subdir=reference.subdir,
                commit=scope.commit_of(reference, None),
                checksum=reference.checksum,
                keep_git_dir=bool(reference.keep_git_dir),
                submodules=reference.submodules is not False,
            )
            return scope.once(source, lambda: Vertex(source, (), Note(f"[context {key}] {reference.remote}")))
        case HttpContextRef(url, checksum):
            file = HttpSource(url=url, filename="context", checksum=checksum)
            return scope.once(file, lambda: Vertex(file, (), Note(f"[context {key}] {url}")))
        case ScratchContextRef():
            return scope.once("scratch", lambda: Vertex(Scratch(), (), Note("FROM scratch")))
        case ImageContextRef():
            image = scope.answer(context.location, platform)
            return image_vertex(image, scope, platform=platform, note=Note(f"[context {key}] {context.reference}"))
        case TargetContextRef(_, vertex):
            return vertex
        case _:
            assert_never(context)


def image_vertex(image: ResolvedImage, scope: Scope, *, platform: Platform, note: Note) -> Vertex:
    """The vertex of a resolved image; nothing at all if the image has no layer."""
    if not image.config.diff_ids:
        return scope.once("scratch", lambda: Vertex(Scratch(), (), Note("FROM scratch")))
    source = ImageSource(
        reference=pinned_name(image),
        manifest=image.manifest.digest,
        chain=image.config.diff_ids,
        platform=platform,
    )
    return scope.once((source, note.title), lambda: Vertex(source, (), note))


def pinned_name(image: ResolvedImage) -> str:
    """The reference with the digest it had: ``docker.io/library/alpine:3@sha256:…``."""
    try:
        return Reference.parse(image.reference).pinned(image.index).canonical
    except InvalidReference:
        return image.reference  # an OCI layout's location


def _from_stage(node: StageNode, base: StageState, scope: Scope, *, label: str, steps: int) -> StageState:
    state = StageState(
        node=node,
        label=label,
        platform=base.platform,
        vertex=base.vertex,
        config=base.config.with_(on_build=()),
        settings=scope.settings,
        findings=scope.findings,
        nonce=scope.nonce_of(node),
        history=list(base.history),
        env=dict(base.env),
        arguments=list(base.arguments),
        base=base.base,
        base_history=base.base_history,
        steps=steps,
    )
    state.workdir_set = base.workdir_set
    return state


def _from_image(state: StageState, scope: Scope) -> None:
    node = state.node
    name = Reference.parse(node.base_name).canonical
    image = scope.answer(name, state.platform)
    actual = image.config.platform
    foreign = not same_machine(actual, state.platform)
    if foreign and node.platform is None and scope.implicit_platform and same_machine(actual, scope.build_platform):
        state.platform = scope.build_platform
    _take_config(state, image.config, image.config.history, len(image.config.diff_ids))
    state.base = image
    text = f"FROM {pinned_name(image)}"
    title = state.next_title(text, env={}) if state.steps else text
    state.vertex = image_vertex(image, scope, platform=state.platform, note=state.note(title, text, node.span))
    if node.stage is not None:
        scope.findings.base_platform(node.base_name, expected=state.platform, actual=actual, from_=node.stage.from_)


def _from_context(state: StageState, key: str, context: NamedContext, *, scope: Scope) -> None:
    state.vertex = context_tree(key, context, scope, platform=state.platform)
    if isinstance(context, ImageContextRef):
        image = scope.answer(context.location, state.platform)
        state.base = image
        _take_config(state, image.config, image.config.history, len(image.config.diff_ids))
        if state.node.replaced and image.config.platform.os and image.config.platform.architecture:
            state.platform = image.config.platform
    elif isinstance(context, TargetContextRef):
        layers = sum(not entry.empty_layer for entry in context.history)
        _take_config(state, context.config, context.history, layers)
        state.platform = context.config.platform
    elif state.node.replaced:
        state.config = ImageConfig(platform=state.platform)


def _take_config(state: StageState, config: ImageConfig, history: tuple[History, ...], layers: int) -> None:
    state.config = base_config(config).with_(on_build=())  # its triggers are commands of this stage now
    state.history = list(matching_history(history, layers))
    state.base_history = len(state.history)
