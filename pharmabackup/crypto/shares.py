"""The one door to the share scheme: SLIP-39 (https://github.com/satoshilabs/slips/blob/master/slip-0039.md).

One group of n shares, of which any k give back a secret of 32 bytes, and fewer say nothing about it. No passphrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from shamir_mnemonic import EncryptedMasterSecret, MnemonicError, Share, decode_mnemonics, recover_ems, split_ems

from pharmabackup.crypto.hashing import key_id
from pharmabackup.errors import InvalidInput, WrongCredential

SHARES_MAX = 16  # of the scheme
EXPONENT = 0  # of iterations: the secret is random, and there is no passphrase that could be guessed
SET_BITS = 15  # of the scheme's identifier


@dataclass(frozen=True, slots=True)
class Facts:
    """What one share says of itself, and nothing of the secret. `set`: all shares of a key say the same."""

    set: int
    number: int  # 1 for the first that was printed
    threshold: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The secret, and the numbers of the shares that are not of it though they look so."""

    secret: bytes = field(repr=False)
    odd: tuple[int, ...]


def set_of(recipient: bytes) -> int:
    """What shares of the key with this public half say, so that each can be told from those of another key."""
    return int.from_bytes(key_id(recipient)[:2]) >> 16 - SET_BITS


def check_numbers(threshold: int, shares: int) -> None:
    """InvalidInput when a key cannot be split so."""
    if not 2 <= threshold <= shares <= SHARES_MAX:
        raise InvalidInput(
            f"A key cannot be split so that {threshold} of {shares} open it.",
            kind="shares",
            remedy=f"Ask for at least 2, and for no more shares than {SHARES_MAX}, such as 2 of 3.",
        )


def split(secret: bytes, recipient: bytes, *, threshold: int, shares: int) -> tuple[str, ...]:
    """`shares` texts of 33 words, of which `threshold` give the secret back. `recipient`: its public half."""
    check_numbers(threshold, shares)
    whole = EncryptedMasterSecret.from_master_secret(secret, b"", set_of(recipient), True, EXPONENT)
    (made,) = split_ems(1, [(threshold, shares)], whole)
    return tuple(share.mnemonic() for share in made)


def facts_of(share: str) -> Facts:
    """InvalidInput when it was mistyped or is cut off; what is wrong is not repeated."""
    return _facts(_read(share, "This share"))


def check(shares: Sequence[str]) -> None:
    """InvalidInput when one is wrong: it says which, and shows none. WrongCredential when they are too few."""
    found = [_read(text, f"Share {place}") for place, text in enumerate(shares, 1)]
    sets: dict[tuple[int, int, int], list[int]] = {}
    for place, share in enumerate(found, 1):
        sets.setdefault((share.identifier, share.group_threshold, share.member_threshold), []).append(place)
    if len(sets) > 1:
        told = ", of another ".join(" and ".join(map(str, places)) for places in sets.values())
        raise _wrong(
            f"These shares are not of one key: of one {told}.", "Take those that were printed on one day; check each."
        )
    if len({share.index for share in found}) < len(found):
        raise _wrong("One share is there twice.", "Give different ones.")
    needed = found[0].member_threshold if found else 2
    if len(found) < needed:
        raise WrongCredential(
            f"It takes {needed} of these shares; given: {len(found)}.",
            kind="too-few-shares",
            remedy="Ask who keeps another.",
        )


def join(shares: Sequence[str]) -> Joined:
    """The secret, of any that fit together, should others not. InvalidInput, WrongCredential.

    Each of the others takes the place of one that fits. As many points as it takes decide the whole curve, and the
    secret is one: so what gives it with all but one of them lies on that curve, and any `threshold` of all these do.
    """
    check(shares)
    facts = [_facts(Share.from_mnemonic(text)) for text in shares]
    for some in combinations(range(len(shares)), facts[0].threshold):
        secret = _combined([shares[place] for place in some])
        if secret is not None:
            break
    else:
        raise _wrong("These shares do not fit together.", "Look at each of their words, or add another share.")
    most = [shares[place] for place in some[1:]]
    others = [place for place in range(len(shares)) if place not in some]
    odd = [facts[place].number for place in others if _combined([*most, shares[place]]) != secret]
    return Joined(secret, tuple(sorted(odd)))


def _combined(shares: Sequence[str]) -> bytes | None:
    """The secret of exactly as many as it takes; None when the digest in them says that it is none."""
    try:
        secret: bytes = recover_ems(decode_mnemonics(shares)).decrypt(b"")
    except MnemonicError:
        return None
    return secret


def _read(text: str, which: str) -> Share:
    try:
        return Share.from_mnemonic(text)
    except (MnemonicError, ValueError, KeyError):
        raise _wrong(
            f"{which} is not as it was written down.", "Look at each of its words; they are checked together."
        ) from None


def _facts(share: Share) -> Facts:
    return Facts(share.identifier, share.index + 1, share.member_threshold)


def _wrong(message: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, kind="shares", remedy=remedy)
