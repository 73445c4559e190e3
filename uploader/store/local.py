"""A directory as a store: an NFS mount, say, used as a remote like any other.

An object appears whole or not at all: temporary file, fsync, rename, fsync of the directory. What is not an
object yet lies below ``.wmtp-store/``, which no key may name. Every change of a name happens under one flock,
so that conditions hold between processes too. An ETag is the checksum of the content.
"""

import fcntl
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from anyio import from_thread, to_thread

from uploader import checksum
from uploader.below import check_small, private
from uploader.errors import (
    ChecksumMismatch,
    CorruptError,
    ObjectMissing,
    PreconditionFailed,
    StoreError,
    UploadMissing,
)
from uploader.store import files
from uploader.store.base import NewObject, ObjectInfo, PartInfo, UploadInfo
from uploader.store.body import Body, FileSlice, Pace, at_once
from uploader.store.body import crc64nvme as body_checksum

T = TypeVar("T")

HIDDEN = ".wmtp-store"
LOOK_S = 0.1
STALE_S = 24 * 3600
"""Age at which a temporary file is taken for debris of a process that died."""


class LocalStore:
    """The files below ``directory``, which is made at the first write.

    Args:
        pace: how long to wait before so many bytes of a file are written.
    """

    def __init__(self, directory: Path, pace: Pace = at_once) -> None:
        self._root, self._pace = directory.absolute(), pace
        self._lock_file = self._root / HIDDEN / "lock"
        self._staging, self._uploads = self._root / HIDDEN / "tmp", self._root / HIDDEN / "uploads"
        self._swept = False

    @property
    def uri(self) -> str:
        return f"file://{self._root}"

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        def read() -> tuple[bytes, ObjectInfo]:
            with open(self._path(key), "rb") as file:
                status = os.fstat(file.fileno())
                check_small(status.st_size, self._name(key))
                data, modified_at = file.read(), status.st_mtime
            crc = checksum.of_bytes(data)
            return data, ObjectInfo(key, len(data), crc, crc, modified_at)

        return await self._run(read, "reading", key, absent=ObjectMissing)

    async def get_range(self, key: str, start: int, into: memoryview) -> None:
        def read() -> None:
            with open(self._path(key), "rb", buffering=0) as file:
                rest = into
                while rest:
                    count = os.preadv(file.fileno(), [rest], start + len(into) - len(rest))
                    if not count:
                        raise CorruptError(
                            f"it ends {len(rest)} bytes early", doing="reading", subject=self._name(key)
                        )
                    rest = rest[count:]

        await self._run(read, "reading", key, absent=ObjectMissing)

    async def head(self, key: str) -> ObjectInfo:
        """As the protocol says; the whole file is read for its checksum."""
        return await self._run(
            lambda: files.describe(key, self._path(key)), "reading", key, absent=ObjectMissing
        )

    async def put(
        self,
        key: str,
        body: Body,
        *,
        crc64nvme: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        def write() -> str:
            target, crc = self._path(key), self._verified(body, crc64nvme, key)
            with self._temporary() as temporary:
                self._write(temporary, body)
                with self._locked():
                    if if_match is not None and _etag(target) != if_match:
                        raise self._lost("the object has changed", key)
                    try:
                        files.publish(temporary, target, if_absent=if_absent)
                    except FileExistsError:
                        raise self._lost("the object exists already", key) from None
            return crc

        return await self._run(write, "writing", key)

    async def put_some(self, objects: Sequence[NewObject]) -> int:
        first = objects[0]
        await self.put(first.key, first.body, crc64nvme=first.crc64nvme)
        return 1

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """As the protocol says, but without checksum and ETag (empty), which would take reading all."""
        for info in await self._run(
            lambda: [*files.walk(self._root, prefix, hidden=HIDDEN)], "listing", prefix
        ):
            yield info

    async def delete(self, keys: Sequence[str]) -> None:
        """As the protocol says; directories left empty go too."""

        def remove() -> None:
            with self._locked():
                for key in keys:
                    path = self._path(key)
                    with suppress(*files.ABSENT):
                        path.unlink()
                    with suppress(OSError):  # the first that is not empty ends it
                        for parent in path.relative_to(self._root).parents[:-1]:
                            (self._root / parent).rmdir()

        if keys:
            await self._run(remove, "deleting", keys[0])

    async def purge(self, prefix: str) -> None:
        """A directory keeps no versions."""

    async def create_upload(self, key: str, *, crc64nvme: str | None = None) -> str:
        def create() -> str:
            self._path(key)
            upload_id = uuid.uuid4().hex
            with self._temporary() as temporary:
                temporary.mkdir(mode=0o700)
                files.write(temporary / "key", key.encode())
                files.publish(temporary, self._uploads / upload_id)
            return upload_id

        return await self._run(create, "beginning the upload of", key)

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str) -> str:
        """As the protocol says; a part is a file of its own, whose name holds its number and its checksum."""

        def write() -> str:
            upload = self._upload(key, upload_id)
            crc = self._verified(body, crc64nvme, key)
            with self._temporary() as temporary:
                self._write(temporary, body)
                stale = [part for part in _part_files(upload) if _number(part) == number]
                os.replace(temporary, upload / _part_name(number, crc))
                for part in stale:
                    if part.name != _part_name(number, crc):
                        part.unlink(missing_ok=True)
                files.sync_directory(upload)
            return crc

        return await self._run(write, f"uploading part {number} of", key, absent=UploadMissing)

    async def list_parts(self, key: str, upload_id: str) -> Sequence[PartInfo]:
        def read() -> list[PartInfo]:
            infos = [_part_info(part) for part in _part_files(self._upload(key, upload_id))]
            return list({info.number: info for info in infos}.values())  # a crash may leave a part twice

        return await self._run(read, "listing the parts of", key, absent=UploadMissing)

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[PartInfo], *, size_bytes: int, crc64nvme: str
    ) -> str:
        """As the protocol says; the kernel joins the parts, and shares their blocks where it can."""

        def complete() -> str:
            upload, target = self._upload(key, upload_id), self._path(key)
            stored = {(info.number, info.etag): info for info in map(_part_info, _part_files(upload))}
            named = sorted((part.number, part.etag) for part in parts)
            if not stored.keys() >= set(named):
                raise self._mismatch("the store has other parts than those named", key)
            pieces = [(stored[part].etag, stored[part].size_bytes) for part in named]
            if sum(size for _, size in pieces) != size_bytes or checksum.combine(pieces) != crc64nvme:
                raise self._mismatch("the parts make other bytes", key)
            with self._temporary() as temporary:
                files.concatenate(temporary, [upload / _part_name(*part) for part in named])
                with self._locked():
                    files.publish(temporary, target)
            self._drop(upload)
            return crc64nvme

        return await self._run(complete, "completing the upload of", key, absent=UploadMissing)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        def abort() -> None:
            with suppress(UploadMissing, *files.ABSENT):
                self._drop(self._upload(key, upload_id))

        await self._run(abort, "aborting the upload of", key)

    async def list_uploads(self, prefix: str = "") -> AsyncIterator[UploadInfo]:
        def read() -> list[UploadInfo]:
            uploads = []
            for path in self._uploads.glob("*/key"):
                with suppress(*files.ABSENT):
                    uploads.append(UploadInfo(path.read_text(), path.parent.name, path.stat().st_mtime))
            return sorted(uploads, key=lambda upload: (upload.key, upload.upload_id))

        for upload in await self._run(read, "listing the uploads of", prefix):
            if upload.key.startswith(prefix):
                yield upload

    async def _run(
        self, work: Callable[[], T], doing: str, key: str, *, absent: type[StoreError] | None = None
    ) -> T:
        """Do blocking work in a thread; ``absent`` is what a missing file means to it."""
        try:
            return await to_thread.run_sync(work)
        except OSError as error:
            if absent and isinstance(error, files.ABSENT):
                raise absent("it is not there", doing=doing, subject=self._name(key)) from error
            raise files.of_os_error(error, doing=doing, subject=self._name(key)) from error

    def _write(self, path: Path, body: Body) -> None:
        """Small records wait for nothing."""
        if isinstance(body, FileSlice):
            files.write(path, body, self._wait)
        else:
            files.write(path, body)

    def _wait(self, size_bytes: int) -> None:
        """On a thread, which looks meanwhile whether it is still wanted."""
        wait_s = self._pace(size_bytes)
        while wait_s > 0:
            from_thread.check_cancelled()
            time.sleep(min(wait_s, LOOK_S))
            wait_s -= LOOK_S

    def _name(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def _path(self, key: str) -> Path:
        """The file of a key, which lies below the root whatever the key and whatever links there are."""
        words = key.split("/")
        path = self._root / key
        inside = (
            Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._root))
            if "\0" not in key
            else False
        )
        if not inside or words[0] == HIDDEN or any(word in ("", ".", "..") for word in words):
            raise StoreError(
                "this is no key", subject=repr(key), hint="keys name files below the store's directory"
            )
        return path

    def _upload(self, key: str, upload_id: str) -> Path:
        upload = self._uploads / upload_id
        if not re.fullmatch("[0-9a-f]{32}", upload_id) or (upload / "key").read_text() != key:
            raise UploadMissing("no such upload", doing="continuing the upload of", subject=self._name(key))
        return upload

    def _drop(self, upload: Path) -> None:
        """Remove an upload: in one step for whoever looks, then file by file."""
        with self._temporary() as temporary:
            os.replace(upload, temporary)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A free name on the same file system; what still has it afterwards is removed."""
        files.make_directory(self._staging)
        self._sweep()
        path = self._staging / uuid.uuid4().hex
        try:
            yield path
        finally:
            files.discard(path)

    def _sweep(self) -> None:
        """Remove, once, what processes that died left behind; ages by the file system's clock."""
        if not self._swept:
            self._swept = True
            self._lock_file.touch(0o600)
            now = self._lock_file.stat().st_mtime
            for path in self._staging.iterdir():
                with suppress(FileNotFoundError):
                    if now - path.stat().st_mtime > STALE_S:
                        files.discard(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        files.make_directory(self._lock_file.parent)
        with open(self._lock_file, "wb", opener=private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _verified(self, body: Body, crc64nvme: str | None, key: str) -> str:
        crc = body_checksum(body)
        if crc64nvme not in (None, crc):
            raise self._mismatch("the bytes received are not those of the checksum", key)
        return crc

    def _mismatch(self, problem: str, key: str) -> ChecksumMismatch:
        return ChecksumMismatch(problem, doing="storing", subject=self._name(key))

    def _lost(self, problem: str, key: str) -> PreconditionFailed:
        return PreconditionFailed(problem, doing="writing", subject=self._name(key))


def _etag(path: Path) -> str | None:
    try:
        return files.describe("", path).etag
    except files.ABSENT:
        return None


def _part_name(number: int, crc: str) -> str:
    return f"{number:05}-{checksum.decode(crc):016x}"


def _part_files(upload: Path) -> list[Path]:
    return sorted(path for path in upload.iterdir() if path.name != "key")


def _number(part: Path) -> int:
    return int(part.name.partition("-")[0])


def _part_info(part: Path) -> PartInfo:
    crc = checksum.encode(int(part.name.partition("-")[2], 16))
    return PartInfo(_number(part), part.stat().st_size, crc, crc)
