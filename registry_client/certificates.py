"""Which authorities and client certificates belong to a host, and the TLS context made of them.

Reads Docker's layout of ``certs.d``; never writes and never connects.

    certs.d/HOST[:PORT]/ca.crt           an authority to trust (every *.crt)
    certs.d/HOST[:PORT]/client.cert      a client certificate, with its key beside it in client.key
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .settings import RegistrySettings

if TYPE_CHECKING:
    import ssl


class BadCertificate(PybuildError):
    """A certificate or key file that the configuration names can't be used."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files: authorities, and (certificate, key) pairs."""

    ca: tuple[str, ...]
    keypairs: tuple[tuple[str, str], ...]


def certificates_for(settings: RegistrySettings, host: str) -> Certificates:
    """All that is configured for ``host`` and found in its ``certs.d`` directories. Raises BadCertificate (a certificate without its key)."""
    own = settings.host(host)
    ca = list(own.ca)
    pairs = [(pair.cert, pair.key) for pair in own.keypairs]
    directories = [*own.certificate_directories, *(os.path.join(directory, host) for directory in settings.certs_d)]
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            path = os.path.join(directory, name)
            if name.endswith(".crt"):
                ca.append(path)
            elif name.endswith(".cert"):
                key = path.removesuffix(".cert") + ".key"
                if not os.path.exists(key):
                    raise BadCertificate(f"{path} has no key beside it", hint=f"put its key into {key}")
                pairs.append((path, key))
    return Certificates(tuple(ca), tuple(pairs))


def tls_context(*, insecure: bool, ca: tuple[str, ...], keypairs: tuple[tuple[str, str], ...]) -> ssl.SSLContext:
    """A client context that trusts the system's authorities and ``ca``; with ``insecure`` it trusts anybody. Raises BadCertificate."""
    import ssl

    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and not insecure:
        # A machine without the system's bundle: requests brings one.
        import certifi

        context.load_verify_locations(cafile=certifi.where())
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path in ca:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise BadCertificate(
                f"the certificate authority {path} can't be read ({error.strerror or error})"
            ) from error
    for cert, key in keypairs:
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            raise BadCertificate(f"the client certificate {cert} can't be used ({error.strerror or error})") from error
    return context
