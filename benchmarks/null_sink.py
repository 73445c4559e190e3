"""An S3 server that only counts: ``python -m benchmarks.null_sink`` prints its port and serves until killed.

Bodies are read into one buffer and forgotten, but for small ``*.json``, which are kept and can be read back,
with ETags and conditional writes. Of everything else the size and checksum are kept, so that HEAD and
listings answer. Any credentials and any bucket will do. ``GET /__stats`` tells bytes, requests, CPU seconds.
"""

import asyncio
import itertools
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

KEPT_BYTES = 4 * 1024**2
"""Bodies up to this size are kept while a request is handled, and ``*.json`` for good."""

BUFFER_BYTES = 1024**2
CRC = "x-amz-checksum-crc64nvme"


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
        self._numbers = itertools.count(1)

    def answer(self, request: Request) -> Answer:
        """What S3 would answer, as far as uploads ask."""
        self.requests += 1
        self.bytes_in += request.size_bytes
        if request.key == "__stats":
            return Answer(body=json.dumps(self.stats()).encode())
        bucket, _, name = request.key.partition("/")
        if not name:
            return self._of_bucket(request, bucket)
        return self._of_object(request)

    def stats(self) -> dict[str, float]:
        """What was received, and what that took of the processor."""
        return {"bytes_in": self.bytes_in, "requests": self.requests, "cpu_s": time.process_time()}

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
        return _error(405, "MethodNotAllowed")

    def _unique(self) -> str:
        return f"{next(self._numbers):032x}"

    def _store(self, request: Request, *, keep: bool) -> Stored:
        size_bytes = int(request.headers.get("x-amz-decoded-content-length", request.size_bytes))
        body = _decoded(request) if keep else None
        return Stored(size_bytes, self._unique(), request.headers.get(CRC), body)

    def _put(self, request: Request) -> Answer:
        here = self.objects.get(request.key)
        wanted = request.headers.get("if-match", "").strip('"')
        if request.headers.get("if-none-match") == "*" and here is not None:
            return _error(412, "PreconditionFailed")
        if wanted and (here is None or here.etag != wanted):
            return _error(412, "PreconditionFailed")
        stored = self._store(request, keep=request.key.endswith(".json"))
        self.objects[request.key] = stored
        return Answer(headers=_described(stored))

    def _put_part(self, request: Request, upload_id: str) -> Answer:
        if upload_id not in self.uploads:
            return _error(404, "NoSuchUpload")
        part = self._store(request, keep=False)
        self.uploads[upload_id].parts[int(request.query["partNumber"])] = part
        return Answer(headers=_described(part))

    def _complete(self, request: Request, upload_id: str) -> Answer:
        upload = self.uploads.pop(upload_id, None)
        if upload is None:
            return _error(404, "NoSuchUpload")
        named = re.findall(r"<PartNumber>(\d+)</PartNumber>", (request.body or b"").decode())
        size_bytes = sum(upload.parts[int(number)].size_bytes for number in named)
        stored = Stored(size_bytes, f"{self._unique()}-{len(named)}", request.headers.get(CRC))
        self.objects[upload.key] = stored
        return _xml("CompleteMultipartUploadResult", _tag("ETag", stored.etag), _described(stored))

    def _read(self, request: Request) -> Answer:
        stored = self.objects.get(request.key)
        if stored is None:
            return _error(404, "NoSuchKey")
        if request.method == "HEAD":
            return Answer(headers=_described(stored), length=stored.size_bytes)
        if stored.body is None:
            return _error(403, "AccessDenied", "a null sink keeps no bytes")
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
            return _error(404, "NoSuchUpload")
        entries = [
            f"<Part>{_tag('PartNumber', number)}{_tag('Size', one.size_bytes)}{_tag('ETag', one.etag)}"
            f"{_tag('ChecksumCRC64NVME', one.crc64nvme) if one.crc64nvme else ''}</Part>"
            for number, one in sorted(self.uploads[upload_id].parts.items())
        ]
        return _xml("ListPartsResult", "<IsTruncated>false</IsTruncated>" + "".join(entries))


def _described(stored: Stored) -> dict[str, str]:
    headers = {"ETag": f'"{stored.etag}"', "Last-Modified": formatdate(stored.modified_s, usegmt=True)}
    return headers | ({CRC: stored.crc64nvme} if stored.crc64nvme else {})


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


def _error(status: int, code: str, message: str = "") -> Answer:
    answer = _xml("Error", _tag("Code", code) + _tag("Message", message or code))
    answer.status = status
    return answer


class Connection(asyncio.BufferedProtocol):
    """HTTP/1.1 on one connection: requests one after the other, with Content-Length."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self._answer = answer
        self._buffer = bytearray(BUFFER_BYTES)
        self._head = b""
        self._request: Request | None = None
        self._kept = bytearray()
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        data = memoryview(self._buffer)[:count]
        while len(data):
            data = self._read_head(data) if self._request is None else self._read_body(data)

    def _read_head(self, data: memoryview) -> memoryview:
        self._head += bytes(data)
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return data[len(data) :]
        rest = len(self._head) - end - 4
        self._request = request = _parse(self._head[:end].decode("latin-1"))
        self._head, self._kept, self._missing = b"", bytearray(), request.size_bytes
        if "transfer-encoding" in request.headers:
            self._send(_error(411, "MissingContentLength"), request)
            self._transport.close()
            return data[len(data) :]
        if request.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._missing:
            self._finish()
        return data[len(data) - rest :]

    def _read_body(self, data: memoryview) -> memoryview:
        taken = min(self._missing, len(data))
        self._missing -= taken
        if self._request is not None and self._request.size_bytes <= KEPT_BYTES:
            self._kept += data[:taken]
        if not self._missing:
            self._finish()
        return data[taken:]

    def _finish(self) -> None:
        request, self._request = self._request, None
        assert request is not None
        if request.size_bytes <= KEPT_BYTES:
            request.body = bytes(self._kept)
        self._send(self._answer(request), request)

    def _send(self, answer: Answer, request: Request) -> None:
        body = b"" if request.method == "HEAD" else answer.body
        length = len(body) if answer.length is None else answer.length
        headers = {"Date": formatdate(usegmt=True), "Content-Length": str(length), **answer.headers}
        lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers.items())]
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)


def _parse(head: str) -> Request:
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ", 2)
    url = urlsplit(target)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
    key = unquote(url.path).lstrip("/")
    return Request(method, key, query, headers, int(headers.get("content-length", 0)), None)


async def serve(host: str = "127.0.0.1") -> None:
    """Print the port and serve until cancelled."""
    bucket = Bucket()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(bucket.answer), host, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    os.nice(19)  # a real store would take nothing of this machine
    asyncio.run(serve())
