"""Prepare the tools: compile ours, install restic from Debian, build Borg 1.4 in an environment of its own."""

import compileall
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from measure import Failed, output_of
from tools import Borg, Restic, Tool

import pharmabackup

BORG = "borgbackup>=1.4,<1.5"
BORG_NEEDS = (
    "gcc",
    "libacl1-dev",
    "liblz4-dev",
    "libssl-dev",
    "libxxhash-dev",
    "libzstd-dev",
    "pkg-config",
    "python3-dev",
)


def ours(_work: Path) -> None:
    """Compile what is imported from a folder of sources, as whoever installs a package does."""
    (package,) = pharmabackup.__path__
    compileall.compile_dir(package, quiet=1)


def restic(_work: Path) -> None:
    if shutil.which("restic") is None:
        _apt_install("restic")


def borg(work: Path) -> None:
    """Build Borg once in `work`/borg; Borg has no wheels, so that it needs a compiler and headers."""
    home = work / "borg"
    Borg.program = home / "bin" / "borg"
    try:
        if Borg.version().startswith("1.4."):
            return
    except Failed:
        pass
    missing = [package for package in BORG_NEEDS if not _is_installed(package)]
    if missing:
        _apt_install(*missing)
    print(f"building {BORG}; this takes about a minute", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    python = os.path.join(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    output_of([python if os.path.exists(python) else sys.executable, "-m", "venv", home])
    output_of([home / "bin" / "python", "-m", "pip", "install", "--quiet", BORG])


def _is_installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return True  # not a Debian: the compiler will say what it misses
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"


def _apt_install(*packages: str) -> None:
    wanted = " ".join(packages)
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise Failed(f"please install {wanted}, for example by: sudo apt-get install {wanted}")
    print(f"apt-get install {wanted}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    output_of(["apt-get", "update", "--quiet"], env=environment)
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages]
    output_of(install, env=environment)


PEERS: dict[type[Tool], Callable[[Path], None]] = {Restic: restic, Borg: borg}
"""The peers, each with what makes it ready to run; that raises `Failed` where it cannot."""
