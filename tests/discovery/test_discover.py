"""What is on a machine, and what of it is in no backup: real files, servers and programs."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.discovery import Inventory, discover, disks, processes
from tests.servers.mariadb import PASSWORD as MARIADB_PASSWORD
from tests.servers.mariadb import mariadb
from tests.servers.postgresql import PASSWORD, postgres
from tests.storage.mounts import tmpfs

pytest.importorskip("psutil")


def database(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE entry (id)")
    connection.commit()
    connection.close()
    return path


def documents(folder: Path, count: int = 12, ending: str = ".pdf") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}{ending}").write_bytes(b"x" * 100)
    return folder


def found(inventory: Inventory, root: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of files, by place below a folder: kind, and who backs it up."""
    return {
        item.place.removeprefix(f"{root}{os.sep}").replace(os.sep, "/"): (item.kind, item.covered_by)
        for item in inventory.items
        if item.place.startswith(str(root))
    }


def search(sources=(), *, ignore: Sequence[str] = (), **more) -> Inventory:
    """Without the servers that other tests have, or this machine."""
    return discover(sources, ignore=[*ignore, "localhost:*", *processes.PROGRAMS], **more)


def codes(inventory: Inventory, code: str) -> list[str]:
    return [finding.subject for finding in inventory.findings if finding.code == code]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "machine"
    folder.mkdir()
    return folder


# ---------------------------------------------------------------- files


def test_databases_are_known_by_how_they_begin_whatever_they_are_called(root):
    database(root / "PMR" / "data.pmr")
    (root / "PMR" / "labels.mdb").write_bytes(b"\0\1\0\0Standard Jet DB\0" + bytes(4096 - 20))
    (root / "PMR" / "new.accdb").write_bytes(b"\0\1\0\0Standard ACE DB\0" + bytes(4096 - 20))
    (root / "PMR" / "old.fdb").write_bytes(b"\1\0" + bytes(4094))
    (root / "PMR" / "big.mdf").write_bytes(b"\1\x0f" + bytes(8190))
    (root / "FOX").mkdir()
    (root / "FOX" / "PATIENTS.DBF").write_bytes(b"\x30" + bytes(500))
    (root / "FOX" / "STOCK.DBF").write_bytes(b"\x03" + bytes(300))
    # What is none, though it looks so from afar.
    (root / "PMR" / "text.db").write_bytes(b"no database".ljust(4096))
    (root / "PMR" / "cut.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    (root / "PMR" / "other.fdb").write_bytes(b"\2" + bytes(4095))
    (root / "PMR" / "image.png").write_bytes(b"SQLite format 3\0" + bytes(4080))
    inventory = search(roots=[root])
    assert found(inventory, root) == {
        "PMR/data.pmr": ("sqlite", ()),
        "PMR/labels.mdb": ("access", ()),
        "PMR/new.accdb": ("access", ()),
        "PMR/old.fdb": ("firebird", ()),
        "PMR/big.mdf": ("sqlserver", ()),
        "FOX": ("dbase", ()),
    }
    [fox] = [item for item in inventory.items if item.kind == "dbase"]
    assert fox.size == 501 + 301 and fox.changed is not None
    [finding] = [each for each in inventory.findings if each.subject == str(root / "PMR" / "data.pmr")]
    assert finding.code == "not-covered" and "--sqlite" in finding.remedy and inventory.state == "warning"


def test_what_sources_back_up_is_not_told(root):
    pmr = database(root / "PMR" / "pmr.db")
    documents(root / "Scans" / "2026")
    documents(root / "Letters")
    sources = [pb.SQLite(pmr), pb.Files(root / "Scans", name="scans")]
    inventory = search(sources, roots=[root])
    assert found(inventory, root) == {
        "PMR/pmr.db": ("sqlite", ("pmr",)),
        "Scans": ("folder", ("scans",)),
        "Letters": ("folder", ()),
    }
    assert codes(inventory, "not-covered") == [str(root / "Letters")]
    assert inventory.uncovered == (next(item for item in inventory.items if item.place.endswith("Letters")),)
    assert search([*sources, pb.Files(root / "Letters")], roots=[root]).state == "ok"


def test_folders_are_named_once_and_what_is_left_of_one_is_told(root):
    documents(root / "Documents" / "a" / "deep")
    documents(root / "Documents" / "b")
    documents(root / "Few", count=disks.FEW - 1)
    inventory = search([pb.Files(root / "Documents" / "b", name="b")], roots=[root])
    assert found(inventory, root) == {"Documents": ("folder", ())}
    [item] = [item for item in inventory.items if item.kind == "folder"]
    assert item.size == 12 * 100 and "beside others that are backed up" in item.text
    both = [pb.Files(root / "Documents" / name, name=name) for name in "ab"]
    assert found(search(both, roots=[root]), root) == {"Documents": ("folder", ("a", "b"))}


def test_documents_that_lie_in_the_folder_itself_are_its_own(root):
    documents(root)
    assert [item.place for item in search(roots=[root]).items if item.kind == "folder"] == [str(root)]


def test_what_patterns_leave_out_is_not_covered(root):
    documents(root / "PMR" / "letters")
    documents(root / "PMR" / "scans")
    database(root / "PMR" / "a.db")
    excluded = pb.Files(root / "PMR", name="pmr", exclude=["scans", "*.db"])
    inventory = search([excluded], roots=[root])
    assert found(inventory, root) == {"PMR/a.db": ("sqlite", ()), "PMR": ("folder", ())}
    included = pb.Files(root / "PMR", name="pmr", include=["letters"])
    assert included.covers(root / "PMR" / "letters" / "x.pdf") and not included.covers(root / "PMR" / "scans")
    assert not included.covers(root) and not excluded.covers(root / "PMR" / "scans" / "deep" / "x")


def test_a_database_in_use_that_is_copied_as_a_file_is_told(root):
    path = database(root / "PMR" / "pmr.db")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("INSERT INTO entry VALUES (1)")
    connection.commit()
    try:
        inventory = search([pb.Files(root / "PMR", name="all")], roots=[root])
        [finding] = [finding for finding in inventory.findings if finding.code == "copied-while-in-use"]
        assert str(path) in finding.message and "exclude" in finding.remedy and inventory.state == "warning"
        spared = [pb.Files(root / "PMR", name="all", exclude=["*.db*"]), pb.SQLite(path)]
        assert search(spared, roots=[root]).state == "ok"
    finally:
        connection.close()
    assert codes(search([pb.Files(root / "PMR", name="all")], roots=[root]), "copied-while-in-use") == []


def test_what_is_ignored_is_there_and_not_told(root):
    database(root / "old" / "till.db")
    database(root / "pmr.db")
    inventory = search(roots=[root], ignore=[f"*{os.sep}old{os.sep}*"])
    assert codes(inventory, "not-covered") == [str(root / "pmr.db")]
    assert {Path(item.place).name: item.ignored for item in inventory.items if item.kind == "sqlite"} == {
        "till.db": True,
        "pmr.db": False,
    }


@pytest.mark.parametrize("name", ["node_modules", "$RECYCLE.BIN", "site-packages"])
def test_what_programs_keep_is_not_entered(root, name):
    database(root / "a" / name / "x.db")
    assert found(search(roots=[root]), root) == {}


@pytest.mark.skipif(not hasattr(os, "symlink") or sys.platform == "win32", reason="needs links that anybody may make")
def test_links_are_not_followed(root, tmp_path):
    database(tmp_path / "other" / "x.db")
    (root / "link").symlink_to(tmp_path / "other")
    (root / "loop").symlink_to(root)
    (root / "file.db").symlink_to(tmp_path / "other" / "x.db")
    assert found(search(roots=[root]), root) == {}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives its rights away")
def test_a_folder_that_may_not_be_read_is_told(root, tmp_path):
    (root / "secret").mkdir(mode=0o700)
    database(root / "x.db")
    for folder in [root, *root.parents]:
        if folder.stat().st_mode & 0o005 != 0o005 and folder.owner() == "root":
            folder.chmod(0o755)
    script = (
        "import os, sys; from pharmabackup.discovery import discover; os.setuid(65534);"
        f"print([(f.code, f.severity, f.subject) for f in discover(roots=[{str(root)!r}]).findings])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert repr(("not-looked-into", "info", str(root / "secret"))) in done.stdout and "x.db" in done.stdout


def test_other_file_systems_of_the_machine_are_left_out(root, monkeypatch):
    database(root / "mounted" / "x.db")
    database(root / "here" / "x.db")
    monkeypatch.setattr(disks, "foreign_mounts", lambda: iter([str(root / "mounted")]))
    assert set(found(search(roots=[root]), root)) == {"here/x.db"}


def test_mounts_of_the_system_are_foreign_and_its_own_disk_is_not():
    mounts = set(processes.foreign_mounts())
    assert os.path.abspath(os.sep) not in mounts
    if sys.platform == "linux":
        assert "/proc" in mounts


def test_a_whole_disk_is_looked_through_without_the_system(root, monkeypatch):
    for place in (
        "usr/share/x.db",
        "proc/x.db",
        "var/lib/dpkg/x.db",
        "lib64/x.db",
        "var/lib/pmr/x.db",
        "home/pat/x.db",
    ):
        database(root / place)
    for place in ("home/pat/Documents/a", "srv/scans/deep", "opt/pmr/data", "var/lib/pmr/letters"):
        documents(root / place)
    monkeypatch.setattr("pharmabackup.discovery.default_roots", lambda: [root])
    monkeypatch.setattr(disks, "WINDOWS", False)
    inventory = search()
    assert set(found(inventory, root)) == {
        "var/lib/pmr/x.db", "home/pat/x.db", "home/pat/Documents", "srv/scans", "opt/pmr", "var/lib/pmr",
    }  # fmt: skip
    assert inventory.roots == (root,)


def test_it_can_be_stopped_and_says_where_it_is(root):
    documents(root / "a" / "b")
    cancel, heard = threading.Event(), []

    def progress(folder: Path) -> None:
        heard.append(folder)
        if folder.name == "a":
            cancel.set()

    with pytest.raises(pb.Cancelled):
        search(roots=[root], progress=progress, cancel=cancel)
    assert heard == [root, root / "a"]


def test_a_root_that_is_no_folder_is_refused(root):
    with pytest.raises(pb.InvalidInput, match="is no folder"):
        search(roots=[root / "none"])


def test_an_inventory_is_told_to_programs(root):
    database(root / "x.db")
    told = json.loads(json.dumps(search(roots=[root], ignore=["localhost*", "mongod"]).to_dict()))
    [item] = [item for item in told["items"] if item["place"] == str(root / "x.db")]
    assert item["kind"] == "sqlite" and item["covered_by"] == [] and item["changed"].endswith("Z")
    assert told["state"] == "warning" and told["findings"] and told["roots"] == [str(root)]


def test_a_folder_that_was_named_is_looked_through_whatever_it_is_called(root):
    database(root / "temp" / ".hidden" / "x.db")
    assert found(search(roots=[root / "temp"]), root) == {"temp/.hidden/x.db": ("sqlite", ())}


def test_documents_that_a_pattern_leaves_out_are_in_no_backup(root):
    documents(root / "Letters")
    without = pb.Files(root / "Letters", name="letters", exclude=["*.pdf"])
    assert found(search([without], roots=[root]), root) == {"Letters": ("folder", ())}
    only = pb.Files(root / "Letters", name="letters", include=["*.pdf"])
    assert found(search([only], roots=[root]), root) == {"Letters": ("folder", ("letters",))}


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")
def test_another_file_system_that_is_left_out_is_not_covered(root):
    with tmpfs("2m") as mounted:
        outer = mounted.parent
        assert pb.Files(outer, name="x").covers(mounted / "x")
        staying = pb.Files(outer, name="x", one_file_system=True)
        (mounted / "x").touch()
        (outer / "y").touch()
        assert staying.covers(outer / "y") and not staying.covers(mounted / "x")


def test_files_that_go_while_they_are_looked_at_hide_no_others(root, monkeypatch):
    database(root / "a.db")
    database(root / "b.db")
    real = os.scandir

    class Going:
        def __init__(self, entry):
            self._entry = entry
            self.name, self.path = entry.name, entry.path

        def stat(self, **more):
            if self.name == "a.db":
                raise FileNotFoundError
            return self._entry.stat(**more)

    class Scanned:
        def __init__(self, folder):
            self._found = real(folder)

        def __enter__(self):
            return (Going(entry) for entry in self._found)

        def __exit__(self, *_):
            self._found.close()

    with monkeypatch.context() as patched:
        patched.setattr(disks.os, "scandir", Scanned)
        inventory = search(roots=[root])
    assert set(found(inventory, root)) == {"b.db"}


def test_what_a_cloud_keeps_is_counted_and_not_opened(root):
    """Windows' attributes: a folder of OneDrive is entered, a junction is not; what is not here is not read."""

    class Status:
        def __init__(self, tag: int = 0, attributes: int = 0) -> None:
            self.st_reparse_tag, self.st_file_attributes = tag, attributes

    assert not disks._leads_away(Status(0x9000001A)) and disks._leads_away(Status(0xA0000003))
    assert disks._is_away(Status(attributes=0x400000)) and not disks._is_away(Status(attributes=0x20))


# ---------------------------------------------------------------- servers


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        with server.connect() as connection:
            connection.autocommit = True
            connection.execute("CREATE DATABASE pmr")
            connection.execute("CREATE DATABASE claims")
        yield server


def places(inventory: Inventory, port: int) -> dict[str, tuple[str, ...]]:
    return {item.place: item.covered_by for item in inventory.items if f":{port}" in item.place}


def test_a_server_that_runs_is_found_and_asked_for_its_databases_through_a_source(served, root):
    port = served.port
    inventory = discover(roots=[root])
    assert places(inventory, port) == {f"localhost:{port}": ()}
    [finding] = [finding for finding in inventory.findings if finding.subject == f"localhost:{port}"]
    assert "A PostgreSQL server runs on this machine, and no source backs it up." in finding.message
    pmr = pb.PostgreSQL(served.url("pmr"), password=PASSWORD)
    inventory = discover([pmr], roots=[root])
    assert places(inventory, port) == {f"localhost:{port}/claims": (), f"localhost:{port}/pmr": ("pmr",)}
    assert f"localhost:{port}/claims" in codes(inventory, "not-covered")
    whole = pb.PostgreSQLCluster(served.url("postgres"), name="all", password=PASSWORD)
    assert set(places(discover([whole], roots=[root]), port).values()) == {("all",)}


def test_a_server_that_cannot_be_asked_is_told(served, root):
    wrong = pb.PostgreSQL(served.url("pmr"), password="not this")
    inventory = discover([wrong], roots=[root])
    assert codes(inventory, "not-asked") == ["pmr"] and places(inventory, served.port) == {
        f"localhost:{served.port}": ()
    }
    assert "wrong" not in " ".join(map(str, inventory.findings)).replace("password is wrong", "")


def test_the_files_of_a_server_that_runs_are_not_documents_and_not_to_be_copied(served, tmp_path):
    above = served.data.parent
    inventory = discover([pb.Files(above, name="all")], roots=[above])
    assert codes(inventory, "copied-while-in-use") == ["all"]
    assert not [item for item in inventory.items if item.place.startswith(str(above))]


def test_files_of_a_server_that_does_not_run_are_found(root, monkeypatch):
    monkeypatch.setattr("pharmabackup.discovery.running", list)  # other tests' servers come and go
    for name in ("PG_VERSION", "global", "base"):
        (root / "old pg" / name).mkdir(parents=True)
    for name in ("ibdata1", "mysql"):
        (root / "old maria" / name).mkdir(parents=True)
    assert found(discover(roots=[root]), root) == {"old pg": ("postgresql", ()), "old maria": ("mysql", ())}


def test_databases_of_mariadb_are_asked_for_too(tmp_path, root):
    pytest.importorskip("pymysql")
    (tmp_path / "server").mkdir()
    with mariadb(tmp_path / "server") as server:
        with server.connect() as connection, connection.cursor() as cursor:
            for name in ("pmr", "claims"):
                cursor.execute(f"CREATE DATABASE {name}")
        port = server.port
        assert places(discover(roots=[root]), port) == {f"localhost:{port}": ()}
        pmr = pb.MySQL(server.url("pmr"), password=MARIADB_PASSWORD)
        assert places(discover([pmr], roots=[root]), port) == {
            f"localhost:{port}/claims": (),
            f"localhost:{port}/pmr": ("pmr",),
        }
        whole = pb.MariaDBInstance(f"mariadb://{server.user}@127.0.0.1:{port}", name="all", password=MARIADB_PASSWORD)
        assert set(places(discover([whole], roots=[root]), port).values()) == {("all",)}
        inventory = discover([pb.Files(server.data, name="copy")], roots=[server.data.parent])
        assert codes(inventory, "copied-while-in-use") == ["copy"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives its rights away")
def test_whose_files_these_are_is_not_said_where_it_cannot_be_seen(tmp_path):
    pytest.importorskip("pymysql")
    (tmp_path / "server").mkdir()
    with mariadb(tmp_path / "server") as server:
        server.data.chmod(0o755)
        for folder in server.data.parents:
            if folder.stat().st_mode & 0o005 != 0o005 and folder.owner() == "root":
                folder.chmod(0o755)
        where = str(server.data.parent)
        script = (
            "import os; from pharmabackup.discovery import discover; os.setuid(65534);"
            f"found = discover(roots=[{where!r}]);"
            "print([(f.code, f.subject) for f in found.findings], [i.text for i in found.items])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert repr(("not-looked-into", str(server.data))) in done.stdout and "does not run" not in done.stdout


def test_a_server_that_ends_while_it_is_looked_at_is_none(monkeypatch):
    import psutil

    class Ending:
        def name(self):
            return "mongod"

        def parent(self):
            return None

        def net_connections(self, _kind):
            raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(psutil, "process_iter", lambda *_: [Ending()])
    assert processes.running() == []


def test_a_server_whose_starter_is_gone_is_found_all_the_same(monkeypatch):
    import psutil

    class Orphan:
        def name(self):
            return "mongod.exe"

        def parent(self):
            raise psutil.NoSuchProcess(1)

        def net_connections(self, _kind):
            raise psutil.AccessDenied

        def cwd(self):
            raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "process_iter", lambda *_: [Orphan()])
    assert processes.running() == [processes.Running("server", "A MongoDB server", "mongod", frozenset(), None)]


def test_this_machine_s_own_addresses_are_this_machine(served, root):
    own = next((one for one in processes.own_addresses() if "." in one and not one.startswith("127.")), None)
    if own is None:
        pytest.skip("this machine has no network")
    source = pb.PostgreSQL(served.url("pmr"), password=PASSWORD)
    seen = source.served()
    elsewhere = type(seen)(
        product="postgresql", host=own, port=seen.port, databases=seen.databases, database=seen.database
    )
    source.served = lambda: elsewhere
    assert places(discover([source], roots=[root]), served.port)[f"localhost:{served.port}/pmr"] == ("pmr",)


@pytest.mark.skipif(sys.platform == "win32", reason="a program of another name is made with a link")
def test_other_servers_are_known_by_their_programs(root, tmp_path):
    sleeper = shutil.which("sleep")
    assert sleeper is not None
    program = tmp_path / "mongod"
    shutil.copy(sleeper, program)
    process = subprocess.Popen([program, "60"])
    try:
        inventory = discover(roots=[root])
        assert "mongod" in codes(inventory, "not-covered")
        assert "mongod" not in codes(discover(roots=[root], ignore=["mongod"]), "not-covered")
    finally:
        process.kill()
        process.wait()


def test_without_psutil_it_is_said_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(pb.Unsupported, match=r"pharmabackup\[discover\]"):
        discover(roots=[root])


# ---------------------------------------------------------------- the command


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    others = [word for name in ("localhost:*", *processes.PROGRAMS) for word in ("--ignore", name)]
    command = [sys.executable, "-m", "pharmabackup", "discover", str(root), *others, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_shows_what_nobody_backs_up_and_ends_with_a_warning(root):
    pmr = database(root / "pmr.db")
    documents(root / "Letters")
    done = run(root)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("NOBODY") == 2 and "of which 2 are not backed up" in done.stdout
    assert "--sqlite" in done.stderr
    done = run(root, "--sqlite", str(pmr), "--files", str(root / "Letters"))
    assert done.returncode == 0 and "NOBODY" not in done.stdout and "of which none are not backed up" in done.stdout
    told = json.loads(run(root, "--sqlite", str(pmr), "--json").stdout)
    assert [item["covered_by"] for item in told["items"] if item["kind"] == "sqlite"] == [["pmr"]]
