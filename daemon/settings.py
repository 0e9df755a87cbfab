"""The configuration file (TOML, buildkitd's key names where it has them) as typed values. Reads one file; knows no defaults of paths.

```toml
[registry."docker.io"]
mirrors = ["mirror.example:5000"]
[gc]
max-used-space = "50GB"
keep-duration = "14d"
reserved-space = "5GB"
min-free-space = "10GB"
[worker]
max-parallelism = 4
insecure-entitlements = ["network.host", "security.insecure"]
```

and before the sections ``provenanceEnvDir = "DIRECTORY"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pybuild.errors import PybuildError
from pybuild.values import dataclass, field, pattern

_DURATION = pattern(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class InvalidSettings(PybuildError):
    """The configuration file can't be read or holds a value of the wrong form."""


@dataclass(frozen=True, slots=True)
class GcPolicy:
    """When the store is trimmed. ``max_used_bytes`` 0: no cap; ``keep_seconds`` 0: no age limit; ``reserved_bytes``: may always stay;
    ``min_free_bytes``: of the disk."""

    max_used_bytes: int = 0
    keep_seconds: float = 0.0
    reserved_bytes: int = 0
    min_free_bytes: int = 0

    @property
    def is_set(self) -> bool:
        """True if there is anything to hold the store to."""
        return bool(self.max_used_bytes or self.keep_seconds or self.min_free_bytes)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the file says. ``registry`` is handed to the registry client as it is (it checks its own keys);
    ``provenance_directory``: JSON files whose content is added to provenance, "" for none."""

    registry: Mapping[str, Any] = field(default_factory=dict)  # Any: TOML
    gc: GcPolicy = GcPolicy()
    max_parallelism: int = 0
    entitlements: frozenset[str] = frozenset({"network.host"})
    daemon: Mapping[str, Any] = field(default_factory=dict)  # Any: TOML
    provenance_directory: str = ""


def parse_size(text: str | int) -> int:
    """Bytes from ``50GB``, ``512MiB``, ``10m`` or a plain number, as Docker reads them: ``k``, ``kb`` and ``kib`` all mean 1024.
    Raises InvalidSettings."""
    if isinstance(text, int):
        return text
    from pybuild.parser import go_text

    try:
        return go_text.parse_size(text.strip())
    except ValueError:
        raise InvalidSettings(
            f"invalid size {text!r}", hint="write a number with an optional unit, such as 512MB or 10GB"
        ) from None


def parse_duration(text: str | int | float) -> float:
    """Seconds from ``14d``, ``1h30m``, ``500ms`` or a plain number of seconds. Raises InvalidSettings."""
    if isinstance(text, (int, float)):
        return float(text)
    compact = text.replace(" ", "").lower()
    if compact.isdecimal():
        return float(compact)
    parts = _DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise InvalidSettings(f"invalid duration {text!r}", hint="write it like 90s, 1h30m or 14d")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def load_settings(path: Path | None) -> tuple[Settings, tuple[str, ...]]:
    """Read the file (None: defaults). Returns the settings and the names of keys that nothing knows. Raises InvalidSettings."""
    if path is None:
        return Settings(), ()
    import tomllib

    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettings(f"can't read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not valid TOML: {error}") from error
    try:
        return settings_from(value)
    except (TypeError, AttributeError, ValueError) as error:
        raise InvalidSettings(f"{path}: a key has a value of the wrong type ({error})") from error


def settings_from(value: Mapping[str, Any]) -> tuple[Settings, tuple[str, ...]]:  # Any: TOML
    """Settings from the parsed document, with the unknown keys' dotted names."""
    unknown: list[str] = []
    known = {
        "registry": None,
        "gc": {"max-used-space", "keep-duration", "reserved-space", "min-free-space"},
        "worker": {"max-parallelism", "insecure-entitlements"},
        "daemon": None,
        "insecure-entitlements": None,
        "provenanceEnvDir": None,
    }
    for section, content in value.items():
        if section not in known:
            unknown.append(section)
            continue
        keys = known[section]
        if keys is not None:
            unknown.extend(f"{section}.{key}" for key in content if key not in keys)
    gc, worker = value.get("gc", {}), value.get("worker", {})
    granted = value.get("insecure-entitlements", worker.get("insecure-entitlements"))
    return (
        Settings(
            registry=value.get("registry", {}),
            gc=GcPolicy(
                max_used_bytes=parse_size(gc.get("max-used-space", 0)),
                keep_seconds=parse_duration(gc.get("keep-duration", 0)),
                reserved_bytes=parse_size(gc.get("reserved-space", 0)),
                min_free_bytes=parse_size(gc.get("min-free-space", 0)),
            ),
            max_parallelism=int(worker.get("max-parallelism", 0)),
            entitlements=Settings().entitlements if granted is None else frozenset(str(item) for item in granted),
            daemon=value.get("daemon", {}),
            provenance_directory=str(value.get("provenanceEnvDir", "")),
        ),
        tuple(unknown),
    )
