"""One verb of pharmabackup as a whole process, over the public API: import and opening the repository included.

    python driver.py create|backup|restore|check|snapshots URL [PATH ...]

The passphrase comes from PHARMABACKUP_PASSPHRASE, the folder for caches from PHARMABACKUP_STATE. A backup takes a
path that ends in .db as a live SQLite database and every other path as a tree of files.
"""

import os
import sys

import pharmabackup as pb


def main(verb: str, url: str, *paths: str) -> None:
    who = pb.Passphrase(os.environ["PHARMABACKUP_PASSPHRASE"])
    if verb == "create":
        pb.Repository.create(url, who).close()
        return
    with pb.Repository.open(url, who, state_dir=os.environ["PHARMABACKUP_STATE"]) as repository:
        if verb == "backup":
            print(repository.backup([source_of(path) for path in paths]))
        elif verb == "restore":
            print(repository.restore(paths[0]))
        elif verb == "snapshots":
            print(*repository.snapshots(), sep="\n")
        elif verb == "check":
            report = repository.check(read_data=1.0)
            print(report)
            if report.state in ("critical", "unknown"):
                raise SystemExit(2)
        else:
            raise SystemExit(f"no such verb: {verb}")


def source_of(path: str) -> pb.Source:
    return pb.SQLite(path) if path.endswith(".db") else pb.Files(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
