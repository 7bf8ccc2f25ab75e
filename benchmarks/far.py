"""Backup and restore over a line, at several round-trip times, beside restic and rclone's plain copy.

S3 is SeaweedFS, SFTP is OpenSSH, Azure is Azurite over TLS, without which restic speaks to no Azure.
The line is toxiproxy, which delays bytes half a round trip each way; the time that a TCP connection takes to be made
is not delayed. Requests are counted in runs of their own, through a proxy that looks at what goes up.
"""

import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path

from answer import Answer, parser
from counting import Counting
from data import Pharmacy
from measure import Failed, Run, TooSlow, give_memory, output_of, run, settle, usage_of, warm
from targets import Targets
from tools import PASSPHRASE, Source

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tests.servers import azure, s3, sftp
from tests.servers.process import free_port, running
from tests.servers.webdav import certificate

DRIVER = Path(__file__).with_name("driver.py")
COMPARE = Path(__file__).with_name("compare.py")
TOXIPROXY = "github.com/Shopify/toxiproxy/v2/cmd/server@v2.12.0"
RESTIC = "github.com/restic/restic/cmd/restic@v0.18.0"  # Debian's is three years older
ROUND_TRIPS_MS = (0, 20, 100)
GOAL = 2  # times as fast as restic
ROUNDS = {"s3": 3, "sftp": 1, "azure": 3}  # SFTP, for which there is no goal, is slow for all
BACKUPS = 10  # before snapshots are listed
VOLUMES = 300  # of 64 MB: what all rounds of all tools leave at one round-trip time
LIMIT_S = 300  # for one run
TOO_SLOW = Run(math.inf, 0, 0)
TRANSFERS = "32"  # of rclone at once: its own 4 would wait for small files


@dataclass(frozen=True)
class Place:
    """A server as a tool reaches it through `port`: where and with what. `url` and `options` are ours.

    `tls` is its certificate and key, if it speaks TLS.
    """

    name: str
    port: int
    url: Callable[[str], str]
    options: Callable[[int], Mapping[str, object]]
    restic: Callable[[int, str], tuple[str, Mapping[str, str], list[str]]]
    rclone: Callable[[int, str], list[str]]
    tls: tuple[Path, Path] | None = None


def main() -> None:
    accepts = parser(__doc__)
    accepts.add_argument("place", choices=PLACES)
    options = accepts.parse_args()
    rounds, profile, trips = (1, "XS", (0, 20)) if options.quick else (ROUNDS[options.place], "B", ROUND_TRIPS_MS)
    options.work.mkdir(parents=True, exist_ok=True)
    pharmacy = Pharmacy(options.work.parent, profile=profile, given=None)
    pharmacy.make()
    source = pharmacy.source
    files, size = usage_of(source.paths)
    figures: dict[str, float] = {}
    head = ["", "round trip", "pharmabackup", "restic", "rclone copy", "ratio", "met"]
    table = [[*head, "requests", "restic's", "MB", "restic's"]]
    targets = Targets(options.work)
    with started(options.place) as place:
        requests = {} if place.name == "SFTP" else counted(place, source, options.work, targets)
    figures |= {f"{tool}_{what}_requests": count for (tool, what), count in requests.items()}
    for what in ("nothing changed", "list") if requests else ():
        asked = [str(requests.get((tool, what), "–")) for tool in ("ours", "restic")]
        table.append([what, *[""] * 6, *asked, "", ""])
    for trip in trips:
        with started(options.place) as place:
            found = measure(place, source, options.work, targets, trip, rounds)
        for what in ("backup", "restore"):
            table.append(row(what, trip, found, requests, figures))
    remark = (
        f"{f'Medians of {rounds} rounds in turn, of rclone one' if rounds > 1 else 'One round'}, whole processes, "
        "seconds; restores go to "
        f"{targets.kind}; the sample pharmacy of profile {profile}: "
        f"{files:,} files, {size / 1e6:,.0f} MB. restic {RESTIC.rpartition('@v')[2]}, rclone {rclone_version()} with "
        f"{TRANSFERS} transfers. Tools and servers share two processors. Requests are those of a first backup and of "
        "a restore, with everything that opening takes, of a backup in which nothing changed, and of a list on a new "
        f"machine after {BACKUPS} backups, of which ours makes {len(source.items)} snapshots each; MB is the "
        f"greatest memory of a process. The goal: restic's time is at least {GOAL} times ours, its requests no fewer."
    )
    Answer(f"Over a line: {place.name}", figures, table, remark).give(options)


@contextmanager
def started(place: str) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="pharmabackup-far-") as scratch, PLACES[place](Path(scratch)) as found:
        yield found


def row(
    what: str,
    trip: int,
    found: Mapping[tuple[str, str], list[Run]],
    requests: Mapping[tuple[str, str], int],
    figures: dict[str, float],
) -> list[str]:
    tools = [tool for tool in ("ours", "restic", "rclone") if (tool, what) in found]
    middle = {tool: statistics.median(cost.seconds for cost in found[tool, what]) for tool in tools}
    figures[f"{what}_{trip}_s"] = middle["ours"]
    if isfinite(middle.get("restic", math.inf)):
        figures[f"{what}_{trip}_ratio"] = middle["restic"] / middle["ours"]
    shown = [
        "–" if tool not in middle else f"{middle[tool]:.2f}" if isfinite(middle[tool]) else f"over {LIMIT_S}"
        for tool in ("ours", "restic", "rclone")
    ]
    ratio, met = "–", "–"
    if "restic" in middle:
        ratio = f"{middle['restic'] / middle['ours']:.2f}" if isfinite(middle["restic"]) else "–"
        met = "yes" if middle["restic"] >= GOAL * middle["ours"] else "**no**"
    peaks = {tool: f"{max(cost.rss for cost in found[tool, what]) / 1e6:.0f}" for tool in tools}
    figures[f"{what}_{trip}_mb"] = max(cost.rss for cost in found["ours", what]) / 1e6
    asked = [str(requests.get((tool, what), "–")) for tool in ("ours", "restic")]
    taken = [peaks.get(tool, "–") for tool in ("ours", "restic")]
    return [what, f"{trip} ms", *shown, ratio, met, *asked, *taken]


def measure(
    place: Place, source: Source, work: Path, targets: Targets, trip: int, rounds: int
) -> dict[tuple[str, str], list[Run]]:
    """What each tool's first backup took, into a place that nobody has used, and its restore. Too slow: infinite.

    rclone, which is no peer, has one round, and so has who is too slow.
    """
    found: dict[tuple[str, str], list[Run]] = {}
    with toxiproxy(work, place.port, trip) as port:
        for number in range(rounds):
            for tool, job in jobs(place, port, source, work).items():
                if number and (tool == "rclone" or TOO_SLOW in found[tool, "backup"]):
                    continue
                warm(source.paths)
                _measure(found.setdefault((tool, "backup"), []), partial(ready, job.backup))
                if found[tool, "backup"][-1] is not TOO_SLOW:
                    restore = partial(restored, job.restore, source, work, targets)
                    _measure(found.setdefault((tool, "restore"), []), restore)
                seconds = [found[tool, what][-1].seconds for what in ("backup", "restore") if (tool, what) in found]
                print(f"{place.name} {trip} ms {tool}: {seconds}", flush=True)
    return found


def _measure(found: list[Run], job: Callable[[], Run]) -> None:
    try:
        found.append(job())
    except TooSlow:
        found.append(TOO_SLOW)


def ready(job: Callable[[], Run]) -> Run:
    """Run it on a quiet machine: nothing comes between this and the job, or the host takes the memory again."""
    settle(0.5)
    give_memory()
    return job()


def restored(restore: Callable[[Path], Run], source: Source, work: Path, targets: Targets) -> Run:
    with targets.fresh(usage_of(source.paths)[0]) as target:
        cost = ready(partial(restore, target))
        pairs = [(source.folder / item, _there(target, item)) for item in source.items]
        run([sys.executable, COMPARE, *(path for pair in pairs for path in pair)], log=work / "compare.log")
    return cost


def _there(target: Path, item: str) -> Path:
    """Ours puts a database into a folder of its dataset's name."""
    return target / item if (target / item).exists() else next(target.glob(f"*/{item}"), target / item)


def counted(place: Place, source: Source, work: Path, targets: Targets) -> dict[tuple[str, str], int]:
    """How many requests a first backup takes, a restore, one more backup, and a list after `BACKUPS` of them."""
    found = {}
    with Counting("127.0.0.1", place.port, tls=place.tls) as line:

        def count(tool: str, what: str, does: Callable[[], object]) -> None:
            before = line.requests
            does()
            found[tool, what] = line.requests - before

        for tool, job in jobs(place, line.port, source, work).items():
            if job.listing is not None:
                count(tool, "backup", job.backup)
                count(tool, "restore", partial(restored, job.restore, source, work, targets))
                for _ in range(BACKUPS - 1):
                    count(tool, "nothing changed", job.backup)
                count(tool, "list", job.listing)
    return found


@dataclass(frozen=True)
class Job:
    """What a tool runs. `listing` has no cache."""

    backup: Callable[[], Run]
    restore: Callable[[Path], Run]
    listing: Callable[[], Run] | None = None


def jobs(place: Place, port: int, source: Source, work: Path) -> dict[str, Job]:
    """What each tool runs, its repository made."""
    where, log = f"run-{time.time_ns()}", work / "log"
    caches = work / "caches"
    shutil.rmtree(caches, ignore_errors=True)
    caches.mkdir(parents=True)
    mine = {
        **os.environ,
        "PHARMABACKUP_PASSPHRASE": PASSPHRASE,
        "PHARMABACKUP_STATE": str(caches / "ours"),
        "PHARMABACKUP_STORAGE": json.dumps(place.options(port)),
    }
    url = place.url(f"{where}-ours").replace("PORT", str(port))
    driver: list[str | Path] = [sys.executable, DRIVER]
    run([*driver, "create", url], env=mine, log=log)
    timed = partial(run, log=log, limit_s=LIMIT_S)
    found = {
        "ours": Job(
            lambda: timed([*driver, "backup", url, *source.paths], env=mine),
            lambda target: timed([*driver, "restore", url, target], env=mine),
            lambda: timed([*driver, "snapshots", url], env=mine | {"PHARMABACKUP_STATE": str(caches / "new")}),
        )
    }
    repository, more, flags = place.restic(port, f"{where}-restic")
    theirs = {
        **os.environ,
        **more,
        "RESTIC_PASSWORD": PASSPHRASE,
        "RESTIC_REPOSITORY": repository,
        "RESTIC_CACHE_DIR": str(caches / "restic"),
    }
    restic: list[str | Path] = [built(work, RESTIC), "--quiet", *flags]
    run([*restic, "init", "--repository-version", "2"], env=theirs, log=log)
    found["restic"] = Job(
        lambda: timed([*restic, "backup", *source.items], env=theirs, cwd=source.folder),
        lambda target: timed([*restic, "restore", "latest", "--target", target], env=theirs),
        lambda: timed([*restic, "snapshots", "--no-cache"], env=theirs),
    )
    remote, *flags = place.rclone(port, f"{where}-rclone")
    rclone: list[str | Path] = ["rclone", "--config", "/dev/null", "--transfers", TRANSFERS, *flags, "copy"]
    plain = {
        name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"
    }  # it does not start with it
    found["rclone"] = Job(
        lambda: timed([*rclone, source.folder, remote], env=plain),
        lambda target: timed([*rclone, remote, target], env=plain),
    )
    return found


# ---------------------------------------------------------------- the line, and what is behind it


@contextmanager
def toxiproxy(work: Path, port: int, trip: int) -> Iterator[int]:
    """A port through which the server is so many milliseconds away, there and back."""
    control, near = free_port(), free_port()
    folder = work / "toxiproxy"
    folder.mkdir(parents=True, exist_ok=True)
    with running([str(built(work, TOXIPROXY)), "-port", str(control)], control, folder):
        api = f"http://127.0.0.1:{control}/proxies"
        _tell(api, {"name": "line", "listen": f"127.0.0.1:{near}", "upstream": f"127.0.0.1:{port}", "enabled": True})
        for stream in ("upstream", "downstream") if trip else ():
            _tell(f"{api}/line/toxics", {"type": "latency", "stream": stream, "attributes": {"latency": trip // 2}})
        yield near


def _tell(url: str, what: Mapping[str, object]) -> None:
    request = urllib.request.Request(url, json.dumps(what).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()


def built(work: Path, module: str) -> Path:
    """A program of Go's, made of its sources."""
    found = work / "go" / module.partition("@")[0].rpartition("/")[2]
    if not found.exists():
        go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
        if go is None:
            raise Failed("the delayed line and restic need Go, to be built")
        print(f"building {module}", flush=True)
        subprocess.run([go, "install", module], env={**os.environ, "GOBIN": str(found.parent)}, check=True)
    return found


@contextmanager
def s3_place(scratch: Path) -> Iterator[Place]:
    folder = scratch / "s3"
    folder.mkdir()
    with s3.seaweedfs(folder, volumes=VOLUMES) as server:
        yield Place(
            "S3",
            server.port,
            lambda name: f"s3://{s3.BUCKET}/{name}",
            lambda port: server.options | {"endpoint_url": f"http://127.0.0.1:{port}"},
            lambda port, name: (
                f"s3:http://127.0.0.1:{port}/{s3.BUCKET}/{name}",
                {"AWS_ACCESS_KEY_ID": s3.KEY, "AWS_SECRET_ACCESS_KEY": s3.SECRET},
                [],
            ),
            lambda port, name: [
                f":s3:{s3.BUCKET}/{name}", "--s3-provider", "Other", "--s3-endpoint", f"http://127.0.0.1:{port}",
                "--s3-access-key-id", s3.KEY, "--s3-secret-access-key", s3.SECRET,
            ],
        )  # fmt: skip


@contextmanager
def sftp_place(scratch: Path) -> Iterator[Place]:
    folder = scratch / "sftp"
    folder.mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(sftp.sshd(folder))

        def ssh(port: int) -> str:
            known = server.known_hosts(port)
            return f"ssh -p {port} -i {folder}/key -o UserKnownHostsFile={known} root@127.0.0.1 -s sftp"

        yield Place(
            "SFTP",
            server.port,
            lambda name: f"sftp://root@127.0.0.1:PORT{folder}/{name}",
            lambda port: {"client_keys": str(folder / "key"), "known_hosts": str(server.known_hosts(port))},
            lambda port, name: (f"sftp:root@127.0.0.1:{folder}/{name}", {}, ["-o", f"sftp.command={ssh(port)}"]),
            lambda port, name: [
                f":sftp:{folder}/{name}", "--sftp-host", "127.0.0.1", "--sftp-port", str(port), "--sftp-user", "root",
                "--sftp-key-file", str(folder / "key"), "--sftp-known-hosts-file", str(server.known_hosts(port)),
            ],
        )  # fmt: skip


@contextmanager
def azure_place(scratch: Path) -> Iterator[Place]:
    folder = scratch / "azure"
    folder.mkdir()
    tls = certificate(folder, azure.HOST)
    try:
        socket.getaddrinfo(azure.HOST, None)
    except OSError:
        raise Failed(f"restic asks for accounts by name: add '127.0.0.1 {azure.HOST}' to the hosts file") from None
    with azure.azurite(folder, tls=tls) as server:
        yield Place(
            "Azure",
            server.port,
            lambda name: f"azure://{azure.CONTAINER}/{name}",
            server.options_at,
            lambda port, name: (
                f"azure:{azure.CONTAINER}:/{name}",
                {
                    "AZURE_ACCOUNT_NAME": azure.ACCOUNT,
                    "AZURE_ACCOUNT_KEY": azure.KEY,
                    "AZURE_ENDPOINT_SUFFIX": f"localhost:{port}",
                },
                ["-o", "azure.access-tier=Hot", "--cacert", str(tls[0])],  # Azurite takes no empty one
            ),
            lambda port, name: [
                f":azureblob:{azure.CONTAINER}/{name}", "--azureblob-account", azure.ACCOUNT,
                "--azureblob-key", azure.KEY,
                "--azureblob-endpoint", f"{azure.HOST.partition('.')[2]}:{port}", "--ca-cert", str(tls[0]),
            ],
            tls,
        )  # fmt: skip


PLACES = {"s3": s3_place, "sftp": sftp_place, "azure": azure_place}


def rclone_version() -> str:
    return output_of(["rclone", "version"]).split()[1].lstrip("v")


if __name__ == "__main__":
    main()
