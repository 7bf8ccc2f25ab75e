"""Is it all there, and can it be read? For a monitoring system: 0 ok, 1 warning, 2 critical, 3 unknown.

python examples/04_check.py FOLDER     after 01_backup.py FOLDER
"""

import os
import sys
from pathlib import Path

import pharmabackup as pb

CODES = {"ok": 0, "warning": 1, "critical": 2, "unknown": 3}


def check(shop: Path) -> pb.Report:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    with pb.Repository.open(shop.with_name(f"{shop.name}-backup"), who) as repo:
        # Every object is counted, every signature verified; a twentieth of the data is read and opened too.
        return repo.check(read_data=0.05)


if __name__ == "__main__":
    try:
        report = check(Path(sys.argv[1]).resolve())
    except pb.Error as error:  # it could not be judged
        print(f"UNKNOWN {error}")
        sys.exit(3)
    for finding in report.findings:
        print(f"{finding.severity:<8} {finding.code:<16} {finding.message} {finding.remedy}")
    print(f"{report.state.upper()} {report.bytes:,} bytes read in {report.duration.total_seconds():.1f} s")
    sys.exit(CODES[report.state])
