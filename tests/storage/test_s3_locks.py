"""Object Lock, versions and credentials that cannot delete, on SeaweedFS, which keeps to all of them."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

import pharmabackup as pb
from pharmabackup.clock import now_ns
from pharmabackup.engine.locks import Renewed
from pharmabackup.errors import InvalidInput, NotFound, StorageFailed, Unsupported
from pharmabackup.storage import connect
from tests.servers import s3
from tests.storage.locked import WHO, fresh, key, of, restored, versions

HOUR = 3600 * 10**9


def until(storage, name: str) -> int:
    """Until when the newest version is locked."""
    (newest,) = (version for version in of(storage, name) if version.newest)
    (kept,) = storage.kept_until([newest])
    return kept


@pytest.fixture
def locked(options):
    storage = connect(fresh(), storage_options=options | {"immutable": "1h"})
    yield storage
    storage.close()


def test_what_is_stored_cannot_be_deleted_for_one_and_a_half_periods(client, locked):
    before = now_ns()
    locked.put_new("packs/a", b"x")
    assert before + 1.5 * HOUR <= until(locked, "packs/a") <= now_ns() + 1.5 * HOUR + 10**9
    (version,) = versions(client, locked)
    with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
        client.delete_object(Bucket=s3.LOCKED, Key=key(locked, "packs/a"), VersionId=version["VersionId"])


@pytest.mark.parametrize("name", ["intents/a.0", "probe-00"])
def test_what_is_there_for_a_while_only_is_not_locked(locked, name):
    locked.put_new(name, b"x")
    assert until(locked, name) == 0


def test_without_the_option_nothing_is_locked(options):
    storage = connect(fresh(), storage_options=options)
    storage.put_new("packs/a", b"x")
    assert until(storage, "packs/a") == 0
    storage.close()


def test_a_lock_is_made_longer_and_never_shorter(locked):
    locked.put_new("packs/a", b"x")
    (version,) = of(locked, "packs/a")
    missing = dataclasses.replace(version, name="packs/b")
    later = now_ns() + 5 * HOUR
    for moment in (later, now_ns() + HOUR):
        kept, gone = locked.keep([version, missing], until=moment)
        assert kept is None and isinstance(gone, NotFound)
        assert later <= until(locked, "packs/a") <= later + 10**9
    assert isinstance(locked.kept_until([missing])[0], NotFound)


def test_a_governance_lock_says_so(client, options):
    storage = connect(fresh(), storage_options=options | {"immutable": timedelta(hours=1), "lock_mode": "governance"})
    storage.put_new("packs/a", b"x")
    assert storage.keep(of(storage, "packs/a"), until=now_ns() + 3 * HOUR) == [None]
    kept = client.get_object_retention(Bucket=s3.LOCKED, Key=key(storage, "packs/a"))["Retention"]
    assert kept["Mode"] == "GOVERNANCE" and kept["RetainUntilDate"] > datetime.now(UTC) + timedelta(hours=2)
    storage.close()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"immutable": "35 days"}, "no period"),
        ({"immutable": "0d"}, "no period"),
        ({"immutable": 35}, "no period"),
        ({"immutable": "3651d"}, "at most 3650 days"),
        ({"as_of": "9999-12-31T23:59:59-10:00"}, "no moment"),
        ({"lock_mode": "none"}, "lock_mode"),
        ({"as_of": "yesterday"}, "no moment"),
        ({"as_of": "2026-11-20T08:00:00"}, "no moment"),
    ],
)
def test_options_are_checked(wrong, match):
    with pytest.raises(InvalidInput, match=match):
        connect("s3://bucket/x", storage_options=wrong)


def test_a_bucket_without_locks_is_refused_before_anything_is_stored(options, tmp_path):
    url = f"s3://{s3.BUCKET}/{secrets.token_hex(8)}"
    with pytest.raises(Unsupported, match="cannot lock"):
        pb.Repository.create(url, WHO, storage_options=options | {"immutable": "1h"}, state_dir=tmp_path)
    storage = connect(url, storage_options=options | {"immutable": "1h"})
    with pytest.raises(Unsupported, match="no Object Lock"):
        storage.put_new("packs/a", b"x")
    assert list(storage.list("")) == []
    storage.put_new("intents/a.0", b"x")
    assert isinstance(storage.keep(of(storage), until=now_ns() + HOUR)[0], Unsupported)
    storage.close()


# Versions


def test_what_deleting_leaves_can_be_let_go(client, options):
    storage = connect(fresh(), storage_options=options)
    for name in ("packs/a", "packs/b"):
        storage.put_new(name, b"xyz")
    storage.delete(["packs/a"])
    storage.put_new("packs/a", b"again")
    storage.delete(["packs/a"])
    left = of(storage, "packs/a")
    assert sorted((version.size, version.deleted) for version in left) == [
        (0, True),
        (0, True),
        (3, False),
        (5, False),
    ]
    assert [version.newest for version in left if version.newest] == [True]
    assert storage.clear([version for version in left if not version.deleted]) == [None, None]
    assert len(versions(client, storage, "packs/a")) == 2 and list(storage.list("packs/a")) == []
    assert storage.clear(left) == [None] * 4  # what is not there any more is gone
    assert not versions(client, storage, "packs/a") and [info.name for info in storage.list("packs")] == ["packs/b"]
    storage.close()


def test_what_is_locked_is_not_let_go_before_its_time(client, options):
    storage = connect(fresh(), storage_options=options | {"immutable": "2s"})
    storage.put_new("packs/a", b"xyz")
    storage.put_new("intents/a.0", b"x")
    assert storage.delete(["packs/a", "intents/a.0"]) == {"packs/a": None, "intents/a.0": None}
    (pack,) = (version for version in of(storage, "packs/a") if not version.deleted)
    (intent,) = (version for version in of(storage, "intents/a.0") if not version.deleted)
    locked, gone = storage.clear([pack, intent])
    assert locked.kind == "locked" and gone is None
    assert len(versions(client, storage, "packs/a")) == 2
    time.sleep(max(0, storage_wait(client, storage)))
    assert storage.clear([pack]) == [None]
    storage.close()


def storage_wait(client, storage) -> float:
    (version,) = (each for each in versions(client, storage, "packs/a") if "Size" in each)
    kept = client.get_object_retention(Bucket=s3.LOCKED, Key=key(storage, "packs/a"), VersionId=version["VersionId"])
    return (kept["Retention"]["RetainUntilDate"] - datetime.now(UTC)).total_seconds() + 1.1


# Whole repositories


def leave_garbage(repo, data) -> None:
    """Two snapshots, of which the older is forgotten for good."""
    for _ in range(2):
        (data / "a").write_bytes(os.urandom(1 << 20))
        repo.backup([pb.Files(data, name="data")])
    repo.configure(forget_delay=timedelta(0))
    repo.apply(repo.propose_forget(snapshots=[repo.snapshots()[-1]]))
    time.sleep(1.1)  # S3 counts in seconds, and a forget takes effect after its own


def kept(repo) -> dict[str, int]:
    there = [version for version in of(repo._unlocked.storage) if version.newest and not version.deleted]
    told = repo._unlocked.storage.kept_until(there)
    return {version.name: until for version, until in zip(there, told, strict=True)}


def test_a_backup_locks_anew_what_it_relies_on_before_locks_run_out(options, data, tmp_path):
    url, state = fresh(), tmp_path / "state"
    with pb.Repository.create(url, WHO, storage_options=options | {"immutable": "1h"}, state_dir=state) as repo:
        repo.backup([pb.Files(data, name="data")])
        first = kept(repo)
        repo.backup([pb.Files(data, name="data")])
        assert first.items() <= kept(repo).items()  # nothing was to be done
    longer = options | {"immutable": "2h"}
    with pb.Repository.open(url, WHO, storage_options=longer, state_dir=state) as repo:
        (short,) = repo.check().findings
        assert short.code == "lock-short" and short.severity == "warning"
        now = now_ns()
        report = repo.backup([pb.Files(data, name="data")])
        assert report.findings == ()
        after = kept(repo)
        assert {name.partition("/")[0] for name in first if after[name] >= now + 3 * HOUR} == {
            "repository", "roster", "keys", "packs", "index", "snapshots"
        }  # fmt: skip
        assert [name for name in first if after[name] < now + 3 * HOUR and "audit/" not in name] == [
            name for name in first if name.startswith("intents/")
        ]
        assert repo.check().findings == ()


def test_the_owner_has_every_place_that_can_lock_what_is_stored(client, options, data, tmp_path):
    url, other, state = fresh(), f"s3://{s3.BUCKET}/{secrets.token_hex(8)}", tmp_path / "state"
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=state) as repo:
        assert repo.capabilities["object-lock"] and repo.rules().lock == timedelta(0)
        repo.backup([pb.Files(data, name="data")])
        assert set(kept(repo).values()) == {0}
        with pb.Repository.create(other, WHO, storage_options=options, state_dir=state, replica_of=repo) as replica:
            assert not replica.capabilities["object-lock"]
            with pytest.raises(InvalidInput, match="locked"):
                repo.configure(lock=timedelta(days=-1))
            repo.configure(lock=timedelta(hours=1))
            assert repo.rules().lock == timedelta(hours=1)
            (data / "a").write_bytes(os.urandom(1 << 20))
            now = now_ns()
            assert repo.backup([pb.Files(data, name="data")], replicas=[replica]).findings == ()
            lasting = {
                name: until for name, until in kept(repo).items() if not name.startswith(("intents/", "audit/"))
            }
            assert min(lasting.values()) >= now + 1.5 * HOUR
            assert set(kept(replica).values()) == {0}  # it cannot, and is none the worse
    with pb.Repository.open(url, WHO, storage_options=options, state_dir=tmp_path / "elsewhere") as repo:
        (data / "a").write_bytes(os.urandom(1 << 20))
        packs = set(kept(repo))
        repo.backup([pb.Files(data, name="data")])
        assert all(until for name, until in kept(repo).items() if name not in packs and "intents/" not in name)
        repo.configure(lock=timedelta(0))
        assert repo._unlocked.storage.immutable == 0


def test_who_may_not_ask_believes_the_repository(options, data, tmp_path, monkeypatch):
    url, state = fresh(), tmp_path / "state"
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=state) as repo:
        repo.configure(lock=timedelta(hours=1))
    denied = StorageFailed("no.", kind="storage-denied")

    def refused(self, client):
        raise denied

    monkeypatch.setattr("pharmabackup.storage.s3.S3Storage._can_lock", refused)
    with pb.Repository.open(url, WHO, storage_options=options, state_dir=state) as repo:
        repo.backup([pb.Files(data, name="data")])
        assert all(until for name, until in kept(repo).items() if name.startswith("packs/"))


def test_who_hides_or_replaces_is_found_and_what_was_there_stays_locked(client, options, data, tmp_path):
    url, state = fresh(), tmp_path / "state"
    with pb.Repository.create(url, WHO, storage_options=options | {"immutable": "1h"}, state_dir=state) as repo:
        repo.backup([pb.Files(data, name="data")])
    storage = connect(url, storage_options=options)
    packs = sorted(info.name for info in storage.list("packs"))
    (fate,) = (info.name for info in storage.list("snapshots"))
    storage.delete([fate])
    size = storage.info(packs[0]).size
    client.put_object(Bucket=s3.LOCKED, Key=key(storage, packs[0]), Body=bytes(size))
    longer = options | {"immutable": "2h"}
    now = now_ns()
    with pb.Repository.open(url, WHO, storage_options=longer, state_dir=state) as repo:
        findings = {finding.code: finding for finding in repo.backup([pb.Files(data, name="data")]).findings}
    assert findings["objects-deleted"].subject == fate and findings["objects-deleted"].severity == "critical"
    assert findings["objects-replaced"].subject == packs[0] and "as_of" in findings["objects-replaced"].remedy
    for name in (fate, packs[0]):
        genuine = min((each for each in of(storage, name) if not each.deleted), key=lambda each: each.modified)
        assert storage.kept_until([genuine])[0] >= now + 3 * HOUR
    storage.close()


def test_of_one_name_the_oldest_and_the_newest_are_locked_anew(client, options, data, tmp_path, monkeypatch):
    """However many an attacker puts there: the genuine one is the oldest, or was put back last."""
    monkeypatch.setattr("pharmabackup.engine.locks.OF_ONE_NAME", 4)
    url, state = fresh(), tmp_path / "state"
    with pb.Repository.create(url, WHO, storage_options=options | {"immutable": "1h"}, state_dir=state) as repo:
        repo.backup([pb.Files(data, name="data")])
    storage = connect(url, storage_options=options)
    (pack, *_) = sorted(info.name for info in storage.list("packs"))
    size = storage.info(pack).size
    for more in range(1, 7):
        client.put_object(Bucket=s3.LOCKED, Key=key(storage, pack), Body=bytes(size + more))
        time.sleep(1.1)  # it counts in seconds
    now = now_ns()
    with pb.Repository.open(url, WHO, storage_options=options | {"immutable": "2h"}, state_dir=state) as repo:
        assert "objects-replaced" in {each.code for each in repo.backup([pb.Files(data, name="data")]).findings}
    there = of(storage, pack)
    locked = {
        version.size - size
        for version, until in zip(there, storage.kept_until(there), strict=True)
        if until >= now + 3 * HOUR
    }
    assert len(there) == 7 and locked == {0, 1, 5, 6}
    storage.close()


def test_what_is_forgotten_for_good_is_not_locked_anew(options, data, tmp_path):
    url, state = fresh(), tmp_path / "state"
    with pb.Repository.create(url, WHO, storage_options=options | {"immutable": "1h"}, state_dir=state) as repo:
        leave_garbage(repo, data)
        there, forgotten = (f"snapshots/{snapshot.id}" for snapshot in repo.snapshots())
    now = now_ns()
    with pb.Repository.open(url, WHO, storage_options=options | {"immutable": "2h"}, state_dir=state) as repo:
        assert repo.backup([pb.Files(data, name="data")]).findings == ()
        after = kept(repo)
        assert after[forgotten] < now + 2 * HOUR < now + 3 * HOUR <= after[there]
        assert repo.check().findings == ()


def test_locks_of_a_replica_that_cannot_be_set_are_told_by_the_copy(options, data, tmp_path, monkeypatch):
    with pb.Repository.create(tmp_path / "first", WHO, state_dir=tmp_path / "state") as repo:
        repo.backup([pb.Files(data, name="data")])
        where = {"storage_options": options | {"immutable": "1h"}, "state_dir": tmp_path / "there"}
        with pb.Repository.create(fresh(), WHO, replica_of=repo, **where) as replica:

            def fails(self, client, version, until):
                raise StorageFailed("geht nicht.", remedy="Warten.")

            monkeypatch.setattr(type(replica._unlocked.storage), "_keep", fails)
            (told,) = repo.copy(replica).findings
            assert (told.code, told.location) == ("lock-not-renewed", replica._unlocked.storage.location)


def test_what_was_locked_in_the_other_mode_is_locked_for_longer_in_that(client, options):
    """Only who may bypass it can change it; what is stored from then on is locked as it is wanted."""
    url = fresh()
    for mode, name, hours in (("governance", "packs/a", 3), ("compliance", "packs/b", 5)):
        storage = connect(url, storage_options=options | {"immutable": "1h", "lock_mode": mode})
        storage.put_new(name, b"x")
        later = now_ns() + hours * HOUR
        there = of(storage)
        assert storage.keep(there, until=later) == [None] * len(there)
        assert all(until >= later for until in storage.kept_until(there))
        storage.close()
    modes = [
        client.get_object_retention(Bucket=s3.LOCKED, Key=key(storage, name))["Retention"]["Mode"]
        for name in ("packs/a", "packs/b")
    ]
    assert modes == ["GOVERNANCE", "COMPLIANCE"]


def test_seaweedfs_dates_anew_what_is_locked_for_longer(options):
    """So there `as_of` a time before that does not find it: docs/storage.md says what follows."""
    storage = connect(fresh(), storage_options=options | {"immutable": "1h"})
    storage.put_new("packs/a", b"x")
    (before,) = of(storage, "packs/a")
    time.sleep(1.1)
    assert storage.keep([before], until=now_ns() + 3 * HOUR) == [None]
    (after,) = of(storage, "packs/a")
    assert after.id == before.id and after.modified > before.modified
    storage.close()


def test_what_a_collection_let_go_is_no_attack(options, data, tmp_path, monkeypatch):
    url, state = fresh(), tmp_path / "state"
    monkeypatch.setattr("pharmabackup.engine.garbage.YOUNG_NS", 0)
    with pb.Repository.create(url, WHO, storage_options=options | {"immutable": "1h"}, state_dir=state) as repo:
        leave_garbage(repo, data)
        repo.apply(repo.propose_prune())
        assert hidden(repo._unlocked.storage)
    with pb.Repository.open(url, WHO, storage_options=options | {"immutable": "2h"}, state_dir=state) as repo:
        assert repo.backup([pb.Files(data, name="data")]).findings == ()


def test_a_copy_locks_anew_what_is_there(options, data, tmp_path):
    with pb.Repository.create(tmp_path / "first", WHO, state_dir=tmp_path / "state") as repo:
        repo.backup([pb.Files(data, name="data")])
        url, state = fresh(), tmp_path / "there"
        pb.Repository.create(url, WHO, storage_options=options, state_dir=state, replica_of=repo).close()
        now = now_ns()
        with pb.Repository.open(url, WHO, storage_options=options | {"immutable": "1h"}, state_dir=state) as replica:
            before = set(kept(replica))
            assert repo.copy(replica).findings == ()
            found = kept(replica)
            assert min(found[name] for name in before if "audit/" not in name) >= now + 1.5 * HOUR
            assert replica.check().findings == ()


@pytest.mark.parametrize("clock", [-HOUR, 14 * 60 * 10**9, HOUR])
def test_locks_are_set_anew_by_time_and_when_a_clock_was_wrong(options, data, tmp_path, monkeypatch, clock):
    url, state = fresh(), tmp_path / "state"
    with pb.Repository.create(url, WHO, storage_options=options | {"immutable": "1h"}, state_dir=state) as repo:
        repo.backup([pb.Files(data, name="data")])
        asked = []
        monkeypatch.setattr("pharmabackup.verbs.locks.renew_locks", lambda *_, **__: asked.append(1) or Renewed())
        real = repo._unlocked.storage.now
        monkeypatch.setattr(repo._unlocked.storage, "now", lambda: real() + clock)
        repo.backup([pb.Files(data, name="data")])
        assert bool(asked) == (abs(clock) >= HOUR)


def test_a_place_that_cannot_lock_though_the_owner_says_so_is_told(options, data, tmp_path):
    url, state = f"s3://{s3.BUCKET}/{secrets.token_hex(8)}", tmp_path / "state"
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=state) as repo:
        repo.configure(lock=timedelta(hours=1))
        assert [each.code for each in repo.backup([pb.Files(data, name="data")]).findings] == ["lock-not-possible"]
        assert [each.code for each in repo.check().findings] == ["lock-not-possible"]
    with pb.Repository.create(tmp_path / "disk", WHO, state_dir=state) as repo:  # nobody expects it of a disk
        repo.configure(lock=timedelta(hours=1))
        codes = [each.code for each in repo.backup([pb.Files(data, name="data")]).findings]
        assert not [code for code in codes if "lock" in code]


def test_who_may_not_list_versions_can_prune(options, data, tmp_path, monkeypatch):
    monkeypatch.setattr("pharmabackup.engine.garbage.YOUNG_NS", 0)
    state = tmp_path / "state"
    with pb.Repository.create(fresh(), WHO, storage_options=options | {"immutable": "1h"}, state_dir=state) as repo:
        leave_garbage(repo, data)

        def refused(self, client, prefix, at):
            raise StorageFailed("no.", kind="storage-denied")

        monkeypatch.setattr("pharmabackup.storage.s3.S3Storage._versions", refused)
        before = len(list(repo._unlocked.storage.list("packs")))
        (told,) = repo.apply(repo.propose_prune()).findings
        assert told.code == "deletion-pending" and "s3:ListBucketVersions" in told.remedy
        assert len(list(repo._unlocked.storage.list("packs"))) < before


@pytest.mark.parametrize(
    ("written", "pruned"),
    [(None, "1h"), ("1h", "1s")],
    ids=["never locked, and the period is not over", "locked for longer than who prunes thinks"],
)
def test_what_was_deleted_stays_readable_as_of_before(options, data, tmp_path, monkeypatch, written, pruned):
    monkeypatch.setattr("pharmabackup.engine.garbage.YOUNG_NS", 0)
    url, state = fresh(), tmp_path / "state"
    with pb.Repository.create(
        url, WHO, storage_options=options | ({"immutable": written} if written else {}), state_dir=state
    ) as repo:
        leave_garbage(repo, data)
    with pb.Repository.open(url, WHO, storage_options=options | {"immutable": pruned}, state_dir=state) as repo:
        storage = repo._unlocked.storage
        assert [each.code for each in repo.apply(repo.propose_prune()).findings] == ["deletion-pending"]
        gone = hidden(storage)
        time.sleep(2.2)
        assert [each.code for each in repo.apply(repo.propose_prune()).findings] == ["deletion-pending"]
        assert gone and hidden(storage) == gone
        assert all(any(not each.deleted for each in of(storage, name)) for name in gone)


def test_a_bucket_with_versions_and_no_lock_is_left_its_versions(options, data, tmp_path, monkeypatch):
    monkeypatch.setattr("pharmabackup.engine.garbage.YOUNG_NS", 0)
    with pb.Repository.create(fresh(), WHO, storage_options=options, state_dir=tmp_path / "state") as repo:
        leave_garbage(repo, data)
        assert repo.apply(repo.propose_prune()).findings == ()
        assert hidden(repo._unlocked.storage)


def test_locks_that_cannot_be_set_are_told_and_tried_again(options, data, tmp_path, monkeypatch):
    with pb.Repository.create(
        fresh(), WHO, storage_options=options | {"immutable": "1h"}, state_dir=tmp_path / "state"
    ) as repo:
        storage = repo._unlocked.storage
        real = type(storage)._keep

        def fails(self, client, version, until):
            if version.name == "repository":
                raise StorageFailed("geht nicht.", remedy="Warten.")
            real(self, client, version, until)

        monkeypatch.setattr(type(storage), "_keep", fails)
        for _ in range(2):
            report = repo.backup([pb.Files(data, name="data")])
            assert [finding.code for finding in report.findings] == ["lock-not-renewed"]
            assert "for longer: 1." in report.findings[0].message
        monkeypatch.setattr(type(storage), "_keep", real)
        assert repo.backup([pb.Files(data, name="data")]).findings == ()


def test_a_prune_leaves_what_is_locked_to_a_later_one(client, options, data, tmp_path, monkeypatch):
    url, state = fresh(), tmp_path / "state"
    given = options | {"immutable": "4s"}
    monkeypatch.setattr("pharmabackup.engine.garbage.YOUNG_NS", 0)
    with pb.Repository.create(url, WHO, storage_options=given, state_dir=state) as repo:
        leave_garbage(repo, data)
        storage = repo._unlocked.storage
        packs = {info.name for info in storage.list("packs")}
        report = repo.apply(repo.propose_prune())
        assert [finding.code for finding in report.findings] == ["deletion-pending"]
        gone = packs - {info.name for info in storage.list("packs")}
        assert gone and hidden(storage) == gone
        assert restored(repo, tmp_path) == (data / "a").read_bytes()
        storage.put_new("packs/zz", b"strange")  # nobody's, and no collection deletes it
        storage.delete(["packs/zz"])
        later = max(_until(client, storage, name) for name in gone | {"packs/zz"})
        time.sleep(max(0.0, (later - datetime.now(UTC)).total_seconds() + 1.1))
        (pending,) = (each for each in repo.propose_prune().findings if each.code == "deletion-pending")
        assert pending.severity == "info"
        assert repo.apply(repo.propose_prune()).findings == ()
        assert hidden(storage) == {"packs/zz"}
        assert restored(repo, tmp_path) == (data / "a").read_bytes()


def hidden(storage) -> set[str]:
    there = of(storage)
    shown = {version.name for version in there if version.newest and not version.deleted}
    return {version.name for version in there if version.name.startswith("packs/")} - shown


def _until(client, storage, name: str) -> datetime:
    (version,) = (each for each in versions(client, storage, name) if "Size" in each)
    kept = client.get_object_retention(Bucket=s3.LOCKED, Key=key(storage, name), VersionId=version["VersionId"])
    return kept["Retention"]["RetainUntilDate"]


@contextmanager
def nothing_deleted(client, bucket: str):
    """Nobody may delete in this bucket."""
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
                "Resource": [f"arn:aws:s3:::{bucket}/*"],
            }
        ],
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    try:
        yield
    finally:
        client.delete_bucket_policy(Bucket=bucket)


def test_credentials_that_cannot_delete_can_do_all_but_prune(client, options, data, tmp_path, monkeypatch):
    monkeypatch.setattr("pharmabackup.engine.garbage.YOUNG_NS", 0)
    url = f"s3://{s3.BUCKET}/{secrets.token_hex(8)}"
    with pb.Repository.create(url, WHO, storage_options=options, state_dir=tmp_path / "state") as repo:
        repo.backup([pb.Files(data, name="data")])
        repo.configure(forget_delay=timedelta(0))
    options = options | {"key": s3.TILL, "secret": s3.TILL_SECRET}
    with nothing_deleted(client, s3.BUCKET):
        shutil.rmtree(tmp_path / "state")
        with pb.Repository.open(url, WHO, storage_options=options, state_dir=tmp_path / "state") as repo:
            (data / "a").write_bytes(os.urandom(1 << 20))
            for _ in range(2):
                assert repo.backup([pb.Files(data, name="data")]).findings == ()
            assert restored(repo, tmp_path) == (data / "a").read_bytes()
            assert repo.check(read_data=1.0).findings == ()
            repo.apply(repo.propose_forget(snapshots=[repo.snapshots()[-1]]))
            time.sleep(1.1)
            with pytest.raises(StorageFailed) as caught:
                repo.apply(repo.propose_prune())
            assert caught.value.kind == "storage-denied"
        with pb.Repository.open(url, WHO, storage_options=options, state_dir=tmp_path / "state") as repo:
            assert restored(repo, tmp_path) == (data / "a").read_bytes()
