"""``--provenance``, ``--sbom`` and ``--attest``: from text to attribute maps, and what goes with them from the environment.

Owns the syntax and what overrides what. The attributes themselves are read by the builder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pybuild.errors import UsageError

_TRUE, _FALSE = frozenset({"true", "1", "t"}), frozenset({"false", "0", "f"})
_KINDS = ("provenance", "sbom")

Attributes = dict[str, str] | None


def attestations(
    attest: Sequence[str], *, provenance: str | None, sbom: str | None, build_args: Mapping[str, str]
) -> tuple[Attributes, Attributes]:
    """The attributes for provenance and SBOM, None where off. ``--provenance`` and ``--sbom`` win over ``--attest``, and these over the
    build arguments ``BUILDKIT_ATTEST_PROVENANCE`` and ``BUILDKIT_ATTEST_SBOM``. Raises UsageError."""
    found: dict[str, Attributes] = dict.fromkeys(_KINDS)
    for kind in _KINDS:
        value = build_args.get(f"BUILDKIT_ATTEST_{kind.upper()}")
        if value is not None:
            found[kind] = _attributes(value, option=f"BUILDKIT_ATTEST_{kind.upper()}")
    for text in attest:
        fields = _attributes(text, option="--attest")
        kind = fields.pop("type", "")
        if kind not in _KINDS:
            raise UsageError(f"unknown --attest type {kind!r}", hint="use type=provenance or type=sbom")
        disabled = fields.pop("disabled", "false").lower()
        if disabled not in _TRUE | _FALSE:
            raise UsageError(f"invalid value {disabled!r} for --attest disabled", hint="use true or false")
        found[kind] = None if disabled in _TRUE else fields
    for kind, given in (("provenance", provenance), ("sbom", sbom)):
        if given is None:
            continue
        if given.lower() in _FALSE:
            found[kind] = None
        elif given.lower() in _TRUE:
            found[kind] = {}
        else:
            fields = _attributes(given, option=f"--{kind}")
            found[kind] = None if fields.pop("disabled", "false").lower() in _TRUE else fields
    return found["provenance"], found["sbom"]


def _attributes(text: str, *, option: str) -> dict[str, str]:
    """``KEY=VALUE,…`` in CSV. Keys keep their case: the scanner gets its own as they were written."""
    from csv import Error, reader

    try:
        rows = list(reader([text], strict=True))
    except Error as error:
        raise UsageError(f"invalid {option} value {text!r}: {error}") from error
    out: dict[str, str] = {}
    for cell in rows[0] if rows else []:
        key, _, value = cell.partition("=")
        if not key.strip():
            raise UsageError(f"invalid {option} value {text!r}", hint="write KEY=VALUE, separated by commas")
        lower = key.strip().lower()
        out[lower if lower in ("type", "disabled", "generator", "mode", "version") else key.strip()] = value
    return out


def metadata_provenance(wanted: bool, variables: Mapping[str, str]) -> str:
    """How much provenance the metadata file gets: ``min`` by default, as ``BUILDX_METADATA_PROVENANCE`` says, "" for none. Raises UsageError."""
    if not wanted:
        return ""
    value = variables.get("BUILDX_METADATA_PROVENANCE", "").lower() or "min"
    if value in ("min", "max"):
        return value
    if value in ("disabled", "false", "0"):
        return ""
    raise UsageError(f"invalid BUILDX_METADATA_PROVENANCE {value!r}", hint="use min, max or disabled")


def version_control(context: str, dockerfile: str | None, variables: Mapping[str, str]) -> dict[str, str]:
    """What git knows of a local context, under the names that buildx gives it; empty where there is no repository, no git, or
    ``BUILDX_GIT_INFO=false``. Nobody verifies it: it is a hint."""
    from subprocess import SubprocessError, run

    if variables.get("BUILDX_GIT_INFO", "").lower() in _FALSE or not os.path.isdir(context):
        return {}

    def git(*arguments: str) -> str:
        command = ["git", "-C", context, "-c", "core.fsmonitor=false", *arguments]
        done = run(command, capture_output=True, text=True, errors="surrogateescape", timeout=10, check=True)
        return done.stdout.strip()

    try:
        top = git("rev-parse", "--show-toplevel")
        out = {"revision": git("rev-parse", "HEAD")}
    except (OSError, SubprocessError):
        return {}
    try:
        if variables.get("BUILDX_GIT_CHECK_DIRTY", "").lower() in _TRUE and git("status", "--porcelain", "-uno"):
            out["revision"] += "-dirty"
        out["source"] = git("remote", "get-url", "origin")
    except (OSError, SubprocessError):
        pass  # a repository without a remote
    out["localdir:context"] = os.path.relpath(os.path.realpath(context), os.path.realpath(top))
    definition = os.path.dirname(dockerfile) if dockerfile and dockerfile != "-" else context
    if os.path.isdir(definition or "."):
        out["localdir:dockerfile"] = os.path.relpath(os.path.realpath(definition or "."), os.path.realpath(top))
    return out
