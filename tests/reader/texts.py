"""The texts of keys and of their public halves: section 8.3 of docs/format.md."""

from __future__ import annotations

import base64
import binascii

from tests.reader.wire import FORMAT, require, sha256

LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def fingerprint(public: bytes) -> str:
    """80 bits of the SHA-256, five a letter, in groups of four."""
    bits = "".join(f"{byte:08b}" for byte in sha256(public)[:10])
    letters = "".join(LETTERS[int(bits[at : at + 5], 2)] for at in range(0, 80, 5))
    return "-".join(letters[at : at + 4] for at in range(0, 16, 4))


def seed_of(text: str) -> bytes:
    """The secret of a key file."""
    mark, seed = _parse(text, "key")
    require(len(seed) == 32, "a key of another length")
    checked = fingerprint(sha256(FORMAT[:-2] + b" key file checksum" + seed))
    require(mark == checked, "a key that is not whole")
    return seed


def public_of(text: str) -> bytes:
    """The public key in a recipient's text."""
    mark, public = _parse(text, "recipient")
    require(len(public) == 1216 and mark == fingerprint(public), "a recipient that is not whole")
    return public


def _parse(text: str, what: str) -> tuple[str, bytes]:
    title = f"{FORMAT.decode()[:-2]} {what} 1"
    words = text.strip().removeprefix(title).split()
    require(text.strip().startswith(title) and words, f"no {what}")
    encoded = "".join(words[1:])
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    require(base64.b64encode(data).decode() == encoded, f"no {what}")
    return words[0], data
