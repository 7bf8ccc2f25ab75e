"""The page for the drawer: what is on it, what never is, and that it is one page, in a real browser."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import pharmabackup as pb

pytest.importorskip("jinja2", reason="the extra reports is not installed")

from pharmabackup.engine.audit import note
from pharmabackup.report import Place, recovery_kit
from pharmabackup.report.kit import DATASETS_MAX, printed

HOLDERS = ["Jaya Patel", "Sam Okafor", "Lena Hughes"]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_S = 120
MARKUP = "<script>alert('x')</script>"
MakeRepo = Callable[[], pb.Repository]


class Text(HTMLParser):
    """What a person sees, and the tags that it is in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self._quiet = False
        self.feed(page)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.words += [" "] * (tag in ("td", "tr", "li", "h1", "h2", "p"))
        self._quiet = tag == "style"
        assert not {name for name, _ in attrs} & {"src", "href", "onload", "style"}

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False


@pytest.fixture
def repo(make_repo: MakeRepo, tmp_path: Path) -> pb.Repository:
    made = make_repo()
    back_up(made, tmp_path, {"pmr": 1, "documents": 3})
    return made


def back_up(repo: pb.Repository, root: Path, datasets: dict[str, int]) -> None:
    for place in range(len(datasets)):
        (root / f"data-{place}").mkdir(exist_ok=True)
        (root / f"data-{place}" / "file").write_bytes(bytes(1000 * (place + 1)))
    repo.backup(
        [pb.Files(root / f"data-{place}", name=name, tier=datasets[name]) for place, name in enumerate(datasets)]
    )


def write(repo: pb.Repository, path: Path, **more: object) -> str:
    made = recovery_kit(path, repo, **({"holders": HOLDERS} | more))  # type: ignore[arg-type]
    assert made == path
    return path.read_text("utf-8")


def test_what_where_who_and_how(repo: pb.Repository, tmp_path: Path) -> None:
    shares = repo.split_recovery()
    places = [
        Place(url=repo.url, note="the NAS in the office"),
        Place(url="s3://bucket/fa123", options={"secret": "geheim-1", "key": "geheim-2"}),
    ]
    page = write(
        repo,
        tmp_path / "kit.html",
        places=places,
        name="Harbour Street Pharmacy",
        contact="Example PMR, 0808 157 0100",
    )
    seen = Text(page).text
    (slot,) = (slot for slot in repo.slots() if slot.kind == "shares")
    said = (
        "Recovery kit: Harbour Street Pharmacy", "Example PMR, 0808 157 0100", repo.id, repo.url,
        "the NAS in the office", "s3://bucket/fa123", "Needs the storage options key, secret",
        "any 2 of these 3", *HOLDERS, slot.fingerprint, f"{slot.created:%b %Y}",
        f'python -m pip install "pharmabackup[cli]=={pb.__version__}"',
        f'pharmabackup restore restored -r "{repo.url}" --credential shares --actor',
        f'pharmabackup check-share -r "{repo.url}"', f'pharmabackup drill recovery-key -r "{repo.url}"',
        "--storage-option NAME=VALUE", "outdated", "docs/format.md", "3 kB of free space",
    )  # fmt: skip
    assert [text for text in said if text not in seen] == []
    assert seen.index("pmr 1 ") < seen.index("documents 3 ")
    newest = repo.snapshot("pmr")
    assert f"{newest.data_until:%b %Y, %H:%M}" in seen
    for secret in ("geheim", *(" ".join(share.split()[4:6]) for share in shares)):
        assert secret not in page


def test_the_newest_kit_takes_the_place_of_the_older(repo: pb.Repository, tmp_path: Path) -> None:
    """And tells of the newest key: who has the older page sees another fingerprint."""
    repo.split_recovery()
    first = write(repo, tmp_path / "kit.html")
    repo.split_recovery(threshold=3, shares=3)
    second = write(repo, tmp_path / "kit.html", threshold=3)
    old, new = (slot for slot in repo.slots() if slot.kind == "shares")
    assert old.fingerprint in first and new.fingerprint not in first
    assert new.fingerprint in second and old.fingerprint not in second
    assert [path.name for path in tmp_path.iterdir() if "kit" in path.name] == ["kit.html"]


def test_without_a_recovery_key_there_is_no_page(repo: pb.Repository, tmp_path: Path) -> None:
    with pytest.raises(pb.NotFound, match="no recovery key") as caught:
        write(repo, tmp_path / "kit.html")
    assert caught.value.kind == "recovery-key" and not (tmp_path / "kit.html").exists()


def test_a_repository_without_snapshots(make_repo: MakeRepo, tmp_path: Path) -> None:
    repo = make_repo()
    repo.split_recovery()
    assert "Nothing was backed up yet" in Text(write(repo, tmp_path / "kit.html")).text


def test_whatever_is_given_is_text(make_repo: MakeRepo, tmp_path: Path) -> None:
    from markupsafe import Markup

    repo = make_repo()
    repo.split_recovery()
    places = [Place(url=f"s3://{MARKUP.replace('/', '|')}/x", note=Markup(MARKUP), options=[MARKUP.replace("=", "")])]
    holders = [MARKUP, Markup(MARKUP), "turned \u202e around\n\x1b[2J \udc80"]
    page = write(repo, tmp_path / "kit.html", places=places, holders=holders, name=Markup(MARKUP), contact=MARKUP)
    seen = Text(page)
    assert "script" not in seen.tags and "<script" not in page
    assert seen.text.count("<script>") == 8  # title and heading, contact, address, note, option, two holders
    assert page.isascii() or not any(letter in page for letter in "\u202e\x1b\udc80")
    assert "turned \\u202e around\\n\\x1b[2J \\udc80" in seen.text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/mnt/usb/backup", "/mnt/usb/backup"),
        (r"E:\backup", r"E:\backup"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://KEY:geheim@bucket/path", "s3://bucket/path"),
        ("https://token-geheim@host/path?sig=geheim#geheim", "https://host/path"),
        ("abfs://box/path?sv=1&sig=geheim", "abfs://box/path"),
        ("sftp://backup:geheim@host:2222/srv", "sftp://backup@host:2222/srv"),
        ("sftp://backup:ge:heim@[::1]:22/srv", "sftp://backup@[::1]:22/srv"),
        ("simplecache::sftp://backup:geheim@host/srv", "simplecache::sftp://backup@host/srv"),
        ("smb://DOMAIN;user:geheim@nas/share", "smb://DOMAIN;user@nas/share"),
    ],
)  # fmt: skip
def test_no_password_stays_in_an_address(url: str, shown: str) -> None:
    assert printed(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "sftp://backup:geheim/1@host/srv",
        "sftp://backup:12/geheim@host/srv",
        "sftp://backup:12?geheim@host/srv",
        "https://geheim/token@host/srv",
        "zip://a.zip::https://user:geheim@host/a.zip",
        "://geheim",
        "s3://" + "b" * 300,
        "",
    ],
)
def test_an_address_that_may_hold_a_password_is_refused(url: str) -> None:
    with pytest.raises(pb.InvalidInput) as caught:
        printed(url)
    assert "geheim" not in str(caught.value)


def test_a_path_is_printed_from_the_root(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.split_recovery()
    monkeypatch.chdir(tmp_path)
    assert f'-r "{tmp_path / "nas"}"' in Text(write(repo, tmp_path / "kit.html", places=[Place(url="nas")])).text


def test_an_address_that_a_shell_takes_for_more_is_not_in_a_command(repo: pb.Repository, tmp_path: Path) -> None:
    repo.split_recovery()
    seen = Text(write(repo, tmp_path / "kit.html", places=[Place(url='/mnt/$(x)"')])).text
    assert '-r "ADDRESS"' in seen and "ADDRESS is place 1 above" in seen and '/mnt/$(x)"' in seen


@pytest.mark.parametrize(
    "wrong",
    [
        {"holders": []},
        {"holders": "Jaya"},
        {"holders": ["Jaya", " "]},
        {"holders": ["Jaya"], "threshold": 2},
        {"threshold": 1},
        {"threshold": 4},
        {"holders": ["Jaya"] * 17},
        {"places": [Place(url="s3://x")] * 7},
        {"places": [Place(url="s3://x", options=["secret=geheim"])]},
        {"places": [Place(url="s3://x", options=["o"] * 9)]},
        {"name": None},
    ],
)
def test_what_cannot_be_is_refused(repo: pb.Repository, tmp_path: Path, wrong: dict[str, object]) -> None:
    repo.split_recovery()
    with pytest.raises(pb.InvalidInput) as caught:
        write(repo, tmp_path / "kit.html", **wrong)
    assert "geheim" not in str(caught.value) and not (tmp_path / "kit.html").exists()


@pytest.mark.parametrize(("threshold", "holders"), [(3, HOLDERS), (2, HOLDERS[:2]), (2, [*HOLDERS, "Ann Dee"])])
def test_no_other_number_than_it_takes_is_printed(
    repo: pb.Repository, tmp_path: Path, threshold: int, holders: list[str]
) -> None:
    """After a fire nobody can look it up; the audit log knows how the newest key was split."""
    repo.split_recovery(threshold=3, shares=4)
    repo.split_recovery(threshold=2, shares=3)
    with pytest.raises(pb.InvalidInput) as caught:
        write(repo, tmp_path / "kit.html", threshold=threshold, holders=holders)
    assert "2 of 3" in str(caught.value) and not (tmp_path / "kit.html").exists()
    assert "any 2 of these 3" in Text(write(repo, tmp_path / "kit.html")).text


def test_what_a_device_writes_of_splits_counts_for_nothing(repo: pb.Repository, tmp_path: Path) -> None:
    repo.split_recovery()
    key = pb.KeyFile.create(tmp_path / "till.key")
    repo.enrol("device", key, name="till")
    with pb.Repository.open(repo.url, key, state_dir=tmp_path / "till") as till:
        note(till._unlocked, "split-recovery", "3 of 3", reason=None)
    assert [record.subject for record in repo.audit() if record.slot == "till"][:1] == ["3 of 3"]
    assert "any 2 of these 3" in Text(write(repo, tmp_path / "kit.html")).text


def test_it_is_written_whole_or_not_at_all(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.split_recovery()
    folder = tmp_path / "drawer"
    folder.mkdir()
    before = write(repo, folder / "kit.html")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(pb.SourceFailed, match="cannot be written: No space left"):
            write(repo, folder / "kit.html", name="another")
    assert [path.name for path in folder.iterdir()] == ["kit.html"]
    assert (folder / "kit.html").read_text("utf-8") == before
    with pytest.raises(pb.SourceFailed, match="cannot be written"):
        recovery_kit(folder / "no" / "kit.html", repo, holders=HOLDERS)


def test_without_the_extra_it_is_said_what_to_install(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.split_recovery()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(pb.Unsupported, match=r'pip install "pharmabackup\[reports\]"') as caught:
        write(repo, tmp_path / "kit.html")
    assert caught.value.kind == "extra-missing"


def test_of_each_dataset_the_newest_is_on_it(repo: pb.Repository, tmp_path: Path) -> None:
    repo.split_recovery()
    assert "1 kB" in Text(write(repo, tmp_path / "kit.html")).text
    (tmp_path / "data-0" / "file").write_bytes(b"changed")
    repo.backup([pb.Files(tmp_path / "data-0", name="pmr", tier=1)])
    seen = Text(write(repo, tmp_path / "kit.html")).text
    assert "7 bytes" in seen and " 1 kB" not in seen and " 2 kB" in seen


# ------------------------------------------------------------ one page


def pages(path: Path, tmp_path: Path) -> int:
    """Of A4, as a browser prints it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of these browsers is here: {', '.join(BROWSERS)}")
    printed_to = tmp_path / "kit.pdf"
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer",
            f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={printed_to}", path.as_uri(),
        ],
        capture_output=True, timeout=BROWSER_S,
    )  # fmt: skip
    assert printed_to.exists(), done.stderr.decode("utf-8", "replace")[-2000:]
    data = printed_to.read_bytes()
    sizes = {
        tuple(round(float(side)) for side in box.split()[2:])
        for box in re.findall(rb"/MediaBox\s*\[([^\]]*)\]", data)
    }
    assert all(abs(wide - 595) <= 1 and abs(high - 842) <= 1 for wide, high in sizes) and sizes
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", data))


def test_a_pharmacys_kit_is_one_page(make_repo: MakeRepo, tmp_path: Path) -> None:
    """Eight datasets, three locations, five holders."""
    repo = make_repo()
    repo.split_recovery(threshold=3, shares=5)
    back_up(repo, tmp_path, {f"dataset {place} of the pharmacy in Harbour Street": place % 6 for place in range(8)})
    places = [
        Place(url="/mnt/nas/backup/harbour-street", note="the NAS in the office"),
        Place(url="s3://backup-of-pharmacies/fa123/repository", options=["endpoint_url", "key", "secret"]),
        Place(url="/media/PHARM-USB-A/backup", note="the disk in the fire safe, changed on Fridays"),
    ]
    holders = [*HOLDERS, "Bank of the High Street, deposit box 12", "Notary M. Example"]
    path = tmp_path / "kit.html"
    write(
        repo, path, places=places, holders=holders, threshold=3, name="Harbour Street Pharmacy", contact="Example PMR"
    )
    assert pages(path, tmp_path) == 1


def test_the_fullest_kit_is_one_page(make_repo: MakeRepo, tmp_path: Path) -> None:
    """As much of everything as it takes, in the widest letters; of more datasets it says how many."""
    repo = make_repo()
    repo.split_recovery(threshold=16, shares=16)
    back_up(repo, tmp_path, {f"{place:02} " + "W" * 90: place % 6 for place in range(DATASETS_MAX + 3)})
    place = Place(url="s3://" + "W" * 290, options=["W" * 40 + str(n) for n in range(8)], note="W" * 200)
    path, holders = tmp_path / "kit.html", ["W" * 90] * 16
    page = write(repo, path, places=[place] * 6, holders=holders, threshold=16, name="W" * 90, contact="W" * 200)
    assert "And 3 more." in Text(page).text
    assert pages(path, tmp_path) == 1
