"""Any program's output as a dataset, and its input as where that is restored to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path

from pharmabackup.errors import InvalidInput, SourceFailed, Unsupported
from pharmabackup.sources.base import Content, Sink, Source, View
from pharmabackup.sources.flat import put_files
from pharmabackup.sources.program import Program

DUMP = b"dump"
"""The name of the one file that such a dataset has."""


class Command(Source):
    """What a program writes to its standard output: a Firebird `gbak`, an export, a queue.

    `dump` and `restore` are programs with their arguments, started without a shell. Arguments can be seen by every
    user of the machine: passwords go into `env`, which is added to this process's environment. `restore` gets the
    same bytes on its standard input. A program has failed unless it ends with code 0 within `timeout`, and has
    written something (`dump`), or took everything (`restore`), as far as its pipe shows that; if a restore cannot go
    on, it is stopped before its input ends, unless this process is killed.
    """

    kind = "command"

    def __init__(
        self,
        dump: Sequence[str],
        *,
        name: str,
        tier: int = 3,
        restore: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: timedelta = timedelta(hours=6),
    ) -> None:
        super().__init__(name, tier)
        self._dump = _command(dump, "dump")
        self._restore = None if restore is None else _command(restore, "restore")
        self._env = {} if env is None else dict(env)
        for key, value in self._env.items():
            if not isinstance(key, str) or not isinstance(value, str) or not key or "=" in key or "\0" in key + value:
                raise InvalidInput(
                    "An environment is texts by names without = or zero bytes.", remedy='Write {"ISC_PASSWORD": "…"}.'
                )
        self._seconds = timeout.total_seconds()
        if self._seconds <= 0:
            raise InvalidInput("A timeout has to be longer than nothing.", remedy="Say how long it may take.")

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        view = _Output(self.name, self._started)
        try:
            yield view
        finally:
            view.close()

    def _started(self) -> Program:
        return Program(self._dump, dataset=self.name, seconds=self._seconds, env=self._env)

    def prepare(self, facts: Mapping[str, object], *, overwrite: bool) -> None:  # noqa: ARG002
        if self._restore is None:
            raise Unsupported(
                f"{self.name} has no program that restores it.",
                remedy="Give its source one as `restore`, or restore the dataset to a folder.",
            )

    def load(self, content: Content, *, overwrite: bool) -> Mapping[str, object]:  # noqa: ARG002  (only the program knows)
        assert self._restore is not None, "prepare was not called"
        program = Program(self._restore, dataset=self.name, seconds=self._seconds, env=self._env, feed=True)
        with program:
            program.feed(content.read(DUMP), content.check)
            program.finish(content.check)
        return {}


class _Output(View):
    """The program runs since the view was taken, and waits until its output is read.

    Read once more, it is started once more: what it gives then is of then.
    """

    def __init__(self, dataset: str, start: Callable[[], Program]) -> None:
        self._dataset = dataset
        self._start = start
        self._program: Program | None = start()

    def dump(self, sink: Sink) -> Mapping[str, object]:
        program, self._program = self._program or self._start(), None
        with program:
            chunks, stored = sink.stream(program.output(sink.check), fine=True)
            program.finish(sink.check)
        if not stored:
            raise SourceFailed(
                "The program ended well and wrote nothing.",
                kind="empty",
                remedy="Check what it should export, and that it writes to its standard output.",
                dataset=self._dataset,
            )
        put_files(sink, [(DUMP, chunks, stored)])
        return {}

    def close(self) -> None:
        if self._program is not None:
            self._program.end()


def _command(command: Sequence[str], what: str) -> tuple[str, ...]:
    if (
        isinstance(command, str)
        or not command
        or not all(isinstance(part, str) for part in command)
        or not command[0]
    ):
        raise InvalidInput(
            f"`{what}` is a program and its arguments, as a list of texts.",
            remedy='Write ["gbak", "-b", "pmr.fdb", "stdout"].',
        )
    return tuple(command)
