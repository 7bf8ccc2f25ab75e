"""What clients log of requests that are made here: addresses and headers hold signatures, keys' ids and tokens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_here = threading.local()


class _Unlogged(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return not getattr(_here, "depth", 0)


_filter = _Unlogged()


def unlogged_by(*clients: str) -> None:
    """Have these loggers, and those below them that there are by now, drop what comes within `unlogged`."""
    for name in (*clients, *logging.root.manager.loggerDict):
        if any(name == client or name.startswith(f"{client}.") for client in clients):
            logging.getLogger(name).addFilter(_filter)


@contextmanager
def unlogged() -> Iterator[None]:
    """On this thread."""
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    finally:
        _here.depth -= 1
