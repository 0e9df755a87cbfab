"""Build arguments: the global scope, what a stage's ARG takes, proxies, and which given arguments nobody asked for.

Owns the scopes' rules. Expansion itself is the parser's; this module only says with which variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pybuild.parser.ast import Arg, Instruction, Onbuild, Stage
from pybuild.parser.expand import expand

EPOCH_ARGUMENT: Final = "SOURCE_DATE_EPOCH"
_PROXY_NAMES: Final = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
NOT_IN_ENVIRONMENT: Final = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})
"""Arguments that steer the build and reach no RUN even when declared."""


def global_arguments(
    instructions: Iterable[Arg], *, predefined: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """The values that FROM sees: ``predefined`` (a build argument of the same name wins), then each ARG before the first FROM in
    order. Raises DockerfileError from expansion, but not for a default that ``given`` replaces."""
    values = {name: given.get(name, value) for name, value in predefined.items()}
    for instruction in instructions:
        for argument in instruction.args:
            name = argument.key.text
            if name in given:
                values[name] = given[name]
            elif argument.value is not None:
                values[name] = expand(argument.value, values).text
    return values


def proxy_environment(client: Mapping[str, str], given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The proxy settings that a RUN gets, in both spellings; a build argument beats the client's setting, the lower-case name
    beats the upper-case one, and an empty value sets nothing."""
    chosen: dict[str, str] = {}
    for source in (client, given):
        for name in sorted(source):
            if name.lower() in _PROXY_NAMES:
                chosen[name.lower()] = source[name]
    pairs: list[tuple[str, str]] = []
    for name in _PROXY_NAMES:
        if value := chosen.get(name):
            pairs += [(name.upper(), value), (name, value)]
    return tuple(pairs)


def unused_build_arguments(
    given: Mapping[str, str], *, globals_: Iterable[Arg], stages: Iterable[Stage], predefined: Iterable[str]
) -> tuple[str, ...]:
    """Names in ``given`` that neither an ARG declares nor the builder knows, sorted."""
    known = {*predefined, EPOCH_ARGUMENT}
    for arg in globals_:
        known.update(item.key.text for item in arg.args)
    for stage in stages:
        for instruction in stage.instructions:
            known.update(_declared(instruction))
    return tuple(
        sorted(
            name
            for name in given
            if name not in known and name.lower() not in _PROXY_NAMES and not name.startswith("BUILDKIT_")
        )
    )


def _declared(instruction: Instruction) -> set[str]:
    if isinstance(instruction, Onbuild):
        return _declared(instruction.trigger)
    return {item.key.text for item in instruction.args} if isinstance(instruction, Arg) else set()
