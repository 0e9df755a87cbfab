"""Elliptic curves for signatures: NIST's prime curves (SEC 1, FIPS 186-5) and Ed25519 (RFC 8032), in plain integers.

Signs; verifies nothing and reads no files. Integers of Python don't take the same time for every value: each signature therefore multiplies
by a scalar that is blinded with a random multiple of the group's order, bit by bit with the same steps for ones and zeros.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from pybuild.values import dataclass

_BLINDING_BITS: Final = 64
_Point = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class PrimeCurve:
    """y² = x³ - 3x + b over the integers modulo ``p``; ``g`` generates a group of the prime order ``n``. ``hash``: its usual digest."""

    name: str
    p: int
    b: int
    g: tuple[int, int]
    n: int
    hash: str

    @property
    def size(self) -> int:
        """Bytes of a coordinate."""
        return (self.p.bit_length() + 7) // 8

    def public(self, secret: int) -> bytes:
        """The uncompressed point that belongs to a secret."""
        x, y = self._affine(self._multiply(self._blinded(secret)))
        return b"\x04" + x.to_bytes(self.size, "big") + y.to_bytes(self.size, "big")

    def sign(self, secret: int, data: bytes) -> tuple[int, int]:
        """An ECDSA signature (r, s) of ``data``."""
        digest = hashlib.new(self.hash, data).digest()
        shift = max(0, len(digest) * 8 - self.n.bit_length())
        number = int.from_bytes(digest, "big") >> shift
        while True:
            nonce = secrets.randbelow(self.n - 1) + 1
            r = self._affine(self._multiply(self._blinded(nonce)))[0] % self.n
            mask = secrets.randbelow(self.n - 1) + 1
            inverse = pow(nonce * mask, -1, self.n) * mask
            s = inverse * (number + r * secret) % self.n
            if r and s:
                return r, s

    def _blinded(self, scalar: int) -> int:
        return scalar + (secrets.randbits(_BLINDING_BITS) | 1 << _BLINDING_BITS) * self.n

    def _multiply(self, scalar: int) -> _Point:
        low: _Point = (0, 1, 0)
        high: _Point = (*self.g, 1)
        for bit in bin(scalar)[2:]:
            both = self._add(low, high)
            low, high = (both, self._double(high)) if bit == "1" else (self._double(low), both)
        return low

    def _double(self, point: _Point) -> _Point:
        # Jacobian coordinates, a = -3 (https://hyperelliptic.org/EFD/g1p/auto-shortw-jacobian-3.html, dbl-2001-b).
        x, y, z = point
        p = self.p
        delta, gamma = z * z % p, y * y % p
        beta = x * gamma % p
        alpha = 3 * (x - delta) * (x + delta) % p
        x3 = (alpha * alpha - 8 * beta) % p
        z3 = ((y + z) * (y + z) - gamma - delta) % p
        return x3, (alpha * (4 * beta - x3) - 8 * gamma * gamma) % p, z3

    def _add(self, one: _Point, other: _Point) -> _Point:
        # The same page, add-1998-cmo-2; the cases that it leaves out are looked at first.
        if not one[2]:
            return other
        if not other[2]:
            return one
        p = self.p
        (x1, y1, z1), (x2, y2, z2) = one, other
        zz1, zz2 = z1 * z1 % p, z2 * z2 % p
        u1, u2 = x1 * zz2 % p, x2 * zz1 % p
        s1, s2 = y1 * z2 * zz2 % p, y2 * z1 * zz1 % p
        h, r = (u2 - u1) % p, (s2 - s1) % p
        if not h:
            return self._double(one) if not r else (0, 1, 0)
        hh = h * h % p
        hhh, v = h * hh % p, u1 * hh % p
        x3 = (r * r - hhh - 2 * v) % p
        return x3, (r * (v - x3) - s1 * hhh) % p, z1 * z2 * h % p

    def _affine(self, point: _Point) -> tuple[int, int]:
        x, y, z = point
        inverse = pow(z, -1, self.p)
        square = inverse * inverse % self.p
        return x * square % self.p, y * square * inverse % self.p


# FIPS 186-5 refers to NIST SP 800-186, section 3.2.1, for these numbers.
NIST: Final = {
    "nistp256": PrimeCurve(
        "nistp256",
        p=2**256 - 2**224 + 2**192 + 2**96 - 1,
        b=0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
        g=(
            0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
            0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
        ),
        n=0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
        hash="sha256",
    ),
    "nistp384": PrimeCurve(
        "nistp384",
        p=2**384 - 2**128 - 2**96 + 2**32 - 1,
        b=0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
        g=(
            0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7,
            0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F,
        ),
        n=0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
        hash="sha384",
    ),
    "nistp521": PrimeCurve(
        "nistp521",
        p=2**521 - 1,
        b=0x0051953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109E156193951EC7E937B1652C0BD3BB1BF073573DF883D2C34F1EF451FD46B503F00,
        g=(
            0x00C6858E06B70404E9CD9E3ECB662395B4429C648139053FB521F828AF606B4D3DBAA14B5E77EFE75928FE1DC127A2FFA8DE3348B3C1856A429BF97E7E31C2E5BD66,
            0x011839296A789A3BC0045C8A5FB42C7D1BD998F54449579B446817AFBD17273E662C97EE72995EF42640C550B9013FAD0761353C7086A272C24088BE94769FD16650,
        ),
        n=0x01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
        hash="sha512",
    ),
}


# --- Ed25519 ---------------------------------------------------------------------------------------------------------

_P: Final = 2**255 - 19
_L: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, _P) % _P
_BASE_Y: Final = 4 * pow(5, -1, _P) % _P
_BASE_X: Final = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_Extended = tuple[int, int, int, int]


def ed25519_public(seed: bytes) -> bytes:
    """The public key of a 32-byte seed."""
    scalar, _ = _expanded(seed)
    return _encoded(_times_base(scalar))


def ed25519_sign(seed: bytes, data: bytes) -> bytes:
    """The 64-byte signature of ``data`` (RFC 8032, section 5.1.6)."""
    scalar, prefix = _expanded(seed)
    public = _encoded(_times_base(scalar))
    nonce = int.from_bytes(hashlib.sha512(prefix + data).digest(), "little") % _L
    point = _encoded(_times_base(nonce))
    challenge = int.from_bytes(hashlib.sha512(point + public + data).digest(), "little") % _L
    return point + ((nonce + challenge * scalar) % _L).to_bytes(32, "little")


def _expanded(seed: bytes) -> tuple[int, bytes]:
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254
    return scalar, digest[32:]


def _times_base(scalar: int) -> _Extended:
    scalar += (secrets.randbits(_BLINDING_BITS) | 1 << _BLINDING_BITS) * 8 * _L
    low: _Extended = (0, 1, 1, 0)
    high: _Extended = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)
    for bit in bin(scalar)[2:]:
        both = _added(low, high)
        low, high = (both, _added(high, high)) if bit == "1" else (_added(low, low), both)
    return low


def _added(one: _Extended, other: _Extended) -> _Extended:
    # RFC 8032, section 5.1.4: complete, so that it also doubles.
    (x1, y1, z1, t1), (x2, y2, z2, t2) = one, other
    a, b = (y1 - x1) * (y2 - x2) % _P, (y1 + x1) * (y2 + x2) % _P
    c, d = 2 * t1 * t2 * _D % _P, 2 * z1 * z2 % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _encoded(point: _Extended) -> bytes:
    x, y, z, _ = point
    inverse = pow(z, -1, _P)
    x, y = x * inverse % _P, y * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")
