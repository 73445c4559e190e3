"""What the null sink answers: S3 as far as uploads ask, deciding without I/O.

Of small ``*.json`` the bytes are kept, and can be read back, with ETags and conditional writes. Of everything
else there are size and checksum, so that HEAD and listings answer. A CRC64-NVME is verified where that costs
nothing: of a body up to 64 KiB, and of an object by the checksums that its parts came with.
"""

import itertools
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from xml.sax.saxutils import escape, unescape

from uploader import checksum

KEPT_BYTES = 4 * 1024**2
"""Bodies up to this size are kept where something is to be read in them."""

VERIFIED_BYTES = 64 * 1024
"""Bodies up to this size are compared with their checksum."""

CRC = "x-amz-checksum-crc64nvme"
MODIFIED = "x-modified-s"
"""In each answer about an object: when it was stored, in seconds, more exactly than ``Last-Modified``."""


@dataclass(slots=True)
class Stored:
    """An object or a part: all that is kept of it."""

    size_bytes: int
    etag: str
    crc64nvme: str | None
    body: bytes | None = None
    modified_s: float = field(default_factory=time.time)


@dataclass(slots=True)
class Upload:
    """A multipart upload under way."""

    key: str
    parts: dict[int, Stored] = field(default_factory=dict)
    begun_s: float = field(default_factory=time.time)


@dataclass(slots=True)
class Request:
    """One request whose body has arrived; ``body`` is None where it was too large to keep."""

    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    size_bytes: int
    body: bytes | None

    @property
    def is_read(self) -> bool:
        """Whether the answer depends on the body."""
        is_told = self.method == "POST" or self.key.endswith(".json")
        return self.size_bytes <= (KEPT_BYTES if is_told else VERIFIED_BYTES)


@dataclass(slots=True)
class Answer:
    """An answer. ``length`` is given by HEAD only, which has no body to measure."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


class Bucket:
    """Every bucket in one: keys begin with the bucket's name. Decides, does no I/O."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.bytes_in = 0
        self.requests = 0
        self.checked_bytes: Counter[str] = Counter()
        self._numbers = itertools.count(1)

    def answer(self, request: Request) -> Answer:
        """What S3 would answer, as far as uploads ask."""
        self.requests += 1
        self.bytes_in += request.size_bytes
        if request.method == "PUT":
            self.checked_bytes[_checks(request.headers)] += request.size_bytes
        if request.key == "__stats":
            return Answer(body=json.dumps(self.stats()).encode())
        bucket, _, name = request.key.partition("/")
        if not name:
            return self._of_bucket(request, bucket)
        return self._of_object(request)

    def stats(self) -> dict[str, Any]:
        """What was received, under which checksums, and what that took of the processor."""
        return {
            "bytes_in": self.bytes_in,
            "requests": self.requests,
            "cpu_s": time.process_time(),
            "checked_bytes": dict(self.checked_bytes),
        }

    def _of_bucket(self, request: Request, bucket: str) -> Answer:
        match request.method:
            case "POST" if "delete" in request.query:
                for key in re.findall(r"<Key>(.*?)</Key>", (request.body or b"").decode()):
                    self.objects.pop(f"{bucket}/{unescape(key)}", None)
                return _xml("DeleteResult", "")
            case "GET" if "uploads" in request.query:
                return self._list_uploads(request, bucket)
            case "GET":
                return self._list(request, bucket)
        return Answer()

    def _of_object(self, request: Request) -> Answer:
        upload_id = request.query.get("uploadId")
        match request.method:
            case "PUT" if upload_id is not None:
                return self._put_part(request, upload_id)
            case "PUT":
                return self._put(request)
            case "POST" if upload_id is not None:
                return self._complete(request, upload_id)
            case "POST":
                upload_id = self._unique()
                self.uploads[upload_id] = Upload(request.key)
                return _xml("InitiateMultipartUploadResult", _tag("UploadId", upload_id))
            case "GET" if upload_id is not None:
                return self._list_parts(upload_id)
            case "GET" | "HEAD":
                return self._read(request)
            case "DELETE":
                self.uploads.pop(upload_id or "", None)
                if upload_id is None:
                    self.objects.pop(request.key, None)
                return Answer(204)
        return error(405, "MethodNotAllowed")

    def _unique(self) -> str:
        return f"{next(self._numbers):032x}"

    def _etag(self) -> str:
        """One that does not look like an MD5, which it is not: rclone would compare."""
        return f"sink-{next(self._numbers)}"

    def _store(self, request: Request, *, keep: bool) -> Stored:
        size_bytes = int(request.headers.get("x-amz-decoded-content-length", request.size_bytes))
        body = _decoded(request) if keep else None
        return Stored(size_bytes, self._etag(), request.headers.get(CRC), body)

    def _put(self, request: Request) -> Answer:
        here = self.objects.get(request.key)
        wanted = request.headers.get("if-match", "").strip('"')
        if request.headers.get("if-none-match") == "*" and here is not None:
            return error(412, "PreconditionFailed")
        if wanted and (here is None or here.etag != wanted):
            return error(412, "PreconditionFailed")
        if _is_damaged(request):
            return error(400, "BadDigest")
        stored = self._store(request, keep=request.key.endswith(".json"))
        self.objects[request.key] = stored
        return Answer(headers=_described(stored))

    def _put_part(self, request: Request, upload_id: str) -> Answer:
        if upload_id not in self.uploads:
            return error(404, "NoSuchUpload")
        if _is_damaged(request):
            return error(400, "BadDigest")
        part = self._store(request, keep=False)
        self.uploads[upload_id].parts[int(request.query["partNumber"])] = part
        return Answer(headers=_described(part))

    def _complete(self, request: Request, upload_id: str) -> Answer:
        upload = self.uploads.get(upload_id)
        if upload is None:
            return error(404, "NoSuchUpload")
        if request.headers.get("if-none-match") == "*" and upload.key in self.objects:
            return error(412, "PreconditionFailed")
        named = re.findall(r"<PartNumber>(\d+)</PartNumber>", (request.body or b"").decode())
        parts = [upload.parts[int(number)] for number in named]
        crc64nvme = request.headers.get(CRC)
        if crc64nvme is not None and _combined(parts) not in (None, crc64nvme):
            return error(400, "BadDigest")
        size_bytes = sum(part.size_bytes for part in parts)
        del self.uploads[upload_id]
        stored = Stored(size_bytes, f"{self._etag()}-{len(parts)}", crc64nvme)
        self.objects[upload.key] = stored
        return _xml("CompleteMultipartUploadResult", _tag("ETag", stored.etag), _described(stored))

    def _read(self, request: Request) -> Answer:
        stored = self.objects.get(request.key)
        if stored is None:
            return error(404, "NoSuchKey")
        if request.method == "HEAD":
            return Answer(headers=_described(stored), length=stored.size_bytes)
        if stored.body is None:
            return error(403, "AccessDenied", "a null sink keeps no bytes")
        return Answer(body=stored.body, headers=_described(stored))

    def _list(self, request: Request, bucket: str) -> Answer:
        prefix = f"{bucket}/{request.query.get('prefix', '')}"
        entries = [
            f"<Contents>{_tag('Key', key.partition('/')[2])}{_tag('Size', one.size_bytes)}"
            f"{_tag('ETag', one.etag)}{_tag('LastModified', _iso(one.modified_s))}</Contents>"
            for key, one in sorted(self.objects.items())
            if key.startswith(prefix)
        ]
        whole = "<IsTruncated>false</IsTruncated>" + _tag("KeyCount", len(entries))
        return _xml("ListBucketResult", whole + "".join(entries))

    def _list_uploads(self, request: Request, bucket: str) -> Answer:
        prefix = f"{bucket}/{request.query.get('prefix', '')}"
        entries = [
            f"<Upload>{_tag('Key', one.key.partition('/')[2])}{_tag('UploadId', upload_id)}"
            f"{_tag('Initiated', _iso(one.begun_s))}</Upload>"
            for upload_id, one in self.uploads.items()
            if one.key.startswith(prefix)
        ]
        return _xml("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>" + "".join(entries))

    def _list_parts(self, upload_id: str) -> Answer:
        if upload_id not in self.uploads:
            return error(404, "NoSuchUpload")
        entries = [
            f"<Part>{_tag('PartNumber', number)}{_tag('Size', one.size_bytes)}{_tag('ETag', one.etag)}"
            f"{_tag('ChecksumCRC64NVME', one.crc64nvme) if one.crc64nvme else ''}</Part>"
            for number, one in sorted(self.uploads[upload_id].parts.items())
        ]
        return _xml("ListPartsResult", "<IsTruncated>false</IsTruncated>" + "".join(entries))


def _described(stored: Stored) -> dict[str, str]:
    headers = {
        "ETag": f'"{stored.etag}"',
        "Last-Modified": formatdate(stored.modified_s, usegmt=True),
        MODIFIED: f"{stored.modified_s:.6f}",
    }
    return headers | ({CRC: stored.crc64nvme} if stored.crc64nvme else {})


def _is_damaged(request: Request) -> bool:
    """Whether the body is here and not what its checksum says."""
    body, crc64nvme = _decoded(request), request.headers.get(CRC)
    return body is not None and crc64nvme is not None and checksum.of_bytes(body) != crc64nvme


def _combined(parts: list[Stored]) -> str | None:
    """The checksum of an object that these parts make; None where one came without."""
    pieces = [(part.crc64nvme, part.size_bytes) for part in parts if part.crc64nvme is not None]
    return checksum.combine(pieces) if len(pieces) == len(parts) else None


def _checks(headers: dict[str, str]) -> str:
    """By what a store could tell that a body arrived whole: ``crc64nvme``, ``md5+sha256``, or ``none``."""
    named = " ".join([*headers, headers.get("x-amz-trailer", "")])
    found = set(re.findall(r"x-amz-checksum-((?:crc|sha)\w+)", named))
    if "content-md5" in headers:
        found.add("md5")
    if re.fullmatch("[0-9a-f]{64}", headers.get("x-amz-content-sha256", "")):
        found.add("sha256")
    return "+".join(sorted(found)) or "none"


def _decoded(request: Request) -> bytes | None:
    """The body without the framing of ``aws-chunked``."""
    body = request.body
    if body is None or "aws-chunked" not in request.headers.get("content-encoding", ""):
        return body
    plain, at = b"", 0
    while True:
        end = body.index(b"\r\n", at)
        size_bytes = int(body[at:end].split(b";")[0], 16)
        if not size_bytes:
            return plain
        plain += body[end + 2 : end + 2 + size_bytes]
        at = end + 4 + size_bytes


def _iso(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at_s))


def _tag(name: str, value: object) -> str:
    return f"<{name}>{escape(str(value))}</{name}>"


def _xml(root: str, inside: str, headers: dict[str, str] | None = None) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><{root}>{inside}</{root}>'.encode()
    return Answer(body=body, headers={"Content-Type": "application/xml", **(headers or {})})


def error(status: int, code: str, message: str = "") -> Answer:
    answer = _xml("Error", _tag("Code", code) + _tag("Message", message or code))
    answer.status = status
    return answer
