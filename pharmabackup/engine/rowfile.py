"""A map from 32-byte keys to 8-byte values for more keys than fit into memory.

`Run` is a sorted file read with positioned reads: a table of where each prefix begins and one byte of every key
are all that is kept in memory, about 1.4 bytes a key. (A memory map of the same file ends up resident: the kernel
maps 64 KiB around every fault.) `Fresh` takes new keys, and becomes a run.
"""

from __future__ import annotations

import os
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence

from blake3 import blake3

KEY = 32
VALUE = 8
ROW = KEY + VALUE
BUCKET_ROWS = 12  # rows a prefix, on average
FRESH_BITS = 15
COPY_ROWS = 1 << 15


class Run:
    """A sorted row file. Lookups may come from one thread at a time."""

    def __init__(self, path: str, fan: array[int], fingerprints: bytes, bits: int, digest: bytes) -> None:
        self.path = path
        self.bits = bits
        self.digest = digest  # BLAKE3 of the file
        self._fan = fan
        self._fingerprints = fingerprints
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  (held open while the index lives)
        self._fd = self._file.fileno()
        self._shift = 32 - bits

    def __len__(self) -> int:
        return len(self._fingerprints)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        prefix = int.from_bytes(key[:4], "big") >> self._shift
        at, end = self._fan[prefix], self._fan[prefix + 1]
        while (at := self._fingerprints.find(key[4], at, end)) >= 0:
            row = pread(self._fd, ROW, at * ROW)
            if row.startswith(key):
                return row[KEY:]
            at += 1
        return None

    def get_all(self, key: bytes) -> list[bytes]:
        """All values of a key, in order."""
        prefix = int.from_bytes(key[:4], "big") >> self._shift
        found = split_rows(self.rows(self._fan[prefix], self._fan[prefix + 1]))
        return [row[KEY:] for row in found if row.startswith(key)]

    def rows(self, start: int, end: int) -> bytes:
        """Rows start to end, as stored."""
        return pread(self._fd, (end - start) * ROW, start * ROW)

    def bucket(self, prefix: int, bits: int) -> list[bytes]:
        """All rows whose key begins with these bits; `bits` at most this run's own."""
        widen = self.bits - bits
        start, end = self._fan[prefix << widen], self._fan[(prefix + 1) << widen]
        return split_rows(self.rows(start, end))

    def close(self) -> None:
        self._file.close()


def _pread_by_seek(fd: int, length: int, offset: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, length)


pread = os.pread if hasattr(os, "pread") else _pread_by_seek


def split_rows(data: bytes | bytearray) -> list[bytes]:
    return [bytes(data[i : i + ROW]) for i in range(0, len(data), ROW)]


class Fresh:
    """New keys, in one growing array a prefix."""

    def __init__(self) -> None:
        self.buckets_by_prefix: defaultdict[int, bytearray] = defaultdict(bytearray)  # made as they are asked for
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, key: bytes) -> bytes | None:
        rows = self.buckets_by_prefix[(key[0] << 8 | key[1]) >> 1]
        at = rows.rfind(key)
        while at >= 0:
            if at % ROW == 0:
                return bytes(rows[at + KEY : at + ROW])
            at = rows.rfind(key, 0, at + KEY - 1)
        return None

    def get_all(self, key: bytes) -> list[bytes]:
        """All values of a key, the newest first."""
        rows = split_rows(self.buckets_by_prefix[(key[0] << 8 | key[1]) >> 1])
        return [row[KEY:] for row in reversed(rows) if row.startswith(key)]

    def put(self, key: bytes, value: bytes) -> None:
        """Add a key that is not there, or that has moved: the newest value is found first."""
        self.buckets_by_prefix[(key[0] << 8 | key[1]) >> 1] += key + value
        self._count += 1

    def added(self, count: int) -> None:
        """So many rows were added to `buckets_by_prefix` directly, where a call a row would cost too much."""
        self._count += count

    def buckets(self) -> Iterator[list[bytes]]:
        for prefix in range(1 << FRESH_BITS):
            yield split_rows(self.buckets_by_prefix.get(prefix, b""))


def write_run(path: str, buckets: Iterator[list[bytes]], bucket_bits: int, count: int) -> Run:
    """Sort each bucket into a file and open it. `count`: rows, about.

    Bucket i holds the keys that begin with `bucket_bits` bits of value i. The file is the sorted rows and then the
    table of where each prefix begins (u32 each, native order).
    """
    bits = max(0, min(24, (count // BUCKET_ROWS).bit_length()))
    shift = 32 - bits
    fan, prints, hasher, total = array("I", [0]), bytearray(), blake3(), 0
    with open(path, "wb") as file:
        for number, rows in enumerate(buckets):
            rows.sort()
            if bits > bucket_bits:
                for row in rows:
                    prefix = int.from_bytes(row[:4], "big") >> shift
                    while len(fan) <= prefix:
                        fan.append(total)
                    total += 1
            else:  # a bucket has one prefix: no need to look at its rows
                prefix = number >> bucket_bits - bits
                while len(fan) <= prefix:
                    fan.append(total)
                total += len(rows)
            data = b"".join(rows)
            prints += data[4::ROW]
            hasher.update(data)
            file.write(data)
        fan.extend([total] * ((1 << bits) + 1 - len(fan)))
        hasher.update(fan.tobytes())
        file.write(fan.tobytes())
    return Run(path, fan, bytes(prints), bits, hasher.digest())


def open_run(path: str, *, count: int, bits: int, digest: bytes) -> Run | None:
    """A run that was written before; None when its bytes are not those that were written."""
    hasher, prints, fan = blake3(), bytearray(), array("I")
    try:
        with open(path, "rb") as file:
            left = count * ROW
            while left and (data := file.read(min(left, COPY_ROWS * ROW))):
                hasher.update(data)
                prints += data[4::ROW]
                left -= len(data)
            table = file.read()
    except OSError:
        return None
    hasher.update(table)
    if hasher.digest() != digest:
        return None
    fan.frombytes(table)
    return Run(path, fan, bytes(prints), bits, digest)


def merge_runs(path: str, runs: Sequence[Run]) -> Run:
    """One run with the rows of all, prefix by prefix, so that memory stays small."""
    bits = min(run.bits for run in runs)
    buckets = ([row for run in runs for row in run.bucket(prefix, bits)] for prefix in range(1 << bits))
    return write_run(path, buckets, bits, sum(len(run) for run in runs))
