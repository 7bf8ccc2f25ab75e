"""The audit log: who restored and why, its end kept elsewhere, and whether anybody has changed it since.

python examples/11_audit.py FOLDER     after 01_backup.py FOLDER
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pharmabackup as pb
from pharmabackup.results import AuditAnchor


def audit(shop: Path) -> None:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    place = shop.with_name(f"{shop.name}-backup")
    kept = shop.with_name(f"{shop.name}-anchor.json")  # better on paper, or where this storage does not reach
    out = shop.with_name(f"{shop.name}-trial")
    with pb.Repository.open(place, who, actor="Sam Okafor", reason="the monthly trial") as repo:
        report = repo.restore(out, only=["pmr"], overwrite=True)
        print(f"Restored; recorded as audit {report.audit_id}.")
        repo.record("trial", {"datasets": len(report.datasets), "seconds": report.duration.total_seconds()})
        kept.write_text(json.dumps(repo.audit_anchor().to_dict()), "utf-8")
    shutil.rmtree(out)
    with pb.Repository.open(place, who) as repo:
        for record in list(repo.audit())[-3:]:
            print(record)
        judged = repo.audit_verify(anchors=[AuditAnchor.from_dict(json.loads(kept.read_text("utf-8")))])
        print("The log is whole." if judged.state == "ok" else judged)


if __name__ == "__main__":
    try:
        audit(Path(sys.argv[1]).resolve())
    except pb.Error as error:
        sys.exit(f"{error}")
