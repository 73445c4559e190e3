"""Models and data sets that lie in a store: fetched once, verified, and kept below the cache directory.

A copy is named by its URI and by key, size and ETag of every object, so another content is another copy. It
is complete or not there: files are written beside, verified, fsynced and renamed; its record comes last.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from uploader import checksum, files, layout
from uploader.below import private
from uploader.buffers import PartBuffers
from uploader.errors import CorruptError, SettingsError
from uploader.location import Location
from uploader.retry import RetryPolicy
from uploader.settings import StorageSettings
from uploader.store import ObjectInfo, ObjectStore, open_store
from uploader.store.retrying import RetryingStore
from uploader.tasks import side_by_side

PART_SIZE_BYTES = 16 * 1024**2
PARTS_IN_FLIGHT = 8
STORE_TIMEOUT_S = 60.0
"""How long a store that does not answer is asked again before the start gives up."""

_MD5 = re.compile(r"[0-9a-f]{32}")

Wanted = Callable[[str], bool]
Say = Callable[[str], None]


def fetch(
    location: Location,
    storage: StorageSettings,
    cache: Path,
    *,
    field: str,
    wanted: Wanted = lambda name: True,
    say: Say = lambda line: None,
) -> Path:
    """The local path of what a location names; an ``s3://`` prefix is a directory, an object a file.

    Args:
        cache: where fetched copies are kept.
        field: the setting that named the location, for messages.
        wanted: which of the names below a prefix are fetched.
        say: tells a person that something is being downloaded.

    Raises:
        SettingsError: nothing lies there.
        StoreError: the store can't be reached, or refuses.
        CorruptError: what arrived is not what the store says it holds.
        DiskError: the cache can't be written.
    """
    if not location.is_s3:
        if not location.directory.exists():
            hint = "correct the path, or copy it there"
            raise SettingsError(
                "there is no such file or directory", subject=f"{field} {location}", hint=hint
            )
        return location.directory
    return anyio.run(partial(_fetch, location, storage, cache, field, wanted, say))


@dataclass(frozen=True)
class _Listed:
    """What lies at a location: objects by their names below ``root``; one object has its own name."""

    root: Location
    objects: dict[str, ObjectInfo]
    single: bool

    def digest(self, location: Location) -> str:
        """Names the copy; equal for equal URIs with equal content."""
        described = [(name, info.size_bytes, info.etag) for name, info in sorted(self.objects.items())]
        return hashlib.sha256(json.dumps([str(location), described]).encode()).hexdigest()[:32]


async def _fetch(
    location: Location, storage: StorageSettings, cache: Path, field: str, wanted: Wanted, say: Say
) -> Path:
    async with open_store(location.parent if location.path else location, storage) as opened:
        store = RetryingStore(opened, RetryPolicy(deadline_s=STORE_TIMEOUT_S))
        listed = await _list(location, store, field, wanted)
        target = cache / "fetched" / listed.digest(location)
        with files.disk_errors("fetching to", target), _alone(target):
            if not _is_complete(target, listed):
                size_bytes = sum(info.size_bytes for info in listed.objects.values())
                say(f"fetching {location}, {len(listed.objects)} files, {size_bytes / 1e6:.1f} MB")
                await _download(store, listed, location, target, md5_etags=_has_md5_etags(storage))
    return target / location.name if listed.single else target


async def _list(location: Location, store: ObjectStore, field: str, wanted: Wanted) -> _Listed:
    """The objects of a location, all of them before any is read."""
    prefix = f"{location.name}/" if location.path else ""
    found = {info.key: info async for info in store.list(location.name)}
    if location.path and location.name in found:
        return _Listed(location.parent, {location.name: found[location.name]}, single=True)
    objects = {
        key.removeprefix(prefix): info
        for key, info in found.items()
        if key.startswith(prefix) and not key.endswith("/") and wanted(key.removeprefix(prefix))
    }
    if not objects:
        there = sorted(key.removeprefix(prefix) for key in found if key.startswith(prefix))
        hint = f"there are: {', '.join(there[:6])}" if there else "check its spelling"
        problem = "nothing that can be used lies there" if there else "nothing lies there"
        raise SettingsError(problem, subject=f"{field} {location}", hint=hint)
    for name in objects:
        if not layout.is_safe_path(name):
            raise CorruptError(
                "its name could leave the cache", doing="fetching", subject=f"{location}/{name}"
            )
    return _Listed(location, objects, single=False)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One fetcher at a time: ranks of one node wait, then find the copy."""
    files.make_directory(target.parent)
    with open(target.with_name(f"{target.name}.lock"), "wb", opener=private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_complete(target: Path, listed: _Listed) -> bool:
    """Whether the copy is there with every file at its size; its bytes were verified as they arrived."""
    sizes = {target / name: info.size_bytes for name, info in listed.objects.items()}
    return _record(target).exists() and all(
        path.is_file() and path.stat().st_size == size_bytes for path, size_bytes in sizes.items()
    )


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _has_md5_etags(storage: StorageSettings) -> bool:
    """The ETag of what is encrypted with a customer's key looks like an MD5 and is none."""
    return storage.sse != "aws:kms" and storage.sse_c_key_file is None


async def _download(
    store: ObjectStore, listed: _Listed, location: Location, target: Path, *, md5_etags: bool
) -> None:
    staged = target.with_name(f"{target.name}.tmp")
    _record(target).unlink(missing_ok=True)
    for left in (staged, target):
        files.remove_tree(left)
    files.make_directory(staged)
    buffers = PartBuffers(PART_SIZE_BYTES, PARTS_IN_FLIGHT)
    checksums: dict[str, str] = {}

    async def one(name: str, info: ObjectInfo) -> None:
        checksums[name] = await _download_file(store, info, staged / name, buffers, md5_etags)

    await side_by_side((partial(one, name, info) for name, info in listed.objects.items()), at_most=4)
    for directory in {staged, *(path.parent for path in staged.rglob("*"))}:
        files.fsync_directory(directory)
    os.rename(staged, target)
    record = {"uri": str(location), "crc64nvme": checksums}
    files.replace(_record(target), json.dumps(record, indent=1).encode() + b"\n")


async def _download_file(
    store: ObjectStore, info: ObjectInfo, path: Path, buffers: PartBuffers, md5_etags: bool
) -> str:
    """Write one object to a new file, verify it, and return its checksum."""
    files.make_directory(path.parent)
    sizes = [
        min(PART_SIZE_BYTES, info.size_bytes - start) for start in range(0, info.size_bytes, PART_SIZE_BYTES)
    ]
    checksums = [""] * len(sizes)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    async def part(number: int) -> None:
        start = number * PART_SIZE_BYTES
        async with buffers.take(sizes[number]) as body:
            await store.get_range(info.key, start, body)
            checksums[number] = await to_thread.run_sync(checksum.of_bytes, body)
            await to_thread.run_sync(_write, descriptor, start, body)

    try:
        await side_by_side(partial(part, number) for number in range(len(sizes)))
        crc64nvme = checksum.combine(zip(checksums, sizes, strict=True))
        await _verify(store, info, path, crc64nvme, md5_etags)
        await to_thread.run_sync(os.fsync, descriptor)
    finally:
        os.close(descriptor)
    return crc64nvme


def _write(descriptor: int, start: int, data: memoryview) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], start + written)


async def _verify(
    store: ObjectStore, listed: ObjectInfo, path: Path, crc64nvme: str, md5_etags: bool
) -> None:
    """Compare with the store's own checksum; where it keeps none, with an ETag that is an MD5."""
    subject = f"{store.uri}/{listed.key}"
    held = await store.head(listed.key)
    if held.etag != listed.etag or held.size_bytes != listed.size_bytes:
        hint = "start again when nobody writes there"
        raise CorruptError("it changed while it was read", doing="fetching", subject=subject, hint=hint)
    if held.crc64nvme is not None:
        expected, found = held.crc64nvme, crc64nvme
    elif md5_etags and _MD5.fullmatch(held.etag):
        expected, found = held.etag, await to_thread.run_sync(_md5, path)
    else:
        return  # a multipart ETag says nothing about the bytes: the size is all there is
    if expected != found:
        hint = "start again, or upload the file anew; where KMS encrypts the bucket, set storage.sse: aws:kms"
        problem = f"its checksum is {expected}, that of what arrived {found}"
        raise CorruptError(problem, doing="fetching", subject=subject, hint=hint)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
