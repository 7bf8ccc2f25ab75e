"""Windows' shadow copies (VSS): a volume as it is at one moment, also of files that programs have open.

Made through WMI's Win32_ShadowCopy, for which there has to be an administrator
(https://learn.microsoft.com/previous-versions/windows/desktop/vsswmi/win32-shadowcopy). Written to that
documentation, and not run here (docs/sources.md).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pharmabackup.errors import SourceFailed
from pharmabackup.sources.program import NO_WINDOW, OWN

SECONDS = 600  # VSS itself gives up earlier
POWERSHELL = ("powershell.exe", "-NoProfile", "-NonInteractive", "-Command", "-")
MAKE = """
$ErrorActionPreference = 'Stop'
$made = Invoke-CimMethod -ClassName Win32_ShadowCopy -MethodName Create `
    -Arguments @{Volume = $env:SHADOW_VOLUME; Context = 'ClientAccessible'}
if ($made.ReturnValue -ne 0) { ConvertTo-Json @{failed = $made.ReturnValue}; exit }
$copy = Get-CimInstance -ClassName Win32_ShadowCopy -Filter "ID = '$($made.ShadowID)'"
ConvertTo-Json @{id = $made.ShadowID; device = $copy.DeviceObject}
"""
REMOVE = """
$ErrorActionPreference = 'Stop'
Get-CimInstance -ClassName Win32_ShadowCopy -Filter "ID = '$env:SHADOW_ID'" | Remove-CimInstance
"""
LOOK = "Run this as an administrator, and look into the event log (VSS)."
# What Create returns (the same documentation): what happened, and what to do.
REFUSALS = {
    1: ("this account may not do that", "Run this as an administrator."),
    3: ("its volume is not there", "Check that its disk is connected."),
    4: ("its volume is of a kind that has none", "Shadow copies need NTFS or ReFS."),
    6: ("there are as many shadow copies as may be", "Delete some: vssadmin list shadows."),
    7: ("another one is being made", "Try again in a minute."),
    9: ("there is no room for it", "Free some space on that disk."),
}


@contextmanager
def shadow_copy(folder: str) -> Iterator[str]:
    """The folder as it is in a shadow copy of its volume, which goes when this is left. SourceFailed.

    What a process that was killed has left is removed first: Windows lets nobody rename a file that another process
    has open.
    """
    volume = folder
    while not os.path.ismount(volume):
        volume = os.path.dirname(volume)
    notes = Path(tempfile.gettempdir(), "pharmabackup-shadows")
    notes.mkdir(mode=0o700, exist_ok=True)
    for note in notes.iterdir():
        with suppress(OSError, SourceFailed):
            gone = note.rename(note.with_suffix(".gone"))
            _ask(REMOVE, folder, SHADOW_ID=note.stem)
            gone.unlink()
    made = _ask(MAKE, folder, SHADOW_VOLUME=os.path.join(volume, ""))
    if "id" not in made:
        code = made.get("failed")
        what, remedy = REFUSALS.get(code if isinstance(code, int) else 0, ("Windows did not make it", LOOK))
        raise _failed(folder, f"{what} ({code})", remedy)
    note = notes / f"{made['id']}.open"
    try:
        with open(note, "x"):
            relative = os.path.relpath(folder, volume)
            yield f"{made['device']}{os.sep}{'' if relative == os.curdir else relative}"
    finally:
        with suppress(SourceFailed):  # then the next one does it
            _ask(REMOVE, folder, SHADOW_ID=str(made["id"]))
            note.unlink(missing_ok=True)


def _ask(script: str, folder: str, **environment: str) -> dict[str, object]:
    """What PowerShell answers. SourceFailed."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(OWN)} | environment
    try:
        answer = subprocess.run(
            POWERSHELL, input=script.encode(), capture_output=True, timeout=SECONDS, check=True, env=given,
            creationflags=NO_WINDOW,
        )  # fmt: skip
        found = json.loads(answer.stdout.strip() or b"{}")
    except (OSError, subprocess.SubprocessError, ValueError):
        raise _failed(folder, "PowerShell did not do it", LOOK) from None
    return found if isinstance(found, dict) else {}


def _failed(folder: str, what: str, remedy: str) -> SourceFailed:
    return SourceFailed(
        f"No shadow copy could be made of the volume of {folder}: {what}.", kind="shadow", remedy=remedy
    )
