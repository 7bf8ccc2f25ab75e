"""Canaries, and looking for them in whatever form they could have been left."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import zstandard

PASSPHRASE = "canary-passphrase-one 4f1d9a"
NEW_PASSPHRASE = "canary-passphrase-two 88c0e2"
WRONG_PASSPHRASE = "canary-passphrase-wrong 3b7a55"
PASSPHRASES = {"passphrase": PASSPHRASE, "new passphrase": NEW_PASSPHRASE, "wrong passphrase": WRONG_PASSPHRASE}
S3 = {
    "key": "canary-access-3f0c",
    "secret": "canary-secret-91be",
    "token": "canary-token-c07d",
}  # options of a storage
WEBDAV = {"username": "canary-user-22e4", "password": "canary-password-a8f6"}
FILE, FOLDER = "canary-file-ce51.txt", "canary-folder-90aa"
CONTENT, CELL, ATTRIBUTE = "canary-content-77d2", "canary-cell-1e0b", "canary-attribute-5c3f"
DATASET, REASON = "canary-dataset-6be9", "canary-reason-d41f"
NAMES = {"file's name": FILE, "folder's name": FOLDER}
INSIDE = {"content": CONTENT, "cell": CELL, "attribute": ATTRIBUTE}  # of files and databases
SEALED = NAMES | INSIDE | {"dataset's name": DATASET, "reason": REASON}  # what storage never shows

ZSTD, ZLIB = b"\x28\xb5\x2f\xfd", (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
UNPACKED_MAX = 1 << 24
DEPTH = 3  # compressed in compressed


def texts(canaries: Mapping[str, str]) -> dict[str, list[bytes]]:
    return {what: [text.encode(), text.encode("utf-16-le")] for what, text in canaries.items()}


def shares(given: Mapping[str, str]) -> dict[str, list[bytes]]:
    """Any three words together of those that say something of the secret; the first four say which share it is."""
    words = {what: text.split()[4:] for what, text in given.items()}
    windows = {what: [" ".join(own[i : i + 3]) for i in range(len(own) - 2)] for what, own in words.items()}
    return {
        what: [form for text in some for form in (text.encode(), text.encode("utf-16-le"))]
        for what, some in windows.items()
    }


def keys(given: Mapping[str, bytes]) -> dict[str, list[bytes]]:
    """As bytes, in hexadecimal, in base64, and as Python shows bytes."""
    return {
        what: [key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key).rstrip(b"="),
               repr(key)[2:-1].encode()]
        for what, key in given.items()
    }  # fmt: skip


def found(data: bytes, canaries: Mapping[str, list[bytes]]) -> set[str]:
    """Which of these are in it, also where it is compressed."""
    pieces = parts(data)
    return {what for what, forms in canaries.items() if any(form in piece for form in forms for piece in pieces)}


def parts(data: bytes, depth: int = DEPTH) -> list[bytes]:
    """The data, and what anything in it unpacks to."""
    return [data, *(inner for packed in _unpacked(data) for inner in parts(packed, depth - 1))] if depth else [data]


def _unpacked(data: bytes) -> Iterator[bytes]:
    for at in _places(data, ZSTD):
        try:
            reader = zstandard.ZstdDecompressor().stream_reader(data[at:])
            yield reader.read(UNPACKED_MAX)
        except zstandard.ZstdError:
            pass
    for magic in ZLIB:
        for at in _places(data, magic):
            try:
                yield zlib.decompressobj().decompress(data[at:], UNPACKED_MAX)
            except zlib.error:
                pass


def _places(data: bytes, magic: bytes) -> Iterator[int]:
    at = data.find(magic)
    while at >= 0:
        yield at
        at = data.find(magic, at + 1)


def found_below(folder: Path, canaries: Mapping[str, list[bytes]]) -> set[tuple[str, str]]:
    """In names and contents of files: which canary, and where."""
    told: set[tuple[str, str]] = set()
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        name = str(path.relative_to(folder))
        told |= {(what, name) for what in found(data, canaries) | found(name.encode(), canaries)}
    return told
