"""From a command line to an exit code: nothing that goes wrong leaves here as anything else."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import click

import pharmabackup as pb
from pharmabackup.cli import codes
from pharmabackup.cli.codes import exit_code
from pharmabackup.cli.output import Output, OutputFailed, discard_stdout, form_of
from pharmabackup.cli.settings import CONTEXT, Settings, Verbs
from pharmabackup.cli.stopping import stoppable

EPILOG = """
WHAT is DATASET, DATASET@TIME (the newest before that time) or the beginning of a snapshot's id.
TIME is ISO 8601; without an offset it is this machine's local time.

Without --credential the passphrase is what PHARMABACKUP_CREDENTIAL names, else PHARMABACKUP_PASSPHRASE,
else a question at the terminal. No secret is accepted on the command line.

Exit codes: 0 done, 1 part is safe and part is not, 64 usage, 65 damaged, 66 not found, 69 not supported,
70 our fault, 73 conflict, 74 failed, 75 try again, 77 wrong credential, 130 cancelled.
check, wal, audit verify, drill, check-share: 0 ok, 1 warning, 2 critical, 3 unknown.
"""


@click.group(cls=Verbs, context_settings=CONTEXT, epilog=EPILOG)
@click.version_option(pb.__version__, prog_name="pharmabackup")
def pharmabackup() -> None:
    """Back up and restore a pharmacy's systems: encrypted, deduplicated, checked."""


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says; the exit code."""
    from pharmabackup.cli import (  # they define commands
        acting,
        auditing,
        configuring,
        discovering,
        following,
        keeping,
        keys,
        looking,
        mending,
        placing,
        recovering,
    )

    assert (
        acting and auditing and configuring and discovering and following and keeping and keys and looking and mending
    )
    assert placing and recovering
    settings = Settings(Output(form_of(arguments)))
    output = settings.output
    try:
        with stoppable():
            code = _answered(arguments, settings)
            output.flush()
    except OutputFailed as failed:
        discard_stdout()
        if not failed.reader_gone:
            output.form = "text"  # there is no place for a document
            output.error(
                pb.SourceFailed(
                    f"The output cannot be written: {failed}.", remedy="Free some space, or send it elsewhere."
                )
            )
        return codes.FAILED
    return code


def _answered(arguments: Sequence[str], settings: Settings) -> int:
    """The exit code; every error is told in the form that was asked for. OutputFailed."""
    output = settings.output
    try:
        return _called(arguments, settings)
    except pb.Error as error:
        _show_parts(settings, error)
        output.error(error)
        return exit_code(error, judging=settings.judging)
    except KeyboardInterrupt:
        output.error(pb.Cancelled("Stopped.", remedy="Nothing was lost. Run it again to go on from here."))
        return codes.CANCELLED
    except OutputFailed:
        raise
    except Exception as fault:
        if isinstance(fault, OSError) and not settings.begun:  # click's own output: help, version
            raise OutputFailed(fault) from fault
        output.error(output.fault(fault))
        return codes.FAULT


def _called(arguments: Sequence[str], settings: Settings) -> int:
    """Parse and do; click's complaints become errors of ours."""
    _log(arguments)
    try:
        code = pharmabackup.main(args=list(arguments), prog_name="pharmabackup", standalone_mode=False, obj=settings)
    except click.exceptions.NoArgsIsHelpError as wanted:
        wanted.show()
        return codes.USAGE
    except click.UsageError as error:
        context = error.ctx
        hint = f"See {context.command_path} --help." if context else "See pharmabackup --help."
        raise pb.InvalidInput(_sentence(error.format_message()), kind="usage", remedy=hint) from None
    except click.ClickException as error:
        raise pb.InvalidInput(_sentence(error.format_message()), kind="usage") from None
    except click.Abort:
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else codes.OK


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _log(arguments: Sequence[str]) -> None:
    """-v: the library's log on stderr. Looked for by hand, since parsing may log already."""
    if not any(text.startswith("-v") or text == "--verbose" for text in arguments):
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("pharmabackup")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _show_parts(settings: Settings, error: pb.Error) -> None:
    """What was done before it went wrong: an incomplete verb has a report like a complete one."""
    if isinstance(error, pb.Incomplete) and settings.output.people and not settings.output.quiet:
        from pharmabackup.cli.reports import show_report

        show_report(settings.output, error.result)
