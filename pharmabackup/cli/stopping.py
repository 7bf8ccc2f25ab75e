"""Ctrl-C, a service manager's stop, and a closed stdin: how a running verb is told to end in good order."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

MESSAGE = b"\nStopping when what is under way has ended. Ctrl-C again stops at once.\n"


class Stopping:
    """While it is entered, the first Ctrl-C sets `cancel`, and the second one interrupts.

    Commands that only look have nothing to clean up and are interrupted by the first.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.cancel = threading.Event()
        self._quiet = quiet
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _asked(self, _number: int, _frame: FrameType | None) -> None:
        if self.cancel.is_set():
            raise KeyboardInterrupt
        self.cancel.set()
        if not self._quiet:
            try:
                os.write(2, MESSAGE)  # not through sys.stderr, which may be in the middle of a line
            except OSError:
                pass

    def watch_stdin(self) -> None:
        """Cancel when whoever started this closes its end. Only a pipe has one: /dev/null is always at its end."""
        try:
            descriptor = sys.stdin.fileno()
            mode = os.fstat(descriptor).st_mode
        except (AttributeError, OSError, ValueError):
            return
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            threading.Thread(target=self._watch, args=(descriptor,), name="pharmabackup-stdin", daemon=True).start()

    def _watch(self, descriptor: int) -> None:
        try:
            while os.read(descriptor, 4096):
                pass
        except OSError:
            pass
        self.cancel.set()


@contextmanager
def stoppable() -> Iterator[None]:
    """A service manager's stop is as good as a Ctrl-C, also while nothing runs that needs care."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
