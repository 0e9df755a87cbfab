"""Values of ``pybuild build``'s options: secrets, agents, hosts, limits and the like, from text to what a request holds. Builds nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pybuild.errors import UsageError

from .options import as_usage

if TYPE_CHECKING:
    from argparse import Namespace

    from pybuild.builder.assemble import Annotations
    from pybuild.builder.request import SecretSource, SshSource
    from pybuild.builder.source_policy import SourcePolicy
    from pybuild.layers.descriptor import Platform

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")


def given_build_args(given: Sequence[str], variables: Mapping[str, str]) -> dict[str, str]:
    """``--build-arg``: values, from the environment where none is written. Raises UsageError."""
    out: dict[str, str] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not key:
            raise UsageError(f"invalid --build-arg value {text!r}", hint="write --build-arg NAME=VALUE")
        if separator:
            out[key] = value
        elif key in variables:
            out[key] = variables[key]
    return out


def given_proxies(build_args: Mapping[str, str]) -> dict[str, str]:
    """Proxy variables reach RUN only as build arguments, as with docker: what the client's own environment holds stays outside."""
    names = [*PROXY_VARIABLES, *(name.lower() for name in PROXY_VARIABLES)]
    return {name: build_args[name] for name in names if name in build_args}


def given_platforms(given: Sequence[str]) -> tuple[Platform, ...]:
    """``--platform`` lists, each platform once. Raises UsageError."""
    from pybuild.builder.platforms import parse_platform
    from pybuild.daemon.machine import host_platform

    default = host_platform()
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]

    def parse(name: str) -> Platform:
        return parse_platform(name, default=default)

    return tuple(dict.fromkeys(as_usage(parse, name, option="--platform") for name in names))


def given_contexts(given: Sequence[str]) -> dict[str, str]:
    """``--build-context``: values by name. Raises UsageError."""
    out: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise UsageError(f"invalid --build-context value {text!r}", hint="write --build-context NAME=VALUE")
        out[name.lower()] = value
    return out


def parse_annotations(given: Sequence[str]) -> Annotations:
    """``[LEVEL[PLATFORM],…:]KEY=VALUE`` as docker buildx reads it. Raises UsageError."""
    from pybuild.builder.annotations import annotations_from
    from pybuild.daemon.machine import host_platform

    return annotations_from(given, default=host_platform())


def parse_secrets(given: Sequence[str], variables: Mapping[str, str]) -> tuple[SecretSource, ...]:
    """``id=ID[,src=FILE|,env=VAR][,type=file|env]``. Raises UsageError."""
    from pybuild.builder.outputs import split_fields
    from pybuild.builder.request import SecretSource

    out: list[SecretSource] = []
    for text in given:
        fields = {key: value for key, value in split_fields(text, option="--secret") if value is not None}
        unknown = set(fields) - {"id", "src", "source", "env", "type"}
        if unknown:
            raise UsageError(f"unknown --secret key {sorted(unknown)[0]!r} in {text!r}")
        kind, source, variable = fields.get("type"), fields.get("src", fields.get("source")), fields.get("env")
        name = fields.get("id") or (os.path.basename(source) if source else variable)
        if not name:
            raise UsageError(f"--secret {text!r} has no id", hint="write --secret id=ID,src=FILE")
        if kind == "env" and variable is None:
            variable = source or name
            source = None
        if variable is None and source is None and kind != "file" and name in variables:
            variable = name
        if variable is not None:
            if variable not in variables:
                raise UsageError(f"--secret id={name}: the environment variable {variable} is not set")
            out.append(SecretSource(name, value=os.fsencode(variables[variable])))
            continue
        path = os.path.expanduser(source or name)
        if not os.path.isfile(path) or not os.access(path, os.R_OK):
            raise UsageError(f"--secret id={name}: can't read the file {path!r}")
        out.append(SecretSource(name, path=os.path.abspath(path)))
    return tuple(out)


def agent_for(context: str, variables: Mapping[str, str]) -> list[str]:
    """A context behind ssh is reached by way of the agent that there is, without being asked for it: as with docker."""
    if not variables.get("SSH_AUTH_SOCK") or ("@" not in context and not context.startswith("ssh://")):
        return []
    from pybuild.builder.git_reference import parse_git_reference

    reference = parse_git_reference(context, as_context=True)
    is_ssh = reference is not None and not reference.remote.startswith(("http:", "https:", "git:"))
    return ["default"] if is_ssh else []


def parse_ssh(given: Sequence[str], variables: Mapping[str, str]) -> tuple[SshSource, ...]:
    """``default`` or ``ID[=PATH[,PATH]][,raw=true]``. Raises UsageError."""
    from pybuild.builder.outputs import boolean
    from pybuild.builder.request import SshSource

    out: dict[str, SshSource] = {}
    for text in given:
        name, _, paths = text.partition("=")
        raw = False
        fields = []
        for field in paths.split(","):
            if field.startswith("raw="):
                raw = boolean(field.removeprefix("raw="), option="--ssh raw")
            elif field:
                fields.append(field)
        given_paths = tuple(os.path.abspath(os.path.expanduser(path)) for path in fields)
        if not given_paths:
            socket = variables.get("SSH_AUTH_SOCK")
            if not socket:
                raise UsageError(
                    f"--ssh {name}: invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set",
                    hint="start an ssh-agent, or give a key: --ssh default=KEYFILE",
                )
            given_paths = (socket,)
        for path in given_paths:
            if not os.path.exists(path):
                raise UsageError(f"--ssh {name}: {path!r} does not exist")
        out[name or "default"] = SshSource(name or "default", given_paths, raw)
    return tuple(out.values())


def given_source_policy(variables: Mapping[str, str]) -> SourcePolicy | None:
    """The policy in the file that the environment names, as with docker buildx."""
    path = variables.get("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY")
    if not path:
        return None
    from pybuild.builder.source_policy import parse_source_policy

    try:
        with open(path, "rb") as file:
            return parse_source_policy(file.read())
    except OSError as error:
        raise UsageError(f"failed to read policy file {path}: {error.strerror}") from error


def given_resources(options: Namespace) -> tuple[tuple[str, str], ...]:
    """``--resource`` and docker's older flags for the same. Raises UsageError."""
    from pybuild.builder.resources import RESOURCES, parse_resources

    old = {name: getattr(options, name.replace("-", "_")) for name in RESOURCES}
    given = [*(f"{name}={value}" for name, value in old.items() if value is not None), *options.resource]
    return parse_resources(given) if given else ()


def parse_entitlements(given: Sequence[str], *, network: str = "default") -> frozenset[str]:
    """``network.host`` and ``security.insecure``; who asks for the host's network for all steps has allowed it. Raises UsageError."""
    out = {"network.host"} if network == "host" else set()
    for name in (name for text in given for name in text.split(",") if name):
        if name not in ("network.host", "security.insecure"):
            raise UsageError(f"unknown entitlement {name}", hint="use network.host or security.insecure")
        out.add(name)
    return frozenset(out)


def parse_hosts(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """``HOST:IP`` or ``HOST=IP``, IPv6 with or without brackets. Raises UsageError."""
    import ipaddress

    out: list[tuple[str, str]] = []
    for text in given:
        separator = "=" if "=" in text else ":"
        name, found, address = text.partition(separator)
        address = address.removeprefix("[").removesuffix("]")
        if address != "host-gateway":
            try:
                ipaddress.ip_address(address)
            except ValueError:
                found = ""
        if not name or not found:
            raise UsageError(f"invalid --add-host value {text!r}", hint="write --add-host NAME:ADDRESS")
        out.append((name, "127.0.0.1" if address == "host-gateway" else address))
    return tuple(out)


def parse_ulimits(given: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """``NAME=SOFT[:HARD]``, -1 meaning no limit. Raises UsageError."""
    out: list[tuple[str, int, int]] = []
    for text in given:
        name, separator, limits = text.partition("=")
        soft, _, hard = limits.partition(":")
        try:
            out.append((name, int(soft), int(hard or soft)))
        except ValueError:
            separator = ""
        if not name or not separator:
            raise UsageError(f"invalid --ulimit value {text!r}", hint="write --ulimit nofile=1024:2048")
    return tuple(out)
