"""Our signature is botocore's, whatever is signed."""

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uploader.store.sigv4 import Keys, signed

NOW = datetime(2026, 11, 24, 9, 5, 7, tzinfo=UTC)
PRINTED = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)
HEADERS = st.dictionaries(
    st.from_regex(r"x-amz-[a-z-]{1,20}[a-z]", fullmatch=True).filter(
        lambda name: name not in ("x-amz-date", "x-amz-content-sha256", "x-amz-security-token")
    ),
    st.lists(PRINTED, min_size=1, max_size=3).map("  ".join),
)


class Clock(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return NOW

    @classmethod
    def utcnow(cls) -> datetime:  # type: ignore[override]
        return NOW.replace(tzinfo=None)


class Unsigned(auth.S3SigV4Auth):
    def _should_sha256_sign_payload(self, request: AWSRequest) -> bool:
        return False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.text(min_size=1).map(lambda text: quote(text.encode(errors="ignore"), safe="/-_.~")),
    query=st.sampled_from(["", "partNumber=7&uploadId=a-b_c.d~e", "partNumber=10000&uploadId=x%2Fy%3D"]),
    headers=HEADERS,
    secret=PRINTED,
    token=st.none() | PRINTED,
)
def test_it_is_botocores(
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    query: str,
    headers: dict[str, str],
    secret: str,
    token: str | None,
) -> None:
    path, host = f"/bucket/{key}", "localhost:8333"
    with monkeypatch.context() as patched:
        if hasattr(auth, "get_current_datetime"):
            patched.setattr(auth, "get_current_datetime", lambda **_: NOW.replace(tzinfo=None))
        else:
            patched.setattr(auth.datetime, "datetime", Clock)
        request = AWSRequest(
            "PUT", f"https://{host}{path}{query and '?' + query}", {**headers, "User-Agent": "u"}
        )
        Unsigned(Credentials("access", secret, token), "s3", "eu-north-1").add_auth(request)
    keys = Keys("access", secret, token, "eu-north-1")
    ours = signed("PUT", path, query, {**headers, "host": host, "user-agent": "u"}, keys, NOW)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    assert ours == theirs | {"host": host, "user-agent": "u"}
