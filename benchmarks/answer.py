"""What the measurements of pharmabackup alone have in common: their options and their answer."""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """Figures by name (goals.py refers to them), and a table for people; its first row is the head."""

    title: str
    figures: Mapping[str, float]
    table: Sequence[Sequence[str]] = field(default_factory=list)
    remark: str = ""

    def give(self, options: argparse.Namespace) -> None:
        """Print it, and write it as JSON where that was asked for."""
        print(f"\n{self.title}")
        widths = [max(map(len, column)) for column in zip(*self.table, strict=True)]
        for row in self.table:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if self.remark:
            print(self.remark)
        if options.json:
            options.json.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False))


def parser(description: str | None) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description)
    work = os.environ.get("PHARMABACKUP_BENCH") or Path(tempfile.gettempdir()) / "pharmabackup-bench"
    options.add_argument("--quick", action="store_true", help="less data, fewer repetitions")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the answer there too")
    options.add_argument("--work", type=Path, default=Path(work) / "alone", help="folder for data; it is emptied")
    return options
