"""Mounts for ``Image.run``: ``pybuild.mount.cache("/root/.cache")``. Descriptions only; the builder mounts."""

from __future__ import annotations

from pybuild.builder.definition import Bind, Cache, Secret, Ssh, Tmpfs, Tree
from pybuild.builder.graph import CacheSharing

__all__ = ["bind", "cache", "secret", "ssh", "tmpfs"]


def bind(tree: Tree, target: str, *, source: str = "", readonly: bool = True) -> Bind:
    """Show ``source`` of a tree (an image, ``directory(…)``, ``git(…)``, ``http(…)``) at ``target``. What is written to it is thrown away."""
    return Bind(tree, target, source, readonly)


def cache(
    target: str, *, id: str = "", sharing: str = "shared", mode: int = 0o755, uid: int = 0, gid: int = 0
) -> Cache:
    """A directory that is kept between builds. ``id``: caches of one id are the same, "" takes the target; ``sharing``: ``shared``,
    ``private`` or ``locked``. Raises ValueError for another sharing."""
    return Cache(target, id, CacheSharing(sharing), mode, uid, gid)


def tmpfs(target: str, *, size: int = 0) -> Tmpfs:
    """Memory; ``size`` in bytes, 0 for the kernel's default."""
    return Tmpfs(target, size)


def secret(
    id: str, *, target: str | None = None, env: str | None = None, required: bool = True, mode: int = 0o400,
    uid: int = 0, gid: int = 0,
) -> Secret:  # fmt: skip
    """A secret of ``build(secrets=…)``: a file at ``target`` (``/run/secrets/ID``), or with ``env`` a variable."""
    return Secret(id, target, env, required, mode, uid, gid)


def ssh(id: str = "default", *, target: str = "", required: bool = True, mode: int = 0o600) -> Ssh:
    """The socket of an ssh agent of ``build(ssh=…)``."""
    return Ssh(id, target, required, mode)
