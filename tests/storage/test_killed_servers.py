"""A server that is killed while a site works on it, and comes back on the same port with what it had stored."""

from __future__ import annotations

import random
import secrets
import sys
import threading
from contextlib import ExitStack
from datetime import timedelta

import pytest

import pharmabackup as pb
from pharmabackup.storage import remote
from tests.servers import s3, sftp, webdav
from tests.servers.process import kill
from tests.storage.working import WHO, Work

KILLS = 3
STARTS = {"s3": s3.seaweedfs, "sftp": sftp.sshd, "webdav": webdav.rclone}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")


class _Killer(threading.Thread):
    """Kills the server at some moment, lets it lie for a while, and starts it again."""

    def __init__(self, start, folder, seed):
        super().__init__(name="killer", daemon=True)
        self._start, self._folder = start, folder
        self._pick = random.Random(seed)
        self._stack = ExitStack()
        self.server = self._stack.enter_context(start(folder))
        self.kills, self.failed = 0, None

    def run(self):
        wait = threading.Event().wait
        try:
            for _ in range(KILLS):
                wait(self._pick.uniform(0.3, 1.5))
                kill(self.server.port)
                self._stack.close()
                wait(self._pick.uniform(0, 1.5))
                self._stack.enter_context(self._start(self._folder, port=self.server.port))
                self.kills += 1
        except BaseException as error:  # noqa: BLE001  (told on the other thread)
            self.failed = error

    def end(self):
        self.join()
        if self.failed is not None:
            raise self.failed

    def close(self):
        self.join()
        self._stack.close()


@pytest.mark.parametrize("kind", STARTS)
def test_what_was_told_to_be_safe_is_there_and_work_goes_on(kind, tmp_path, cheap_kdf, monkeypatch):
    for name, seconds in (("CONNECT_S", 1.0), ("SILENCE_S", 2.0), ("PATIENCE_S", 3.0)):
        monkeypatch.setattr(remote, name, seconds)
    folder, where = tmp_path / "server", secrets.token_hex(8)
    folder.mkdir()
    killer = _Killer(STARTS[kind], folder, seed=7)
    try:
        url = {
            "s3": lambda: f"s3://{s3.BUCKET}/{where}",
            "sftp": lambda: killer.server.url(folder / where),
            "webdav": lambda: killer.server.url(where),
        }[kind]()
        options = killer.server.options
        with pb.Repository.create(url, WHO, storage_options=options, state_dir=tmp_path / "state") as made:
            collects = made.capabilities["exclusive-create"]
            if collects:
                made.configure(forget_delay=timedelta(0))
        work = Work(url, options, tmp_path, random.Random(7))
        if not collects:
            work._forget = work._prune = work._check
        killer.start()
        while killer.is_alive():
            work.round()
        killer.end()
        work.all_is_there()
        assert killer.kills == KILLS and work.done.total() > KILLS
    finally:
        killer.close()
