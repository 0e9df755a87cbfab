"""From images described in Python to the graph, configuration and history: what ``lower.py`` is for Dockerfiles.

Owns the meaning of each step; the results are the same values, so that the solver, the exporters and provenance know no difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import unquote, urlsplit

from pybuild.errors import PybuildError, UsageError
from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.layers.image import History, ImageConfig
from pybuild.layers.references import Reference
from pybuild.layers.views import FileView
from pybuild.parser.dockerignore import IgnoreMatcher
from pybuild.parser.errors import DockerfileError
from pybuild.parser.values import check_signal
from pybuild.values import dataclass, field

from .arguments import EPOCH_ARGUMENT, proxy_environment
from .contexts import open_local_context
from .contexts_local import LocalContext
from .copy_modes import parse_mode
from .definition import (
    Bind,
    Cache,
    ConfigStep,
    CopyStep,
    Directory,
    Download,
    GitTree,
    Image,
    MountDefinition,
    RunStep,
    Secret,
    Ssh,
    StepDefinition,
    Tmpfs,
    Tree,
)
from .graph import (
    BindMount,
    CacheMount,
    ContextSource,
    Exec,
    FileCopy,
    FileMake,
    GitSource,
    HttpSource,
    ImageSource,
    Merge,
    Mount,
    Network,
    Note,
    Op,
    Scratch,
    SecretMount,
    Security,
    SshMount,
    TmpfsMount,
    Unpack,
    Vertex,
)
from .history import config_entry, layer_entry, list_text, matching_history, pairs_text, quoted_text, run_text
from .image_config import (
    add_ports,
    add_volumes,
    base_config,
    clean_path,
    exposed_ports,
    resolve_destination,
    resolve_directory,
    scratch_config,
    set_command,
    set_entrypoint,
    set_env,
    set_labels,
    shell_of,
    with_default_path,
    with_platform,
)
from .lower import LoweredImage, LowerOptions
from .platforms import parse_platform
from .protocols import ResolvedImage
from .resolve_images import ImageRequest, ImageResolver
from .stage_roots import pinned_name
from .titles import step_prefix

_ROOT = Vertex(Scratch(), (), Note("FROM scratch"))


def lower_definition(image: Image, options: LowerOptions) -> LoweredImage:
    """The graph of ``image`` for one platform. Raises PybuildError."""
    try:
        return _Lowering(image, options).run()
    except DockerfileError as error:
        # There is no Dockerfile whose lines could be shown.
        raise PybuildError(error.message, hint=error.hint) from error


def open_directories(image: Image, directory: str) -> dict[str, FileView]:
    """The directories that ``image`` reads, by their names in the graph. Raises ContextNotFound."""
    views: dict[str, FileView] = {}
    for tree in _trees(image):
        if not isinstance(tree, Directory):
            continue
        if tree.exclude is None:
            views[tree.name] = open_local_context(tree.path, directory=directory).view
        else:
            ignore = IgnoreMatcher.from_text("\n".join(tree.exclude).encode("utf-8", "surrogateescape"))
            views[tree.name] = LocalContext(os.path.join(directory, tree.path), ignore=ignore)
    return views


def _chain(image: Image) -> list[Image]:
    """``image`` and what it was made from, the beginning first."""
    chain: list[Image] = []
    current: Image | None = image
    while current is not None:
        chain.append(current)
        current = current.parent
    return chain[::-1]


def _trees_of(step: StepDefinition | None) -> Iterator[Tree]:
    """The trees that one step reads."""
    if isinstance(step, CopyStep) and step.sources:
        yield step.tree
    elif isinstance(step, RunStep):
        for mount in step.mounts:
            if isinstance(mount, Bind):
                yield mount.tree


def _trees(image: Image) -> list[Tree]:
    """Every tree that ``image`` needs, itself included, each once."""
    found: dict[int, Tree] = {}
    waiting: list[Tree] = [image]
    while waiting:
        tree = waiting.pop()
        if id(tree) in found:
            continue
        found[id(tree)] = tree
        if isinstance(tree, Image):
            waiting += [other for each in _chain(tree) if each.step is not None for other in _trees_of(each.step)]
    return list(found.values())


@dataclass(slots=True, eq=False)
class _State:
    """An image while it is being lowered. ``steps``: how many of its steps make a layer, ``step``: how many were made."""

    vertex: Vertex
    config: ImageConfig
    platform: Platform
    label: str
    steps: int
    base: ResolvedImage | None = None
    history: list[History] = field(default_factory=list)
    base_history: int = 0
    step: int = 0
    command_set: bool = False


class _Lowering:
    def __init__(self, image: Image, options: LowerOptions) -> None:
        self._image = image
        self._options = options
        self._nonce = options.nonce() if options.no_cache else ""
        self._proxies = proxy_environment(options.proxies, options.build_args)
        self._images = ImageResolver(
            options.image_resolver, pull=options.pull, stage_names=(), progress=options.progress, clock=options.clock
        )
        self._vertexes: dict[object, Vertex] = {}
        self._states: dict[int, _State] = {}

    def run(self) -> LoweredImage:
        options = self._options
        trees = _trees(self._image)
        self._images.resolve([self._request(tree) for tree in trees if isinstance(tree, Image) and tree.base])
        state = self._state(self._image, target=True)
        config = set_labels(state.config, options.labels)
        config = with_platform(config, options.platform, explicit=not options.implicit_platform)
        epoch = options.build_args.get(EPOCH_ARGUMENT, "")
        if epoch and not epoch.isdecimal():
            raise UsageError(f"invalid SOURCE_DATE_EPOCH {epoch!r}", hint="give seconds since 1970")
        return LoweredImage(
            vertex=state.vertex,
            config=config,
            history=tuple(state.history),
            platform=config.platform,
            base=state.base,
            base_history=state.base_history,
            base_layers=sum(not entry.empty_layer for entry in state.history[: state.base_history]),
            images=self._images.images,
            source_date_epoch=int(epoch) if epoch else options.source_date_epoch,
        )

    # --- beginnings --------------------------------------------------------------------------------------------------

    def _platform(self, image: Image) -> Platform:
        if not image.platform:
            return self._options.platform
        return parse_platform(image.platform, default=self._options.platform)

    def _request(self, image: Image) -> ImageRequest:
        name = Reference.parse(image.base).canonical
        title = f"[internal] load metadata for {name}"
        return ImageRequest(name, self._platform(image), image.base, title, None)

    def _begin(self, image: Image, *, steps: int, label: str) -> _State:
        platform = self._platform(image)
        if not image.base:
            return _State(_ROOT, scratch_config(platform), platform, label, steps)
        resolved = self._images.answer(Reference.parse(image.base).canonical, platform)
        layers = resolved.config.diff_ids
        vertex = _ROOT
        text = f"FROM {pinned_name(resolved)}"
        if layers:
            source = ImageSource(pinned_name(resolved), resolved.manifest.digest, layers, platform)
            title = step_prefix(stage=label, index=1, total=steps + 1, platform=self._shown(platform)) + text
            note = Note(title, stage=label, instruction=text, platform=platform)
            vertex = self._once((source, label), lambda: Vertex(source, (), note))
        state = _State(vertex, base_config(resolved.config).with_(on_build=()), platform, label, steps + 1, resolved)
        state.step = 1
        state.history = list(matching_history(resolved.config.history, len(layers)))
        state.base_history = len(state.history)
        return state

    def _shown(self, platform: Platform) -> Platform | None:
        return platform if self._options.several_platforms else None

    def _once(self, key: object, make: Callable[[], Vertex]) -> Vertex:
        """The vertex for ``key``, made the first time."""
        if key not in self._vertexes:
            self._vertexes[key] = make()
        return self._vertexes[key]

    # --- steps -------------------------------------------------------------------------------------------------------

    def _state(self, image: Image, *, target: bool = False) -> _State:
        known = self._states.get(id(image))
        if known is not None:
            return known
        chain = _chain(image)
        steps = sum(
            isinstance(each.step, (RunStep, CopyStep)) or _is_workdir(each.step)
            for each in chain
            if each.step is not None
        )
        label = image.name or ("" if target else f"image-{len(self._states)}")
        state = self._begin(chain[0], steps=steps, label=label)
        state.config = with_default_path(state.config)
        for each in chain[1:]:
            match each.step:
                case RunStep():
                    self._run(state, each.step)
                case CopyStep():
                    self._copy(state, each.step)
                case ConfigStep():
                    self._configure(state, each.step.kind, each.step.values)
                case None:
                    raise AssertionError("only the first image of a chain has no step")
        self._states[id(image)] = state
        return state

    def _make(self, state: _State, op: Op, inputs: Sequence[Vertex], text: str) -> Vertex:
        state.step += 1
        prefix = step_prefix(
            stage=state.label, index=state.step, total=state.steps, platform=self._shown(state.platform)
        )
        note = Note(prefix + text, stage=state.label, instruction=text, platform=state.platform)
        state.vertex = Vertex(op, tuple(inputs), note)
        return state.vertex

    def _run(self, state: _State, step: RunStep) -> None:
        shell = isinstance(step.command, str)
        args = (*shell_of(state.config), step.command) if isinstance(step.command, str) else step.command
        env = {name: value for name, _, value in (item.partition("=") for item in state.config.env)}
        env.update(step.env)
        inputs = [state.vertex]
        directory = resolve_directory(state.config.working_dir or "/", step.cwd or "")
        mounts = tuple(self._mount(mount, inputs, directory, step.mounts) for mount in step.mounts)
        for mount in mounts:
            if isinstance(mount, SshMount):
                env.setdefault("SSH_AUTH_SOCK", mount.target)
        options = self._options
        network = Network(step.network)
        operation = Exec(
            args=args,
            env=tuple(env.items()),
            cwd=clean_path(directory),
            user=state.config.user if step.user is None else step.user,
            platform=state.platform,
            mounts=mounts,
            network=options.network if network is Network.DEFAULT else network,
            security=Security(step.security),
            hostname=options.hostname or "buildkitsandbox",
            hidden_env=self._proxies,
            extra_hosts=options.extra_hosts,
            shm_size=options.shm_size,
            ulimits=options.ulimits,
            cgroup_parent=options.cgroup_parent,
            resources=options.resources,
            nonce=self._nonce,
        )
        shown = f"RUN {step.command}" if shell else f"RUN {' '.join(args)}"
        self._make(state, operation, inputs, shown)
        state.history.append(layer_entry(run_text(args, arguments=(), env={})))

    def _mount(
        self, mount: MountDefinition, inputs: list[Vertex], directory: str, mounts: Sequence[MountDefinition]
    ) -> Mount:
        def absolute(target: str) -> str:
            return clean_path(target if target.startswith("/") else f"{directory}/{target}")

        match mount:
            case Bind():
                tree = self._tree(mount.tree)
                if tree not in inputs[1:]:
                    inputs.append(tree)
                position = inputs.index(tree, 1)
                source = mount.source or (f"/{_filename(mount.tree)}" if isinstance(mount.tree, Download) else "")
                return BindMount(absolute(mount.target), position, source, mount.readonly)
            case Cache():
                target = absolute(mount.target)
                namespace = self._options.cache_mount_namespace
                name = f"{namespace}/{mount.id or target}" if namespace else mount.id or target
                return CacheMount(target, name, mount.sharing, mode=mount.mode, uid=mount.uid, gid=mount.gid)
            case Tmpfs():
                return TmpfsMount(absolute(mount.target), mount.size)
            case Secret():
                file = mount.target or (None if mount.env is not None else f"/run/secrets/{mount.id}")
                return SecretMount(
                    mount.id,
                    None if file is None else absolute(file),
                    mount.env,
                    mount.required,
                    mount.mode,
                    mount.uid,
                    mount.gid,
                )
            case Ssh():
                number = [each for each in mounts if isinstance(each, Ssh)].index(mount)
                return SshMount(
                    mount.id, mount.target or f"/run/buildkit/ssh_agent.{number}", mount.required, mount.mode
                )

    def _copy(self, state: _State, step: CopyStep) -> None:
        if step.mode is not None:
            parse_mode(step.mode)
        trees: tuple[Vertex, ...] = ()
        sources: tuple[str, ...] = ()
        if step.sources:
            trees = (self._tree(step.tree),)
            whole = isinstance(step.tree, Download) and step.sources == ("/",)
            sources = (f"/{_filename(step.tree)}",) if whole else tuple(map(clean_path, step.sources))
        link = step.link and not step.mode
        operation = FileCopy(
            sources=sources,
            destination=resolve_destination(state.config.working_dir or "/", step.destination),
            inline=step.files,
            owner=step.owner,
            keep_owner=isinstance(step.tree, Image) and bool(step.sources),
            mode=step.mode,
            exclude=step.exclude,
            parents=step.parents,
            unpack=Unpack.LOCAL if step.unpack else Unpack.NEVER,
            link=link,
            nonce=self._nonce,
        )
        keyword = "WRITE" if step.files else "ADD" if step.unpack else "COPY"
        words = [_shown_source(step.tree, source) for source in step.sources]
        text = " ".join([keyword, *words, step.destination])
        if link:
            below = state.vertex
            copied = self._make(state, operation, trees, text)
            merged = Note(f"{copied.note.title} (link)", stage=state.label, instruction=text, platform=state.platform)
            state.vertex = Vertex(Merge(), (below, copied), merged)
        else:
            self._make(state, operation, (state.vertex, *trees), text)
        state.history.append(layer_entry(text))

    def _tree(self, tree: Tree) -> Vertex:
        match tree:
            case Image():
                return self._state(tree).vertex
            case Directory():
                name = tree.name
                title = "[internal] load build context" if name == "context" else f"[internal] load {name}"
                return self._once(tree, lambda: Vertex(ContextSource(name), (), Note(title)))
            case GitTree():
                source = GitSource(
                    remote=tree.remote,
                    ref=tree.ref,
                    subdir=tree.subdir,
                    checksum=tree.checksum,
                    keep_git_dir=tree.keep_git_dir,
                )
                return self._once(tree, lambda: Vertex(source, (), Note(f"[internal] {tree.remote}")))
            case Download():
                checksum = Digest.parse(tree.checksum) if tree.checksum else None
                file = HttpSource(tree.url, _filename(tree), checksum)
                return self._once(tree, lambda: Vertex(file, (), Note(f"[internal] {tree.url}")))

    # --- configuration -----------------------------------------------------------------------------------------------

    def _configure(self, state: _State, kind: str, values: tuple[str, ...]) -> None:
        config = state.config
        pairs = list(zip(values[::2], values[1::2], strict=False))
        text = list_text(kind, values)
        match kind:
            case "ENV":
                config, text = set_env(config, pairs), pairs_text(kind, pairs)
            case "LABEL":
                config, text = set_labels(config, dict(pairs)), pairs_text(kind, pairs)
            case "CMD":
                config, text, state.command_set = set_command(config, values), quoted_text(kind, values), True
            case "ENTRYPOINT":
                config = set_entrypoint(config, values, keep_command=state.command_set)
                text = quoted_text(kind, values)
            case "SHELL":
                config = config.with_(shell=values)
            case "USER":
                config, text = config.with_(user=values[0]), f"USER {values[0]}"
            case "EXPOSE":
                ports = exposed_ports(values)
                config, text = add_ports(config, ports), list_text(kind, ports)
            case "VOLUME":
                config = add_volumes(config, values)
            case "STOPSIGNAL":
                check_signal(values[0])
                config, text = config.with_(stop_signal=values[0]), f"STOPSIGNAL {values[0]}"
            case "WORKDIR":
                self._workdir(state, values[0])
                return
            case _:
                raise AssertionError(kind)
        state.config = config
        state.history.append(config_entry(text))

    def _workdir(self, state: _State, path: str) -> None:
        directory = resolve_directory(state.config.working_dir or "/", path)
        state.config = state.config.with_(working_dir=directory)
        text = f"WORKDIR {directory}"
        if clean_path(directory) == "/":
            state.step += 1
            state.history.append(config_entry(text))
            return
        operation = FileMake(directory=clean_path(directory), user=state.config.user, nonce=self._nonce)
        self._make(state, operation, (state.vertex,), text)
        state.history.append(layer_entry(text, buildkit=False))


def _is_workdir(step: StepDefinition | None) -> bool:
    return isinstance(step, ConfigStep) and step.kind == "WORKDIR"


def _filename(tree: Tree) -> str:
    if not isinstance(tree, Download):
        return ""
    name = tree.filename
    if not name:
        try:
            name = unquote(urlsplit(tree.url).path).rstrip("/").rpartition("/")[2]
        except ValueError:
            name = ""
    return name if name not in ("", ".", "..") else "__unnamed__"


def _shown_source(tree: Tree, source: str) -> str:
    if source != "/":
        return source
    match tree:
        case Download(url=url):
            return url
        case GitTree(remote=remote):
            return remote
        case Directory(path=path):
            return path
        case Image(name=name, base=base):
            return name or base or "scratch"
