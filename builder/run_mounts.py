"""``RUN --mount``: from options as written to the graph's mounts.

Owns the defaults and constraints of each type. Works on expanded values; which tree a ``from`` means is decided by ``stages.py``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import Final

from pybuild.parser.ast import Mount as MountSyntax
from pybuild.parser.ast import Word
from pybuild.parser.errors import DockerfileError
from pybuild.parser.suggest import did_you_mean
from pybuild.values import dataclass, pattern

from .graph import BindMount, CacheMount, CacheSharing, Mount, SecretMount, SshMount, TmpfsMount
from .image_config import clean_path

_TYPES: Final = ("bind", "cache", "tmpfs", "secret", "ssh")
_SHARINGS: Final = ("shared", "private", "locked")
_KEYS: Final = (
    "type", "from", "source", "target", "readonly", "id", "sharing", "required", "size", "mode", "uid", "gid", "src", "dst",
    "destination", "ro", "rw", "readwrite", "env",
)  # fmt: skip
_ALIASES: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_SIZE: Final = pattern(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?([kmgtp]?)(?:i?b)?\Z", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_HIGHEST_ID: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class _Options:
    """Expanded options by their main names; ``mode``, ``uid`` and ``gid`` are numbers already."""

    type: str
    values: dict[str, str]
    readonly: bool
    required: bool
    numbers: dict[str, int]

    def get(self, key: str) -> str:
        return self.values.get(key, "")


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
        options = _read(syntax, expand)
        out.append(
            _lower_one(
                options,
                syntax=syntax,
                tree=lambda position=position, options=options: input_of(position, not options.get("from")),  # type: ignore[misc]  # default values bind the loop's variables
                working_dir=working_dir,
                cache_namespace=cache_namespace,
                ssh_index=sum(isinstance(mount, SshMount) for mount in out),
            )
        )
    return tuple(out)


def _read(syntax: MountSyntax, expand: Callable[[Word], str]) -> _Options:
    kind = expand(syntax.type).lower()
    if kind not in _TYPES:
        raise _error(
            syntax, did_you_mean(f'unsupported mount type "{kind}"', kind, _TYPES), "types: " + ", ".join(_TYPES)
        )
    values: dict[str, str] = {}
    numbers: dict[str, int] = {}
    readonly: bool | None = None
    required = False
    for written, word in syntax.options:
        key = _ALIASES.get(written, written)
        value = None if word is None else (word.text if key == "from" else expand(word))
        if key in {"readonly", "readwrite"}:
            readonly = _flag(syntax, written, value) == (key == "readonly")
        elif key == "required":
            if kind not in {"secret", "ssh"}:
                raise _error(syntax, f"unexpected key '{written}' for mount type '{kind}'")
            required = _flag(syntax, written, value)
        elif key not in _KEYS:
            raise _error(syntax, did_you_mean(f"unexpected key '{written}'", written, _KEYS))
        elif value is None:
            raise _error(syntax, f"invalid field '{written}' must be a key=value pair")
        elif key in {"mode", "uid", "gid"}:
            numbers[key] = _number(syntax, key, value)
        elif key != "type":
            values[key] = value
    _check(syntax, kind, values, numbers)
    automatic = kind not in {"cache", "tmpfs"}
    return _Options(kind, values, automatic if readonly is None else readonly, required, numbers)


def _check(syntax: MountSyntax, kind: str, values: dict[str, str], numbers: dict[str, int]) -> None:
    if kind in {"bind", "tmpfs"} and numbers:
        raise _error(
            syntax, f'{next(iter(numbers))} not allowed for "{kind}" type mounts', "only cache, secret and ssh take it"
        )
    if "size" in values and kind != "tmpfs":
        raise _error(syntax, f"unexpected key 'size' for mount type '{kind}'", "only tmpfs takes a size")
    sharing = values.get("sharing", "").lower()
    if sharing and sharing not in _SHARINGS:
        message = f'unsupported sharing value "{values["sharing"]}"'
        raise _error(syntax, did_you_mean(message, sharing, _SHARINGS), "values: " + ", ".join(_SHARINGS))
    if kind == "secret":
        if values.get("from"):
            raise _error(syntax, "secret mount should not have a from")
        if sharing:
            raise _error(syntax, "secret mount should not define sharing")
        if not any(values.get(key) for key in ("source", "target", "id")):
            raise _error(syntax, "invalid secret mount. one of source, target required", "write id=NAME")
        if values.get("source") and values.get("id"):
            raise _error(syntax, "both source and id can't be set", "source is another name of id here")
    if sharing and kind != "cache":
        raise _error(syntax, f"invalid cache sharing set for {kind} mount")
    if kind == "ssh" and values.get("source"):
        raise _error(syntax, "ssh does not support source")


def _lower_one(
    options: _Options,
    *,
    syntax: MountSyntax,
    tree: Callable[[], int],
    working_dir: str,
    cache_namespace: str,
    ssh_index: int,
) -> Mount:
    match options.type:
        case "secret":
            return _secret(options)
        case "ssh":
            target = options.get("target") or f"/run/buildkit/ssh_agent.{ssh_index}"
            return SshMount(
                id=options.get("id") or "default",
                target=clean_path(target),
                required=options.required,
                mode=options.numbers.get("mode", 0o600),
                uid=options.numbers.get("uid", 0),
                gid=options.numbers.get("gid", 0),
            )
        case _:
            return _directory(options, syntax, tree, working_dir, cache_namespace)


def _directory(
    options: _Options, syntax: MountSyntax, tree: Callable[[], int], working_dir: str, cache_namespace: str
) -> Mount:
    written = options.get("target")
    target = clean_path(written if written.startswith("/") else f"{working_dir or '/'}/{written}")
    if target == "/":
        raise _error(syntax, f'invalid mount target "{target}"', "give the mount a target other than the root")
    source = clean_path(options.get("source")).removeprefix("/")
    if options.type == "tmpfs":
        return TmpfsMount(target=target, size=_size(syntax, options.values.get("size")))
    if options.type == "bind":
        return BindMount(target=target, input=tree(), source=source, readonly=options.readonly)
    name = options.get("id") or posixpath.normpath(written)
    return CacheMount(
        target=target,
        id=f"{cache_namespace}/{name}" if cache_namespace else name,
        sharing=CacheSharing(options.get("sharing").lower() or "shared"),
        input=tree() if options.get("from") else None,
        source=source,
        mode=options.numbers.get("mode", 0o755),
        uid=options.numbers.get("uid", 0),
        gid=options.numbers.get("gid", 0),
        readonly=options.readonly,
    )


def _secret(options: _Options) -> SecretMount:
    target, env = options.get("target"), options.values.get("env")
    name = options.get("source") or options.get("id") or posixpath.basename(target.rstrip("/"))
    if not target and env is None:
        target = f"/run/secrets/{posixpath.basename(name)}"
    return SecretMount(
        id=name,
        target=clean_path(target) if target else None,
        env=name if env == "" else env,
        required=options.required,
        mode=options.numbers.get("mode", 0o400),
        uid=options.numbers.get("uid", 0),
        gid=options.numbers.get("gid", 0),
    )


def _flag(syntax: MountSyntax, key: str, value: str | None) -> bool:
    if value is None or value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise _error(syntax, f"invalid value for {key}: {value}", "write true or false")


def _number(syntax: MountSyntax, key: str, value: str) -> int:
    try:
        number = int(value, 8 if key == "mode" else 10) if value.isdecimal() else -1
    except ValueError:
        number = -1
    if not 0 <= number <= _HIGHEST_ID:
        raise _error(syntax, f"invalid value {value} for {key}", "mode is octal, uid and gid are decimal numbers")
    return number


def _size(syntax: MountSyntax, value: str | None) -> int:
    if value is None:
        return 0
    match = _SIZE.match(value)
    if match is None:
        raise _error(syntax, f"invalid value for size: {value}", "write bytes, or a number with k, m or g")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _error(syntax: MountSyntax, message: str, hint: str | None = None) -> DockerfileError:
    return DockerfileError(message, culprit=syntax.span, hint=hint)
