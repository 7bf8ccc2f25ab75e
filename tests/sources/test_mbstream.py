"""What mariadb-backup writes, read in passing."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmabackup.sources.mbstream import Strange, Stream, checked_settings, data_files

SETTINGS = b"# A comment\n\n[mysqld]\ninnodb_page_size=16384\ninnodb_data_file_path=ibdata1:12M:autoextend\n"


def chunk(path: str, content: bytes = b"", *, kind: str = "P") -> bytes:
    name = path.encode()
    head = b"XBSTCK01\0" + kind.encode() + len(name).to_bytes(4, "little") + name
    if kind == "E":
        return head
    return head + len(content).to_bytes(8, "little") + bytes(8) + crc32(content).to_bytes(4, "little") + content


def whole() -> list[bytes]:
    return [chunk("backup-my.cnf", SETTINGS), chunk("backup-my.cnf", kind="E")]


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


@given(
    st.lists(st.tuples(st.sampled_from(["pmr/a.ibd", "ibdata1", "x"]), st.binary(max_size=5000)), max_size=5),
    st.integers(1, 6000),
)
def test_a_stream_passes_as_it_is_however_it_is_cut(chunks, size):
    parts = [chunk(path, content) for path, content in chunks] + [chunk("x", kind="E"), *whole()]
    found = Stream()
    assert b"".join(found.through(cut(b"".join(parts), size))) == b"".join(parts)
    assert found.settings == [
        "[mysqld]",
        "innodb_page_size=16384",
        "innodb_data_file_path=ibdata1:12M:autoextend",
        "innodb_undo_directory=./",
    ]


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(
    "bad",
    [
        chunk("../../etc/cron.d/x", b"x"),
        chunk("/etc/cron.d/x", b"x"),
        chunk("pmr/../../x", kind="E"),
        chunk("..\\x", b"x"),
        chunk("C:x", b"x"),
        chunk("a\0b", b"x"),
        chunk("", b"x"),
        chunk("pmr/far.isl", b"/etc/x.ibd"),
        chunk("pmr/FAR.ISL", b"/etc/x.ibd"),
        chunk("x", b"x", kind="S"),
        chunk("x" * 5000, b"x"),
        chunk("pmr/a.ren", b"../../out/pwn"),
        chunk("pmr/a.ren", b"../pwn"),
        chunk("pmr/a.ren", b"/etc/x"),
        chunk("pmr/a.ren", b"b"),
        chunk("pmr/a.ren", b"b/c") + chunk("pmr/a.ren", b"/d"),
        chunk("pmr/a.ren", b"x" * 70_000),
        chunk("backup-my.cnf", b"plugin_load=evil\n"),
        chunk("pmr/a.ren", b"pmr/b") + chunk("./pmr/a.ren", b"pmr/b"),
        chunk("x//y", b"x") + chunk("x/y", b"x"),
        b"something else entirely, and long enough",
        chunk("a", b"abc")[:-1],
        chunk("a", b"abc")[:20],
        b"XBSTC",
    ],
)
def test_a_stream_that_would_write_elsewhere_or_is_not_whole_is_refused(bad, size):
    stream = chunk("ibdata1", b"x" * 40) + b"".join(whole()) + bad
    with pytest.raises(Strange):
        list(Stream().through(cut(stream, size)))


def test_tables_whose_names_differ_in_large_letters_alone_are_two():
    list(Stream().through([chunk("pmr/A.ibd", b"x"), chunk("pmr/a.ibd", b"x"), *whole()]))


def test_a_table_that_was_renamed_meanwhile_is_none_of_that():
    list(Stream().through([chunk("pmr/a.ren", b"pmr/b"), chunk("pmr/a.ren", kind="E"), *whole()]))
    with pytest.raises(Strange, match="no settings"):
        list(Stream().through([chunk("pmr/a.ibd", b"x")]))


@pytest.mark.parametrize(
    "line",
    ["plugin_load=evil", "plugin-dir=./", "innodb_data_home_dir=/etc", "innodb_data_file_path=/etc/passwd:12M",
     "innodb_data_file_path=ibdata1:12M;../x:1M:autoextend", "tmpdir=/etc", "!include /etc/x", "plugin-load=evil",
     "loose-plugin_load=evil", "nonsense", "innodb_data_file_path='a:1M'", "plugin_load=provider_lz4=evil",
     "plugin_load=provider_lz4=provider_lz4;evil=evil", "plugin_load=file_key_management=../x",
     f"file_key_management_filename={'x' * 500}plugin_load=server_audit=server_audit",
     "file_key_management_filename=a\tb", 'file_key_management_filename="/dev/zero"',
     "file_key_management_filename=/dev/zero # x", "[mariadb]", "plugin_load = evil"],
)  # fmt: skip
def test_settings_that_would_reach_elsewhere_are_refused(line):
    """They are read by the program that prepares a backup, which may be root's."""
    with pytest.raises(Strange):
        checked_settings(SETTINGS + line.encode() + b"\n")


@pytest.mark.parametrize(
    "line",
    ["plugin_load=provider_bzip2=provider_bzip2;provider_lz4=provider_lz4",
     "plugin_load=file_key_management=file_key_management.so", "file_key_management_digest=sha1",
     "file_key_management_use_pbkdf2=0", "file_key_management_filekey=", "innodb_encrypt_log=1",
     "innodb_checksum_algorithm=full_crc32", "innodb_data_file_path=ib-data:12M;second:1M:autoextend:max:9G",
     "file_key_management_filename=C:\\keys\\my keys.txt"],
)  # fmt: skip
def test_settings_of_real_servers_are_known(line):
    assert line in checked_settings(b"[mysqld]\n" + line.encode() + b"\n")


@pytest.mark.parametrize(
    "line",
    ["innodb_undo_directory=./", "innodb_undo_directory=.\\", "innodb_undo_directory=/var/lib/mysql",
     'plugin_dir="/usr/lib/mysql/plugin/"'],
)  # fmt: skip
def test_what_this_machine_knows_better_is_its_own(line):
    assert checked_settings(line.encode()) == ["[mysqld]", "innodb_undo_directory=./"]


def test_the_files_of_the_system_tablespace_are_named_by_it():
    assert data_files(["innodb_data_file_path=a:1M;b-c:2M:autoextend"]) == ["a", "b-c"]
    assert data_files([]) == ["ibdata1"]
