"""The table of S3's failures: each becomes one error of ours, with a hint and without a secret."""

import ssl
from datetime import UTC, datetime

import aiohttp
import pytest
from botocore import exceptions as aws

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
from uploader.store.s3_errors import MEANINGS, answered, meaning, speaking

SIGNED = "https://store.example/bucket/key?X-Amz-Signature=5ec4e7&X-Amz-Credential=AKIA5EC4E7"


def client_error(code: str, status: int) -> aws.ClientError:
    answer = {
        "Error": {"Code": code, "Message": f"see {SIGNED}"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return aws.ClientError(answer, "PutObject")


def translated(error: Exception) -> WmtpError:
    with pytest.raises(WmtpError) as caught, speaking("writing", "s3://bucket/key"):
        raise error
    assert caught.value.__cause__ is error
    assert str(caught.value).startswith("writing s3://bucket/key: ")
    assert "5ec4e7" not in str(caught.value).lower()
    return caught.value


@pytest.mark.parametrize(
    ("code", "status", "kind", "hint"),
    [
        ("NoSuchKey", 404, ObjectMissing, ""),
        ("404", 404, ObjectMissing, ""),
        ("NoSuchBucket", 404, BucketMissing, "create the bucket"),
        ("NoSuchUpload", 404, UploadMissing, ""),
        ("AccessDenied", 403, StoreDenied, "allow these credentials"),
        ("InvalidAccessKeyId", 403, StoreDenied, "access key"),
        ("SignatureDoesNotMatch", 403, StoreDenied, "secret"),
        ("ExpiredToken", 400, StoreDenied, "renew"),
        ("RequestTimeTooSkewed", 403, StoreDenied, "clock"),
        ("403", 403, StoreDenied, "access key"),
        ("BadDigest", 400, ChecksumMismatch, ""),
        ("InvalidDigest", 400, ChecksumMismatch, ""),
        ("XAmzContentChecksumMismatch", 400, ChecksumMismatch, ""),
        ("PreconditionFailed", 412, PreconditionFailed, ""),
        ("ConditionalRequestConflict", 409, PreconditionFailed, ""),
        ("SlowDown", 503, StoreBusy, "later"),
        ("InternalError", 200, StoreUnavailable, "later"),  # within the answer to CompleteMultipartUpload
        ("RequestTimeout", 400, StoreBusy, "later"),
        ("RequestLimitExceeded", 503, StoreBusy, "later"),
        ("ThrottlingException", 400, StoreBusy, "later"),
        ("ServiceUnavailable", 503, StoreBusy, "later"),
        ("UnheardOf", 503, StoreBusy, "later"),
        ("UnheardOf", 429, StoreBusy, "later"),
        ("UnheardOf", 500, StoreUnavailable, "later"),
        ("InvalidRange", 416, CorruptError, ""),
        ("InvalidBucketName", 400, SettingsError, "bucket"),
        ("PermanentRedirect", 301, StoreError, "storage.region"),
        ("NotImplemented", 501, StoreError, "documentation"),
        ("EntityTooSmall", 400, StoreError, "5 MiB"),
    ],
)
def test_an_answer_becomes_its_error(code: str, status: int, kind: type[WmtpError], hint: str) -> None:
    error = translated(client_error(code, status))
    assert type(error) is kind
    assert hint in error.hint
    assert error.heals == issubclass(kind, StoreUnavailable)


def test_an_unknown_answer_is_quoted_by_its_code_only() -> None:
    error = translated(client_error("StrangeThing", 418))
    assert type(error) is StoreError
    assert "StrangeThing" in error.problem


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (aws.EndpointConnectionError(endpoint_url=SIGNED), StoreUnavailable),
        (aws.ConnectTimeoutError(endpoint_url=SIGNED), StoreUnavailable),
        (aws.ReadTimeoutError(endpoint_url=SIGNED), StoreBusy),
        (aws.ConnectionClosedError(endpoint_url=SIGNED), StoreUnavailable),
        (aws.HTTPClientError(error="reset"), StoreUnavailable),
        (aws.IncompleteReadError(actual_bytes=1, expected_bytes=2), StoreUnavailable),
        (aws.ResponseStreamingError(error="reset"), StoreUnavailable),
        (aiohttp.ClientPayloadError(SIGNED), StoreUnavailable),
        (aiohttp.ServerDisconnectedError(), StoreUnavailable),
        (ConnectionResetError(104, SIGNED), StoreUnavailable),
        (TimeoutError(), StoreBusy),
        (aws.SSLError(endpoint_url=SIGNED, error=ssl.SSLError("handshake")), StoreUnavailable),
        (aws.SSLError(endpoint_url=SIGNED, error=ssl.SSLCertVerificationError("self-signed")), StoreError),
        (aws.NoCredentialsError(), StoreDenied),
        (aws.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), StoreDenied),
        (aws.ProfileNotFound(profile="p"), StoreDenied),
        (aws.ParamValidationError(report=SIGNED), SettingsError),
        (aws.FlexibleChecksumError(error_msg="differs"), CorruptError),
        (aws.BotoCoreError(), StoreError),
    ],
)
def test_an_exception_becomes_its_error(raised: Exception, kind: type[WmtpError]) -> None:
    assert type(translated(raised)) is kind


def test_a_mistake_of_ours_is_not_dressed_up() -> None:
    with pytest.raises(KeyError), speaking("writing", "key"):
        raise KeyError("a bug")
    assert meaning(KeyError("a bug"), doing="writing", subject="key") is None


def test_an_error_of_ours_passes_unchanged() -> None:
    mine = CorruptError("it ends early")
    with pytest.raises(CorruptError) as caught, speaking("reading", "key"):
        raise mine
    assert caught.value is mine


def test_every_error_that_needs_a_person_has_a_hint() -> None:
    for name, (kind, problem, hint) in MEANINGS.items():
        assert problem, name
        if issubclass(kind, StoreDenied | SettingsError | BucketMissing | StoreUnavailable):
            assert hint, name


def test_a_failed_deletion_is_known_by_its_code() -> None:
    error = answered("AccessDenied", doing="deleting", subject="s3://bucket/key")
    assert isinstance(error, StoreDenied)
    assert str(error).startswith("deleting s3://bucket/key: access denied (AccessDenied); ")


def test_a_dead_endpoint_is_named_without_what_the_url_says_else() -> None:
    for error in (
        aws.EndpointConnectionError(endpoint_url=SIGNED),
        aws.ConnectTimeoutError(endpoint_url=SIGNED),
        aws.ReadTimeoutError(endpoint_url="https://me:5ec4e7@store.example/bucket"),
    ):
        assert " at https://store.example;" in str(translated(error))


def skewed(code: str, date: str = "Thu, 01 Jan 2026 00:20:00 GMT") -> WmtpError | None:
    error = client_error(code, 403)
    error.response["ResponseMetadata"]["HTTPHeaders"] = {"date": date}
    return meaning(error, doing="reading", subject="key", now=datetime(2026, 1, 1, tzinfo=UTC))


def test_clock_skew_is_named_with_both_times() -> None:
    both = "clock skew (RequestTimeTooSkewed): 2026-01-01 00:20:00 there, 2026-01-01 00:00:00 here (UTC)"
    for code in ("RequestTimeTooSkewed", "403"):  # an answer to HEAD has no code
        error = skewed(code)
        assert error is not None
        assert error.problem == both
        assert "set this machine's clock" in error.hint


def test_a_denial_is_no_skew() -> None:
    for error in (skewed("AccessDenied"), skewed("403", "Thu, 01 Jan 2026 00:14:00 GMT"), skewed("403", "?")):
        assert error is not None
        assert error.problem.startswith("access denied")
    unknown = skewed("RequestTimeTooSkewed", "?")
    assert unknown is not None
    assert unknown.problem == "clock skew (RequestTimeTooSkewed)"
