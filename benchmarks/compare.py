"""Compare what was restored with its source: names, kinds, links and every byte.

python compare.py SOURCE RESTORED [SOURCE RESTORED ...]      ends with status 1 and the differences, if any
"""

import os
import stat
import sys
from collections.abc import Iterator

BLOCK = 1 << 20
SHOWN = 20

HEADER_COUNTERS = ((24, 28), (40, 44), (92, 100))
"""Bytes of a SQLite header that SQLite's own backup interface may count up: change counter, schema cookie, and the
counter and library version of the last writer. Everything else in a database has to be equal."""


def differences(source: str, restored: str) -> Iterator[str]:
    """One line for each path that is missing, superfluous or not the same."""
    try:
        was, now = os.lstat(source), os.lstat(restored)
    except FileNotFoundError as error:
        yield f"missing: {error.filename}"
        return
    if stat.S_IFMT(was.st_mode) != stat.S_IFMT(now.st_mode):
        yield f"of another kind: {restored}"
    elif stat.S_ISLNK(was.st_mode):
        if os.readlink(source) != os.readlink(restored):
            yield f"link to elsewhere: {restored}"
    elif stat.S_ISREG(was.st_mode):
        if not same_bytes(source, restored):
            yield f"other content: {restored}"
    elif stat.S_ISDIR(was.st_mode):
        before, after = set(os.listdir(source)), set(os.listdir(restored))
        yield from (f"superfluous: {os.path.join(restored, name)}" for name in sorted(after - before))
        for name in sorted(before):
            yield from differences(os.path.join(source, name), os.path.join(restored, name))


def same_bytes(source: str, restored: str) -> bool:
    if os.path.getsize(source) != os.path.getsize(restored):
        return False
    with open(source, "rb") as one, open(restored, "rb") as other:
        first, second = one.read(BLOCK), other.read(BLOCK)
        if first != second and source.endswith(".db"):
            print(f"note: {restored}: header counters differ, as in every copy made by SQLite itself")
            first, second = without_counters(first), without_counters(second)
        while first == second:
            if not first:
                return True
            first, second = one.read(BLOCK), other.read(BLOCK)
    return False


def without_counters(start: bytes) -> bytes:
    cleared = bytearray(start)
    for begin, end in HEADER_COUNTERS:
        cleared[begin:end] = bytes(end - begin)
    return bytes(cleared)


def main(paths: list[str]) -> int:
    found = 0
    for source, restored in zip(paths[::2], paths[1::2], strict=True):
        for line in differences(source, restored):
            found += 1
            if found <= SHOWN:
                print(line)
    print(f"{found} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
