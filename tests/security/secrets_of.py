"""Credentials that are easy to recognise, and a search for them in whatever was said or written."""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

ACCESS_KEY = "WMTPACCESS0123456789"
SECRET_KEY = "wmtpSecret/+0123456789abcdefghijklmnopqr"
SESSION_TOKEN = "wmtpSessionToken/+==" + "t0ken" * 20
CUSTOMER_KEY = b"wmtp-customer-key-of-32-bytes-!!"
PASSWORD = "wmtpPassword01"
API_KEY = "wmtpApiKey0123456789"

SECRETS: dict[str, bytes] = {
    "secret key": SECRET_KEY.encode(),
    "session token": SESSION_TOKEN.encode(),
    "customer's key": CUSTOMER_KEY,
    "password": PASSWORD.encode(),
    "API key": API_KEY.encode(),
    "access key": ACCESS_KEY.encode(),
}

SIGNED = re.compile(
    rb"X-Amz-(?:Signature|Credential|Security-Token)|AWS4-HMAC-SHA256|Signature=|"
    rb"Authorization['\"]?\s*[:=]|customer-key['\"]?\s*[:=]",
    re.IGNORECASE,
)
"""What a signed URL or the header of a signed request looks like, whoever signed it."""


def forms(secret: bytes) -> Iterator[bytes]:
    """A secret as logs and URLs write it."""
    yield secret
    yield quote(secret).encode()
    yield quote(secret, safe="").encode()
    yield secret.hex().encode()
    yield base64.b64encode(secret).rstrip(b"=")
    yield base64.b64encode(hashlib.md5(secret, usedforsecurity=False).digest())


def leaks(data: bytes) -> set[str]:
    """The names of the secrets that some bytes tell; ``signed`` for a signature."""
    found = {name for name, secret in SECRETS.items() if any(form in data for form in forms(secret))}
    return found | ({"signed"} if SIGNED.search(data) else set())


def leaks_below(root: Path, *, but: Iterable[Path]) -> Mapping[str, set[str]]:
    """The files below a directory that tell secrets, but for those in which they lie."""
    left_out = {*but}
    files = [path for path in root.rglob("*") if path.is_file() and path not in left_out]
    assert files
    return {str(path.relative_to(root)): found for path in files if (found := leaks(path.read_bytes()))}
