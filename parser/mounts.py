"""The options of ``RUN --mount``: reading the comma-separated form, and every rule about keys and values.

Owns the rules of each mount type. Never expands: ``validate`` takes expanded values, when the stage is built. Only what decides between
stages (``check_from``) is judged before.
"""

from __future__ import annotations

from collections.abc import Sequence

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .go_text import parse_bool, parse_size, parse_unsigned, quote
from .suggest import closest, did_you_mean

TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
_KEYS = (
    "type", "from", "source", "target", "readonly", "id", "sharing", "required", "size", "mode", "uid", "gid", "src", "dst",
    "destination", "ro", "rw", "readwrite", "env",
)  # fmt: skip
_BARE_KEYS = frozenset({"readonly", "readwrite", "required"})


class MountError(PybuildError):
    """A ``--mount`` asks for something that its type doesn't have, or a value doesn't fit; ``key`` is the one to blame, or None."""

    def __init__(self, message: str, *, key: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key = key


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """A mount's options, checked and typed. ``None`` and ``""`` mean: not given; ``size`` in bytes."""

    type: str
    from_: str = ""
    source: str = ""
    target: str = ""
    readonly: bool = False
    id: str = ""
    sharing: str | None = None
    required: bool = False
    size: int = 0
    env: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


def csv_fields(text: str, *, what: str = "mounts") -> list[str]:
    """The fields of one line of CSV (RFC 4180). Raises ValueError as ``failed to parse csv …``."""
    return [field for field, _, _ in csv_spans(text, what=what)]


def csv_spans(text: str, *, what: str = "mounts") -> list[tuple[str, int, int]]:
    """(field, start, end) of each field."""
    if not text:
        raise ValueError(f"failed to parse csv {what}: EOF")
    fields: list[tuple[str, int, int]] = []
    at = 0
    while True:
        start = at
        if not text.startswith('"', at):
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            bare = text.find('"', at, end)
            if bare >= 0:
                raise ValueError(
                    f'failed to parse csv {what}: parse error on line 1, column {bare + 1}: bare " in non-quoted-field'
                )
            fields.append((text[at:end], start, end))
        else:
            parts: list[str] = []
            end = at + 1
            while True:
                close = text.find('"', end)
                if close < 0:
                    raise ValueError(
                        f"failed to parse csv {what}: parse error on line 1, column {end + 1}: "
                        'extraneous or missing " in quoted-field'
                    )
                parts.append(text[end:close])
                end = close + 1
                if not text.startswith('"', end):
                    break
                parts.append('"')
                end += 1
            if end < len(text) and text[end] != ",":
                raise ValueError(
                    f"failed to parse csv {what}: parse error on line 1, column {end}: "
                    'extraneous or missing " in quoted-field'
                )
            fields.append(("".join(parts), start, end))
        if end >= len(text):
            return fields
        at = end + 1


def split_option(field: str) -> tuple[str, str | None]:
    """(key in lower case with aliases resolved, value or None) of a field."""
    key, equal, value = field.partition("=")
    key = key.lower()
    return ALIASES.get(key, key), value if equal else None


def _check_key(field: str) -> None:
    """Raise ``MountError`` where a field's key doesn't exist, or is bare and needs a value."""
    written = field.partition("=")[0].lower()
    key, value = split_option(field)
    if value is None and key not in _BARE_KEYS:
        near = closest(written, _KEYS)
        hint = f"Did you mean {near}?" if near else f"Write {written}=VALUE" if key in _KEYS else None
        raise MountError(f"invalid field '{written}' must be a key=value pair", key=key, hint=hint)
    if key not in _KEYS:
        raise _unexpected(written, field)


def _unexpected(key: str, field: str) -> MountError:
    return MountError(did_you_mean(f"unexpected key '{key}' in '{field}'", key, _KEYS), key=key)


def check_from(value: str) -> None:
    """Raise ``MountError`` where ``from`` holds a variable: which stages a step needs must be known before any variable is."""
    at = value.find("$")
    if 0 <= at < len(value) - 1:
        raise MountError(
            "'from' doesn't support variable expansion, define alias stage instead",
            key="from",
            hint="Add a stage, e.g. `FROM $VAR AS source`, with VAR a global ARG, and write from=source",
        )


def validate(type: str, options: Sequence[tuple[str, str | None]]) -> MountOptions:
    """The typed form of a mount whose values are all expanded. Raises ``MountError`` in BuildKit's words.

    ``type``: the value of ``type`` (``bind`` where not written); ``options``: the rest, as ``ast.Mount.options`` has them.
    """
    kind = type.lower()
    if kind not in TYPES:
        raise MountError(did_you_mean(f"unsupported mount type {quote(type)}", type, TYPES), key="type")
    values: dict[str, str] = {}
    readonly: bool | None = None
    required = False
    size = 0
    numbers: dict[str, int] = {}
    for key, value in options:
        match key:
            case "readonly":
                readonly = True if value is None else _boolean(key, value)
            case "readwrite":
                readonly = False if value is None else not _boolean(key, value)
            case "required":
                if kind not in ("secret", "ssh"):
                    raise MountError(
                        f"unexpected key 'required' for mount type '{kind}'",
                        key=key,
                        hint="Only secret and ssh mounts can be required",
                    )
                required = True if value is None else _boolean(key, value)
            case _ if value is None:
                _check_key(key)
            case "size":
                if kind != "tmpfs":
                    raise MountError(
                        f"unexpected key 'size' for mount type '{kind}'", key=key, hint="Only tmpfs mounts have a size"
                    )
                try:
                    size = parse_size(value)
                except ValueError:
                    raise MountError(f"invalid value for size: {value}", key=key) from None
            case "sharing":
                if value.lower() not in SHARING:
                    message = did_you_mean(f"unsupported sharing value {quote(value)}", value, SHARING)
                    raise MountError(message, key=key)
                values[key] = value.lower()
            case "mode" | "uid" | "gid":
                try:
                    numbers[key] = parse_unsigned(value, base=8 if key == "mode" else 10)
                except ValueError:
                    raise MountError(
                        f"invalid value {value} for {key}",
                        key=key,
                        hint="mode is an octal number, uid and gid are decimal numbers",
                    ) from None
            case _:
                _check_key(f"{key}={value}")
                values[key] = value
    _check_type(kind, values, numbers)
    if readonly is None:
        readonly = kind not in ("cache", "tmpfs")
    return MountOptions(
        type=kind,
        from_=values.get("from", ""),
        source=values.get("source", ""),
        target=values.get("target", ""),
        readonly=readonly,
        id=values.get("id", ""),
        sharing=values.get("sharing"),
        required=required,
        size=size,
        env=values.get("env"),
        mode=numbers.get("mode"),
        uid=numbers.get("uid"),
        gid=numbers.get("gid"),
    )


def _check_type(kind: str, values: dict[str, str], numbers: dict[str, int]) -> None:
    if kind not in ("secret", "ssh", "cache"):
        for key in ("mode", "uid", "gid"):
            if key in numbers:
                raise MountError(
                    f'{key} not allowed for "{kind}" type mounts',
                    key=key,
                    hint="Only cache, secret and ssh mounts have mode, uid and gid",
                )
    if kind == "secret":
        if values.get("from"):
            raise MountError("secret mount should not have a from", key="from", hint="Name the secret with id=NAME")
        if values.get("sharing"):
            raise MountError("secret mount should not define sharing", key="sharing")
        if not (values.get("source") or values.get("target") or values.get("id")):
            raise MountError(
                "invalid secret mount. one of source, target required", hint="Name the secret with id=NAME"
            )
        if values.get("source") and values.get("id"):
            raise MountError("both source and id can't be set", key="source")
    if kind == "ssh" and values.get("source"):
        raise MountError("ssh does not support source", key="source", hint="Name the agent with id=NAME")
    if values.get("sharing") and kind != "cache":
        raise MountError(
            f"invalid cache sharing set for {kind} mount", key="sharing", hint="Only cache mounts are shared"
        )


def _boolean(key: str, value: str) -> bool:
    try:
        return parse_bool(value)
    except ValueError:
        raise MountError(f"invalid value for {key}: {value}", key=key) from None
