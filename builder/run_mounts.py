"""``RUN --mount``: from options as written to the graph's mounts.

Owns what a type's options mean for the graph: targets, identifiers, default modes. The rules of keys and values are
``parser.mounts``'; which tree a ``from`` means is decided by ``stages.py``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable

from pybuild.parser.ast import Mount as MountSyntax
from pybuild.parser.ast import Word
from pybuild.parser.errors import DockerfileError
from pybuild.parser.mounts import MountError, MountOptions, validate

from .graph import BindMount, CacheMount, CacheSharing, Mount, SecretMount, SshMount, TmpfsMount
from .image_config import clean_path


def lower_mounts(
    mounts: tuple[MountSyntax, ...],
    *,
    expand: Callable[[Word], str],
    input_of: Callable[[int, bool], int],
    working_dir: str,
    cache_namespace: str,
) -> tuple[Mount, ...]:
    """The graph's mounts, in order. ``expand``: a word in the stage's scope; ``input_of(position, from_context)``: the position in the
    vertex's inputs of the tree that mount number ``position`` reads (the build context, or what its ``from`` names); it is
    called only for mounts that read one. Raises DockerfileError."""
    out: list[Mount] = []
    for position, syntax in enumerate(mounts):
        options = mount_options(syntax, expand)
        match options.type:
            case "secret":
                mount: Mount = _secret(options)
            case "ssh":
                mount = _ssh(options, position=sum(isinstance(other, SshMount) for other in out))
            case "tmpfs":
                mount = TmpfsMount(target=_target(options, syntax, working_dir), size=options.size)
            case "bind":
                mount = BindMount(
                    target=_target(options, syntax, working_dir),
                    input=input_of(position, not options.from_),
                    source=_source(options),
                    readonly=options.readonly,
                )
            case _:
                name = options.id or posixpath.normpath(options.target)
                mount = CacheMount(
                    target=_target(options, syntax, working_dir),
                    id=f"{cache_namespace}/{name}" if cache_namespace else name,
                    sharing=CacheSharing(options.sharing or "shared"),
                    input=input_of(position, False) if options.from_ else None,
                    source=_source(options),
                    mode=0o755 if options.mode is None else options.mode,
                    uid=options.uid or 0,
                    gid=options.gid or 0,
                    readonly=options.readonly,
                )
        out.append(mount)
    return tuple(out)


def mount_options(syntax: MountSyntax, expand: Callable[[Word], str]) -> MountOptions:
    """The typed options; ``expand``: a word in the stage's scope. Raises DockerfileError with the option to blame marked."""
    # Which stages a step needs is known before any variable: "from" is taken as written.
    pairs = [
        (key, None if word is None else word.text if key == "from" else expand(word)) for key, word in syntax.options
    ]
    try:
        return validate(expand(syntax.type), pairs)
    except MountError as error:
        places = {"type": syntax.type.span, **{key: word.span for key, word in syntax.options if word is not None}}
        culprit = places.get(error.key or "", syntax.span)
        raise DockerfileError(error.message, culprit=culprit, hint=error.hint) from None


def _target(options: MountOptions, syntax: MountSyntax, working_dir: str) -> str:
    written = options.target
    target = clean_path(written if written.startswith("/") else f"{working_dir or '/'}/{written}")
    if target == "/":
        raise DockerfileError(
            f'invalid mount target "{target}"',
            culprit=syntax.span,
            hint="give the mount a target other than the root",
        )
    return target


def _source(options: MountOptions) -> str:
    return clean_path(options.source).removeprefix("/")


def _ssh(options: MountOptions, *, position: int) -> SshMount:
    return SshMount(
        id=options.id or "default",
        target=clean_path(options.target or f"/run/buildkit/ssh_agent.{position}"),
        required=options.required,
        mode=0o600 if options.mode is None else options.mode,
        uid=options.uid or 0,
        gid=options.gid or 0,
    )


def _secret(options: MountOptions) -> SecretMount:
    target, env = options.target, options.env
    name = options.source or options.id or posixpath.basename(target.rstrip("/"))
    if not target and env is None:
        target = f"/run/secrets/{posixpath.basename(name)}"
    return SecretMount(
        id=name,
        target=clean_path(target) if target else None,
        env=name if env == "" else env,
        required=options.required,
        mode=0o400 if options.mode is None else options.mode,
        uid=options.uid or 0,
        gid=options.gid or 0,
    )
