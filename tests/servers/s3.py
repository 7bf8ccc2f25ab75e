"""S3 on this machine: SeaweedFS, which checks credentials, and moto, which takes any."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

from tests.servers.process import free_port, running

BUCKET = "pharmacy"
LOCKED = "locked"  # a bucket with Object Lock, on SeaweedFS
KEY, SECRET = "test-key", "test-secret"
READER, READER_SECRET = "reader-key", "reader-secret"
TILL, TILL_SECRET = "till-key", "till-secret"  # no administrator: what a bucket's policy denies is denied to it


@dataclass(frozen=True)
class S3Server:
    port: int
    certificate: Path | None = None  # of a server that speaks TLS

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, object]:
        trusts = {"ca_bundle": str(self.certificate)} if self.certificate else {}
        return {"endpoint_url": self.url, "key": KEY, "secret": SECRET, "region": "us-east-1"} | trusts

    def client(self):
        return Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.url,
            verify=str(self.certificate) if self.certificate else None,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def has_bucket(self) -> bool:
        client = self.client()
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou):  # started again
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"x")  # SeaweedFS listens before it can store
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True


def program(name: str) -> str:
    """The path of a server's program, beside this Python or in PATH; the test is skipped when it is in neither."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def moto(folder: Path) -> Iterator[S3Server]:
    server = S3Server(free_port())
    command = [program("moto_server"), "-H", "127.0.0.1", "-p", str(server.port)]
    with running(command, server.port, folder, ready=server.has_bucket):
        yield server


@contextmanager
def seaweedfs(
    folder: Path, port: int | None = None, *, certificate: tuple[Path, Path] | None = None, volumes: int = 40
) -> Iterator[S3Server]:
    """`folder` keeps what is stored: a server that is started there again has it. With a certificate: TLS.

    It is full at so many `volumes` of 64 MB.
    """
    made, key = certificate or (None, None)
    identities = [
        {
            "name": "writer",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        },
        {
            "name": "till",
            "credentials": [{"accessKey": TILL, "secretKey": TILL_SECRET}],
            "actions": ["Read", "Write", "List"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
    ]
    (folder / "ids.json").write_text(json.dumps({"identities": identities}))
    with ExitStack() as stack:
        for left in reversed(range(1 if port else 3)):
            server = S3Server(port or free_port(below=55000), made)
            command = [
                program("weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                "-master.telemetry=false", f"-volume.max={volumes}", "-master.volumeSizeLimitMB=64", "-filer", "-s3",
                f"-s3.port={server.port}", "-s3.config=ids.json",
                "-s3.port.iceberg=0", "-s3.port.lance=0",  # theirs are fixed, so that a second server would not start
                *(f"-{part}.port={free_port(below=55000)}" for part in ("master", "volume", "filer")),
                *((f"-s3.cert.file={made}", f"-s3.key.file={key}") if certificate else ()),
            ]  # fmt: skip
            try:
                stack.enter_context(running(command, server.port, folder, ready=server.has_bucket))
                break
            except AssertionError:  # of the ports that it counts from these, somebody may have had one
                if not left:
                    raise
        yield server
