"""Certificates of an authority of the tests' own, made with the openssl program."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PrivateCa:
    """Paths of PEM files: the authority, a server's certificate for loopback and its key, a client's and its key."""

    ca: Path
    ca_key: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def private_ca(directory: Path) -> PrivateCa:
    """Make an authority and two certificates below ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    _openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=pybuild tests"),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        *("-keyout", str(ca_key), "-out", str(ca)),
    )
    made = {}
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        key, request, cert, extra = (directory / f"{name}.{end}" for end in ("key", "csr", "pem", "ext"))
        _openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request)
        )
        extra.write_text(
            f"extendedKeyUsage={usage}\nsubjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.test\nbasicConstraints=CA:FALSE\n"
        )
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial"),
            *("-days", "2", "-extfile", str(extra), "-out", str(cert)),
        )
        made[name] = (cert, key)
    return PrivateCa(ca, ca_key, *made["server"], *made["client"])


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
