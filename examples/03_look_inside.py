"""Look into a backup without restoring it: one document, one table, one patient's row.

python examples/03_look_inside.py FOLDER     after 01_backup.py FOLDER; writes into FOLDER-looked
"""

import csv
import os
import shutil
import sys
from pathlib import Path

import fsspec

import pharmabackup as pb


def look(shop: Path, out: Path) -> None:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    with pb.Repository.open(shop.with_name(f"{shop.name}-backup"), who) as repo:
        for snapshot in repo.snapshots("documents")[:5]:  # newest first; before=... for an earlier state
            print(snapshot)

        documents = repo.snapshot("documents")
        procedures = [entry for entry in documents.glob("sops/**") if entry.kind == "file"]
        for entry in procedures[:5]:
            print(f"{entry.size:>12,}  {entry.path}")

        if procedures:
            with (
                documents.open(procedures[0].path) as source,
                open(out / Path(procedures[0].path).name, "wb") as target,
            ):
                shutil.copyfileobj(source, target)  # fetches and verifies only what is read

        # The same for pandas, DuckDB and all that uses fsspec: pharmabackup://DATASET/PATH
        in_place = fsspec.filesystem("pharmabackup", repository=repo)
        for path in in_place.glob("documents/sops/**/*.*")[:5]:
            print(f"{len(in_place.cat_file(path)):>12,}  {path}")

        pmr = repo.snapshot("pmr")
        with open(out / "patient.csv", "w", newline="", encoding="utf-8") as file:
            for number, row in enumerate(pmr.table("patient")):
                writer = csv.DictWriter(file, row)
                if number == 0:
                    writer.writeheader()
                writer.writerow(row)

        print(next((row for row in pmr.table("patient") if row["id"] == 11), "no such patient then"))


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    looked = folder.with_name(f"{folder.name}-looked")
    looked.mkdir(exist_ok=True)
    try:
        look(folder, looked)
    except pb.Error as error:
        sys.exit(str(error))
