"""Another program's output as a dataset's content, and its input as where a dataset is restored to.

The program runs in a process group of its own, so that what it has started ends with it. Two threads move bytes, so
that whoever waits for them still hears of a cancel. What it says on its error output may quote what is in the data,
so none of it is told, logged or stored: `Trouble` says what is known of it instead.
"""

from __future__ import annotations

import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Self

from pharmabackup.errors import SourceFailed

PIECE = 256 << 10
AHEAD = 8  # pieces that were read and not taken, or given and not written
PIPE = 1 << 20  # bytes that the system keeps between it and us, where it can be asked to (Linux)
LOOK_EVERY_S = 0.1
GRACE_S = 5  # for a program to end when it was asked to
OWN = "PHARMABACKUP_"  # what is ours alone in the environment: a passphrase may be there
ERRORS_KEPT = 16 << 10  # bytes of its error output's end

Look = Callable[[], None]
"""Called now and then; raises what stops the dataset."""
Trouble = Callable[[int, bytes], tuple[str, str, str] | None]
"""What a code and the end of an error output mean: kind, what happened, remedy. None: nothing that is known."""


class Program:
    """A running program. Leaving the context ends it, whatever it still does, unless it was finished.

    SourceFailed when it cannot be started. `seconds`: how long it may take, from when its output is asked for or its
    input given; until then it waits for its turn.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        dataset: str,
        seconds: float,
        feed: bool = False,
        env: Mapping[str, str] | None = None,
        trouble: Trouble | None = None,
    ) -> None:
        """`feed`: it is given its input; else its output is read."""
        self._name = os.path.basename(command[0])
        self._dataset = dataset
        self._trouble = trouble
        self._seconds = seconds
        self._deadline = math.inf
        self._errors = bytearray()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pieces: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        self._rest = memoryview(b"")
        self._reading = False
        self._broken = False  # it ended before it was given all
        self._all_moved = False  # its output was read to its end, or its input given and closed
        self._finished = False
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if feed else subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={name: value for name, value in os.environ.items() if not name.startswith(OWN)} | dict(env or {}),
                bufsize=0,
                start_new_session=os.name == "posix",
                creationflags=NEW_GROUP | NO_WINDOW,
            )
        except (OSError, ValueError) as error:
            raise self._not_started(error) from None
        _widen(self._process.stdout)
        try:
            self._begin(self._keep_errors, self._process.stderr)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.end()

    # ------------------------------------------------------------ its output

    def read_until(self, sign: Callable[[bytes], bool], *, seconds: float) -> None:
        """Read ahead, and keep, until it shows that, or has ended. SourceFailed when it takes longer."""
        self._deadline = time.monotonic() + seconds
        self._begin(self._pump, self._process.stdout)
        self._reading, head = True, b""
        while (piece := self._next(lambda: None)) and not sign(head := head + piece):
            pass
        self._rest, self._deadline = memoryview(head), math.inf

    def output(self, look: Look) -> Callable[[memoryview], int]:
        """What fills a buffer with its output and gives how much that was; 0 at the end. For one thread."""
        self._deadline = time.monotonic() + self._seconds
        if not self._reading:
            self._begin(self._pump, self._process.stdout)

        def read_into(view: memoryview) -> int:
            if not self._rest:
                self._rest = memoryview(self._next(look))
            size = min(len(view), len(self._rest))
            view[:size] = self._rest[:size]
            self._rest = self._rest[size:]
            return size

        return read_into

    def _next(self, look: Look) -> bytes:
        while True:
            try:
                piece = self._pieces.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                self._look(look)
                continue
            if piece is None:
                self._pieces.put(None)  # the end stays the end
                return b""
            self._check_time()  # also of one that never stops writing
            return piece

    def _pump(self, out: IO[bytes]) -> None:
        try:
            while not self._stopped.is_set():
                if not (piece := out.read(PIECE)):
                    self._all_moved = True
                    break
                self._hand(piece)
        except (OSError, ValueError):  # it was ended
            pass
        finally:
            self._hand(None)

    # ------------------------------------------------------------ its input

    def feed(self, pieces: Iterable[bytes | memoryview], look: Look) -> None:
        """Give it all of these, then the end of its input.

        If anything goes wrong it is not told an end: it is ended, and has to take that for a failure.
        """
        self._deadline = time.monotonic() + self._seconds
        self._begin(self._push, self._process.stdin)
        for piece in pieces:
            if piece:
                self._give(bytes(piece), look)
                self._check_time()
            if self._broken:
                return
        self._give(None, look)

    def _give(self, piece: bytes | None, look: Look) -> None:
        while not self._broken:
            try:
                self._pieces.put(piece, timeout=LOOK_EVERY_S)
                break
            except queue.Full:
                self._look(look)
                if self._ended() is not None:
                    self._broken = True

    def _push(self, into: IO[bytes]) -> None:
        try:
            while (piece := self._taken()) is not None:
                left = memoryview(piece)
                while left:
                    left = left[into.write(left) :]
            if not self._stopped.is_set():
                into.close()
                self._all_moved = True
        except (OSError, ValueError):
            self._broken = True

    # ------------------------------------------------------------ its end

    def finish(self, look: Look, *, partly: bool = False) -> None:
        """Wait until it has ended. SourceFailed unless it says that all went well, and all could be given to it.

        `partly`: it was asked to take a part of what it is given, and may end before it was given the rest.
        """
        pause = 0.001
        while (code := self._ended()) is None:
            time.sleep(pause)
            pause = min(2 * pause, LOOK_EVERY_S / 2)
            self._look(look)
        for thread in self._threads:
            thread.join(GRACE_S)  # longer only if something that it started lives on and holds an end of a pipe
        if code or not (self._all_moved or partly):
            known = None if self._trouble is None else self._trouble(code, bytes(self._errors))
            kind, what, remedy = known or (
                "tool-failed",
                f"{self._name} ended with code {code}." if code else f"{self._name} ended before all was moved.",
                "Run it by hand to see what it says; its words may hold data and are not repeated here.",
            )
            raise SourceFailed(what, kind=kind, remedy=remedy, dataset=self._dataset)
        self._finished = True

    def _ended(self) -> int | None:
        """Its code. SourceFailed where somebody else has asked for it: `subprocess` would call that 0."""
        try:
            if hasattr(os, "waitid") and self._process.returncode is None:
                if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return None
            elif os.name == "posix" and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
                raise ChildProcessError
        except ChildProcessError:
            raise SourceFailed(
                f"How {self._name} ended is not known: this program ignores its children's ends, or asks for all.",
                remedy="Set SIGCHLD to its default in the program that backs up.",
                dataset=self._dataset,
            ) from None
        return self._process.poll()

    def end(self) -> None:
        """Stop it and what it has started, unless it was finished. Its input is not closed before that."""
        self._stopped.set()
        if not self._finished:
            if self._process.stdout is not None and not self._process.stdout.closed:
                for thread in self._threads[1:]:
                    thread.join(LOOK_EVERY_S * 2)
                if not any(thread.is_alive() for thread in self._threads[1:]):
                    self._process.stdout.close()  # one of another user, who cannot be stopped, ends when it writes
            _stop(self._process)
        for thread in self._threads:
            thread.join(GRACE_S)
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        if not any(thread.is_alive() for thread in self._threads):  # else one of them still reads
            for stream in filter(None, streams):
                with suppress(OSError):
                    stream.close()

    # ------------------------------------------------------------

    def _begin(self, what: Callable[[IO[bytes]], None], stream: IO[bytes] | None) -> None:
        thread = threading.Thread(target=what, args=(stream,), name="pharmabackup-program", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _hand(self, piece: bytes | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._pieces.put(piece, timeout=LOOK_EVERY_S)
                break

    def _taken(self) -> bytes | None:
        while not self._stopped.is_set():
            with suppress(queue.Empty):
                return self._pieces.get(timeout=LOOK_EVERY_S)
        return None

    def _keep_errors(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            while piece := stream.read(PIECE):
                self._errors += piece
                del self._errors[:-ERRORS_KEPT]

    def _look(self, look: Look) -> None:
        look()
        self._check_time()

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise SourceFailed(
                f"{self._name} took longer than it may.",
                kind="timeout",
                remedy="Look at what holds it up, or give it a longer timeout.",
                dataset=self._dataset,
            )

    def _not_started(self, error: Exception) -> SourceFailed:
        if isinstance(error, FileNotFoundError):
            return SourceFailed(
                f"{self._name} is not installed, or not where it was looked for.",
                kind="tool-missing",
                remedy="Install it, or give its whole path.",
                dataset=self._dataset,
            )
        if isinstance(error, ValueError):
            return SourceFailed(
                f"{self._name} cannot be given a zero byte.", remedy="Check its arguments.", dataset=self._dataset
            )
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        return SourceFailed(
            f"{self._name} cannot be started: {reason}.",
            kind="permission" if isinstance(error, PermissionError) else "tool-failed",
            remedy="Check that this user may run it.",
            dataset=self._dataset,
        )


if sys.platform == "win32":
    NEW_GROUP, NO_WINDOW = subprocess.CREATE_NEW_PROCESS_GROUP, subprocess.CREATE_NO_WINDOW

    def _stop(process: subprocess.Popen[bytes]) -> None:
        """It and its children, at once: Windows knows no asking."""
        command = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=GRACE_S, check=False, creationflags=NO_WINDOW)
        with suppress(OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait(GRACE_S)

    def _widen(pipe: IO[bytes] | None) -> None:
        pass

else:
    NEW_GROUP = NO_WINDOW = 0

    def _stop(process: subprocess.Popen[bytes]) -> None:
        """All of its group: asked, and a moment later killed."""
        until = time.monotonic() + GRACE_S
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
            while time.monotonic() < until:
                process.poll()
                os.killpg(process.pid, 0)  # until none of them is there
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # another user's: it ends when it finds its pipe broken
            process.wait(GRACE_S)

    def _widen(pipe: IO[bytes] | None) -> None:
        if sys.platform == "linux" and pipe is not None:
            from fcntl import F_SETPIPE_SZ, fcntl

            with suppress(OSError):  # others' pipes may have used up what this user may have
                fcntl(pipe.fileno(), F_SETPIPE_SZ, PIPE)
