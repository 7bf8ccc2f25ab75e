"""Where the main thread's processor time goes, at little cost of its own.

A timer interrupts the process every millisecond of processor time. Python runs the handler between two of its
instructions, so one call into C can swallow many interrupts; each sample is therefore weighed by the main thread's
processor time since the one before, and is charged to the line that called.
"""

import signal
import time
from collections import defaultdict
from types import FrameType

INTERVAL = 0.001
PACKAGE = "pharmabackup"


class Sampler:
    """Use it as a context on the main thread; then read `own`, `within` and `seconds`."""

    def __init__(self) -> None:
        self.own: defaultdict[str, float] = defaultdict(float)
        """Seconds by function: in it, and in what it calls outside the package."""
        self.within: defaultdict[str, float] = defaultdict(float)
        """Seconds by function: in it and in everything it calls."""
        self.seconds = 0.0
        self.processor = 0.0
        """Processor time of all threads."""

    def __enter__(self) -> "Sampler":
        self._before = signal.signal(signal.SIGPROF, self._sample)
        self._last = self._started = time.thread_time()
        self._all = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)
        self.seconds = time.thread_time() - self._started
        self.processor = time.process_time() - self._all

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        now = time.thread_time()
        passed, self._last = now - self._last, now
        seen: set[str] = set()
        while frame is not None:
            name = self._name(frame)
            if name:
                if not seen:
                    self.own[name] += passed
                if name not in seen:
                    self.within[name] += passed
                seen.add(name)
            frame = frame.f_back
        if not seen:
            self.own["(outside the package)"] += passed
        self._last = time.thread_time()

    def _name(self, frame: FrameType) -> str:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(PACKAGE):
            return ""
        return f"{module.removeprefix(PACKAGE + '.')}.{frame.f_code.co_qualname}"
