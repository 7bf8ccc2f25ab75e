"""S3 and what speaks its protocol: `s3://bucket/prefix`, through botocore's own synchronous client.

An object is one PUT with `If-None-Match: *`; S3 takes up to 5 GB in one, and objects here are some tens of MB. Its
CRC-32 goes along, signed, and the server compares it. Where no TLS with a trusted certificate protects the line, or
`sign_content` asks for it, the whole body is signed, too. Credentials come from where AWS's tools take them
(environment, profiles, SSO, instance roles) unless storage_options name some.
"""

from __future__ import annotations

import base64
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self, cast

import botocore
import botocore.exceptions as raised
from botocore.config import Config
from botocore.handlers import add_expect_header
from botocore.session import Session

from pharmabackup.clock import from_ns
from pharmabackup.errors import Error, InvalidInput, Unsupported
from pharmabackup.storage import failures, remote
from pharmabackup.storage.base import Capabilities, ObjectInfo, Version, is_name
from pharmabackup.storage.body import Body
from pharmabackup.storage.locking import LockingStorage, Versions
from pharmabackup.storage.options import Options
from pharmabackup.storage.ranges import content_range
from pharmabackup.storage.remote import Created, Page, Stored
from pharmabackup.storage.s3_failures import (
    DENIED,
    EXPIRED,
    GONE,
    NO_LOCKS,
    code_of,
    from_code,
    from_error,
    status_of,
    unusable,
)
from pharmabackup.storage.unlogged import unlogged_by

PIECE = 1 << 20  # bytes read from an answer at a time
POOL = 32  # connections kept open
LOCK_RIGHTS = (
    "Give these credentials s3:PutObjectRetention besides writing, or take the lock out of the options and of the "
    "owner's rules."
)
MARK = "pharmabackup-upload"  # the metadata that tells whose an object is


class S3Storage(LockingStorage[Any]):
    """The objects below `prefix` in `bucket`. Options as s3fs names them, where it has them.

    `key`, `secret`, `token`, `profile`, `region`, `endpoint_url` (of a server that is not AWS's), `ca_bundle` (a file
    of certificates), `verify` (false trusts any certificate), `anon` (true signs nothing) and `sign_content` (true
    signs what is sent over TLS, too). `immutable` (35d) locks what is stored; `lock_mode` is compliance, which nobody
    can end, or governance. `as_of` reads what was there then.
    """

    options = Options(
        text=("key", "secret", "token", "profile", "region", "endpoint_url", "ca_bundle", "lock_mode"),
        switches=("verify", "anon", "sign_content"),
        periods=("immutable",),
        moments=("as_of",),
    )
    capabilities = Capabilities(exclusive_create=True, fresh_listing=True)
    reads_first = True  # for the signature, where it covers the content
    remove_together = 1000

    def __init__(self, bucket: str, prefix: str, options: Mapping[str, object]) -> None:
        given = self.options.checked("s3", options)
        if bool(given.text.get("key")) != bool(given.text.get("secret")):
            raise InvalidInput(
                "Of key and secret one is missing.", remedy="Give both in storage_options, or neither."
            )
        self._bucket, self._below = bucket, f"{prefix}/" if prefix else ""
        self._text, self._switches = given.text, given.switches
        self._lock_mode = given.text.get("lock_mode", "compliance").upper()
        if self._lock_mode not in ("COMPLIANCE", "GOVERNANCE"):
            raise InvalidInput("There is no such lock_mode.", remedy="Give compliance or governance.")
        self._one_by_one = False  # the server does not know DeleteObjects
        super().__init__(
            f"s3://{bucket}/{prefix}".rstrip("/"),
            immutable=given.periods.get("immutable", 0),
            as_of=given.moments.get("as_of"),
        )

    @classmethod
    def at(cls, url: str, options: Mapping[str, object], *, create: bool) -> Self:  # noqa: ARG003
        """The storage at `s3://bucket/prefix`. Buckets are made by whoever pays for them. InvalidInput."""
        bucket, _, prefix = url.partition("://")[2].partition("/")
        if not bucket or any(sign in url for sign in "@?#"):
            raise InvalidInput(
                "The URL is not of the form s3://bucket/prefix.", remedy="Give the bucket, then a prefix if you like."
            )
        return cls(bucket, prefix.strip("/"), options)

    def _connect(self) -> Any:
        unlogged_by("botocore", "urllib3")
        session = Session(profile=self._text.get("profile"))
        trusts, given = self._switches.get("verify", True), self._text.get("endpoint_url", "")
        signs = not trusts or given.startswith("http:") or self._switches.get("sign_content", False)
        client = self._made(session, signs=signs)
        if not signs and not client.meta.endpoint_url.startswith("https:"):  # as the environment or a profile says
            client.close()
            client = self._made(session, signs=True)
        # botocore waits for ever where a line ends within the answer "100-continue".
        client.meta.events.unregister("before-call.s3", add_expect_header)
        client.meta.events.register("before-send.s3.PutObject", _sends_now)
        unlogged_by("botocore", "urllib3")  # also what was imported just now
        return client

    def _made(self, session: Session, *, signs: bool) -> Any:
        """`signs`: what is sent, and not the request alone."""
        text = self._text
        style = {"addressing_style": "path"} if text.get("endpoint_url") else {}
        config = Config(
            connect_timeout=remote.CONNECT_S,
            read_timeout=remote.SILENCE_S,
            retries={"total_max_attempts": 1},
            max_pool_connections=POOL,
            tcp_keepalive=True,
            signature_version=botocore.UNSIGNED if self._switches.get("anon") else "s3v4",
            request_checksum_calculation="when_required",  # each put brings its own
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": signs} | style,
        )
        region = text.get("region") or session.get_config_variable("region") or "us-east-1"
        try:
            return session.create_client(
                "s3",
                region_name=region,
                endpoint_url=text.get("endpoint_url"),
                verify=text.get("ca_bundle") or (None if self._switches.get("verify", True) else False),
                aws_access_key_id=text.get("key"),
                aws_secret_access_key=text.get("secret"),
                aws_session_token=text.get("token"),
                config=config,
            )
        except ValueError:
            raise unusable(self.location) from None

    def _disconnect(self, client: Any) -> None:
        client.close()

    def _put(self, client: Any, name: str, body: Body, mark: str) -> Created:
        try:
            answer = client.put_object(
                **self._object(name),
                Body=body,
                ContentLength=body.size,
                ChecksumCRC32=base64.b64encode(body.crc32.to_bytes(4, "big")).decode(),
                IfNoneMatch="*",
                Metadata={MARK: mark},
                **(self._retention(until) if (until := self._lock_until(name)) else {}),
            )
        except raised.ClientError as error:
            if status_of(error) == 412:
                raise failures.exists(self.location, name) from None
            if until and code_of(error) in NO_LOCKS:
                raise self._unlockable() from None
            if until and code_of(error) == "AccessDenied":
                raise failures.denied(self.location, "refused to store a locked object", LOCK_RIGHTS) from None
            raise
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        made = self._whole(parsedate_to_datetime(date), name) if date else None
        return Created(made, _crc32(answer) == body.crc32)

    def _read(self, client: Any, name: str, offset: int, length: int) -> Generator[bytes, None, None]:
        try:
            answer = client.get_object(**self._object(name), Range=f"bytes={offset}-{offset + length - 1}")
        except raised.ClientError as error:
            if status_of(error) == 416:
                return  # it ends before `offset`
            raise self._absence(error, name) from None
        expected = answer.get("ContentLength")
        stream = answer["Body"]
        try:
            start, end, size = 0, expected or 0, expected or 0  # who ignores ranges sends all of it, and says none
            if said := answer.get("ContentRange"):
                start, end, size = content_range(said)
            if expected is None or end - start != expected or start != offset or end != min(offset + length, size):
                raise failures.cut(self.location, name)
            while expected:
                piece = stream.read(min(PIECE, expected))
                if not piece:
                    raise failures.cut(self.location, name)
                expected -= len(piece)
                yield piece
            stream.read()  # to the end, so that the connection can be used again
        finally:
            stream.close()

    def _head(self, client: Any, name: str) -> Stored:
        try:
            answer = client.head_object(**self._object(name), ChecksumMode="ENABLED")
        except raised.ClientError as error:
            if status_of(error) != 404:
                raise
            # Without a body, it does not tell a missing object from a missing bucket.
            for _ in self._read(client, name, 0, 1):
                pass
            raise failures.unreachable(self.location, "it gives two answers at once") from None
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        if "content-length" not in headers or "LastModified" not in answer:
            raise failures.cut(self.location, name)
        return Stored(
            size=answer["ContentLength"],
            modified=self._whole(answer["LastModified"], name),
            mark=answer.get("Metadata", {}).get(MARK, ""),
            crc32=_crc32(answer),
        )

    def _page(self, client: Any, prefix: str, at: object) -> Page:
        more = {} if at is None else {"ContinuationToken": at}
        below = self._below + (f"{prefix}/" if prefix else "")
        answer = client.list_objects_v2(Bucket=self._bucket, Prefix=below, **more)
        if "IsTruncated" not in answer:
            raise failures.cut(self.location, "a listing")
        items = []
        for entry in answer.get("Contents", ()):
            name = entry["Key"].removeprefix(self._below)
            if is_name(name):  # others put their own things into a bucket
                items.append(ObjectInfo(name=name, size=entry["Size"], modified=_ns(entry["LastModified"])))
        return Page(items, [answer["NextContinuationToken"]] if answer["IsTruncated"] else [])

    def _remove(self, client: Any, names: Sequence[str]) -> Mapping[str, Error | None]:
        if self._one_by_one:
            return {name: self._removed(client, name) for name in names}
        try:
            answer = client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": [{"Key": self._below + name} for name in names]}
            )
        except raised.ClientError as error:
            if status_of(error) not in (400, 405, 501) or code_of(error) in EXPIRED:
                raise
            self._one_by_one = True
            return self._remove(client, names)
        results: dict[str, Error | None] = {
            entry["Key"].removeprefix(self._below): None for entry in answer.get("Deleted", ())
        }
        for entry in answer.get("Errors", ()):
            gone = entry["Code"] == "NoSuchKey"
            name = entry["Key"].removeprefix(self._below)
            results[name] = None if gone else from_code(entry["Code"], 200, self.location)
        unsaid = failures.unreachable(self.location, "it did not say whether an object was deleted")
        return {name: results.get(name, unsaid) for name in names}

    def _removed(self, client: Any, name: str) -> Error | None:
        try:
            client.delete_object(**self._object(name))
        except raised.ClientError as error:
            return None if code_of(error) == "NoSuchKey" else self._failure(error)
        return None

    def _object(self, name: str) -> dict[str, str]:
        version = self._version_then(name)
        which = {} if version is None else {"VersionId": version}
        return {"Bucket": self._bucket, "Key": self._below + name} | which

    # Locks and versions

    def _can_lock(self, client: Any) -> bool:
        try:
            answer = client.get_object_lock_configuration(Bucket=self._bucket)
        except raised.ClientError as error:
            if code_of(error) in NO_LOCKS or status_of(error) in (400, 404, 405, 501):
                return False
            raise
        return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def _retention(self, until: int) -> dict[str, object]:
        return {"ObjectLockMode": self._lock_mode, "ObjectLockRetainUntilDate": from_ns(until)}

    def _keep(self, client: Any, version: Version, until: int, mode: str = "") -> None:
        until = -(-until // 10**9) * 10**9  # it counts in seconds
        retention = {"Mode": mode or self._lock_mode, "RetainUntilDate": from_ns(until)}
        try:
            client.put_object_retention(**self._of(version), Retention=retention)
        except raised.ClientError as error:
            if code_of(error) in NO_LOCKS:
                raise self._unlockable() from None
            if code_of(error) in GONE:
                raise failures.missing(self.location, version.name) from None
            # A lock cannot be shortened: then it is there for longer already. Nor can its mode be changed, but by who
            # may bypass it: then it is locked for longer as it is.
            if code_of(error) not in DENIED:
                raise
            own, kept = self._lock_of(client, version)
            if kept >= until:
                return
            if mode or own in ("", self._lock_mode):
                raise failures.denied(self.location, "refused to lock an object for longer", LOCK_RIGHTS) from None
            self._keep(client, version, until, own)

    def _kept(self, client: Any, version: Version) -> int:
        return self._lock_of(client, version)[1]

    def _lock_of(self, client: Any, version: Version) -> tuple[str, int]:
        """Its mode and its end; "" and 0: it has none."""
        try:
            answer = client.head_object(**self._of(version))
        except raised.ClientError as error:
            if status_of(error) == 404:
                raise failures.missing(self.location, version.name) from None
            raise
        until = answer.get("ObjectLockRetainUntilDate")
        return answer.get("ObjectLockMode", ""), self._whole(until, version.name) if until else 0

    def _versions(self, client: Any, prefix: str, at: object) -> Versions:
        more = cast(dict[str, str], at or {})
        answer = client.list_object_versions(Bucket=self._bucket, Prefix=self._below + prefix, **more)
        if "IsTruncated" not in answer:
            raise failures.cut(self.location, "a listing")
        items = [
            Version(
                name=name,
                id=entry["VersionId"],
                modified=_ns(entry["LastModified"]),
                size=entry.get("Size", 0),
                newest=entry["IsLatest"],
                deleted="Size" not in entry,
            )
            for entry in (*answer.get("Versions", ()), *answer.get("DeleteMarkers", ()))
            if (name := entry["Key"].removeprefix(self._below)) and is_name(name)
        ]
        items.sort(key=lambda version: version.name)  # the two lists come apart
        if not answer["IsTruncated"]:
            return Versions(items)
        after = {"KeyMarker": answer["NextKeyMarker"]}
        if "NextVersionIdMarker" in answer:
            after["VersionIdMarker"] = answer["NextVersionIdMarker"]
        return Versions(items, after)

    def _forget(self, client: Any, versions: Sequence[Version]) -> Sequence[Error | None]:
        which = [{"Key": self._below + version.name, "VersionId": version.id} for version in versions]
        answer = client.delete_objects(Bucket=self._bucket, Delete={"Objects": which})
        told: dict[tuple[str, str], Error | None] = {
            (entry["Key"], entry["VersionId"]): None for entry in answer.get("Deleted", ()) if "VersionId" in entry
        }
        for entry in answer.get("Errors", ()):
            told[entry["Key"], entry.get("VersionId", "")] = self._kept_back(entry["Code"])
        unsaid = failures.unreachable(self.location, "it did not say whether a version was deleted")
        return [told.get((each["Key"], each["VersionId"]), unsaid) for each in which]

    def _kept_back(self, code: str) -> Error | None:
        """AWS tells a lock and a missing right by the same code."""
        if code in GONE:
            return None
        return failures.locked(self.location) if code in DENIED else from_code(code, 200, self.location)

    def _of(self, version: Version) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._below + version.name, "VersionId": version.id}

    def _unlockable(self) -> Unsupported:
        return Unsupported(
            f"The bucket of {self.location} has no Object Lock.",
            kind="capability",
            remedy="Create a bucket with Object Lock and put the repository there, or leave immutable out.",
        )

    # What goes wrong

    def _absence(self, error: Any, name: str) -> Exception:
        return failures.missing(self.location, name) if code_of(error) == "NoSuchKey" else error

    def _failure(self, error: Exception) -> Error:
        return from_error(error, self.location)

    def _whole(self, time: datetime, name: str) -> int:
        """Of a time in a header: each ends with its zone, and one that was cut passes for another time."""
        if time.tzinfo is None:
            raise failures.cut(self.location, name)
        return _ns(time)


def _sends_now(request: Any, **_: object) -> None:
    """The signature is made: what reads the body from here on sends it."""
    if isinstance(request.body, Body):
        request.body.sending = True


def _ns(time: datetime) -> int:
    since = time.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def _crc32(answer: Mapping[str, Any]) -> int | None:
    """What the server says the whole object's CRC-32 is. That of a composite ("…-2") covers its parts alone."""
    said = answer.get("ChecksumCRC32")
    if not said or "-" in said or answer.get("ChecksumType") == "COMPOSITE":
        return None
    try:
        return int.from_bytes(base64.b64decode(said, validate=True), "big")
    except ValueError:
        return None
