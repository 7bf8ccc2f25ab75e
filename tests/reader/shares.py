"""Shares of a recovery key into its seed: SLIP-39, and section 8.2 of docs/format.md.

Written from https://github.com/satoshilabs/slips/blob/master/slip-0039.md. Only the list of words is the one that
comes with the package `shamir_mnemonic`; none of its code runs here.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.resources
from functools import lru_cache, reduce
from typing import NamedTuple

from tests.reader.wire import require

GENERATOR = (
    0xE0E040, 0x1C1C080, 0x3838100, 0x7070200, 0xE0E0009, 0x1C0C2412, 0x38086C24, 0x3090FC48, 0x21B1F890, 0x3F3F120,
)  # fmt: skip
SECRET_AT, DIGEST_AT = 255, 254  # places on the curve


class Share(NamedTuple):
    identifier: int
    extendable: int
    exponent: int
    group: int
    group_threshold: int
    groups: int
    member: int
    threshold: int
    value: bytes


@lru_cache(1)
def _words() -> dict[str, int]:
    listed = importlib.resources.files("shamir_mnemonic").joinpath("wordlist.txt").read_text("ascii").split()
    return {word: number for number, word in enumerate(listed)}


def _checksum(numbers: list[int]) -> int:
    """RS1024: a Reed-Solomon code over GF(1024); 1 of what is as it was written."""
    state = 1
    for number in numbers:
        top = state >> 20
        state = (state & 0xFFFFF) << 10 ^ number
        for bit in range(10):
            state ^= GENERATOR[bit] if top >> bit & 1 else 0
    return state


def share(text: str) -> Share:
    """Words into the fields that they have, 10 bits a word."""
    words = text.lower().split()
    require(all(word in _words() for word in words), "a word that no share has")
    numbers = [_words()[word] for word in words]
    require(len(numbers) >= 20, "a share is cut off")
    extendable = numbers[1] >> 4 & 1
    custom = b"shamir_extendable" if extendable else b"shamir"
    require(_checksum([*custom, *numbers]) == 1, "a share is not as it was written down")
    bits = reduce(lambda value, number: value << 10 | number, numbers[:4])
    spare = (len(numbers) - 7) * 10 % 16
    value = reduce(lambda value, number: value << 10 | number, numbers[4:-3])
    require(spare <= 8 and value >> (10 * (len(numbers) - 7) - spare) == 0, "a share of a wrong length")
    size = ((len(numbers) - 7) * 10 - spare) // 8
    made = Share(
        bits >> 25, extendable, bits >> 20 & 15, bits >> 16 & 15, (bits >> 12 & 15) + 1, (bits >> 8 & 15) + 1,
        bits >> 4 & 15, (bits & 15) + 1, value.to_bytes(size, "big"),
    )  # fmt: skip
    require(made.group_threshold <= made.groups, "a share that needs more groups than there are")
    return made


def _times(a: int, b: int) -> int:
    """In GF(256) with the polynomial x^8 + x^4 + x^3 + x + 1."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def _power(a: int, n: int) -> int:
    return reduce(_times, [a] * n, 1)


def _at(x: int, points: dict[int, bytes]) -> bytes:
    """Lagrange's interpolation, byte by byte."""
    found = bytes(len(next(iter(points.values()))))
    for own, value in points.items():
        factor = 1
        for other in points:
            if other != own:
                factor = _times(factor, _times(x ^ other, _power(own ^ other, 254)))  # a^254 is 1/a
        found = bytes(have ^ _times(factor, byte) for have, byte in zip(found, value, strict=True))
    return found


def _recover(threshold: int, points: dict[int, bytes]) -> bytes:
    require(len(points) == threshold, f"it takes {threshold} shares")
    if threshold == 1:
        return next(iter(points.values()))
    secret, proof = _at(SECRET_AT, points), _at(DIGEST_AT, points)
    require(hmac.digest(proof[4:], secret, "sha256")[:4] == proof[:4], "these shares do not fit together")
    return secret


def _decrypt(value: bytes, first: Share, passphrase: bytes) -> bytes:
    """Four rounds of Feistel's network, the last first."""
    half = len(value) // 2
    left, right = value[:half], value[half:]
    salt = b"" if first.extendable else b"shamir" + first.identifier.to_bytes(2, "big")
    for number in reversed(range(4)):
        rounds = 2500 << first.exponent
        key = hashlib.pbkdf2_hmac("sha256", bytes([number]) + passphrase, salt + right, rounds, half)
        left, right = right, bytes(a ^ b for a, b in zip(left, key, strict=True))
    return right + left


def join(texts: list[str], passphrase: bytes = b"") -> bytes:
    """The secret of as many shares as it takes, no more."""
    shares = [share(text) for text in texts]
    require(shares, "no shares")
    require(len({one[:3] + one[4:6] for one in shares}) == 1, "shares of different secrets")
    first, groups = shares[0], dict[int, dict[int, Share]]()
    for one in shares:
        require(one.member not in groups.setdefault(one.group, {}), "a share is there twice")
        groups[one.group][one.member] = one
    values = {}
    for group, members in groups.items():
        require(len({one.threshold for one in members.values()}) == 1, "shares of a group that disagree")
        threshold = next(iter(members.values())).threshold
        values[group] = _recover(threshold, {place: one.value for place, one in members.items()})
    return _decrypt(_recover(first.group_threshold, values), first, passphrase)
