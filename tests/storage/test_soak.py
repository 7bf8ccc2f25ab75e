"""A day's work on each server, over and over, behind a line whose faults change all the time; at night for an hour.

What failed is done again, as a service would. Nothing that was told to be safe is lost, and a check finds nothing.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections import Counter
from datetime import timedelta

import pytest

import pharmabackup as pb
from pharmabackup.storage import remote
from pharmabackup.testing.line import FaultyLine
from tests.servers import azure, gcs, s3, sftp, smb, webdav
from tests.storage.working import WHO, Work

SERVERS = ("s3", "azure", "gcs", "sftp", "smb", "webdav")
SECONDS = 3600 / len(SERVERS) if os.environ.get("PHARMABACKUP_PROFILE") == "nightly" else 5


@pytest.fixture(params=SERVERS)
def server(request, tmp_path_factory):
    """Where it listens, and what gives URL and storage_options through another port."""
    folder, where = tmp_path_factory.mktemp(request.param), secrets.token_hex(8)
    if request.param == "s3":
        real = request.getfixturevalue("seaweedfs")
        yield (
            real,
            lambda port: (
                f"s3://{s3.BUCKET}/{where}",
                real.options | {"endpoint_url": f"http://127.0.0.1:{port}"},
            ),
        )
    elif request.param == "azure":
        real = request.getfixturevalue("azurite")
        yield (
            real,
            lambda port: (
                f"azure://{azure.CONTAINER}/{where}",
                real.options | {"account_url": f"http://127.0.0.1:{port}/{azure.ACCOUNT}"},
            ),
        )
    elif request.param == "gcs":
        real = request.getfixturevalue("fake_gcs")
        yield (
            real,
            lambda port: (
                f"gs://{gcs.BUCKET}/{where}",
                real.options | {"endpoint_url": f"http://127.0.0.1:{port}"},
            ),
        )
    elif request.param == "sftp":
        with sftp.sshd(folder) as real:
            yield (
                real,
                lambda port: (
                    real.url(folder / where, port),
                    real.options | {"known_hosts": str(real.known_hosts(port))},
                ),
            )
    else:
        with (smb.samba if request.param == "smb" else webdav.rclone)(folder) as real:
            yield real, lambda port: (real.url(where, port), real.options)


class _Weather(threading.Thread):
    """Changes what the line does, every second or so."""

    def __init__(self, line: FaultyLine, seed: int) -> None:
        super().__init__(name="weather", daemon=True)
        self._line = line
        self._pick = random.Random(seed)
        self._over = threading.Event()
        self.seen: Counter[str] = Counter()

    def run(self) -> None:
        while not self._over.wait(self._pick.uniform(0.2, 1.5)):
            self.clear_up()
            weather = self._pick.choice(("fair", "lossy", "lossy", "slow", "refusing", "silent", "cut"))
            self.seen[weather] += 1
            self._line.resetting = self._pick.random() < 0.5
            if weather == "lossy":
                self._line.lossy = 0.01
            elif weather == "slow":
                self._line.latency = self._pick.choice((0.02, 0.1, 0.2))
            elif weather in ("refusing", "silent"):
                setattr(self._line, weather, True)
            elif weather == "cut":
                which = self._pick.choice(("up", "down"))
                self._line.cut_after(**{which: self._pick.randrange(100_000)})

    def clear_up(self) -> None:
        self._line.lossy = self._line.latency = 0.0
        self._line.refusing = self._line.silent = False
        self._line.cut_after()

    def end(self) -> None:
        self._over.set()
        self.join()
        self.clear_up()


# What botocore makes of an answer that was cut within a date, or cannot be parsed: test_s3_answers.py.
@pytest.mark.filterwarnings("ignore:tzname G:dateutil.parser.UnknownTimezoneWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_lost(server, tmp_path, cheap_kdf, monkeypatch, capsys):
    for name, seconds in (("CONNECT_S", 1.0), ("SILENCE_S", 1.0), ("PATIENCE_S", 4.0)):
        monkeypatch.setattr(remote, name, seconds)
    real, through = server
    seed = int(os.environ.get("PHARMABACKUP_SEED", "0"))
    with FaultyLine("127.0.0.1", real.port, seed=seed) as line:
        url, options = through(line.port)
        made = pb.Repository.create(url, WHO, storage_options=options, state_dir=tmp_path / "state")
        collects = made.capabilities["exclusive-create"]
        with made:
            if collects:
                made.configure(forget_delay=timedelta(0))
        work, weather = Work(url, options, tmp_path, random.Random(seed)), _Weather(line, seed)
        if not collects:
            work._forget = work._prune = work._check
        weather.start()
        try:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                work.round()
        finally:
            weather.end()
        work.all_is_there()
    with capsys.disabled():
        print(f"\n{url.partition(':')[0]}: {dict(work.done)}; {line.cuts} cuts, weather {dict(weather.seen)}")
    assert sum(weather.seen.values()) > 1 and work.done
