"""The one door to the share scheme: SLIP-39 (https://github.com/satoshilabs/slips/blob/master/slip-0039.md).

One group of n shares, of which any k give back a secret of 32 bytes, and fewer say nothing about it. No passphrase.
"""

from __future__ import annotations

from collections.abc import Sequence

from shamir_mnemonic import MnemonicError, Share, combine_mnemonics, generate_mnemonics

from pharmabackup.errors import InvalidInput, WrongCredential

SHARES_MAX = 16  # of the scheme
EXPONENT = 0  # of iterations: the secret is random, and there is no passphrase that could be guessed


def split(secret: bytes, *, threshold: int, shares: int) -> tuple[str, ...]:
    """`shares` texts of 33 words, of which `threshold` give the secret back. InvalidInput."""
    if not 2 <= threshold <= shares <= SHARES_MAX:
        raise InvalidInput(
            f"A key cannot be split so that {threshold} of {shares} open it.",
            kind="shares",
            remedy=f"Ask for at least 2, and for no more shares than {SHARES_MAX}, such as 2 of 3.",
        )
    (made,) = generate_mnemonics(1, [(threshold, shares)], secret, iteration_exponent=EXPONENT)
    return tuple(made)


def check(shares: Sequence[str]) -> None:
    """InvalidInput when one is wrong: it says which, and shows none. WrongCredential when they are too few."""
    found: list[Share] = []
    for number, text in enumerate(shares, 1):
        try:
            found.append(Share.from_mnemonic(text))
        except (MnemonicError, ValueError, KeyError):
            raise _wrong(
                f"Share {number} is not as it was written down.",
                "Look at each of its words; they are checked together.",
            ) from None
    sets = {(share.identifier, share.group_threshold, share.member_threshold) for share in found}
    if len(sets) > 1:
        raise _wrong("These shares are not of one key.", "Take those that were printed on one day.")
    if len({share.index for share in found}) < len(found):
        raise _wrong("One share is there twice.", "Give different ones.")
    needed = found[0].member_threshold if found else 2
    if len(found) < needed:
        raise WrongCredential(
            f"It takes {needed} of these shares; given: {len(found)}.",
            kind="too-few-shares",
            remedy="Ask who keeps another.",
        )


def join(shares: Sequence[str]) -> bytes:
    """The secret. InvalidInput, WrongCredential."""
    check(shares)
    needed = Share.from_mnemonic(shares[0]).member_threshold
    try:
        secret: bytes = combine_mnemonics(list(shares)[:needed])
    except MnemonicError:
        raise _wrong("These shares do not fit together.", "Look at each of their words.") from None
    return secret


def _wrong(message: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, kind="shares", remedy=remedy)
