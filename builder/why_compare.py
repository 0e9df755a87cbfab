"""Differences between two recipes of a step, in words: its own options, variables, and the files it takes.

Owns the words. Knows nothing of other steps: what came about because of them is ``why.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_SHORT: Final = 60
_NAMES: Final = {
    "cwd": "WORKDIR",
    "user": "USER",
    "mode": "--chmod",
    "owner": "--chown",
    "network": "--network",
    "security": "--security",
    "exclude": "--exclude",
    "parents": "--parents",
    "link": "--link",
    "keep owner": "--chown",
    "directory": "WORKDIR",
    "destination": "the destination",
    "hostname": "the host name",
    "shm size": "--shm-size",
    "ulimits": "--ulimit",
    "extra hosts": "--add-host",
}
_ELSEWHERE: Final = frozenset({"root", "source", "mounts", "env", "nonce", "args", "type"})
"""Fields that have functions of their own."""


def own_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:  # Any: recipes are JSON
    """What differs in the operation itself: its command, options and variables."""
    was, now = old.get("op", {}), new.get("op", {})
    out = _command(was, now)
    for name in sorted(set(was) | set(now)):
        if name not in _ELSEWHERE and was.get(name) != now.get(name):
            out.append(_field(name, was.get(name), now.get(name)))
    arguments = {*_arguments(old), *_arguments(new)}
    out += _variables(was.get("env") or {}, now.get("env") or {}, arguments)
    out += _mounts(was.get("mounts") or [], now.get("mounts") or [])
    return out


def _arguments(recipe: Mapping[str, Any]) -> Sequence[str]:  # Any: recipes are JSON
    found = recipe.get("seen", {}).get("arguments", ())
    return found if isinstance(found, list) else ()


def _command(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:  # Any: recipes are JSON
    old, new = was.get("args") or [], now.get("args") or []
    if old == new:
        return []
    if old and new and old[-1] == new[-1]:
        return [f"SHELL was {short(' '.join(old[:-1]))}, is {short(' '.join(new[:-1]))}"]
    if len(old) == len(new) and old[:-1] == new[:-1]:
        old, new = old[-1:], new[-1:]
    return [f"the command was {short(' '.join(old))}, is {short(' '.join(new))}"]


def _field(name: str, old: object, new: object) -> str:
    shown = _NAMES.get(name, name)
    match name:
        case "inline" | "scripts":
            return "the here-document changed"
        case "platform":
            return f"the platform was {_platform(old)}, is {_platform(new)}"
        case "sources":
            return f"the sources were {_words(old)}, are {_words(new)}"
        case "keep owner":
            return "--chown was added" if old else "--chown was removed"
        case "must exist" | "unpack":
            return "the kind of source changed"
    if isinstance(old, bool) or isinstance(new, bool):
        return f"{shown} was added" if new else f"{shown} was removed"
    if isinstance(old, list) or isinstance(new, list):
        return f"{shown} was {_words(old)}, is {_words(new)}"
    if name == "user":
        old, new = old or "root", new or "root"
    return f"{shown} was {_value(old)}, is {_value(new)}"


def _platform(value: object) -> str:
    if not isinstance(value, dict):
        return "not set"
    return "/".join(str(value[name]) for name in ("os", "architecture", "variant") if value.get(name))


def _words(value: object) -> str:
    if not isinstance(value, list) or not value:
        return "not set"
    return short(" ".join("=".join(map(str, item)) if isinstance(item, list) else str(item) for item in value))


def _value(value: object) -> str:
    return "not set" if value in (None, "") else short(value)


def _variables(
    old: Mapping[str, Any], new: Mapping[str, Any], arguments: set[str]
) -> list[str]:  # Any: recipes are JSON
    out = []
    for name in sorted(set(old) | set(new)):
        if old.get(name) == new.get(name) and (name in old) == (name in new):
            continue
        kind = "ARG" if name in arguments else "ENV"
        if name not in old:
            out.append(f"{kind} {name} is {short(new[name])}, was not set")
        elif name not in new:
            out.append(f"{kind} {name} is no longer set, was {short(old[name])}")
        else:
            out.append(f"{kind} {name} was {short(old[name])}, is {short(new[name])}")
    return out


def _mounts(old: Sequence[Any], new: Sequence[Any]) -> list[str]:  # Any: recipes are JSON
    """Mounts that came, went, or have other options; what bind mounts show doesn't count here."""
    before, after = mounts_by_target(old), mounts_by_target(new)
    out = []
    for target in sorted(before.keys() | after.keys()):
        if target not in before:
            out.append(f"--mount at {target} was added")
        elif target not in after:
            out.append(f"--mount at {target} was removed")
        elif {**before[target], "from": None} != {**after[target], "from": None}:
            out.append(f"--mount at {target} changed")
    return out


def mounts_by_target(mounts: Sequence[Any]) -> dict[str, dict[str, Any]]:  # Any: recipes are JSON
    """Mounts by where they are (a secret in a variable: by its name)."""
    return {str(mount.get("target") or mount.get("env") or mount.get("id")): mount for mount in mounts}


# --- files --------------------------------------------------------------------------------------------------------------


def path_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:  # Any: recipes are JSON
    """Changes of the selected files, from what recipes have ``seen``: changed, renamed, added, removed ones, in this order."""
    before, after = old.get("paths") or {}, new.get("paths") or {}
    if not before or not after:
        return []
    out = [
        _path(path, before[path], after[path])
        for path in sorted(before)
        if path in after and before[path] != after[path] and not _same_root(before[path], after[path])
    ]
    added = [path for path in sorted(after) if path not in before]
    removed = [path for path in sorted(before) if path not in after]
    contents = {before[path]: path for path in reversed(removed) if before[path].startswith("file ")}
    for path in list(added):
        source = contents.pop(after[path], None)
        if source is not None:
            out.append(f"{source} was renamed to {path}")
            added.remove(path)
            removed.remove(source)
    out += [f"{path} was added" for path in added]
    out += [f"{path} was removed" for path in removed]
    return out


def _same_root(old: str, new: str) -> bool:
    """Whether a directory was copied as a root, so that its attributes count for nothing, before or after."""
    return {old.partition(" ")[0], new.partition(" ")[0]} == {"directory"} == {min(old, new)}


def _path(path: str, old: str, new: str) -> str:
    before, after = old.split(" "), new.split(" ")
    if before[0] != after[0]:
        return f"{path} was a {before[0]}, is a {after[0]}"
    if before[0] == "file" and before[2:3] != after[2:3]:
        return f"{path} changed (content)"
    if before[0] == "symlink":
        return f"{path} changed (link target)"
    if before[1:2] != after[1:2]:
        return f"{path} changed (mode {before[1]}, is {after[1]})"
    return f"{path} changed (owner or attributes)"


# --- sources ------------------------------------------------------------------------------------------------------------


def source_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:  # Any: recipes are JSON
    """How an image, a download or a repository that a step reads changed; empty if it is the same or of another kind."""
    if old == new or not old or not new:
        return ""
    if "reference" in old and "reference" in new:
        first, second = _familiar(old["reference"]), _familiar(new["reference"])
        if first != second:
            return f"the base was {first}, is {second}"
        return f"base {first} moved from {_digest(old)} to {_digest(new)}"
    if "url" in old and "url" in new:
        if old["url"] != new["url"]:
            return f"the address was {short(old['url'])}, is {short(new['url'])}"
        return f"{short(new['url'])} changed (content)"
    if "git" in old and "git" in new:
        if old["git"] != new["git"]:
            return f"the repository was {short(old['git'])}, is {short(new['git'])}"
        return f"{short(new['git'])} moved from {str(old.get('commit'))[:12]} to {str(new.get('commit'))[:12]}"
    return ""


def _familiar(reference: object) -> str:
    """A reference as it is written: without the digest that it was resolved to, and what a short name leaves out."""
    name = str(reference).partition("@")[0]
    return name.removeprefix("docker.io/").removeprefix("library/")


def _digest(seen: Mapping[str, Any]) -> str:  # Any: recipes are JSON
    text = str(seen.get("manifest") or str(seen.get("reference")).partition("@")[2] or "an unknown digest")
    return text[:19] + "…" if len(text) > 20 else text


def short(value: object) -> str:
    """A value as words have it: not too long, on one line."""
    text = " ".join(str(value).split()) if "\n" in str(value) else str(value)
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"
