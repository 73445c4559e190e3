"""A small S3 in memory with chosen weaknesses, served over HTTP; every request is kept."""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from awscrt import checksums
from fake_s3 import Request, Talk, answer, refusal

from uploader import checksum


def crc32c_of(body: bytes) -> str:
    """As S3 writes it."""
    return base64.b64encode(checksums.crc32c(body).to_bytes(4, "big")).decode()


def md5_of(body: bytes) -> str:
    """As ``Content-MD5`` writes it."""
    return base64.b64encode(_md5(body).digest()).decode()


_md5 = partial(hashlib.md5, usedforsecurity=False)
CRC64NVME = "x-amz-checksum-crc64nvme"
_SUMS: dict[str, Callable[[bytes], str]] = {
    CRC64NVME: checksum.of_bytes,
    "x-amz-checksum-crc32c": crc32c_of,
    "content-md5": md5_of,
}
ALL_SUMS = frozenset(_SUMS)


@dataclass
class QuirkyS3:
    """What it can do; by default all of it.

    Attributes:
        verifies: headers with a checksum that it verifies; others it ignores.
        if_none_match, if_match, complete_if_none_match: ``honoured``, ``ignored`` or ``501``; an ``if_match``
            also ``bare`` or ``quoted``, where only that form of an ETag matches.
        full_object: whether the checksum of a completed object is verified and told.
        md5_etags: whether an ETag is the MD5 of the object.
        batch_deletes: whether there is DeleteObjects.
        fails: a status for requests by their number, from 1.
        spoils: whether what arrives is not what is stored.
    """

    verifies: frozenset[str] = ALL_SUMS
    if_none_match: str = "honoured"
    if_match: str = "honoured"
    complete_if_none_match: str = "honoured"
    full_object: bool = True
    md5_etags: bool = True
    batch_deletes: bool = True
    fails: dict[int, str] = field(default_factory=dict)
    spoils: bool = False
    requests: list[Request] = field(default_factory=list)
    objects: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    uploads: dict[str, dict[str, str]] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def talk(self, one: Talk) -> None:
        """Serve a connection."""
        while request := one.request():
            self.requests.append(request)
            status = self.fails.get(len(self.requests))
            one.say(refusal(status, "Oh") if status else self._answer(request))

    def _answer(self, request: Request) -> bytes:
        match request.method, sorted(request.query):
            case "PUT", []:
                return self._put(request)
            case "PUT", _:
                return self._put_part(request)
            case "POST", ["uploads"]:
                self.uploads[name := f"upload-{len(self.uploads)}"] = request.headers
                self.parts[name] = {}
                return answer("200 OK", f"<R><UploadId>{name}</UploadId></R>".encode())
            case "POST", ["delete"]:
                return self._delete_batch(request)
            case "POST", _:
                return self._complete(request)
            case "DELETE", []:
                self.objects.pop(request.path, None)
                return answer("204 No Content")
            case "DELETE", _:
                self.parts.pop(request.query["uploadId"], None)
                return answer("204 No Content")
        return self._get(request)

    def _put(self, request: Request) -> bytes:
        refused = self._refused(request, self.if_none_match) or self._wrong(request)
        if refused:
            return refused
        self.objects[request.path] = request.body[1:] if self.spoils else request.body, request.headers
        return answer("200 OK", ETag=f'"{self._etag(request.path)}"')

    def _put_part(self, request: Request) -> bytes:
        if refused := self._wrong(request):
            return refused
        body = request.body[1:] if self.spoils else request.body
        self.parts[request.query["uploadId"]][int(request.query["partNumber"])] = body
        return answer("200 OK", ETag=f'"{_md5(body).hexdigest()}"')

    def _complete(self, request: Request) -> bytes:
        name = request.query["uploadId"]
        if name not in self.parts:
            return refusal("404 Not Found", "NoSuchUpload")
        body = b"".join(data for _, data in sorted(self.parts[name].items()))
        refused = self._refused(request, self.complete_if_none_match)
        told = request.headers.get(CRC64NVME)
        if not refused and self.full_object and told not in (None, checksum.of_bytes(body)):
            refused = refusal("400 Bad Request", "BadDigest")
        if refused:
            return refused
        del self.parts[name]
        self.objects[request.path] = body, self.uploads[name]
        etag = self._etag(request.path)
        return answer("200 OK", f"<R><ETag>&quot;{etag}&quot;</ETag></R>".encode())

    def _delete_batch(self, request: Request) -> bytes:
        if not self.batch_deletes:
            return refusal("501 Not Implemented", "NotImplemented")
        for key in re.findall(rb"<Key>(.*?)</Key>", request.body):
            self.objects.pop(f"{request.path.rstrip('/')}/{key.decode()}", None)
        return answer("200 OK", b"<DeleteResult/>")

    def _get(self, request: Request) -> bytes:
        if request.path.count("/") == 1:
            return answer("200 OK")  # the bucket
        if request.path not in self.objects:
            return answer("404 Not Found")
        body, headers = self.objects[request.path]
        kept = {name: text for name, text in headers.items() if name.startswith("x-amz-meta-")}
        if CRC64NVME in self.verifies & headers.keys():
            kept[CRC64NVME] = headers[CRC64NVME]
        shown = b"" if request.method == "HEAD" else body
        etag, length = self._etag(request.path), str(len(body))
        return answer("200 OK", shown, ETag=f'"{etag}"', Content_Length=length, **kept)

    def _etag(self, path: str) -> str:
        body = self.objects[path][0]
        return _md5(body if self.md5_etags else b"salt" + body).hexdigest()

    def _refused(self, request: Request, if_none_match: str) -> bytes | None:
        there = request.path in self.objects
        for header, manner in (("if-none-match", if_none_match), ("if-match", self.if_match)):
            if header not in request.headers or manner == "ignored":
                continue
            if manner == "501":
                return refusal("501 Not Implemented", "NotImplemented")
            etag = self._etag(request.path) if there else ""
            forms = {"bare": {etag}, "quoted": {f'"{etag}"'}}.get(manner, {etag, f'"{etag}"'})
            holds = not there if header == "if-none-match" else request.headers[header] in forms
            if not holds:
                return refusal("412 Precondition Failed", "PreconditionFailed")
        return None

    def _wrong(self, request: Request) -> bytes | None:
        for header in self.verifies & request.headers.keys():
            if request.headers[header] != _SUMS[header](request.body):
                return refusal("400 Bad Request", "BadDigest")
        return None
