"""The sockets that the daemon listens on: unix sockets with their group and mode, TCP with TLS, and those that systemd hands over.

Owns making and removing them, and systemd's notifications (sd_notify(3), sd_listen_fds(3)). Serves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import ssl
from collections.abc import Mapping
from typing import Final

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .daemon_options import DaemonOptions, mutual_tls, server_tls

_FIRST_PASSED: Final = 3
_BACKLOG: Final = 256
_GROUPS: Final = ("pybuild", "docker")


class CannotListen(PybuildError):
    """An address can't be listened on."""

    def __init__(self, address: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"can't listen on {address}: {reason}", hint=hint)
        self.address = address


@dataclass(frozen=True, slots=True)
class Listening:
    """An open, listening socket. ``path``: of a unix socket that is ours to remove, with its inode."""

    address: str
    socket: socket.socket
    tls: ssl.SSLContext | None = None
    path: str = ""
    inode: int = 0

    def close(self) -> None:
        """Close it, and remove its file unless somebody else has put another one there."""
        self.socket.close()
        if self.path:
            with contextlib.suppress(OSError):
                if os.lstat(self.path).st_ino == self.inode:
                    os.unlink(self.path)


def open_all(options: DaemonOptions, variables: Mapping[str, str]) -> tuple[list[Listening], tuple[str, ...]]:
    """Listen on every address, or on none. Returns the sockets and what is worth a warning. Raises CannotListen."""
    found: list[Listening] = []
    notices: list[str] = []
    try:
        for address in options.hosts:
            scheme, _, rest = address.partition("://")
            match scheme:
                case "unix":
                    found.append(_unix(rest, options, notices))
                case "tcp":
                    found.append(_tcp(rest, options))
                    if not mutual_tls(options):
                        notices.append(f"{address} is open to everybody who can connect: they are root on this machine")
                case _:
                    found += _passed(rest, options, variables)
    except BaseException:
        for listening in found:
            listening.close()
        raise
    return found, tuple(notices)


def _unix(path: str, options: DaemonOptions, notices: list[str]) -> Listening:
    address = f"unix://{path}"
    group = _group(options.group, address)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        _remove_stale(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Closed to everybody until it has its group: between bind and chmod nobody may slip in.
        before = os.umask(0o177)
        try:
            made.bind(path)
        finally:
            os.umask(before)
        inode = os.lstat(path).st_ino
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, options.mode)
        made.listen(_BACKLOG)
    except OSError as error:
        raise CannotListen(address, (error.strerror or str(error)).lower()) from error
    return Listening(address, made, path=path, inode=inode)


def _group(name: str | None, address: str) -> int | None:
    """The group for unix sockets: the one asked for must exist, else the first usual one; root's own without any."""
    for candidate in (name,) if name else _GROUPS:
        if candidate.isdecimal():
            return int(candidate)
        with contextlib.suppress(KeyError):
            found = grp.getgrnam(candidate).gr_gid
            if os.geteuid() == 0 and _maps_group(found):
                return found
            if name:
                raise CannotListen(address, f"the group {name!r} can't be given to a socket here")
    if name:
        raise CannotListen(address, f"there is no group {name!r}", hint=f"groupadd --system {name}")
    return None


def _maps_group(number: int) -> bool:
    """True if the group exists in this user namespace."""
    with open("/proc/self/gid_map", encoding="ascii") as lines:
        ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= number < first + count for first, _, count in ranges)


def _remove_stale(path: str) -> None:
    """Take away the socket of a daemon that died. Raises CannotListen if one is alive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno in (errno.ENOTSOCK, errno.EPROTOTYPE):
                raise CannotListen(f"unix://{path}", "there is something else than our socket") from error
            raise
    raise CannotListen(f"unix://{path}", "another daemon listens there", hint="stop it, or choose another --host")


def _tcp(place: str, options: DaemonOptions) -> Listening:
    host, _, port = place.rpartition(":")
    address = f"tcp://{place}"
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(_BACKLOG)
    except OSError as error:
        raise CannotListen(address, (error.strerror or str(error)).lower()) from error
    bound = made.getsockname()[1]
    return Listening(f"tcp://{host}:{bound}", made, tls=tls_context(options))


def tls_context(options: DaemonOptions) -> ssl.SSLContext | None:
    """For TCP sockets: the server's certificate, and the CA that clients' certificates must be from. None without TLS."""
    if not server_tls(options):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The first of ours that a client knows: HTTP/2 is for those who speak nothing else (gRPC).
    context.set_alpn_protocols(["http/1.1", "h2"])
    try:
        context.load_cert_chain(options.tls_certificate, options.tls_key)
        if mutual_tls(options):
            context.load_verify_locations(options.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise CannotListen("tcp://", f"the TLS certificates can't be used: {error}") from error
    return context


def _passed(name: str, options: DaemonOptions, variables: Mapping[str, str]) -> list[Listening]:
    """The sockets that systemd opened for us, all or by number or name (sd_listen_fds(3))."""
    address = f"fd://{name}"
    if variables.get("LISTEN_PID") != str(os.getpid()):
        raise CannotListen(address, "systemd passed no sockets", hint="start it through pybuild.socket")
    try:
        count = int(variables.get("LISTEN_FDS", "0"))
    except ValueError:
        count = 0
    names = variables.get("LISTEN_FDNAMES", "").split(":")
    chosen = [
        number
        for position, number in enumerate(range(_FIRST_PASSED, _FIRST_PASSED + count))
        if not name or name == str(number) or (position < len(names) and name == names[position])
    ]
    if not chosen:
        raise CannotListen(address, "systemd passed no such socket")
    found: list[Listening] = []
    for number in chosen:
        os.set_inheritable(number, False)
        made = socket.socket(fileno=number)
        is_unix = made.family == socket.AF_UNIX
        if not is_unix and not mutual_tls(options) and not options.allow_unauthenticated_tcp:
            raise CannotListen(address, "a passed TCP socket needs --tlscacert, --tlscert and --tlskey")
        found.append(Listening(address, made, tls=None if is_unix else tls_context(options)))
    return found


def notify(variables: Mapping[str, str], state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    path = variables.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, contextlib.suppress(OSError):
        out.connect("\0" + path[1:] if path.startswith("@") else path)
        out.send(state.encode())
