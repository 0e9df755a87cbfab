"""The instruction graph: what is to be done, as immutable values. Lowering makes it, the solver runs it.

Owns the operations and the vertices; knows nothing of how they run. All text is already expanded. A vertex's result is
a stack of layers (a root file system); a source's result is a tree that copies and mounts read from.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from pybuild.layers.descriptor import Platform
from pybuild.layers.digest import Digest
from pybuild.values import dataclass


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A base image, already resolved. ``chain`` are its diff IDs: the identity that goes into cache keys (the reference
    and the manifest digest don't, so that a re-tagged or re-compressed base of equal content invalidates nothing)."""

    reference: str
    manifest: Digest | None
    chain: tuple[Digest, ...]
    platform: Platform


@dataclass(frozen=True, slots=True)
class Scratch:
    """Nothing: no layer at all."""


@dataclass(frozen=True, slots=True)
class ContextSource:
    """A local tree by its context's name (``context`` is the main one). Its content enters the keys of those that read it."""

    name: str


@dataclass(frozen=True, slots=True)
class GitSource:
    """A git tree. ``commit`` is resolved before keys are computed, so a moving branch is noticed."""

    remote: str
    ref: str = ""
    subdir: str = ""
    commit: str = ""
    checksum: str = ""
    keep_git_dir: bool = False
    submodules: bool = True


@dataclass(frozen=True, slots=True)
class HttpSource:
    """One file from HTTP(S); ``filename`` is the name it gets; ``checksum`` None or the digest it must have."""

    url: str
    filename: str
    checksum: Digest | None = None


class CacheSharing(Enum):
    SHARED = "shared"
    PRIVATE = "private"
    LOCKED = "locked"


@dataclass(frozen=True, slots=True)
class BindMount:
    """``input``: position in the vertex's inputs of the tree; ``source``: path in it."""

    target: str
    input: int
    source: str = ""
    readonly: bool = True


@dataclass(frozen=True, slots=True)
class CacheMount:
    target: str
    id: str
    sharing: CacheSharing = CacheSharing.SHARED
    input: int | None = None
    source: str = ""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class TmpfsMount:
    """``size`` in bytes, 0 for the kernel's default."""

    target: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class SecretMount:
    """``target`` None: no file; ``env`` None: no variable."""

    id: str
    target: str | None
    env: str | None = None
    required: bool = False
    mode: int = 0o400
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class SshMount:
    id: str
    target: str
    required: bool = False
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


Mount: TypeAlias = BindMount | CacheMount | TmpfsMount | SecretMount | SshMount


class Network(Enum):
    DEFAULT = "default"
    NONE = "none"
    HOST = "host"


class Security(Enum):
    SANDBOX = "sandbox"
    INSECURE = "insecure"


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A file whose content stands in the Dockerfile (a heredoc): ``name`` is where it lands below the destination."""

    name: str
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Exec:
    """Run a process on input 0's root file system.

    ``args`` are complete (shell included); ``env`` in order, later ones win; ``user`` as written (``""`` root); ``scripts``
    are files mounted read-only under ``/dev/pipes/`` for ``#!`` heredocs. ``hidden_env`` (proxy settings) reaches the process
    but no key and no history. ``extra_hosts`` are (name, address); ``ulimits`` (name, soft, hard); ``shm_size`` bytes.
    ``platform`` is the root file system's.
    """

    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    cwd: str
    user: str
    platform: Platform
    mounts: tuple[Mount, ...] = ()
    scripts: tuple[InlineFile, ...] = ()
    network: Network = Network.DEFAULT
    security: Security = Security.SANDBOX
    hostname: str = "buildkitsandbox"
    hidden_env: tuple[tuple[str, str], ...] = ()
    extra_hosts: tuple[tuple[str, str], ...] = ()
    shm_size: int = 0
    ulimits: tuple[tuple[str, int, int], ...] = ()
    cgroup_parent: str = ""
    resources: tuple[tuple[str, str], ...] = ()
    """Limits by their names (``memory``, ``cpu-quota``, …). They change how long a step takes, not what it does: no part of a key."""
    nonce: str = ""
    """Differs where the step must not come from the cache (``--no-cache``); otherwise empty."""


class Unpack(Enum):
    """What happens to a source file that is an archive."""

    NEVER = "never"
    LOCAL = "local"
    """ADD's default: recognised archives are unpacked."""


@dataclass(frozen=True, slots=True)
class FileCopy:
    """COPY or ADD: from the source tree (input 1) into input 0's root file system, as one new layer.

    ``sources``: paths or globs, rooted at the source tree; ``destination``: absolute, with its trailing slash kept (it
    means "a directory"); ``owner`` as written (``""``: 0:0 from a context, kept from a stage: ``keep_owner``);
    ``mode``: None, octal text, or symbolic text, as written; ``inline``: heredoc files (then there may be no input 1);
    ``link``: a layer of its own, independent of input 0 (then there is no input 0: source is input 0);
    ``keep_mode``: those of ``sources`` that ``mode`` leaves alone.
    """

    sources: tuple[str, ...]
    destination: str
    inline: tuple[InlineFile, ...] = ()
    owner: str = ""
    keep_owner: bool = False
    mode: str | None = None
    keep_mode: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    parents: bool = False
    unpack: Unpack = Unpack.NEVER
    link: bool = False
    must_exist: bool = True
    nonce: str = ""


@dataclass(frozen=True, slots=True)
class FileMake:
    """WORKDIR: make ``directory`` (absolute) and its missing parents, owned by ``user`` (as USER was written), of the moment
    ``epoch`` (seconds; the build's SOURCE_DATE_EPOCH)."""

    directory: str
    user: str = ""
    mode: int = 0o755
    nonce: str = ""
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """Stack every input's own layers on input 0 (``COPY --link``)."""


Op: TypeAlias = ImageSource | Scratch | ContextSource | GitSource | HttpSource | Exec | FileCopy | FileMake | Merge


@dataclass(frozen=True, slots=True)
class Note:
    """What a person is shown of a vertex; never part of a key.

    ``title``: ``[build 2/5] RUN make``; ``lines``: first and last Dockerfile line, None for none; ``stage``: name or
    index as text; ``instruction``: the text for ``why`` and history; ``arguments``: which of its variables are ARGs;
    ``grouped``: the step is part of its last input's step for whoever watches, and has no events of its own.
    """

    title: str
    lines: tuple[int, int] | None = None
    stage: str = ""
    instruction: str = ""
    platform: Platform | None = None
    arguments: tuple[str, ...] = ()
    grouped: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Vertex:
    """One step. Compared by identity; equal work is recognised by the solver through its key."""

    op: Op
    inputs: tuple[Vertex, ...]
    note: Note
