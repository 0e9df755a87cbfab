"""SSH private keys: files as ssh-keygen and openssl write them (OpenSSH's own form, PEM, PKCS #8), and signatures made with them.

Reads RSA, ECDSA (NIST curves) and Ed25519 without a passphrase; refuses everything else with the reason. Sends nothing anywhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Iterator
from typing import Final, Protocol

from pybuild.errors import PybuildError
from pybuild.values import dataclass

from .ssh_curves import NIST, PrimeCurve, ed25519_public, ed25519_sign

_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s*(.*?)-----END \1-----", re.DOTALL)
_MAGIC: Final = b"openssh-key-v1\0"
_RSA_OID: Final = bytes.fromhex("2a864886f70d010101")
_EC_OID: Final = bytes.fromhex("2a8648ce3d0201")
_ED25519_OID: Final = bytes.fromhex("2b6570")
_CURVE_OIDS: Final = {
    bytes.fromhex("2a8648ce3d030107"): "nistp256",
    bytes.fromhex("2b81040022"): "nistp384",
    bytes.fromhex("2b81040023"): "nistp521",
}
# DigestInfo before the digest itself (RFC 8017, section 9.2, note 1).
_DIGEST_INFOS: Final = {
    "sha1": bytes.fromhex("3021300906052b0e03021a05000414"),
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
_INTEGER, _OCTETS, _CURVE = 0x02, 0x04, 0xA0


class InvalidKey(PybuildError):
    """The file is no private key that can be used here."""


class PrivateKey(Protocol):
    """What an agent needs of a key."""

    @property
    def public(self) -> bytes:
        """The public key as SSH sends it (RFC 4253, section 6.6)."""

    def sign(self, data: bytes, *, flags: int) -> bytes:
        """A signature with its format's name. ``flags``: the agent protocol's, 2 and 4 choose SHA-256 and SHA-512 for RSA."""


@dataclass(frozen=True, slots=True)
class RsaKey:
    """An RSA key: modulus, public and private exponent."""

    n: int
    e: int
    d: int

    @property
    def public(self) -> bytes:
        return string(b"ssh-rsa") + mpint(self.e) + mpint(self.n)

    def sign(self, data: bytes, *, flags: int) -> bytes:
        name, digest = (
            (b"rsa-sha2-512", "sha512")
            if flags & 4
            else (b"rsa-sha2-256", "sha256")
            if flags & 2
            else (b"ssh-rsa", "sha1")
        )
        size = (self.n.bit_length() + 7) // 8
        tail = _DIGEST_INFOS[digest] + hashlib.new(digest, data).digest()
        padded = b"\0\1" + b"\xff" * (size - len(tail) - 3) + b"\0" + tail
        # The power is taken of a random multiple, so that its time says nothing about the key.
        blind = secrets.randbelow(self.n - 2) + 2
        masked = int.from_bytes(padded, "big") * pow(blind, self.e, self.n) % self.n
        signature = pow(masked, self.d, self.n) * pow(blind, -1, self.n) % self.n
        return string(name) + string(signature.to_bytes(size, "big"))


@dataclass(frozen=True, slots=True)
class EcdsaKey:
    """A key on one of NIST's curves (RFC 5656)."""

    curve: PrimeCurve
    secret: int

    @property
    def public(self) -> bytes:
        name = self.curve.name.encode()
        return string(b"ecdsa-sha2-" + name) + string(name) + string(self.curve.public(self.secret))

    def sign(self, data: bytes, *, flags: int) -> bytes:
        r, s = self.curve.sign(self.secret, data)
        return string(b"ecdsa-sha2-" + self.curve.name.encode()) + string(mpint(r) + mpint(s))


@dataclass(frozen=True, slots=True)
class Ed25519Key:
    """An Ed25519 key (RFC 8709), by its seed."""

    seed: bytes

    @property
    def public(self) -> bytes:
        return string(b"ssh-ed25519") + string(ed25519_public(self.seed))

    def sign(self, data: bytes, *, flags: int) -> bytes:
        return string(b"ssh-ed25519") + string(ed25519_sign(self.seed, data))


def string(data: bytes) -> bytes:
    """RFC 4251, section 5."""
    return len(data).to_bytes(4, "big") + data


def mpint(number: int) -> bytes:
    """A number that isn't negative (RFC 4251, section 5)."""
    return string(number.to_bytes(number.bit_length() // 8 + 1, "big") if number else b"")


def parse_private_key(data: bytes, *, name: str) -> PrivateKey:
    """Read a key file's content; ``name`` is what messages call it. Raises InvalidKey."""
    match = _PEM.search(data)
    if match is None:
        raise InvalidKey(f"failed to parse {name}: no key found", hint="give an agent's socket or a private key")
    kind, body = match[1].decode(), match[2]
    if kind == "ENCRYPTED PRIVATE KEY" or b"ENCRYPTED" in body:
        raise _protected(name)
    try:
        content = base64.b64decode(b"".join(body.split()), validate=True)
        match kind:
            case "OPENSSH PRIVATE KEY":
                return _openssh(content, name)
            case "RSA PRIVATE KEY":
                return _rsa(content)
            case "EC PRIVATE KEY":
                return _ec(content, None)
            case "PRIVATE KEY":
                return _pkcs8(content)
    except (ValueError, IndexError, KeyError, StopIteration, binascii.Error) as error:
        raise InvalidKey(f"failed to parse {name}: the key is damaged or of a kind that isn't known") from error
    raise InvalidKey(f'failed to parse {name}: unsupported key type "{kind}"', hint="use an RSA, ECDSA or Ed25519 key")


def _protected(name: str) -> InvalidKey:
    return InvalidKey(
        f"failed to parse {name}: this private key is passphrase protected",
        hint="add it to an ssh-agent with ssh-add, and give --ssh default",
    )


def _openssh(content: bytes, name: str) -> PrivateKey:
    """OpenSSH's own form (its file PROTOCOL.key)."""
    if not content.startswith(_MAGIC):
        raise ValueError("not an OpenSSH key")
    fields = _fields(content[len(_MAGIC) :])
    if next(fields) != b"none":
        raise _protected(name)
    next(fields)
    next(fields)
    # The number of keys, always 1, stands between the fields: it is no string.
    rest = content[len(_MAGIC) + sum(4 + len(field) for field in (b"none", b"none", b"")) + 4 :]
    outer = _fields(rest)
    next(outer)
    private = next(outer)
    if private[:4] != private[4:8]:
        raise ValueError("the check numbers differ")
    fields = _fields(private[8:])
    kind = next(fields).decode()
    if kind == "ssh-ed25519":
        next(fields)
        return Ed25519Key(next(fields)[:32])
    if kind == "ssh-rsa":
        n, e, d = (int.from_bytes(next(fields), "big") for _ in range(3))
        return _checked_rsa(n, e, d)
    if kind.startswith("ecdsa-sha2-"):
        curve = NIST[next(fields).decode()]
        next(fields)
        return _checked_ecdsa(curve, int.from_bytes(next(fields), "big"))
    raise InvalidKey(f'failed to parse {name}: unsupported key type "{kind}"', hint="use an RSA, ECDSA or Ed25519 key")


def _fields(data: bytes) -> Iterator[bytes]:
    while data:
        size = int.from_bytes(data[:4], "big")
        if len(data) < 4 + size:
            raise ValueError("a field ends early")
        yield data[4 : 4 + size]
        data = data[4 + size :]


def _rsa(content: bytes) -> RsaKey:
    # RSAPrivateKey (RFC 8017, appendix A.1.2): version, n, e, d, …
    (_, body), *_ = _der(content)
    _, n, e, d, *_ = [int.from_bytes(value, "big") for tag, value in _der(body) if tag == _INTEGER]
    return _checked_rsa(n, e, d)


def _checked_rsa(n: int, e: int, d: int) -> RsaKey:
    if n.bit_length() < 1024 or n % 2 == 0 or not 0 < e < n or not 0 < d < n:
        raise ValueError("not a usable RSA key")
    return RsaKey(n, e, d)


def _ec(content: bytes, curve: PrimeCurve | None) -> EcdsaKey:
    # ECPrivateKey (RFC 5915): version, the secret, [0] the curve, [1] the public key.
    (_, body), *_ = _der(content)
    secret = 0
    for tag, value in _der(body):
        if tag == _OCTETS:
            secret = int.from_bytes(value, "big")
        elif tag == _CURVE and curve is None:
            curve = NIST[_CURVE_OIDS[next(_der(value))[1]]]
    if curve is None:
        raise ValueError("no curve")
    return _checked_ecdsa(curve, secret)


def _checked_ecdsa(curve: PrimeCurve, secret: int) -> EcdsaKey:
    if not 0 < secret < curve.n:
        raise ValueError("not a usable ECDSA key")
    return EcdsaKey(curve, secret)


def _pkcs8(content: bytes) -> PrivateKey:
    # PrivateKeyInfo (RFC 5208, section 5): version, algorithm, the key in octets.
    (_, body), *_ = _der(content)
    _, (_, algorithm), (_, key), *_ = _der(body)
    (_, oid), *parameters = _der(algorithm)
    if oid == _RSA_OID:
        return _rsa(key)
    if oid == _EC_OID:
        return _ec(key, NIST[_CURVE_OIDS[parameters[0][1]]])
    if oid == _ED25519_OID:
        (_, seed), *_ = _der(key)
        if len(seed) != 32:
            raise ValueError("not an Ed25519 seed")
        return Ed25519Key(seed)
    raise ValueError("an algorithm that isn't known")


def _der(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements that ``data`` is made of, as (tag, content) (X.690; short tags only)."""
    position = 0
    while position < len(data):
        tag, size = data[position], data[position + 1]
        position += 2
        if size & 0x80:
            count = size & 0x7F
            if not 0 < count <= 4:
                raise ValueError("a length that isn't possible here")
            size = int.from_bytes(data[position : position + count], "big")
            position += count
        if position + size > len(data):
            raise ValueError("an element ends early")
        yield tag, data[position : position + size]
        position += size
