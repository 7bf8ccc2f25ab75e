"""Datasets that are a few files of a source's own making, such as dumps."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from pharmabackup.sources.base import FILE, FolderColumns, Sink


def put_files(sink: Sink, files: Sequence[tuple[bytes, int, int]]) -> None:
    """All entries of a dataset, by name: name, chunks, bytes. Files of this user alone, of now."""
    n = len(files)
    columns = FolderColumns(
        names=[name for name, _, _ in files],
        kinds=bytearray([FILE] * n),
        modes=[0o600] * n,
        uids=[os.getuid() if hasattr(os, "getuid") else 0] * n,
        gids=[os.getgid() if hasattr(os, "getgid") else 0] * n,
        mtimes=[time.time_ns()] * n,
        sizes=[stored for _, _, stored in files],
        chunks=[chunks for _, chunks, _ in files],
        stored=[stored for _, _, stored in files],
    )
    sink.folder(b"", columns, b"")


def put_bytes(sink: Sink, data: bytes) -> tuple[int, int]:
    """Store these; (chunks, bytes)."""
    left = [data]

    def read_into(view: memoryview) -> int:
        piece, left[0] = left[0][: len(view)], left[0][len(view) :]
        view[: len(piece)] = piece
        return len(piece)

    return sink.stream(read_into)
