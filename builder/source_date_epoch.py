"""SOURCE_DATE_EPOCH: a number, ``context``, a named context's or a source stage's name.

Owns reading the value and finding the source it names. The source's time is asked of an ``EpochSource``, which does the I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from pybuild.errors import PybuildError
from pybuild.parser.ast import Add, Arg, Stage, Word
from pybuild.parser.errors import DockerfileError
from pybuild.parser.expand import expand
from pybuild.values import pattern

from .arguments import EPOCH_ARGUMENT
from .git_reference import GitReference, InvalidGitReference, parse_git_reference
from .graph import GitSource, HttpSource
from .lower_copy import git_source, http_source
from .named_context import GitContextRef, HttpContextRef, NamedContext, context_key
from .stages import SCRATCH

_NUMBER: Final = pattern(r"[+-]?[0-9]+\Z")


class EpochSource(Protocol):
    """Tells the time of a remote source, in whole seconds since 1970; None if it has none."""

    def git_time(self, source: GitSource) -> int | None:
        """The committer's time of the commit that ``source`` names."""

    def http_time(self, source: HttpSource) -> int | None:
        """Last-Modified, else the newest regular file of the archive that ``source`` is."""


def resolve_epoch(
    value: str,
    *,
    stages: Sequence[Stage],
    main_context: NamedContext,
    contexts: Mapping[str, NamedContext],
    arguments: Mapping[str, str],
    given: Mapping[str, str],
    source: EpochSource | None,
) -> int | None:
    """The seconds that ``value`` means, None if it is empty or names a local context. Raises DockerfileError."""
    if not value:
        return None
    if _NUMBER.match(value):
        return int(value)
    if value == "context":
        return _context_time(main_context, source)
    try:
        named = contexts.get(context_key(value))
    except PybuildError:
        named = None
    if named is not None:
        return _context_time(named, source)
    for stage in stages:
        if stage.name == value.lower():
            scope = {name: text for name, text in arguments.items() if name != EPOCH_ARGUMENT}
            return _time(_stage_source(stage, scope, given), source)
    raise DockerfileError(
        f"invalid SOURCE_DATE_EPOCH: {value}",
        hint='give seconds since 1970, "context", or the name of a context or of a stage that is one remote ADD',
    )


def _context_time(context: NamedContext, source: EpochSource | None) -> int | None:
    match context:
        case GitContextRef(reference):
            return _time(_git(reference), source)
        case HttpContextRef(url, checksum):
            return _time(HttpSource(url=url, filename="context", checksum=checksum), source)
        case _:
            return None


def _time(operation: GitSource | HttpSource, source: EpochSource | None) -> int | None:
    if source is None:
        return None
    return source.git_time(operation) if isinstance(operation, GitSource) else source.http_time(operation)


def _git(reference: GitReference) -> GitSource:
    return GitSource(
        remote=reference.remote,
        ref=reference.ref,
        subdir=reference.subdir,
        commit=reference.fixed_commit,
        checksum=reference.checksum,
    )


def _stage_source(stage: Stage, scope: Mapping[str, str], given: Mapping[str, str]) -> GitSource | HttpSource:
    span = stage.from_.span
    if expand(stage.from_.image, scope).text != SCRATCH:
        raise DockerfileError("SOURCE_DATE_EPOCH stage must use FROM scratch", span=span)
    env = dict(scope)
    found: GitSource | HttpSource | None = None
    for instruction in stage.instructions:
        if isinstance(instruction, Arg):
            for argument in instruction.args:
                name = argument.key.text
                if name in given:
                    env[name] = given[name]
                elif argument.value is not None:
                    env[name] = expand(argument.value, env).text
        elif isinstance(instruction, Add):
            if found is not None:
                raise DockerfileError("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD", span=span)
            found = _add_source(instruction, env)
        else:
            raise DockerfileError(
                "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported "
                f"{instruction.name} instruction",
                span=span,
            )
    if found is None:
        raise DockerfileError("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD", span=span)
    return found


def _add_source(instruction: Add, env: Mapping[str, str]) -> GitSource | HttpSource:
    if len(instruction.sources) != 1 or not isinstance(instruction.sources[0], Word):
        raise DockerfileError(
            "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source", span=instruction.span
        )
    text = expand(instruction.sources[0], env).text
    checksum = "" if instruction.checksum is None else expand(instruction.checksum, env).text
    try:
        reference = parse_git_reference(text)
    except InvalidGitReference as error:
        raise DockerfileError(str(error), span=instruction.span, hint=error.hint) from error
    if reference is not None:
        return git_source(reference, instruction, checksum, commit_of=lambda found: found.fixed_commit)
    if text.startswith(("http://", "https://")):
        return http_source(text, instruction, checksum)
    raise DockerfileError("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD", span=instruction.span)
