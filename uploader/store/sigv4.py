"""AWS Signature Version 4 of a request whose payload is not signed. Pure.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class Keys:
    """What a request is signed with."""

    access_key: str
    secret_key: str
    token: str | None
    region: str


def signed(
    method: str, path: str, query: str, headers: Mapping[str, str], keys: Keys, now: datetime
) -> dict[str, str]:
    """The headers of a request with those that sign it.

    Args:
        path: percent-encoded, as it is sent.
        query: percent-encoded, its parameters in order of their names.
        headers: lower-case names, ``host`` among them; all are signed but ``user-agent``.
        now: UTC.
    """
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    whole = {**headers, "x-amz-content-sha256": UNSIGNED, "x-amz-date": stamp}
    if keys.token is not None:
        whole["x-amz-security-token"] = keys.token
    names = sorted(whole.keys() - {"user-agent"})
    lines = "".join(f"{name}:{' '.join(whole[name].split())}\n" for name in names)
    signs = ";".join(names)
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{signs}\n{UNSIGNED}"
    scope = f"{stamp[:8]}/{keys.region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = _signing_key(keys.secret_key, stamp[:8], keys.region)
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    whole["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={signs}, Signature={signature}"
    )
    return whole


@lru_cache(maxsize=4)
def _signing_key(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
