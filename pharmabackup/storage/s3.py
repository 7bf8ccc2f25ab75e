"""S3 and what speaks its protocol: `s3://bucket/prefix`, through botocore's own synchronous client.

An object is one PUT with `If-None-Match: *`; S3 takes up to 5 GB in one, and objects here are some tens of MB. Its
CRC-32 goes along and the whole body is signed, so that a server refuses what was changed on the way. Credentials come
from where AWS's tools take them (environment, profiles, SSO, instance roles) unless storage_options name some.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import botocore
import botocore.exceptions as raised
from botocore.config import Config
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError
from botocore.session import Session

from pharmabackup.errors import Error, InvalidInput
from pharmabackup.storage import failures, remote
from pharmabackup.storage.base import NAME, NAME_MAX, Capabilities, ObjectInfo
from pharmabackup.storage.body import Body
from pharmabackup.storage.options import Options
from pharmabackup.storage.ranges import content_range
from pharmabackup.storage.remote import Created, Page, RemoteStorage, Stored

PIECE = 1 << 20  # bytes read from an answer at a time
POOL = 32  # connections kept open
MARK = "pharmabackup-upload"  # the metadata that tells whose an object is

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
DENIED = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "InvalidToken"}
)
THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"})
PASSING = frozenset({"InternalError", "OperationAborted", "ConditionalRequestConflict"})
CHANGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"})
FULL = frozenset({"QuotaExceeded", "QuotaExceededException", "XMinioStorageFull"})
ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect"})
NO_CREDENTIALS = (raised.NoCredentialsError, raised.PartialCredentialsError, raised.NoAuthTokenError)
LOG_IN_AGAIN = (raised.SSOError, raised.TokenRetrievalError, raised.CredentialRetrievalError)
WHERE_CREDENTIALS = "Give key and secret in storage_options, or a profile, or set them up as for AWS's own tools."


class S3Storage(RemoteStorage[Any]):
    """The objects below `prefix` in `bucket`. Options as s3fs names them, where it has them.

    `key`, `secret`, `token`, `profile`, `region`, `endpoint_url` (of a server that is not AWS's), `ca_bundle` (a file
    of certificates), `verify` (false trusts any certificate) and `anon` (true signs nothing).
    """

    options = Options(
        text=("key", "secret", "token", "profile", "region", "endpoint_url", "ca_bundle"), switches=("verify", "anon")
    )
    capabilities = Capabilities(exclusive_create=True, fresh_listing=True)
    reads_first = True  # for the signature, which covers the content
    remove_together = 1000

    def __init__(self, bucket: str, prefix: str, options: Mapping[str, object]) -> None:
        given = self.options.checked("s3", options)
        if bool(given.text.get("key")) != bool(given.text.get("secret")):
            raise InvalidInput(
                "Of key and secret one is missing.", remedy="Give both in storage_options, or neither."
            )
        self._bucket, self._below = bucket, f"{prefix}/" if prefix else ""
        self._text, self._switches = given.text, given.switches
        self._one_by_one = False  # the server does not know DeleteObjects
        super().__init__(f"s3://{bucket}/{prefix}".rstrip("/"))

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
        text = self._text
        session = Session(profile=text.get("profile"))
        config = Config(
            connect_timeout=remote.CONNECT_S,
            read_timeout=remote.SILENCE_S,
            retries={"total_max_attempts": 1},
            max_pool_connections=POOL,
            tcp_keepalive=True,
            signature_version=botocore.UNSIGNED if self._switches.get("anon") else "s3v4",
            request_checksum_calculation="when_required",  # each put brings its own
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": True} | ({"addressing_style": "path"} if text.get("endpoint_url") else {}),
        )
        region = text.get("region") or session.get_config_variable("region") or "us-east-1"
        try:
            client = session.create_client(
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
            raise self._unusable() from None
        # botocore waits for ever where a line ends within the answer "100-continue".
        client.meta.events.unregister("before-call.s3", add_expect_header)
        client.meta.events.register("before-send.s3.PutObject", _sends_now)
        return client

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
            )
        except raised.ClientError as error:
            if _status(error) == 412:
                raise failures.exists(self.location, name) from None
            raise
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return Created(_ns(parsedate_to_datetime(date)) if date else None, _crc32(answer) == body.crc32)

    def _read(self, client: Any, name: str, offset: int, length: int) -> Iterator[bytes]:
        try:
            answer = client.get_object(**self._object(name), Range=f"bytes={offset}-{offset + length - 1}")
        except raised.ClientError as error:
            if _status(error) == 416:
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
            if _status(error) != 404:
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
            modified=_ns(answer["LastModified"]),
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
            if len(name) <= NAME_MAX and NAME.fullmatch(name):  # others put their own things into a bucket
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
            if _status(error) not in (400, 405, 501) or _code(error) in EXPIRED:
                raise
            self._one_by_one = True
            return self._remove(client, names)
        results: dict[str, Error | None] = {
            entry["Key"].removeprefix(self._below): None for entry in answer.get("Deleted", ())
        }
        for entry in answer.get("Errors", ()):
            gone = entry["Code"] == "NoSuchKey"
            results[entry["Key"].removeprefix(self._below)] = None if gone else self._from_code(entry["Code"], 200)
        unsaid = failures.unreachable(self.location, "it did not say whether an object was deleted")
        return {name: results.get(name, unsaid) for name in names}

    def _removed(self, client: Any, name: str) -> Error | None:
        try:
            client.delete_object(**self._object(name))
        except raised.ClientError as error:
            return None if _code(error) == "NoSuchKey" else self._failure(error)
        return None

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._below + name}

    # What goes wrong

    def _unusable(self) -> InvalidInput:
        return InvalidInput(
            f"{self.location} or its options are not as S3 wants them.",
            remedy="Check the bucket's name, region and endpoint_url (https://host).",
        )

    def _absence(self, error: Any, name: str) -> Exception:
        return failures.missing(self.location, name) if _code(error) == "NoSuchKey" else error

    def _failure(self, error: Exception) -> Error:
        match error:
            case raised.ClientError():
                headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
                return self._from_code(_code(error), _status(error), headers.get("retry-after"))
            case raised.ProfileNotFound():
                return InvalidInput("There is no such AWS profile here.", remedy="Check profile, or ~/.aws/config.")
            case raised.ParamValidationError() | raised.InvalidRegionError():
                return self._unusable()
            case raised.ProxyConnectionError():
                return failures.unreachable(self.location, "the proxy does not answer", "Check HTTPS_PROXY.")
        if isinstance(error, LOG_IN_AGAIN):
            return failures.expired(self.location)
        if isinstance(error, NO_CREDENTIALS):
            return failures.no_credentials(self.location, WHERE_CREDENTIALS)
        if found := failures.from_line(error, self.location):
            return found
        if isinstance(error, raised.ReadTimeoutError | raised.ConnectTimeoutError):
            return failures.silent(self.location)
        if isinstance(error, raised.HTTPClientError | raised.IncompleteReadError | ResponseParserError | ValueError):
            return failures.unreachable(
                self.location
            )  # a number or a date of which a part is missing is a ValueError
        return failures.unexpected(self.location, type(error).__name__)

    def _from_code(self, code: str, status: int, retry_after: str | None = None) -> Error:
        if code == "RequestTimeTooSkewed":
            return failures.wrong_clock(self.location)
        if code in EXPIRED:
            return failures.expired(self.location)
        if code in DENIED:
            return failures.denied(self.location)
        if code in FULL:
            return failures.full(self.location)
        if code in THROTTLED:
            return failures.throttled(self.location, failures.seconds(retry_after))
        if code == "NoSuchBucket":
            return failures.nowhere(self.location, "there is no such bucket", "Check the URL, or create the bucket.")
        if code in ELSEWHERE:
            return failures.nowhere(
                self.location, "the bucket is in another region", "Give its region in storage_options."
            )
        if code in PASSING:
            return failures.unreachable(self.location, f"the server failed ({code})")
        if code in CHANGED:
            return failures.unreachable(self.location, "what was sent arrived changed")
        if code == "RequestTimeout":
            return failures.silent(self.location)
        if status == 404:  # without the body that says what is not there
            return failures.unreachable(self.location, "the answer broke off")
        return failures.from_status(status, self.location, retry_after)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _sends_now(request: Any, **_: object) -> None:
    """The signature is made: what reads the body from here on sends it."""
    if isinstance(request.body, Body):
        request.body.sending = True


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


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
