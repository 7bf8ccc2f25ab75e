"""How a running verb looks: bars at a terminal, lines in a log, events for a program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pharmabackup as pb
from pharmabackup.cli.output import Output, harmless

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

TOLD = ("dataset", "committed", "usable", "tier", "waiting", "retrying")
"""Kinds of events that are worth a line: each happens a few times in a run."""
BARS_A_SECOND = 8


@contextmanager
def shown(output: Output) -> Iterator[Callable[[pb.Event], object] | None]:
    """A progress callback for as long as a verb runs; none where nobody is to hear anything."""
    if output.form == "events":
        yield output.event
    elif output.quiet:
        yield None
    elif sys.stderr.isatty():
        with _bars(output) as tell:
            yield tell
    else:
        yield lambda event: output.stamped(event.text) if event.kind in TOLD else None


@contextmanager
def _bars(output: Output) -> Iterator[Callable[[pb.Event], object]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True, highlight=False)
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        refresh_per_second=BARS_A_SECOND,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    output.console = lambda line: console.print(line, markup=False, soft_wrap=True)
    try:
        with bars:
            yield _Bar(output, bars)
    finally:
        output.console = None


class _Bar:
    """One bar for the whole verb, named after what it is at; each finished step leaves a line above it."""

    def __init__(self, output: Output, bars: Progress) -> None:
        self._output = output
        self._bars = bars
        self._task: TaskID = bars.add_task("Beginning", total=None)

    def __call__(self, event: pb.Event) -> None:
        if event.kind in TOLD and event.kind != "dataset":
            self._output.stamped(event.text)
        self._bars.update(
            self._task,
            description=harmless(event.dataset or event.verb),
            completed=event.bytes_done,
            total=event.bytes_total,
        )
