"""What S3's error codes and botocore's exceptions mean, in our words.

Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

from typing import Any

import botocore.exceptions as raised
from botocore.parsers import ResponseParserError

from pharmabackup.errors import Error, InvalidInput
from pharmabackup.storage import failures

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
DENIED = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "InvalidToken"}
)
THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"})
PASSING = frozenset({"InternalError", "OperationAborted", "ConditionalRequestConflict"})
CHANGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"})
FULL = frozenset({"QuotaExceeded", "QuotaExceededException", "XMinioStorageFull"})
GONE = frozenset({"NoSuchKey", "NoSuchVersion"})
NO_LOCKS = frozenset({"InvalidRequest", "ObjectLockConfigurationNotFoundError", "NotImplemented"})
ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect"})
NO_CREDENTIALS = (raised.NoCredentialsError, raised.PartialCredentialsError, raised.NoAuthTokenError)
LOG_IN_AGAIN = (raised.SSOError, raised.TokenRetrievalError, raised.CredentialRetrievalError)
WHERE_CREDENTIALS = "Give key and secret in storage_options, or a profile, or set them up as for AWS's own tools."


def code_of(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def unusable(location: str) -> InvalidInput:
    return InvalidInput(
        f"{location} or its options are not as S3 wants them.",
        remedy="Check the bucket's name, region and endpoint_url (https://host).",
    )


def from_error(error: Exception, location: str) -> Error:
    match error:
        case raised.ClientError():
            headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            return from_code(code_of(error), status_of(error), location, headers.get("retry-after"))
        case raised.ProfileNotFound():
            return InvalidInput("There is no such AWS profile here.", remedy="Check profile, or ~/.aws/config.")
        case raised.ParamValidationError() | raised.InvalidRegionError():
            return unusable(location)
        case raised.ProxyConnectionError():
            return failures.unreachable(location, "the proxy does not answer", "Check HTTPS_PROXY.")
    if isinstance(error, LOG_IN_AGAIN):
        return failures.expired(location)
    if isinstance(error, NO_CREDENTIALS):
        return failures.no_credentials(location, WHERE_CREDENTIALS)
    if found := failures.from_line(error, location):
        return found
    if isinstance(error, raised.ReadTimeoutError | raised.ConnectTimeoutError):
        return failures.silent(location)
    if isinstance(error, raised.HTTPClientError | raised.IncompleteReadError | ResponseParserError | ValueError):
        return failures.unreachable(location)  # a number or a date of which a part is missing is a ValueError
    return failures.unexpected(location, type(error).__name__)


def from_code(code: str, status: int, location: str, retry_after: str | None = None) -> Error:
    if code == "RequestTimeTooSkewed":
        return failures.wrong_clock(location)
    if code in EXPIRED:
        return failures.expired(location)
    if code in DENIED:
        return failures.denied(location)
    if code in FULL:
        return failures.full(location)
    if code in THROTTLED:
        return failures.throttled(location, failures.seconds(retry_after))
    if code == "NoSuchBucket":
        return failures.nowhere(location, "there is no such bucket", "Check the URL, or create the bucket.")
    if code in ELSEWHERE:
        return failures.nowhere(location, "the bucket is in another region", "Give its region in storage_options.")
    if code in PASSING:
        return failures.unreachable(location, f"the server failed ({code})")
    if code in CHANGED:
        return failures.unreachable(location, "what was sent arrived changed")
    if code == "RequestTimeout":
        return failures.silent(location)
    if status == 404:  # without the body that says what is not there
        return failures.unreachable(location, "the answer broke off")
    return failures.from_status(status, location, retry_after)
