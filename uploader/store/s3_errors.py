"""What a failure of S3 means to us: one table from its name to a class of ``uploader.errors`` and a hint.

A name is an S3 error code, an HTTP status, or the class of an exception of botocore, aiohttp or Python. No
message of ours repeats a query, a header or a credential: only S3's code, the endpoint, and our words.

Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and those of stores like it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from uploader.errors import (
    BucketMissing,
    ChecksumMismatch,
    CorruptError,
    ObjectMissing,
    PreconditionFailed,
    SettingsError,
    StoreBusy,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    UploadMissing,
    WmtpError,
)

_KEYS = "check the access key and secret: environment, storage.profile or storage.credentials_file"
_RENEW = "renew the session's credentials"
_CLOCK = "set this machine's clock: it differs from the store's"
_REACH = "check storage.endpoint_url and the network"
_LOGIN = "log in again (aws sso login)"
_REGION = "set storage.region to the bucket's region"
_AGAIN = "the store may answer later"
_LINE = f"{_AGAIN}; if it breaks again, check the network and what is between, a proxy or a firewall"
_SILENT = f"{_AGAIN}; if it never does, check the network, or raise storage.read_timeout_s"
_CA = "if the store's certificate is your own, name its authority in storage.ca_bundle"
_KMS = "check storage.sse_kms_key_id"
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
    "ExpiredTokenException": (StoreDenied, "expired credentials", _RENEW),
    "RequestExpired": (StoreDenied, "clock skew", _CLOCK),
    "RequestTimeTooSkewed": (StoreDenied, "clock skew", _CLOCK),
    "NotSignedUp": (StoreDenied, "the account has no access to this store", _KEYS),
    "MissingSecurityHeader": (StoreDenied, "not authenticated", _KEYS),
    "UnauthorizedAccess": (StoreDenied, "access denied", _RIGHTS),
    "InvalidObjectState": (StoreDenied, "the object is archived", "restore it in the store first"),
    "KMS.DisabledException": (StoreDenied, "its KMS key is disabled", _KMS),
    "KMS.NotFoundException": (StoreDenied, "no such KMS key", _KMS),
    "NoCredentialsError": (StoreDenied, "no credentials found", _KEYS),
    "PartialCredentialsError": (StoreDenied, "half of the credentials is missing", _KEYS),
    "CredentialRetrievalError": (StoreDenied, "credentials could not be fetched", _KEYS),
    "TokenRetrievalError": (StoreDenied, "no login token", _LOGIN),
    "SSOError": (StoreDenied, "no login token", _LOGIN),
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
    "InternalError": (StoreUnavailable, "the store failed", _AGAIN),
    "OperationAborted": (StoreUnavailable, "another operation is under way", _AGAIN),
    "IncompleteBody": (StoreUnavailable, "the connection broke", _AGAIN),
    "Busy": (StoreBusy, "the store asks for patience", _AGAIN),
    "SlowDown": (StoreBusy, "the store asks for patience", _AGAIN),
    "SlowDownRead": (StoreBusy, "the store asks for patience", _AGAIN),
    "SlowDownWrite": (StoreBusy, "the store asks for patience", _AGAIN),
    "Throttling": (StoreBusy, "the store asks for patience", _AGAIN),
    "ThrottlingException": (StoreBusy, "the store asks for patience", _AGAIN),
    "ThrottledException": (StoreBusy, "the store asks for patience", _AGAIN),
    "RequestThrottled": (StoreBusy, "the store asks for patience", _AGAIN),
    "RequestThrottledException": (StoreBusy, "the store asks for patience", _AGAIN),
    "RequestLimitExceeded": (StoreBusy, "the store asks for patience", _AGAIN),
    "BandwidthLimitExceeded": (StoreBusy, "the store asks for patience", _AGAIN),
    "TooManyRequests": (StoreBusy, "the store asks for patience", _AGAIN),
    "TooManyRequestsException": (StoreBusy, "the store asks for patience", _AGAIN),
    "KMS.ThrottlingException": (StoreBusy, "the store's key service asks for patience", _AGAIN),
    "PriorRequestNotComplete": (StoreBusy, "the store is still at an earlier request", _AGAIN),
    "ServiceUnavailable": (StoreBusy, "the store is unavailable", _AGAIN),
    "RequestTimeout": (StoreBusy, "the request took too long", _AGAIN),
    "RequestTimeoutException": (StoreBusy, "the request took too long", _AGAIN),
    "ReadTimeoutError": (StoreBusy, "no answer in time", _SILENT),
    "TimeoutError": (StoreBusy, "no answer in time", _SILENT),
    "ConnectTimeoutError": (StoreUnavailable, "no connection in time", _REACH),
    "EndpointConnectionError": (StoreUnavailable, "no connection", _REACH),
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
    "HTTPClientError": (StoreUnavailable, "the connection broke", _LINE),
    "IncompleteReadError": (StoreUnavailable, "the connection broke", _LINE),
    "ResponseParserError": (StoreUnavailable, "the answer is not S3's", "check storage.endpoint_url"),
    "ClientPayloadError": (StoreUnavailable, "the connection broke", _LINE),
    "ClientConnectionError": (StoreUnavailable, "the connection broke", _LINE),
    "ConnectionError": (StoreUnavailable, "the connection broke", _LINE),
    # statuses, where there is no code (answers to HEAD have no body)
    "400": (StoreError, "bad request", "expired credentials and a wrong region are usual causes"),
    "401": (StoreDenied, "not authenticated", _KEYS),
    "403": (StoreDenied, "access denied", f"{_KEYS}; then {_RIGHTS}"),
    "404": (ObjectMissing, "no such object", ""),
    "408": (StoreBusy, "the request took too long", _AGAIN),
    "409": (PreconditionFailed, "another write came first", ""),
    "412": (PreconditionFailed, "the object exists already or has changed", ""),
    "416": (CorruptError, "it is shorter than recorded", ""),
    "429": (StoreBusy, "the store asks for patience", _AGAIN),
    "500": (StoreUnavailable, "the store failed", _AGAIN),
    "501": (StoreError, "the store does not offer this", "check the store's documentation"),
    "502": (StoreUnavailable, "the gateway failed", _AGAIN),
    "503": (StoreBusy, "the store is unavailable", _AGAIN),
    "504": (StoreBusy, "the gateway had no answer in time", _AGAIN),
    "BotoCoreError": (StoreError, "the AWS client refused", "check the storage settings"),
}


@contextmanager
def speaking(doing: str, subject: str, *, endpoint_url: str = "") -> Iterator[None]:
    """Turn any failure of S3 inside the block into one of ``uploader.errors``; the rest passes.

    Args:
        endpoint_url: what is asked, for failures that do not say so themselves.
    """
    try:
        yield
    except WmtpError:
        raise
    except Exception as error:
        meant = meaning(error, doing=doing, subject=subject, endpoint_url=endpoint_url)
        if meant is None:
            raise
        raise meant from error


def meaning(
    error: BaseException, *, doing: str, subject: str, endpoint_url: str = "", now: datetime | None = None
) -> WmtpError | None:
    """The error of ours that ``error`` is; None for one that is no failure of the store.

    Args:
        endpoint_url: as above.
        now: this machine's time, where it is not the present.
    """
    response: dict[str, Any] = getattr(error, "response", None) or {}
    if not response:
        return _look_up(_classes(error), "", doing, subject, _endpoint(error, endpoint_url))
    code = str(response.get("Error", {}).get("Code", ""))
    about = response.get("ResponseMetadata", {})
    status = str(about.get("HTTPStatusCode", ""))
    clocks = _Clocks.of(about, now or datetime.now(UTC))
    if code in ("", "403") and status == "403" and clocks.differ:  # an answer to HEAD names no reason
        code = "RequestTimeTooSkewed"
    more = clocks.shown if code in _SKEWED else ""
    known = _look_up([code, status], code, doing, subject, more)
    return known or answered(code, doing=doing, subject=subject)


_SKEWED = ("RequestTimeTooSkewed", "RequestExpired")
_TOLERATED = timedelta(minutes=15)


class _Clocks(NamedTuple):
    """This machine's clock and, where its answer says so, the store's."""

    ours: datetime
    theirs: datetime | None

    @classmethod
    def of(cls, about: dict[str, Any], now: datetime) -> "_Clocks":
        try:
            return cls(now, parsedate_to_datetime(about["HTTPHeaders"]["date"]).astimezone(UTC))
        except (KeyError, ValueError):
            return cls(now, None)

    @property
    def differ(self) -> bool:
        """By more than S3 tolerates."""
        return self.theirs is not None and abs(self.theirs - self.ours) > _TOLERATED

    @property
    def shown(self) -> str:
        form = "%Y-%m-%d %H:%M:%S"
        return f": {self.theirs:{form}} there, {self.ours:{form}} here (UTC)" if self.theirs else ""


def answered(code: str, *, doing: str, subject: str) -> WmtpError:
    """The error of ours that S3's ``code`` names."""
    known = _look_up([code], code, doing, subject)
    return known or StoreError(f"the store answered {code or 'with an error'}", doing=doing, subject=subject)


def _look_up(names: Iterable[str], code: str, doing: str, subject: str, more: str = "") -> WmtpError | None:
    """The first of ``names`` in the table; the problem quotes S3's code, where it gave a word."""
    for name in names:
        if name in MEANINGS:
            kind, problem, hint = MEANINGS[name]
            said = f" ({code})" if code and not code.isdigit() else ""
            return kind(problem + said + more, doing=doing, subject=subject, hint=hint)
    return None


def _endpoint(error: BaseException, otherwise: str) -> str:
    """Who was asked: scheme, host and port of the URL that botocore names, and nothing else of it."""
    url = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url") or otherwise))
    return f" at {url.scheme}://{url.netloc.rpartition('@')[2]}" if url.netloc else ""


def _classes(error: BaseException) -> Iterator[str]:
    """The classes an exception belongs to, after those of a distrusted certificate that botocore wraps."""
    cause = getattr(error, "kwargs", {}).get("error")
    if cause is not None:
        yield from (kind.__name__ for kind in type(cause).__mro__ if "Cert" in kind.__name__)
    yield from (kind.__name__ for kind in type(error).__mro__)
