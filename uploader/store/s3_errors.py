"""What a failure of S3 means to us: one table from its name to a class of ``uploader.errors`` and a hint.

A name is an S3 error code, an HTTP status, or the class of an exception of botocore, aiohttp or Python. No
message of ours repeats a URL, a header or a credential: only S3's code and our words.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from uploader.errors import (
    BucketMissing,
    ChecksumMismatch,
    CorruptError,
    ObjectMissing,
    PreconditionFailed,
    SettingsError,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    UploadMissing,
    WmtpError,
)

_KEYS = "check the access key and secret: environment, storage.profile or storage.credentials_file"
_RENEW = "renew the session's credentials"
_REGION = "set storage.region to the bucket's region"
_AGAIN = "the store may answer later"
_CA = "if the store's certificate is your own, name its authority in storage.ca_bundle"
_RIGHTS = "allow these credentials to list the bucket and to get, put and delete below this prefix"
_BYTES = "the bytes changed on their way, or the file since it was recorded"

Meaning = tuple[type[WmtpError], str, str]
"""The class, the problem and the hint."""

MEANINGS: Final[dict[str, Meaning]] = {
    # what is not there
    "NoSuchKey": (ObjectMissing, "no such object", ""),
    "NoSuchBucket": (BucketMissing, "no such bucket", "create the bucket or correct its name"),
    "NoSuchUpload": (UploadMissing, "no such upload: it was completed or aborted", ""),
    # who may not
    "AccessDenied": (StoreDenied, "access denied", _RIGHTS),
    "AllAccessDisabled": (StoreDenied, "access disabled", _RIGHTS),
    "AccountProblem": (StoreDenied, "problem with the account", "ask the store's operator"),
    "InvalidAccessKeyId": (StoreDenied, "unknown access key", _KEYS),
    "SignatureDoesNotMatch": (StoreDenied, "wrong secret key", _KEYS),
    "ExpiredToken": (StoreDenied, "expired credentials", _RENEW),
    "InvalidToken": (StoreDenied, "invalid session token", _RENEW),
    "TokenRefreshRequired": (StoreDenied, "expired credentials", _RENEW),
    "RequestTimeTooSkewed": (
        StoreDenied,
        "clock skew",
        "set this machine's clock: it differs from the store's",
    ),
    "NoCredentialsError": (StoreDenied, "no credentials found", _KEYS),
    "PartialCredentialsError": (StoreDenied, "half of the credentials is missing", _KEYS),
    "CredentialRetrievalError": (StoreDenied, "credentials could not be fetched", _KEYS),
    "TokenRetrievalError": (StoreDenied, "no login token", "log in again (aws sso login)"),
    "SSOError": (StoreDenied, "no login token", "log in again (aws sso login)"),
    "ProfileNotFound": (
        StoreDenied,
        "no such profile in the AWS files",
        "correct storage.profile or AWS_PROFILE",
    ),
    "ConfigParseError": (
        StoreDenied,
        "an AWS configuration file can't be read",
        "correct it, or AWS_CONFIG_FILE",
    ),
    # what was set wrongly
    "AuthorizationHeaderMalformed": (StoreError, "signed for another region", _REGION),
    "PermanentRedirect": (StoreError, "the bucket is in another region", _REGION),
    "NoRegionError": (SettingsError, "no region is set", _REGION),
    "InvalidBucketName": (SettingsError, "not a bucket name", "correct the bucket's name"),
    "ParamValidationError": (
        SettingsError,
        "not a bucket name or key S3 allows",
        "correct the s3:// location",
    ),
    "ClientConnectorCertificateError": (StoreError, "its certificate is not trusted", _CA),
    "SSLCertVerificationError": (StoreError, "its certificate is not trusted", _CA),
    # which bytes
    "BadDigest": (ChecksumMismatch, "other bytes than the checksum names", _BYTES),
    "InvalidDigest": (ChecksumMismatch, "not a checksum", _BYTES),
    "XAmzContentChecksumMismatch": (ChecksumMismatch, "other bytes than the checksum names", _BYTES),
    "XAmzContentSHA256Mismatch": (ChecksumMismatch, "other bytes than the signature names", _BYTES),
    "InvalidPart": (ChecksumMismatch, "the store has other parts than those named", ""),
    "InvalidPartOrder": (ChecksumMismatch, "the parts are not in order", ""),
    "EntityTooSmall": (StoreError, "a part is too small", "every part but the last needs 5 MiB or more"),
    "EntityTooLarge": (StoreError, "it is too large for one request", "send it in parts"),
    "FlexibleChecksumError": (CorruptError, "other bytes than its checksum names", ""),
    "InvalidRange": (CorruptError, "it is shorter than recorded", ""),
    # who came first
    "PreconditionFailed": (PreconditionFailed, "the object exists already or has changed", ""),
    "ConditionalRequestConflict": (PreconditionFailed, "another write came first", ""),
    # what may heal
    "SlowDown": (StoreUnavailable, "the store asks for patience", _AGAIN),
    "InternalError": (StoreUnavailable, "the store failed", _AGAIN),
    "ServiceUnavailable": (StoreUnavailable, "the store is unavailable", _AGAIN),
    "RequestTimeout": (StoreUnavailable, "the request took too long", _AGAIN),
    "OperationAborted": (StoreUnavailable, "another operation is under way", _AGAIN),
    "IncompleteBody": (StoreUnavailable, "the connection broke", _AGAIN),
    "Throttling": (StoreUnavailable, "the store asks for patience", _AGAIN),
    "EndpointConnectionError": (
        StoreUnavailable,
        "no connection",
        "check storage.endpoint_url and the network",
    ),
    "ConnectTimeoutError": (
        StoreUnavailable,
        "no connection in time",
        "check storage.endpoint_url and the network",
    ),
    "ProxyConnectionError": (
        StoreUnavailable,
        "no connection to the proxy",
        "check HTTP_PROXY and HTTPS_PROXY",
    ),
    "SSLError": (
        StoreUnavailable,
        "the TLS connection failed",
        "check storage.endpoint_url and storage.ca_bundle",
    ),
    "ReadTimeoutError": (StoreUnavailable, "no answer in time", _AGAIN),
    "HTTPClientError": (StoreUnavailable, "the connection broke", _AGAIN),
    "IncompleteReadError": (StoreUnavailable, "the connection broke", _AGAIN),
    "ResponseParserError": (StoreUnavailable, "the answer is not S3's", "check storage.endpoint_url"),
    "ClientPayloadError": (StoreUnavailable, "the connection broke", _AGAIN),
    "ClientConnectionError": (StoreUnavailable, "the connection broke", _AGAIN),
    "TimeoutError": (StoreUnavailable, "no answer in time", _AGAIN),
    "ConnectionError": (StoreUnavailable, "the connection broke", _AGAIN),
    # statuses, where there is no code (answers to HEAD have no body)
    "400": (StoreError, "bad request", "expired credentials and a wrong region are usual causes"),
    "401": (StoreDenied, "not authenticated", _KEYS),
    "403": (StoreDenied, "access denied", f"{_KEYS}; then {_RIGHTS}"),
    "404": (ObjectMissing, "no such object", ""),
    "408": (StoreUnavailable, "the request took too long", _AGAIN),
    "409": (PreconditionFailed, "another write came first", ""),
    "412": (PreconditionFailed, "the object exists already or has changed", ""),
    "416": (CorruptError, "it is shorter than recorded", ""),
    "429": (StoreUnavailable, "the store asks for patience", _AGAIN),
    "500": (StoreUnavailable, "the store failed", _AGAIN),
    "501": (StoreError, "the store does not offer this", "check the store's documentation"),
    "502": (StoreUnavailable, "the gateway failed", _AGAIN),
    "503": (StoreUnavailable, "the store is unavailable", _AGAIN),
    "504": (StoreUnavailable, "the gateway had no answer in time", _AGAIN),
    "BotoCoreError": (StoreError, "the AWS client refused", "check the storage settings"),
}


@contextmanager
def speaking(doing: str, subject: str) -> Iterator[None]:
    """Turn any failure of S3 inside the block into one of ``uploader.errors``; the rest passes."""
    try:
        yield
    except WmtpError:
        raise
    except Exception as error:
        meant = meaning(error, doing=doing, subject=subject)
        if meant is None:
            raise
        raise meant from error


def meaning(error: BaseException, *, doing: str, subject: str) -> WmtpError | None:
    """The error of ours that ``error`` is; None for one that is no failure of the store."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    if not response:
        return _look_up(_classes(error), "", doing, subject)
    code = str(response.get("Error", {}).get("Code", ""))
    status = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    return _look_up([code, status], code, doing, subject) or answered(code, doing=doing, subject=subject)


def answered(code: str, *, doing: str, subject: str) -> WmtpError:
    """The error of ours that S3's ``code`` names."""
    known = _look_up([code], code, doing, subject)
    return known or StoreError(f"the store answered {code or 'with an error'}", doing=doing, subject=subject)


def _look_up(names: Iterable[str], code: str, doing: str, subject: str) -> WmtpError | None:
    """The first of ``names`` in the table; the problem quotes S3's code, where it gave a word."""
    for name in names:
        if name in MEANINGS:
            kind, problem, hint = MEANINGS[name]
            said = f" ({code})" if code and not code.isdigit() else ""
            return kind(problem + said, doing=doing, subject=subject, hint=hint)
    return None


def _classes(error: BaseException) -> Iterator[str]:
    """The classes an exception belongs to, after those of a distrusted certificate that botocore wraps."""
    cause = getattr(error, "kwargs", {}).get("error")
    if cause is not None:
        yield from (kind.__name__ for kind in type(cause).__mro__ if "Cert" in kind.__name__)
    yield from (kind.__name__ for kind in type(error).__mro__)
