"""Find what on a machine is in no backup: python 16_discover.py SHOP"""

import sys
from pathlib import Path

import pharmabackup as pb
from pharmabackup.discovery import discover

shop = Path(sys.argv[1])
inventory = discover([pb.SQLite(shop / "pmr.db")], roots=[shop])
for item in inventory.items:
    if item.place.startswith(str(shop)):
        print(f"{Path(item.place).name} ({item.kind}) is backed up by {', '.join(item.covered_by) or 'nobody'}.")
