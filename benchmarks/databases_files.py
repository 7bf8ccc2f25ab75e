"""A PostgreSQL server's files and log, beside pgBackRest: first backup, a trading day's, restore, and archiving.

Both encrypt (AES-256) and compress (zstd) into a folder on the same disk. pgBackRest has two processes, bundles small
files, backs up changed files (incr), and pushes the log asynchronously. The rate of archiving is that of log files
that have waited: the server is told to begin when so many are there.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from answer import Answer, parser
from data import Pharmacy
from database_servers import Postgres
from databases import Found, _met
from measure import Failed, Run, output_of, run, settle, usage_of
from tools import PASSPHRASE

sys.path.append(str(Path(__file__).resolve().parent.parent))
import pharmabackup as pb
from tests.servers import postgresql
from tests.servers.process import as_service, kill

DAYS = 3
WAITING = 64  # segments of 16 MiB
SEGMENT = 16 << 20
HOLD = "/bin/false"  # an archive_command that has all of them wait


def main() -> None:
    options = parser(__doc__).parse_args()
    profile, days, waiting, rounds = ("XS", 1, 4, 1) if options.quick else ("B", DAYS, WAITING, 3)
    options.work.mkdir(parents=True, exist_ok=True)
    pharmacy = Pharmacy(options.work.parent, profile=profile, given=None)
    pharmacy.make()
    with tempfile.TemporaryDirectory(prefix="pharmabackup-files-") as folder, served(Path(folder)) as lab:
        lab.server.load(pharmacy.site / "pmr.db")
        lab.begin()
        found = trading(lab, pharmacy, days)
        rates = archiving(lab, waiting, rounds)
        size = usage_of([lab.data / "base"])[1]
        versions = output_of(["pgbackrest", "version"]).rpartition(" ")[2]
    remark = " ".join(
        [
            f"{lab.server.version}, the sample pharmacy of profile {profile}; its files take {size / 1e6:,.0f} MB in",
            f"the end. Medians of {days} trading days and restores, and of {rounds} times {waiting} log files, whole",
            f"processes in turn; pgBackRest {versions}. Ours are verified by pg_verifybackup when they are restored;",
            "both write to the disk what they restore (fsync).",
        ]
    )
    figures, table = figured(found, rates)
    Answer("A PostgreSQL server's files", figures, table, remark).give(options)


class Lab:
    """A server, and both tools' repositories."""

    def __init__(self, place: postgresql.PostgresServer, folder: Path) -> None:
        self.server, self._place, self._folder = Postgres(place), place, folder
        self.data, self.log = place.data, folder / "out"
        self.ours, self.theirs = folder / "ours", folder / "theirs"
        self._as_server = as_service("postgres", folder, reads_all=True)
        self._mine = {**os.environ, **self.server.environment} | {
            "PHARMABACKUP_STATE": str(folder / "state"),
            "PHARMABACKUP_REPOSITORY": str(self.ours),
            "PHARMABACKUP_PASSPHRASE": PASSPHRASE,
        }
        self._cli = [sys.executable, "-m", "pharmabackup"]
        self.source = pb.PostgreSQLWAL(self.data, spool=folder / "spool", name="pmr-wal")

    def begin(self) -> None:
        """Both repositories."""
        for name in ("theirs", "their-log", "their-spool", "their-lock"):
            (self._folder / name).mkdir()
            as_service("postgres", self._folder / name)
        (self._folder / "pgpass").write_text(f"*:*:*:*:{self.server.environment['PGPASSWORD']}".replace("\\", "\\\\"))
        (self._folder / "pgpass").chmod(0o600)
        if self._as_server:
            shutil.chown(self._folder / "pgpass", "postgres")
        (self._folder / "pgbackrest.conf").write_text(
            f"""[global]
repo1-path={self.theirs}
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=a passphrase of this benchmark
repo1-bundle=y
repo1-retention-full=9
compress-type=zst
compress-level=3
process-max=2
start-fast=y
archive-async=y
spool-path={self._folder / "their-spool"}
lock-path={self._folder / "their-lock"}
log-path={self._folder / "their-log"}
log-level-console=warn

[pmr]
pg1-path={self.data}
pg1-port={self._place.port}
pg1-socket-path={self._folder}
pg1-user={self._place.user}
"""
        )
        run([*self._cli, "init"], env=self._mine, log=self.log)
        self.pgbackrest("stanza-create")

    def pgbackrest(self, *arguments: str) -> Run:
        command = [*self._as_server, "pgbackrest", f"--config={self._folder / 'pgbackrest.conf'}", "--stanza=pmr"]
        env = {"PGPASSFILE": str(self._folder / "pgpass"), "PATH": os.environ["PATH"]}
        return run([*command, *arguments], env=env, log=self.log)

    def back_up(self) -> Run:
        command = [*self._cli, "-q", "backup", "--postgresql-cluster", f"pmr-server={self._place.url('postgres')}"]
        return run(command, env=self._mine, log=self.log)

    def restore(self, where: Path) -> Run:
        return run(
            [*self._cli, "-q", "restore", "--only", "pmr-server", "--into", f"pmr-server={where}"],
            env=self._mine,
            log=self.log,
        )

    # ------------------------------------------------------------ the log

    def archive_with(self, command: str) -> None:
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"archive_command = '{command}'\n")
        with self._place.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")

    def write(self, segments: int) -> None:
        """So much of the log, by changes to what the pharmacy has."""
        with self._place.connect("pmr") as connection:
            [(table,)] = connection.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
                " ORDER BY relpages DESC LIMIT 1"
            ).fetchall()
            [(column,)] = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum = 1", (table,)
            ).fetchall()
            while len(self.waiting()) < segments:
                connection.execute(f'UPDATE "{table}" SET "{column}" = "{column}"')
                connection.execute("CHECKPOINT")

    def waiting(self) -> list[str]:
        return [name for name in os.listdir(self.data / "pg_wal" / "archive_status") if name.endswith(".ready")]

    def drained(self) -> float:
        """Bytes a second at which what waits is archived."""
        count, began = len(self.waiting()), time.monotonic()
        while left := len(self.waiting()):
            time.sleep(0.02)
            if time.monotonic() - began > 600:
                raise Failed(f"{left} log files were not archived within ten minutes")
        return count * SEGMENT / (time.monotonic() - began)

    @contextmanager
    def following(self) -> Iterator[None]:
        command = [
            *self._cli,
            "-q",
            "follow",
            "--wal",
            f"pmr-wal={self.data}",
            "--spool",
            str(self._folder / "spool"),
        ]
        with subprocess.Popen([*command, "--every", "0.2"], env=self._mine) as process:
            try:
                yield
            finally:
                process.terminate()


@contextmanager
def served(folder: Path) -> Iterator[Lab]:
    options = (
        "-c",
        "fsync=on",
        "-c",
        "max_wal_size=4GB",
        "-c",
        "archive_mode=on",
        "-c",
        f"unix_socket_directories={folder}",
    )
    with postgresql.postgres(folder, *options) as server:
        with server.connect() as connection:
            connection.execute("CREATE DATABASE pmr")
        lab = Lab(server, folder)
        lab.archive_with(HOLD)
        try:
            yield lab
        finally:
            kill(server.port)  # it would wait for its archiver


def trading(lab: Lab, pharmacy: Pharmacy, days: int) -> Found:
    """A first backup, one after each of the days, and restores of the last."""
    found = Found()

    def theirs(kind: str) -> Run:
        return lab.pgbackrest(f"--type={kind}", "--no-archive-check", "backup")

    found.measure("first ours", lab.back_up, lab.ours)
    found.measure("first theirs", partial(theirs, "full"), lab.theirs)
    before = pharmacy.site.with_name("before.db")
    for _ in range(days):
        shutil.copy(pharmacy.site / "pmr.db", before)
        pharmacy.trade()
        lab.server.apply_day(before, pharmacy.site / "pmr.db")
        found.measure("ours", lab.back_up, lab.ours)
        found.measure("theirs", partial(theirs, "incr"), lab.theirs)
    before.unlink()
    for number in range(days):
        place = lab.data.with_name(f"restored-{number}")

        def make(place: Path = place) -> None:
            (place / "data").mkdir(parents=True)
            as_service("postgres", place, place / "data")

        make()
        found.measure("restore ours", partial(lab.restore, place / "data"), None)
        shutil.rmtree(place)
        make()
        found.measure("restore theirs", partial(lab.pgbackrest, f"--pg1-path={place / 'data'}", "restore"), None)
        shutil.rmtree(place)
    return found


def archiving(lab: Lab, segments: int, rounds: int) -> dict[str, list[float]]:
    """Bytes a second, by tool."""
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    conf = lab.data.with_name("pgbackrest.conf")
    for _ in range(rounds):
        lab.archive_with(HOLD)
        lab.write(segments)
        settle(0.5)
        lab.archive_with(lab.source.archive_command)
        with lab.following():
            rates["ours"].append(lab.drained())
        lab.archive_with(HOLD)
        lab.write(segments)
        settle(0.5)
        lab.archive_with(f"pgbackrest --config={conf} --stanza=pmr archive-push %p")
        rates["theirs"].append(lab.drained())
        print({name: f"{found[-1] / 1e6:.0f} MB/s" for name, found in rates.items()}, flush=True)
    return rates


def figured(found: Found, rates: dict[str, list[float]]) -> tuple[dict[str, float], Sequence[Sequence[str]]]:
    seconds = {name: statistics.median(cost.seconds for cost in runs) for name, runs in found.runs.items()}
    added = {name: statistics.median(sizes) for name, sizes in found.added.items()}
    rate = {name: statistics.median(values) for name, values in rates.items()}
    table = [["", "pharmabackup", "pgBackRest", "ratio", "goal", "met"]]
    figures: dict[str, float] = {}
    for name, title in (("first ", "first backup"), ("", "a day later"), ("restore ", "restore")):
        ours, theirs = seconds[f"{name}ours"], seconds[f"{name}theirs"]
        figures[f"{name or 'day '}ratio".replace(" ", "_")] = theirs / ours
        table.append(
            [title, f"{ours:.2f} s", f"{theirs:.2f} s", f"{theirs / ours:.2f}", "at least 1", _met(theirs >= ours)]
        )
    for name, title in (("first ", "stored by the first"), ("", "added by a day")):
        ours, theirs = added[f"{name}ours"], added[f"{name}theirs"]
        figures[f"{name or 'day '}added".replace(" ", "_")] = ours / theirs
        table.append(
            [
                title,
                f"{ours / 1e6:.1f} MB",
                f"{theirs / 1e6:.1f} MB",
                f"{ours / theirs:.2f}",
                "less",
                _met(ours < theirs),
            ]
        )
    figures["archiving_ratio"] = rate["ours"] / rate["theirs"]
    table.append(
        ["archiving the log", *(f"{rate[tool] / 1e6:.0f} MB/s" for tool in ("ours", "theirs")),
         f"{figures['archiving_ratio']:.2f}", "at least 1", _met(figures["archiving_ratio"] >= 1)]
    )  # fmt: skip
    return figures, table


if __name__ == "__main__":
    main()
