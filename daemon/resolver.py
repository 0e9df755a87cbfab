"""The content of the two files that tell a step about names and addresses: /etc/hosts and /etc/resolv.conf. Resolves nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence


def hosts_file(hostname: str, extra_hosts: Sequence[tuple[str, str]]) -> bytes:
    """The content of a step's /etc/hosts (hosts(5)), as BuildKit writes it: ``extra_hosts`` are (name, address)."""
    lines = [f"127.0.0.1\tlocalhost {hostname}", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address}\t{name}" for name, address in extra_hosts]
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")


def resolv_conf_file(host: bytes, *, own_network: bool) -> bytes:
    """A step's /etc/resolv.conf (resolv.conf(5)) from the host's.

    A name server on a loopback address (systemd-resolved's 127.0.0.53) works only in the host's network namespace, so a step with
    a network of its own (``own_network``) doesn't get it. Comments are left out: they speak of the host.
    """
    lines = []
    for line in host.splitlines():
        fields = line.split()
        if not fields or fields[0][:1] in (b"#", b";"):
            continue
        if own_network and fields[0] == b"nameserver" and len(fields) > 1 and _is_loopback(fields[1]):
            continue
        lines.append(b" ".join(fields) + b"\n")
    return b"".join(lines)


def _is_loopback(address: bytes) -> bool:
    try:
        return ipaddress.ip_address(address.partition(b"%")[0].decode()).is_loopback
    except ValueError:
        return False
