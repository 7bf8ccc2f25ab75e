"""What is shown: results on stdout, everything else on stderr; for people, or as JSON for programs."""

from __future__ import annotations

import base64
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TextIO

import pharmabackup as pb

Form = Literal["text", "json", "events"]
FINDINGS_SHOWN = 20
HERE = {
    "pass overwrite=True": "add --overwrite",
    "List what there is with snapshots()": "List what there is with the command snapshots",
    "List what there is with glob()": "List what there is with the command ls",
    "Split one first: split_recovery()": "Make one with the command split-recovery",
    "An owner makes one: split_recovery": "An owner makes one with the command split-recovery",
    "Use open() or restore()": "Use the command cat or restore",
    "Leave out shadow=True, or give a function that makes a snapshot (docs/sources.md)": "Leave out --shadow",
    "Open it with reason=… and say": "Add --reason TEXT: say",
    "Give one of them another name=": "Give one of them another name (NAME=PATH)",
}
"""What the library's advice is called on the command line."""


class OutputFailed(Exception):
    """Stdout cannot be written: its reader is gone (`| head`), or the disk that it goes to is full."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.reader_gone = isinstance(cause, BrokenPipeError)


def form_of(arguments: Sequence[str]) -> Form:
    """What kind of output a command line asks for, though it may be one that cannot be parsed."""
    before = list(arguments)
    options = before[: before.index("--")] if "--" in before else before
    return "events" if "--events" in options else "json" if "--json" in options else "text"


def harmless(text: str) -> str:
    """Text for a terminal: what is not printable is spelled out, so that a file's name cannot steer the terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _spelled(letter) for letter in text)


def _spelled(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python carries it
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def jsonable(value: object) -> object:
    """A value that every JSON parser takes: no lone surrogates, bytes as hex, no NaN."""
    if isinstance(value, str):
        return (
            value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        )
    if isinstance(value, Mapping):
        return {str(jsonable(str(key))): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def document(value: object) -> str:
    """One line of JSON, in ASCII: it survives whatever the terminal or the pipe makes of letters."""
    return json.dumps(jsonable(value), default=str)


def error_facts(error: pb.Error) -> dict[str, object]:
    return {
        "class": type(error).__name__,
        "kind": error.kind,
        "message": error.message,
        "remedy": error.remedy,
    }


class Output:
    """Where a command's words go."""

    def __init__(self, form: Form = "text", *, quiet: bool = False, verbose: int = 0) -> None:
        self.form = form
        self.quiet = quiet
        self.verbose = verbose
        self.console: Callable[[str], None] | None = None  # prints above a progress bar while there is one
        self._closing: str | None = None  # what ends the JSON document that is under way
        self._separator = ""
        for stream in (sys.stdout, sys.stderr):
            _never_crash(stream)

    @property
    def people(self) -> bool:
        """Whether stdout is for people to read."""
        return self.form == "text"

    # ------------------------------------------------------------ stderr: messages

    def say(self, text: str) -> None:
        """A line for people. A verb is never stopped because nobody can hear it."""
        if self.quiet:
            return
        if self.console is not None:
            self.console(harmless(text))
        else:
            self._complain(harmless(text))

    def stamped(self, text: str) -> None:
        self.say(f"  {time.strftime('%H:%M:%S')}  {text}")

    def _complain(self, line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass

    # ------------------------------------------------------------ stdout: results

    def write(self, text: str) -> None:
        """Text that is the result."""
        try:
            sys.stdout.write(text)
        except OSError as error:
            raise OutputFailed(error) from error

    def line(self, text: str) -> None:
        """A line for people to stdout."""
        self.write(harmless(text) + "\n")

    def raw(self, data: bytes) -> None:
        """Bytes that are the result, untouched."""
        try:
            sys.stdout.buffer.write(data)
        except OSError as error:
            raise OutputFailed(error) from error

    def flush(self) -> None:
        try:
            sys.stdout.flush()
        except OSError as error:
            raise OutputFailed(error) from error

    def event(self, event: pb.Event) -> None:
        """One event, at once: the program that reads it is waiting."""
        self.write(document(event.to_dict()) + "\n")
        self.flush()

    def result(self, value: Mapping[str, object]) -> None:
        """The result as JSON; the only document, or the last line after events."""
        self.write(document({"result": value} if self.form == "events" else value) + "\n")

    def begin(self, facts: Mapping[str, object], key: str, *, opening: str = "[", closing: str = "]") -> None:
        """A result too long to be held: the facts, then `add` for each item of the list `key`, then `end`."""
        head = document(facts)[:-1] + (", " if facts else "")
        wrapped = self.form == "events"
        self.write(('{"result": ' if wrapped else "") + head + json.dumps(key) + ": " + opening)
        self._closing, self._separator = closing + ("}}" if wrapped else "}"), ""

    def add(self, value: Mapping[str, object]) -> None:
        self.write(self._separator + document(value))
        self._separator = ",\n"

    def add_base64(self, data: bytes) -> None:
        """Content within the string that `begin(opening='"')` opened; all but the last a multiple of three bytes."""
        self.write(base64.b64encode(data).decode("ascii"))

    def end(self) -> None:
        closing, self._closing = self._closing or "", None
        self.write(closing + "\n")

    # ------------------------------------------------------------ what went wrong

    def error(self, error: pb.Error) -> None:
        """An error, for a person in a line or two, for a program as one document."""
        if self.form == "text":
            if isinstance(error, pb.Incomplete):
                self.findings(error.result.findings)
            else:
                self.findings(error.findings)
            remedy = error.remedy
            for said, here in HERE.items():
                remedy = remedy.replace(said, here)
            self._complain(harmless(f"pharmabackup: {error.message} {remedy}".strip()))
            return
        facts: dict[str, object] = {"error": error_facts(error)}
        if self._closing is not None:
            closing, self._closing = self._closing, None
            self.write(f"{closing[:-1]}, {document(facts)[1:]}\n")
            return
        if isinstance(error, pb.Incomplete):
            facts["result"] = error.result.to_dict()
        elif error.findings:
            facts["findings"] = [finding.to_dict() for finding in error.findings]
        self.write(document(facts) + "\n")

    def findings(self, findings: Iterable[pb.Finding]) -> None:
        """What was found, worst first, on stderr; a long list is cut. The critical is never quiet."""
        order = {"critical": 0, "warning": 1, "info": 2}
        listed = sorted(findings, key=lambda finding: order.get(finding.severity, 1))
        if self.quiet:
            listed = [finding for finding in listed if finding.severity == "critical"]
        for finding in listed[:FINDINGS_SHOWN]:
            self._complain(harmless(f"  {finding}"))
        if len(listed) > FINDINGS_SHOWN:
            self._complain(f"  … and {len(listed) - FINDINGS_SHOWN:,} more: --json has them all.")

    def fault(self, fault: BaseException) -> pb.Error:
        """A fault of ours: never a traceback at a person who did not ask for it."""
        if self.verbose:
            try:
                traceback.print_exception(fault, file=sys.stderr)
            except OSError:
                pass
        return pb.Error(
            f"This is a fault of the program itself ({type(fault).__name__}: {fault}).",
            kind="fault",
            remedy="Please report it, with what the same command shows with -v.",
        )

    # ------------------------------------------------------------ tables

    def table(self, columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> None:
        """Columns (title, whether it holds numbers) for people: drawn at a terminal, else aligned by spaces."""
        cells = [[harmless(cell) for cell in row] for row in rows]
        if sys.stdout.isatty():
            self._drawn(columns, cells)
            return
        titles = [title for title, _ in columns]
        widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
        for row in [titles, *cells]:
            aligned = (
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, (_, number) in zip(row, widths, columns, strict=True)
            )
            self.write("  ".join(aligned).rstrip() + "\n")

    def _drawn(self, columns: Sequence[tuple[str, bool]], cells: Sequence[Sequence[str]]) -> None:
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
        for title, number in columns:
            table.add_column(title, justify="right" if number else "left", overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        try:
            Console(highlight=False).print(table)
        except OSError as error:
            raise OutputFailed(error) from error


def _never_crash(stream: TextIO) -> None:
    """A letter that a terminal does not have is spelled out instead of ending the program."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """Nobody reads it any more: keep the interpreter from trying again when it ends."""
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
    except (OSError, ValueError):
        pass
