"""What was there at a time is read, whatever was hidden, replaced or added since: on SeaweedFS."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

import pharmabackup as pb
from pharmabackup.clock import now_ns
from pharmabackup.engine.statefolder import AUDIT_QUEUE
from pharmabackup.errors import Damaged, NotFound, Unsupported
from pharmabackup.storage import connect
from tests.servers import s3
from tests.storage.locked import WHO, fresh, hide, key, of, restored, versions, wait

HOUR = 3600 * 10**9


@pytest.fixture(scope="module")
def attacked(client, seaweedfs):
    """A storage whose objects an attacker hid, replaced and added to; and a time before that."""
    storage = connect(fresh(), storage_options=seaweedfs.options)
    for name in ("packs/aa/a", "packs/aa/b", "packs/c"):
        storage.put_new(name, name.encode() * 100)
    moment = wait()
    storage.delete(["packs/aa/a", "packs/c"])
    client.put_object(Bucket=s3.LOCKED, Key=key(storage, "packs/aa/b"), Body=b"evil")
    storage.put_new("packs/c", b"evil")
    storage.put_new("packs/d", b"evil")
    yield storage, moment
    storage.close()


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_what_was_there_at_a_time_is_read(attacked, options, page):
    storage, moment = attacked
    then = connect(storage.location, storage_options=options | {"as_of": moment})
    with _pages_of(then, page):
        assert sorted(info.name for info in then.list("")) == ["packs/aa/a", "packs/aa/b", "packs/c"]
        assert sorted(info.name for info in then.list("packs/aa")) == ["packs/aa/a", "packs/aa/b"]
        for name in ("packs/aa/a", "packs/aa/b", "packs/c"):
            assert then.get(name, limit=2000) == name.encode() * 100
            assert then.get_range(name, 5, 10) == (name.encode() * 100)[5:15]
            assert then.info(name).size == len(name) * 100
            assert then.checksum(name)[0] == len(name) * 100
        with pytest.raises(NotFound):
            then.get("packs/d", limit=10)
        with pytest.raises(NotFound):
            then.info("packs/d")
    then.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_reads_what_was_there(attacked, options):
    storage, moment = attacked
    then = connect(storage.location, storage_options=options | {"as_of": moment})
    asked = then.get("packs/c", limit=2000)
    child = os.fork()
    if not child:
        try:
            os._exit(0 if then.get("packs/c", limit=2000) == asked and len(list(then.list(""))) == 3 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert then.get("packs/c", limit=2000) == asked == b"packs/c" * 100
    then.close()


def test_before_anything_was_there_nothing_is(attacked, options):
    storage, moment = attacked
    then = connect(storage.location, storage_options=options | {"as_of": (moment - timedelta(hours=1)).isoformat()})
    assert list(then.list("")) == []
    then.close()


def test_the_past_cannot_be_changed(attacked, options, client):
    storage, moment = attacked
    before = versions(client, storage)
    then = connect(storage.location, storage_options=options | {"as_of": moment})
    with pytest.raises(Unsupported, match="as of"):
        then.put_new("a", b"x")
    assert isinstance(then.delete(["packs/aa/b"])["packs/aa/b"], Unsupported)
    assert all(isinstance(error, Unsupported) for error in then.keep(of(then), until=now_ns() + HOUR))
    assert all(isinstance(error, Unsupported) for error in then.clear(of(then)))
    assert versions(client, storage) == before
    then.close()


@contextmanager
def _pages_of(storage, count: int):
    """Listings of versions in pages of so many."""
    client = storage._client()
    client.meta.events.register(
        "before-parameter-build.s3.ListObjectVersions", lambda params, **_: params.update(MaxKeys=count)
    )
    yield


def test_a_place_without_versions_has_no_past(options):
    storage = connect(f"s3://{s3.BUCKET}/{secrets.token_hex(8)}", storage_options=options)
    storage.put_new("packs/a", b"x")
    then = connect(storage.location, storage_options=options | {"as_of": datetime.now(UTC)})
    with pytest.raises(Unsupported, match="keeps no versions"):
        list(then.list(""))
    for each in (storage, then):
        each.close()


# Whole repositories


def test_what_an_attacker_hid_and_replaced_is_restored(client, options, data, tmp_path):
    url = fresh()
    with pb.Repository.create(
        url, WHO, storage_options=options | {"immutable": "1h"}, state_dir=tmp_path / "state"
    ) as repo:
        assert repo.capabilities["object-lock"]
        repo.backup([pb.Files(data, name="data")])
        assert repo.check(read_data=1.0).findings == ()
    moment = wait()
    storage = connect(url, storage_options=options)
    names = [info.name for info in storage.list("")]
    assert set(storage.delete(names).values()) == {None}  # all that these credentials may do
    for error in storage.clear([version for version in of(storage) if not version.deleted]):
        assert error is None or error.kind == "locked"
    client.put_object(Bucket=s3.LOCKED, Key=key(storage, "repository"), Body=b"evil")
    storage.close()
    with pytest.raises((NotFound, Damaged)):
        pb.Repository.open(url, WHO, storage_options=options, state_dir=tmp_path / "state").close()
    then = options | {"as_of": moment, "immutable": "1h"}
    with pb.Repository.open(url, WHO, storage_options=then, state_dir=tmp_path / "state") as repo:
        assert restored(repo, tmp_path) == (data / "a").read_bytes()
        assert [finding.code for finding in repo.check().findings] == ["audit-queued"]
        assert not [finding for finding in repo.check(read_data=1.0).findings if finding.severity == "critical"]
        with pytest.raises(Unsupported, match="as of"):
            repo.backup([pb.Files(data, name="data")])


def test_what_was_read_as_of_a_time_is_recorded_when_the_place_is_next_opened(options, data, tmp_path):
    url, state = fresh(), tmp_path / "state"
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=state) as repo:
        repo.backup([pb.Files(data, name="data")])
    then = options | {"as_of": wait()}
    with pb.Repository.open(url, WHO, storage_options=then, state_dir=state, actor="Jaya Patel") as repo:
        with repo.snapshot("data").open("a") as file:
            assert file.read(1)
        assert [each for each in repo.audit() if each.event == "read"] == []
    with pb.Repository.open(url, WHO, storage_options=options, state_dir=state) as repo:
        repo.check()
        told = [each for each in repo.audit() if each.event == "read"]
        assert told and {each.actor for each in told} == {"Jaya Patel"}


def _attacked(url, options, data, state):
    """A repository that is hidden, and another in its place; its id, and a time before and after that."""
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=state) as repo:
        repo.backup([pb.Files(data, name="data")])
    before = wait()
    there = hide(url, options)
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=state.with_name("attacker")) as other:
        other.backup([pb.Files(data, name="data")])
    return repo.id, before, wait(), there


def test_dated_too_late_it_is_another_repository_and_the_true_one_opens_when_it_is_back(options, data, tmp_path):
    url, state = fresh(), tmp_path / "state"
    own, before, after, there = _attacked(url, options, data, state)
    for moment in ({}, {"as_of": after}):
        with pytest.raises(Damaged) as caught:
            pb.Repository.open(url, WHO, storage_options=options | moment, state_dir=state)
        assert caught.value.kind == "another-repository" and own[:16] in caught.value.message
    with pb.Repository.open(url, WHO, storage_options=options | {"as_of": before}, state_dir=state) as repo:
        assert repo.id == own
    hide(url, options)
    storage = connect(url, storage_options=options)
    for name, content in there.items():
        storage.put_new(name, content)
    storage.close()
    with pb.Repository.open(url, WHO, storage_options=options, state_dir=state) as repo:
        assert repo.id == own and repo.check().state == "ok"
        assert "open" in {record.event for record in repo.audit()}  # as of before


def test_reading_what_was_there_before_another_was_made_leaves_that_one_alone(options, data, tmp_path):
    """It is asked for by its id, and what this machine knows of the other stays."""
    url, state = fresh(), tmp_path / "state"
    own, before, _, _ = _attacked(url, options, data, state)
    with pb.Repository.open(url, WHO, storage_options=options, state_dir=tmp_path / "new") as other:
        other.snapshots()
    known = {path.name for path in (tmp_path / "new").iterdir()}
    then = {"storage_options": options | {"as_of": before}, "state_dir": tmp_path / "new"}
    with pytest.raises(Damaged) as caught:
        pb.Repository.open(url, WHO, **then)
    assert caught.value.kind == "another-repository"
    with pb.Repository.open(url, WHO, repository=own, **then) as repo:
        assert restored(repo, tmp_path) == (data / "a").read_bytes()
    assert known <= {path.name for path in (tmp_path / "new").iterdir()}
    with pb.Repository.open(url, WHO, storage_options=options, state_dir=tmp_path / "new") as again:
        assert again.id == other.id
        assert again.check().state == "ok"


def test_what_waits_outlasts_a_repository_that_is_made_anew_there(options, data, tmp_path):
    url, elsewhere, state = fresh(), fresh(), tmp_path / "state"
    with (
        pb.Repository.create(url, WHO, storage_options=options, state_dir=state) as repo,
        pb.Repository.create(elsewhere, WHO, storage_options=options, state_dir=state, replica_of=repo) as replica,
    ):
        repo.backup([pb.Files(data, name="data")])
        repo.copy(replica)
    before = wait()
    hide(url, options)
    then = {"storage_options": options | {"as_of": before}, "state_dir": state, "actor": "Jaya Patel"}
    with pb.Repository.open(url, WHO, **then) as repo:
        restored(repo, tmp_path)
    with (
        pb.Repository.open(elsewhere, WHO, storage_options=options, state_dir=state) as replica,
        pb.Repository.create(url, WHO, storage_options=options, state_dir=state, replica_of=replica) as repo,
    ):
        replica.copy(repo)
        assert ("restore", "Jaya Patel") in {(record.event, record.actor) for record in repo.audit()}


def test_who_was_revoked_since_leaves_his_records_here_and_a_check_says_so(options, data, tmp_path):
    url, state = fresh(), tmp_path / "state"
    card = pb.KeyFile.create(tmp_path / "card.key")
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=tmp_path / "owner") as repo:
        repo.enrol("restorer", card.recipient, name="Ana Diaz")
        repo.backup([pb.Files(data, name="data")])
    before = wait()
    with pb.Repository.open(url, WHO, storage_options=options, state_dir=tmp_path / "owner") as repo:
        repo.revoke("Ana Diaz", reason="left")
    then = options | {"as_of": before}
    with pb.Repository.open(url, card, storage_options=then, state_dir=state) as repo:
        (told,) = (found for found in repo.restore(tmp_path / "out").findings if found.code == "audit-queued")
        assert "the same credential" in told.remedy
    own = [*(folder for folder in state.iterdir() if folder.name != AUDIT_QUEUE), *(state / AUDIT_QUEUE).iterdir()]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in own} == {0o700}
    with pb.Repository.open(url, WHO, storage_options=options, state_dir=state) as repo:
        for report in (repo.check(), repo.audit_verify()):
            (told,) = report.findings
            assert (told.code, told.severity) == ("audit-queued", "info") and report.state == "ok"
            assert "of Ana Diaz" in told.message and told.message.endswith(": 2.") and "revoked" in told.remedy
