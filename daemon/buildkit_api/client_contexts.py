"""What a build reads of its client: the Dockerfile, the context, named contexts, an archive from its standard input. Brings them into trees of ours.

Owns which paths are asked for. How they come is ``session_files.py``'s and its neighbours'.
"""

from __future__ import annotations

import asyncio
import posixpath
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pybuild.builder.late_context import EVERYTHING
from pybuild.builder.request import LateContext
from pybuild.daemon.kept_contexts import KeptContext, kept_context
from pybuild.layers.digest import Digest
from pybuild.values import dataclass, replace

from .client_layouts import fetch_layout
from .session_blocking import ask
from .session_content import Content
from .session_files import FileSync
from .session_services import Upload

if TYPE_CHECKING:
    from pybuild.builder.request import BuildRequest

    from .attributes import Sources
    from .sessions import Session, Sessions

_IGNORE: Final = ".dockerignore"
_DEFAULT: Final = "Dockerfile"


@dataclass(slots=True)
class ClientContexts:
    """Brings the contexts of one build. ``remotes``: the store's place for trees that are kept; ``scratch``: a directory of this build;
    ``cancel``: ends what is brought later; ``archive``: the context, when it has come already."""

    sessions: Sessions
    session: Session
    sources: Sources
    remotes: Path
    scratch: Path
    cancel: threading.Event
    archive: Path | None = None

    async def bring(self, request: BuildRequest, stack: AsyncExitStack, *, files: bool = True) -> BuildRequest:
        """``request`` with paths of this machine; the trees are held until ``stack`` ends. ``files``: False for who reads nothing but the Dockerfile.
        Raises RpcError, PybuildError, OSError."""
        sources = self.sources
        # Whatever it looks like, it is a path inside of what the client gives.
        dockerfile = f"./{_inside(sources.filename)}" if sources.filename else None
        directory: Path | None = None
        if sources.dockerfile:
            name = sources.filename or _DEFAULT
            names = [name, f"{name}.dockerignore"]
            if posixpath.basename(name) == _DEFAULT:
                names.append(posixpath.join(posixpath.dirname(name), _DEFAULT.lower()))
            directory = await self._tree(stack, sources.dockerfile, follow=names)
            dockerfile = str(directory / _inside(name))
        if sources.remote:
            request = replace(request, context=sources.remote, dockerfile=dockerfile)
        elif sources.upload or self.archive is not None:
            archive = self.archive or await self._archive(sources.upload)
            request = replace(
                request, context="-", dockerfile=dockerfile, stdin=stack.enter_context(archive.open("rb"))
            )
        else:
            assert dockerfile is not None  # attributes.py: only the two above do without
            listed, rules = await self._ignore_file(stack, sources.context, own=Path(f"{dockerfile}.dockerignore"))
            request = replace(request, context=str(listed), dockerfile=dockerfile)
            if files:
                request = await self._late(request, stack, listed=listed, rules=rules)
        if not files:
            return request
        named = dict(request.named_contexts)
        for context, place in sources.directories.items():
            named[context] = str(await self._local(stack, place))
        for context, layout in sources.layouts.items():
            root = self.scratch / f"layout-{len(named)}"
            await fetch_layout(Content(self.session, f"oci:{layout.store}"), Digest.parse(layout.digest), root=root)
            named[context] = f"oci-layout://{root}@{layout.digest}"
        return replace(request, named_contexts=named)

    async def _late(
        self, request: BuildRequest, stack: AsyncExitStack, *, listed: Path, rules: Sequence[str]
    ) -> BuildRequest:
        """``request`` for the main context, of whose files those come that the build will name. As in BuildKit, what a build before this one has read
        and this one doesn't is not kept."""
        name, loop = self.sources.context, asyncio.get_running_loop()
        session, tree = await self._kept(stack, name, suffix="files")
        tree.root.mkdir(mode=0o700, exist_ok=True)
        arriving: list[asyncio.Task[None]] = []

        async def receive(follow: Sequence[str]) -> None:
            task = asyncio.current_task()
            assert task is not None
            arriving.append(task)
            await FileSync(session).receive(name, tree=tree, exclude=rules, follow=follow)

        async def settled() -> None:
            # A build that was cancelled doesn't wait for its files, but they are written in threads.
            if arriving:
                await asyncio.wait(arriving)

        def bring(paths: Sequence[str]) -> None:
            follow = () if EVERYTHING in paths else [path.lstrip("/") for path in paths]
            ask(loop, receive(follow), cancel=self.cancel)

        stack.push_async_callback(settled)

        return replace(request, context=str(tree.root), late_context=LateContext(str(listed), bring))

    async def _local(self, stack: AsyncExitStack, place: str) -> Path:
        """A directory of the client without what its ignore file excludes, and with that file."""
        _, rules = await self._ignore_file(stack, place)
        return await self._tree(stack, place, exclude=[*rules, f"!{_IGNORE}"] if rules else [], suffix="files")

    async def _ignore_file(
        self, stack: AsyncExitStack, place: str, *, own: Path | None = None
    ) -> tuple[Path, list[str]]:
        """A directory with nothing but the ignore file of a client's directory, and the rules in force: those of ``own`` before that file's."""
        listed = await self._tree(stack, place, follow=[_IGNORE], suffix=_IGNORE)
        rules = next((path for path in (own, listed / _IGNORE) if path is not None and path.is_file()), None)
        return listed, [] if rules is None else _patterns(rules.read_bytes())

    async def _tree(
        self,
        stack: AsyncExitStack,
        name: str,
        *,
        exclude: Sequence[str] = (),
        follow: Sequence[str] = (),
        suffix: str = "",
    ) -> Path:
        """A directory of the client, as far as the patterns select it."""
        session, tree = await self._kept(stack, name, suffix=suffix)
        await FileSync(session).receive(name, tree=tree, exclude=exclude, follow=follow)
        return tree.root

    async def _kept(self, stack: AsyncExitStack, name: str, *, suffix: str) -> tuple[Session, KeptContext]:
        """The session that has the directory, and the tree kept for it."""
        session = self.session
        other = self.sources.sessions.get(name)
        if other and other != session.id:
            session = await self.sessions.get(other)
        # As in BuildKit, clients without a key of their own share one place for each name: what is compared is path, size, mode and time to the nanosecond.
        client = f"session:{session.shared_key}"
        key = self.sources.shared_keys.get(name, "")
        tree = stack.enter_context(kept_context(self.remotes, client=client, place=f"{name}\0{key}\0{suffix}"))
        return session, tree

    async def _archive(self, identifier: str) -> Path:
        path = self.scratch / "context"
        with path.open("wb") as out:
            async for data in Upload(self.session).pull("buildkit-session", f"/{identifier}"):
                out.write(data)
        return path


def _inside(name: str) -> str:
    """A path that the client gave, made one below a tree of ours."""
    return posixpath.normpath("/" + name).lstrip("/")


def _patterns(text: bytes) -> list[str]:
    """The patterns of an ignore file, as a client's file system takes them."""
    from pybuild.parser.dockerignore import IgnoreMatcher

    return list(IgnoreMatcher.from_text(text).patterns)
