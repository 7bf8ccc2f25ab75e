"""The caller's pause, while the views are taken: left again in time, whatever a source does."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import Self

from pharmabackup.errors import InvalidInput
from pharmabackup.events import Finding


class Pause:
    """Entered and left by the caller's thread; left by another one when it has lasted `longest`.

    `ended_early`: it was left while views were still being taken, so that they are not of one instant.
    """

    def __init__(self, freeze: AbstractContextManager[object], longest: timedelta) -> None:
        if longest <= timedelta(0):
            raise InvalidInput("A pause has to be longer than nothing.", remedy="Say how long it may take.")
        self._freeze = freeze
        self._longest = longest
        self._timer = threading.Timer(longest.total_seconds(), self._end)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self.ended_early = False

    def __enter__(self) -> Self:
        self._freeze.__enter__()
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        self._timer.cancel()
        with self._lock:  # it may be being left just now
            if not self.ended_early:
                return self._freeze.__exit__(kind, error, at)
            if self._error is not None and error is None:
                raise self._error
            return None

    def _end(self) -> None:
        with self._lock:
            self.ended_early = True
            try:
                self._freeze.__exit__(None, None, None)
            except BaseException as error:  # noqa: BLE001  (who waits for the views hears of it)
                self._error = error

    def finding(self) -> Finding:
        return Finding(
            code="freeze-ended",
            severity="warning",
            subject="",
            message=f"The pause was ended after {self._longest.total_seconds():g} s, while sources were still being "
            "cut: they are not of one instant.",
            remedy="Look what held the sources up, or allow more with freeze_timeout.",
        )
