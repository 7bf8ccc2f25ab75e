"""Roles: a till that backs up and reads nothing, a desk that restores, shares of a key, a till that is stolen.

python examples/10_roles.py FOLDER     after 01_backup.py FOLDER
"""

import os
import sys
from pathlib import Path

import pharmabackup as pb


def show_roles(shop: Path) -> None:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    place, keys = shop.with_name(f"{shop.name}-backup"), shop.with_name(f"{shop.name}-keys")
    keys.mkdir()
    till = pb.KeyFile.create(keys / "till-1.key")  # on the till; till-1.key.pub goes to the owner
    desk = pb.KeyFile.create(keys / "desk.key")
    with pb.Repository.open(place, who) as repo:
        recipient = pb.Recipient((keys / "till-1.key.pub").read_text())
        print("Compare by phone:", recipient.fingerprint)
        repo.enrol("device", recipient, name="till-1", domain="tills")
        repo.enrol("restorer", desk, name="the desk")
        shares = repo.split_recovery(threshold=2, shares=3)  # for three people; shown once
    with pb.Repository.open(place, till) as repo:
        repo.backup([pb.Files(shop / "documents")])
        try:
            repo.restore(keys / "stolen")
        except pb.NotPermitted as error:
            print("The till:", error)
    with pb.Repository.open(place, desk) as repo:
        restored = repo.restore(keys / "restored", only=["documents"])
        print("The desk:", restored.datasets["documents"].files, "files")
    with pb.Repository.open(place, pb.Shares(shares[2], shares[0])) as repo:
        print("Two of three shares open as", repo.role)
        repo.revoke("till-1", reason="stolen")
    try:
        pb.Repository.open(place, till)
    except pb.WrongCredential as error:
        print("The till:", error)


if __name__ == "__main__":
    try:
        show_roles(Path(sys.argv[1]).resolve())
    except pb.Error as error:
        sys.exit(f"{error}")
