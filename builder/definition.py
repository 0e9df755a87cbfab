"""Images described in Python: ``image("busybox").run("make").copy("app", "/app")``. The graph of a Dockerfile without a Dockerfile.

Owns the description: immutable values, each method gives a new one, so that descriptions can share their beginnings (and then share the
work too). Runs and resolves nothing; ``definition_lower.py`` makes the graph that the solver takes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from pybuild.errors import UsageError
from pybuild.values import dataclass, field, replace

from .graph import CacheSharing, InlineFile

if TYPE_CHECKING:
    from pybuild.layers.views import FileView

    from .lower import LoweredImage, LowerOptions


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of this machine, relative to the build's. ``exclude``: patterns as in a ``.dockerignore``; None takes the directory's own
    ``.dockerignore``."""

    path: str
    exclude: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What the graph calls it: the build's own directory is the main context."""
        if self == CONTEXT:
            return "context"
        return f"directory {self.path}" + ("" if self.exclude is None else " without " + " ".join(self.exclude))


CONTEXT = Directory(".")
"""The build's own directory: what ``copy`` reads from unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class GitTree:
    """The tree of a commit. ``ref``: a branch, tag or commit, "" for the default branch; ``checksum``: how the commit must begin."""

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool = False


@dataclass(frozen=True, slots=True)
class Download:
    """A file from a URL. ``filename``: the name it gets, "" for the URL's; ``checksum``: ``sha256:…`` that it must have."""

    url: str
    filename: str = ""
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Bind:
    """Shows ``source`` of a tree at ``target``; what is written to it is thrown away."""

    tree: Tree
    target: str
    source: str = ""
    readonly: bool = True


@dataclass(frozen=True, slots=True)
class Cache:
    """A directory that is kept between builds. ``id``: caches of one id are the same, "" takes the target."""

    target: str
    id: str = ""
    sharing: CacheSharing = CacheSharing.SHARED
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """Memory; ``size`` in bytes, 0 for the kernel's default."""

    target: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret as a file (``target``, None for ``/run/secrets/ID`` unless ``env`` is given) or as a variable (``env``)."""

    id: str
    target: str | None = None
    env: str | None = None
    required: bool = True
    mode: int = 0o400
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Ssh:
    """The socket of an ssh agent; ``SSH_AUTH_SOCK`` names it."""

    id: str = "default"
    target: str = ""
    required: bool = True
    mode: int = 0o600


MountDefinition: TypeAlias = Bind | Cache | Tmpfs | Secret | Ssh


# --- steps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """``command``: text for the image's shell, or arguments. ``user``, ``cwd``: None takes the image's."""

    command: str | tuple[str, ...]
    mounts: tuple[MountDefinition, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: str | None = None
    network: str = "default"
    security: str = "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStep:
    """``tree``: what ``sources`` are in; ``files``: files made here instead."""

    destination: str
    tree: Tree = CONTEXT
    sources: tuple[str, ...] = ()
    files: tuple[InlineFile, ...] = ()
    owner: str = ""
    mode: str | None = None
    exclude: tuple[str, ...] = ()
    parents: bool = False
    link: bool = False
    unpack: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigStep:
    """A change of the configuration. ``kind``: the Dockerfile instruction that would make it; ``values``: its words."""

    kind: str
    values: tuple[str, ...] = ()


StepDefinition: TypeAlias = RunStep | CopyStep | ConfigStep


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image as it is described so far. ``base``: the image's name, "" for nothing; ``step``: the last one, on top of ``parent``.

    Every method returns a new Image and leaves this one as it is. Text that a Dockerfile would expand is taken literally.
    """

    base: str
    platform: str = ""
    name: str = ""
    parent: Image | None = None
    step: StepDefinition | None = None

    # --- files -------------------------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        mounts: Sequence[MountDefinition] = (),
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        network: str = "default",
        security: str = "sandbox",
    ) -> Image:
        """Run a command: text goes to the image's shell, a list is run as it is. ``env``, ``user`` and ``cwd`` hold for this command only;
        ``network``: ``default``, ``none`` or ``host``; ``security``: ``sandbox`` or ``insecure``. Raises UsageError."""
        if not command or not (command if isinstance(command, str) else command[0]):
            raise UsageError("run() needs a command")
        if network not in ("default", "none", "host"):
            raise UsageError(f"unknown network {network!r}", hint="use default, none or host")
        if security not in ("sandbox", "insecure"):
            raise UsageError(f"unknown security {security!r}", hint="use sandbox or insecure")
        return self._with(
            RunStep(
                command=command if isinstance(command, str) else tuple(command),
                mounts=tuple(mounts),
                env=dict(env or {}),
                user=user,
                cwd=cwd,
                network=network,
                security=security,
            )
        )

    def copy(
        self,
        source: str | os.PathLike[str] | Sequence[str] | Tree,
        destination: str,
        *,
        from_: Tree = CONTEXT,
        owner: str = "",
        mode: int | str | None = None,
        exclude: Sequence[str] = (),
        parents: bool = False,
        link: bool = False,
        unpack: bool = False,
    ) -> Image:
        """Copy files: by the rules of a Dockerfile's COPY, or with ``unpack`` of ADD.

        ``source``: paths or globs in ``from_``, or a whole tree: another image, ``git(…)``, ``http(…)``, ``directory(…)``; ``from_``: the tree
        that paths are in, by default the build's directory. ``owner``: ``user:group`` by names or numbers; ``mode``: a number or chmod's text;
        ``exclude``, ``parents``, ``link``: as COPY's flags. Raises UsageError.
        """
        paths: tuple[str, ...]
        if isinstance(source, (Image, Directory, GitTree, Download)):
            tree, paths = source, ("/",)
        elif isinstance(source, (str, os.PathLike)):
            tree, paths = from_, (os.fspath(source),)
        else:
            tree, paths = from_, tuple(source)
        if not paths:
            raise UsageError("copy() needs a source")
        return self._with(
            CopyStep(
                destination=destination,
                tree=tree,
                sources=paths,
                owner=owner,
                mode=f"{mode:04o}" if isinstance(mode, int) else mode,
                exclude=tuple(exclude),
                parents=parents,
                link=link,
                unpack=unpack,
            )
        )

    def write(self, path: str, content: str | bytes, *, mode: int = 0o644, owner: str = "") -> Image:
        """Make a file with ``content``. Raises UsageError for a path that names none."""
        name = path.rpartition("/")[2]
        if not name:
            raise UsageError(f"write() needs the path of a file, not {path!r}")
        data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
        return self._with(
            CopyStep(destination=path, files=(InlineFile(name, data, mode),), owner=owner, mode=f"{mode:04o}")
        )

    # --- configuration -----------------------------------------------------------------------------------------------

    def env(self, values: Mapping[str, str] | None = None, /, **more: str) -> Image:
        """Set environment variables, for the steps that follow and in the image."""
        return self._config("ENV", *(part for pair in {**(values or {}), **more}.items() for part in pair))

    def label(self, values: Mapping[str, str] | None = None, /, **more: str) -> Image:
        """Set labels."""
        return self._config("LABEL", *(part for pair in {**(values or {}), **more}.items() for part in pair))

    def workdir(self, path: str) -> Image:
        """Set the working directory, making it if it is not there."""
        return self._config("WORKDIR", path)

    def user(self, user: str) -> Image:
        """Set the user, by name or number, of the steps that follow and in the image."""
        return self._config("USER", user)

    def cmd(self, *args: str) -> Image:
        """Set the default command; without arguments there is none."""
        return self._config("CMD", *args)

    def entrypoint(self, *args: str) -> Image:
        """Set the entry point; a command that the base brought is dropped."""
        return self._config("ENTRYPOINT", *args)

    def shell(self, *args: str) -> Image:
        """Set the shell that ``run`` gives text to. Raises UsageError without arguments."""
        if not args:
            raise UsageError("shell() needs at least one argument")
        return self._config("SHELL", *args)

    def expose(self, *ports: str | int) -> Image:
        """Declare ports, such as ``80``, ``"53/udp"`` or ``"8000-8010"``."""
        return self._config("EXPOSE", *map(str, ports))

    def volume(self, *paths: str) -> Image:
        """Declare volumes."""
        return self._config("VOLUME", *paths)

    def stop_signal(self, signal: str | int) -> Image:
        """Set the signal that ends a container."""
        return self._config("STOPSIGNAL", str(signal))

    def named(self, name: str) -> Image:
        """The same image under a name that progress and errors show for its steps."""
        return replace(self, name=name)

    def _config(self, kind: str, *values: str) -> Image:
        return self._with(ConfigStep(kind=kind, values=values))

    def _with(self, step: StepDefinition) -> Image:
        return Image(self.base, self.platform, self.name, self, step)

    # --- what the builder asks for (GraphDefinition) -----------------------------------------------------------------

    def lower(self, options: LowerOptions) -> LoweredImage:
        """The graph for one platform. Raises PybuildError for what can't be resolved."""
        from .definition_lower import lower_definition

        return lower_definition(self, options)

    def open_contexts(self, directory: str) -> Mapping[str, FileView]:
        """The directories that the graph reads, by name. Raises ContextNotFound."""
        from .definition_lower import open_directories

        return open_directories(self, directory)


Tree: TypeAlias = Image | Directory | GitTree | Download


def image(name: str, *, platform: str = "") -> Image:
    """Begin with an image: ``busybox``, ``docker.io/library/golang:1.22``, ``…@sha256:…``. ``platform``: such as ``linux/amd64``, whatever
    platform is built (a cross-compiler); "" takes the one that is built."""
    if not name:
        raise UsageError("image() needs a name", hint="scratch() begins with nothing")
    return Image("" if name == "scratch" else name, platform)


def scratch() -> Image:
    """Begin with nothing."""
    return Image("")


def directory(path: str | os.PathLike[str], *, exclude: Sequence[str] | None = None) -> Directory:
    """A directory of this machine. ``exclude``: patterns as in a ``.dockerignore``; without it the directory's own file counts."""
    return Directory(os.fspath(path), None if exclude is None else tuple(exclude))


def git(remote: str, *, ref: str = "", subdir: str = "", checksum: str = "", keep_git_dir: bool = False) -> GitTree:
    """The tree of a commit. See GitTree."""
    return GitTree(remote, ref, subdir, checksum, keep_git_dir)


def http(url: str, *, filename: str = "", checksum: str = "") -> Download:
    """A file from a URL. See Download."""
    return Download(url, filename, checksum)
