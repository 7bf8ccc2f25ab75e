"""Windows' shadow copies (VSS): a volume as it is at one moment, also of files that programs have open.

Made through WMI's Win32_ShadowCopy, for which there has to be an administrator
(https://learn.microsoft.com/previous-versions/windows/desktop/vsswmi/win32-shadowcopy). Written to that
documentation, and not run here (docs/sources.md).
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from pharmabackup.errors import SourceFailed
from pharmabackup.sources.program import NO_WINDOW, OWN

SECONDS = 300  # VSS itself gives up earlier
# A script on its standard input would be run line by line, as if somebody typed it.
POWERSHELL = ("powershell.exe", "-NoProfile", "-NonInteractive", "-EncodedCommand")
SCRIPT = "$ErrorActionPreference = 'Stop'; try {{ {} }} catch {{ exit 1 }}; exit 0"
MAKE = """
$made = Invoke-CimMethod -ClassName Win32_ShadowCopy -MethodName Create -Arguments @{
    Volume = $env:SHADOW_VOLUME; Context = 'ClientAccessible'
}
if ($made.ReturnValue -ne 0) { ConvertTo-Json @{failed = $made.ReturnValue} }
else {
    $copy = Get-CimInstance -ClassName Win32_ShadowCopy -Filter "ID = '$($made.ShadowID)'"
    ConvertTo-Json @{id = $made.ShadowID; device = $copy.DeviceObject}
}
"""
REMOVE = """
Get-CimInstance -ClassName Win32_ShadowCopy -Filter "ID = '$env:SHADOW_ID'" | Remove-CimInstance
"""
ID = re.compile(r"\{[0-9A-Fa-f-]{36}\}")
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
    """The folder as it is in a shadow copy of its volume, which goes when this is left. SourceFailed."""
    real = os.path.realpath(folder)
    if real.startswith("\\\\") and not real.startswith("\\\\?\\"):
        raise _failed(folder, "it is on another machine", "Back it up there, or without a shadow copy.")
    volume = real
    while not os.path.ismount(volume):
        volume = os.path.dirname(volume)
    made = _ask(MAKE, folder, SHADOW_VOLUME=os.path.join(volume, ""))
    name = str(made.get("id"))
    if not ID.fullmatch(name):
        code = made.get("failed")
        what, remedy = REFUSALS.get(code if isinstance(code, int) else 0, ("Windows did not make it", LOOK))
        raise _failed(folder, f"{what} ({code})", remedy)
    try:
        relative = os.path.relpath(real, volume)
        yield f"{made['device']}{os.sep}{'' if relative == os.curdir else relative}"
    finally:
        _ask(REMOVE, folder, SHADOW_ID=name)


def _ask(script: str, folder: str, **environment: str) -> dict[str, object]:
    """What PowerShell answers. SourceFailed."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(OWN)} | environment
    encoded = base64.b64encode(SCRIPT.format(script).encode("utf-16-le")).decode()
    try:
        answer = subprocess.run(
            [*POWERSHELL, encoded], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=True,
            env=given, creationflags=NO_WINDOW,
        )  # fmt: skip
        found = json.loads(answer.stdout.strip() or b"{}")
    except (OSError, subprocess.SubprocessError, ValueError):
        raise _failed(folder, "PowerShell did not do it", LOOK) from None
    return found if isinstance(found, dict) else {}


def _failed(folder: str, what: str, remedy: str) -> SourceFailed:
    return SourceFailed(
        f"No shadow copy could be made of the volume of {folder}, or removed: {what}.", kind="shadow", remedy=remedy
    )
