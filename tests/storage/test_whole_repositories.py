"""A repository from first backup to restore, and to prune where it can, on each kind of networked storage."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from datetime import timedelta

import pytest

import pharmabackup as pb
from tests.servers import azure, ftp, gcs, graph

WHO = pb.Passphrase("correct horse battery staple")


@pytest.fixture(params=["azure", "gcs", "graph", "ftp"])
def place(request, tmp_path_factory):
    """URL, storage_options, and whether it lets one collect beside writers."""
    if request.param == "azure":
        yield azure.fresh(), request.getfixturevalue("azurite").options, True
    elif request.param == "gcs":
        yield gcs.fresh(), request.getfixturevalue("fake_gcs").options, True
    elif request.param == "graph":
        with graph.graph() as drive:
            yield graph.fresh(), drive.options, False
    else:
        with ftp.ftp(tmp_path_factory.mktemp("ftp")) as server:
            yield f"{server.url}/{secrets.token_hex(8)}", server.options, False


def test_from_first_backup_to_prune(place, tmp_path, cheap_kdf):
    url, options, collects = place
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(os.urandom(3 << 20))
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=tmp_path / "state") as repo:
        repo.backup([pb.Files(folder, name="data")])
        (folder / "a").unlink()
        (folder / "b").write_bytes(os.urandom(1 << 20))
        repo.backup([pb.Files(folder, name="data")])
    with pb.Repository.open(url, WHO, storage_options=options, state_dir=tmp_path / "elsewhere") as repo:
        assert repo.check(read_data=1.0).findings == ()
        repo.restore(tmp_path / "restored")
        assert (tmp_path / "restored" / "data" / "b").read_bytes() == (folder / "b").read_bytes()
        if url.startswith("ftp:"):  # without exclusive creation, two owners could change the rules at once
            with pytest.raises(pb.Unsupported, match="exclusively"):
                repo.configure(forget_delay=timedelta(0))
            return
        repo.configure(forget_delay=timedelta(0))
        repo.apply(repo.propose_forget(snapshots=[repo.snapshots()[-1]]))
        time.sleep(1.1)  # Azure counts in seconds, and a forget takes effect after its own
        if not collects:
            with pytest.raises(pb.Unsupported) as caught:
                repo.propose_prune()
            assert caught.value.kind == "capability"
            return
        (gone,) = repo.propose_prune().snapshots
        assert gone.id == repo.snapshots()[-1].id
        repo.apply(repo.propose_prune())
        assert repo.check(read_data=1.0).findings == ()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_connections_of_its_own(place):
    # In a process of its own: pytest's has threads.
    url, options, _ = place
    code = f"""
import os
from pharmabackup.storage import connect
storage = connect({url!r}, storage_options={options!r}, create=True)
storage.put_new("a", b"x" * 100_000)
held = storage._held
for _ in range(2):
    if not (child := os.fork()):
        ok = storage._held is None and storage.get("a", limit=1 << 20) == b"x" * 100_000 and storage._held is not held
        storage.close()
        os._exit(0 if ok else 1)
    assert storage.get("a", limit=1 << 20) == b"x" * 100_000
    assert os.waitpid(child, 0)[1] == 0
assert storage._held is held
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
