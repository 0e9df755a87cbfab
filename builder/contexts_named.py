"""Named contexts (``--build-context NAME=VALUE``): from text to what the build looks up.

Owns the forms that VALUE has. Opens nothing but local directories: an image, a repository or a URL is resolved when a stage needs it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pybuild.errors import PybuildError, UsageError
from pybuild.layers.references import InvalidReference
from pybuild.layers.views import FileView
from pybuild.parser.dockerignore import IgnoreMatcher
from pybuild.values import dataclass, replace

from .contexts_local import LocalContext, UnreadableContext
from .git_reference import parse_git_reference
from .named_context import (
    GitContextRef,
    HttpContextRef,
    ImageContextRef,
    LocalContextRef,
    NamedContext,
    ScratchContextRef,
    context_key,
)

if TYPE_CHECKING:
    from .source_policy import SourcePolicy

IGNORE_FILE = ".dockerignore"


class InvalidNamedContext(UsageError):
    """``NAME=VALUE`` or its name can't be read."""


class NamedContextNotFound(PybuildError):
    """The directory or OCI layout that a named context stands for is not there."""

    def __init__(self, name: str, path: str, problem: str) -> None:
        super().__init__(f"failed to get build context {name}: {path!r}: {problem}")
        self.name = name
        self.path = path


@dataclass(frozen=True, slots=True)
class TargetName:
    """``target:NAME``: the result of another build of the same invocation, to be put in by whoever runs several builds."""

    name: str


@dataclass(frozen=True, slots=True)
class NamedContexts:
    """``contexts``: by look-up key, for lowering; ``views``: local trees by the names that ``LocalContextRef`` carries; ``targets``: keys
    that still need a build's result."""

    contexts: Mapping[str, NamedContext]
    views: Mapping[str, FileView]
    targets: Mapping[str, TargetName]


def named_context_key(name: str) -> str:
    """The look-up key of a context name. Raises InvalidNamedContext."""
    try:
        return context_key(name)
    except InvalidReference as error:
        raise InvalidNamedContext(f"invalid context name {name}: {error.message}") from None


def open_named_contexts(values: Mapping[str, str], *, directory: str) -> NamedContexts:
    """Read ``values`` (name → VALUE as typed); relative paths are relative to ``directory``. A local directory's own
    ``.dockerignore`` applies to it. Raises InvalidNamedContext, NamedContextNotFound."""
    contexts: dict[str, NamedContext] = {}
    views: dict[str, FileView] = {}
    targets: dict[str, TargetName] = {}
    for name, value in values.items():
        key = named_context_key(name)
        if value.startswith("target:"):
            targets[key] = TargetName(value.removeprefix("target:").removeprefix("//"))
            continue
        remote = _remote(name, value, directory)
        if remote is not None:
            contexts[key] = remote
            continue
        # "context" is the main one's name.
        local_name = f"_{key}" if key == "context" else key
        contexts[key] = LocalContextRef(local_name)
        views[local_name] = _open_directory(name, os.path.join(directory, value))
    return NamedContexts(contexts, views, targets)


def policed(named: NamedContexts, policy: SourcePolicy, *, main: bool) -> NamedContexts:
    """The contexts as ``policy`` leaves them: images that it replaces by a local tree (``local://NAME``, a named context's or ``context``).
    Other replacements are made when a source is fetched. ``main``: the main context is a local tree. Raises SourceDenied."""
    from .source_policy import Source

    for name in [*(["context"] if main else []), *named.views]:
        policy.apply(Source(f"local://{name}"))
    contexts = dict(named.contexts)
    for key, context in contexts.items():
        if isinstance(context, ImageContextRef) and context.layout is None:
            changed = policy.apply(Source(f"docker-image://{context.location}")).identifier
            scheme, _, local = changed.partition("://")
            if scheme == "local" and (local in named.views or (main and local == "context")):
                contexts[key] = LocalContextRef(local)
    return replace(named, contexts=contexts)


def _remote(name: str, value: str, directory: str) -> NamedContext | None:
    if value.startswith("docker-image://"):
        reference = value.removeprefix("docker-image://")
        return ScratchContextRef() if reference == "scratch" else ImageContextRef(reference)
    if value.startswith("oci-layout://"):
        return _layout(name, value.removeprefix("oci-layout://"), directory)
    git = parse_git_reference(value)
    if git is not None:
        return GitContextRef(git)
    if value.startswith(("http://", "https://")):
        return HttpContextRef(value)
    return None


def _layout(name: str, value: str, directory: str) -> ImageContextRef:
    """``PATH[:TAG][@DIGEST]``; without both the tag is ``latest``."""
    rest, at, digest = value.partition("@")
    path, _, tag = rest.partition(":")
    layout = os.path.join(directory, path)
    if not os.path.isfile(os.path.join(layout, "index.json")):
        problem = "is not an OCI image layout" if os.path.isdir(layout) else "no such file or directory"
        raise NamedContextNotFound(name, path, problem)
    reference = tag if tag or at else "latest"
    return ImageContextRef(f"{reference}{at}{digest}", layout)


def _open_directory(name: str, path: str) -> LocalContext:
    if not os.path.isdir(path):
        raise NamedContextNotFound(
            name, path, "not a directory" if os.path.exists(path) else "no such file or directory"
        )
    return LocalContext(path, ignore=read_ignore_file(os.path.join(path, IGNORE_FILE)))


def read_ignore_file(path: str) -> IgnoreMatcher | None:
    """The matcher of an ignore file, None if there is none. Raises BadIgnorePattern, UnreadableContext."""
    try:
        with open(path, "rb") as file:
            return IgnoreMatcher.from_text(file.read())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise UnreadableContext(os.path.basename(path), error) from None
