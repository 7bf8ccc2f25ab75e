"""Exit codes: one table for all commands. Monitoring systems and scripts rely on it, so codes never change."""

from __future__ import annotations

import pharmabackup as pb

OK = 0
WARNING = 1
CRITICAL = 2
UNKNOWN = 3
ABSENT = 4  # of wal-get alone
USAGE = 64
DAMAGED = 65
NOT_FOUND = 66
UNSUPPORTED = 69
FAULT = 70
CONFLICT = 73
FAILED = 74
TRY_AGAIN = 75
NO_PERMISSION = 77
WRONG_PLAN = 78
CANCELLED = 130

STATES = {"ok": OK, "warning": WARNING, "critical": CRITICAL, "unknown": UNKNOWN}
CLASSES: tuple[tuple[type[pb.Error], int], ...] = (
    (pb.InvalidInput, USAGE),
    (pb.NotFound, NOT_FOUND),
    (pb.Conflict, CONFLICT),
    (pb.WrongCredential, NO_PERMISSION),
    (pb.NotPermitted, NO_PERMISSION),
    (pb.Unsupported, UNSUPPORTED),
    (pb.StorageFailed, FAILED),
    (pb.SourceFailed, FAILED),
    (pb.Damaged, DAMAGED),
    (pb.Incomplete, WARNING),
    (pb.Cancelled, CANCELLED),
)
JUDGED: tuple[tuple[type[pb.Error], int], ...] = (
    (pb.Damaged, CRITICAL),
    (pb.StorageFailed, UNKNOWN),
    (pb.Unsupported, UNKNOWN),
    (pb.Conflict, UNKNOWN),
)
"""What a verb that judges makes of an error that kept it from judging: damage is a verdict, the rest is unknown."""


def exit_code(error: pb.Error, *, judging: bool = False) -> int:
    """The code of an error; `judging`: of a verb whose answer is a state (`check`)."""
    if judging:
        for kind, code in JUDGED:
            if isinstance(error, kind):
                return code
    if isinstance(error, pb.StorageFailed) and error.retryable:
        return TRY_AGAIN
    if isinstance(error, pb.InvalidInput) and error.kind == "plan":
        return WRONG_PLAN
    return next((code for kind, code in CLASSES if isinstance(error, kind)), FAULT)
