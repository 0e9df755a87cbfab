"""EXPOSE's port specifications: ``[ip:][host-port:]port[-end][/protocol]``.

Owns parsing into the configuration's ``port/protocol`` keys. A host part means nothing in an image; it is accepted, as
BuildKit does, and reported by the build checks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import pattern

_NUMBER: Final = pattern(r"[+-]?[0-9]+\Z")
_HIGHEST: Final = 65535


class InvalidPort(PybuildError):
    """A port specification that can't be read."""


def exposed_ports(specifications: Iterable[str]) -> tuple[str, ...]:
    """The keys for ``specifications``, ranges expanded, in order. Raises InvalidPort."""
    return tuple(key for text in specifications for key in _expand(text))


def _expand(text: str) -> list[str]:
    body, _, protocol = text.partition("/")
    *hosts, port = body.split(":")
    if not port:
        raise InvalidPort(f"no port specified: {text}", hint="write EXPOSE 80 or EXPOSE 53/udp")
    if protocol.lower() not in {"", "tcp", "udp", "sctp"}:
        raise InvalidPort(f"invalid proto: {protocol}", hint="protocols are tcp, udp and sctp")
    address, host_port = ":".join(hosts[:-1]), hosts[-1] if hosts else ""
    if address:
        try:
            ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise InvalidPort(f"invalid IP address: {address}") from None
    first, last = _range(port, "containerPort")
    if host_port:
        host_first, host_last = _range(host_port, "hostPort")
        if host_last - host_first != last - first and first != last:
            raise InvalidPort(f"invalid ranges specified for container and host Ports: {port} and {host_port}")
    return [f"{number}/{protocol.lower() or 'tcp'}" for number in range(first, last + 1)]


def _range(text: str, what: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    start, end = _port(first), _port(last if dash else first)
    if start is None or end is None or end < start:
        raise InvalidPort(
            f"invalid {what}: {text}", hint=f"a port is a number from 0 to {_HIGHEST}, a range is low-high"
        )
    return start, end


def _port(text: str) -> int | None:
    if not _NUMBER.match(text):
        return None
    number = int(text)
    return number if 0 <= number <= _HIGHEST else None
