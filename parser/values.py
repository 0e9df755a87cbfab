"""Rules for single values: ports, signals, stage names. Names of stages are checked when parsing, the others when their stage is lowered.

Never expands anything. A value that doesn't fit raises ``ValueProblem`` in BuildKit's words.
"""

from __future__ import annotations

from pybuild.errors import PybuildError
from pybuild.values import dataclass, pattern

from .go_text import parse_signed, quote


class ValueProblem(PybuildError):
    """A value doesn't fit."""


_STAGE_NAME = pattern(r"[a-z][a-z0-9\-_.]*")


def check_stage_name(name: str) -> None:
    if not _STAGE_NAME.fullmatch(name.lower()):
        raise ValueProblem(
            f"invalid name for build stage: {quote(name)}, name can't start with a number or contain symbols",
            hint="A stage name starts with a letter and holds letters, digits, '-', '_' and '.'",
        )


_SIGNALS = frozenset(
    (
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL", "PROF",
        "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2",
        "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX", *(f"RTMIN+{n}" for n in range(1, 16)),
        *(f"RTMAX-{n}" for n in range(1, 15)),
    )
)  # fmt: skip


def check_signal(value: str) -> None:
    """The value of STOPSIGNAL: a number other than 0, or a name with or without ``SIG``."""
    try:
        number = parse_signed(value, bits=64)
    except ValueError:
        if value.upper().removeprefix("SIG") in _SIGNALS:
            return
        number = 0
    if number == 0:
        raise ValueProblem(f"invalid signal: {value}", hint="Write a name such as SIGTERM, or a number")


@dataclass(frozen=True, slots=True)
class PortRange:
    """An argument of EXPOSE. ``protocol`` is as written (``tcp`` where it isn't). A host side is read and
    left out: EXPOSE ignores it."""

    first: int
    last: int
    protocol: str

    @property
    def ports(self) -> tuple[str, ...]:
        """``80/tcp`` for each port, as an image config has them."""
        return tuple(f"{port}/{self.protocol.lower()}" for port in range(self.first, self.last + 1))


def parse_port(value: str) -> PortRange:
    """``[[ip:]host:]port[-port][/protocol]``."""
    parts = value.split(":")
    container = parts[-1]
    host = parts[-2] if len(parts) > 1 else ""
    address = ":".join(parts[:-2])
    port, _, protocol = container.partition("/")
    if not port:
        raise ValueProblem(f"invalid port: {quote(value)}: no port specified")
    if protocol.lower() not in ("", "tcp", "udp", "sctp"):
        raise ValueProblem(
            f"invalid port: {quote(value)}: invalid proto: {protocol}", hint="The protocols are tcp, udp and sctp"
        )
    if address:
        import ipaddress  # rarely needed, slow to import

        bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
        try:
            ipaddress.ip_address(bare)
        except ValueError:
            raise ValueProblem(f"invalid IP address: {bare}") from None
    first, last = _port_range(port, f"invalid containerPort: {port}")
    if host:
        host_first, host_last = _port_range(host, f"invalid hostPort: {host}")
        if last - first not in (0, host_last - host_first):
            raise ValueProblem(f"invalid ranges specified for container and host Ports: {port} and {host}")
    return PortRange(first, last, protocol or "tcp")


def _port_range(text: str, message: str) -> tuple[int, int]:
    start, dash, end = text.partition("-")
    problem = ValueProblem(message, hint="A port is a number up to 65535, a range is two of them, as 8000-8010")
    try:
        first = parse_signed(start, bits=64)
        last = parse_signed(end, bits=64) if dash and end != start else first
    except ValueError:
        raise problem from None
    if not 0 <= first <= last <= 65535:
        raise problem
    return first, last
