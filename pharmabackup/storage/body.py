"""The bytes of one upload: kept so that every try can send them from the start.

Small ones stay in memory, larger ones go to a temporary file without a name. Only sealed bytes come through here.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from typing import IO
from zlib import crc32

from pharmabackup.storage.base import Buffer
from pharmabackup.storage.pace import Pace

PIECE = 1 << 20
IN_MEMORY = 8 << 20  # bytes; eight uploads at once keep at most 64 MiB


class Body:
    """Bytes that are written once and read as often as needed: a file, as far as clients want one.

    One thread uses it at a time. `moved_at` (monotonic seconds) is when a client last took bytes: a try during which
    they flow does not use its call's patience up. `pace` holds back what is read while `sending`; what it raises is
    `refused`, since clients take it for a trouble of the line.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  (closed by `close`)
        self.size = 0
        self.crc32 = 0
        self.moved_at = 0.0
        self.pace: Pace | None = None
        self.refused: Exception | None = None
        self.sending = True

    def write(self, data: Buffer) -> None:
        """Append. OSError when the temporary file cannot take it."""
        piece = memoryview(data).cast("B")
        self._file.write(piece)
        self.size += len(piece)
        self.crc32 = crc32(piece, self.crc32)

    def read(self, length: int | None = -1) -> bytes:
        wanted = self.size if length is None or length < 0 else length
        left = min(wanted, self.size - self._file.tell())
        if self.pace is not None and self.sending and left > 0:
            try:
                allowed = self.pace.take(left)
                while allowed < left and wanted >= self.size:  # who asks for all of it gets all of it
                    allowed += self.pace.take(left - allowed)
            except Exception as error:
                self.refused = error
                raise
            left = allowed
        self.moved_at = time.monotonic()
        return self._file.read(left)

    def md5(self) -> bytes:
        """Of all of it, which services compare with what has arrived; then it is at its start again."""
        digest = hashlib.md5(usedforsecurity=False)
        self._file.seek(0)
        while piece := self._file.read(PIECE):
            digest.update(piece)
        self._file.seek(0)
        return digest.digest()

    def seek(self, offset: int, whence: int = 0) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True  # clients take an empty body for none otherwise

    def close(self) -> None:
        self._file.close()
