"""What an interrupted upload needs to go on: one small file for each, below ``.uploader/uploads/``.

Its first line names the upload and the file that it is of, and is durable before the first part is sent. Each
further line is the ETag of a part, appended as the store takes it and never fsynced: a machine that dies may
lose some, and each costs only its part. A torn last line is such a loss. A file that says anything else that
can't be read is set aside, and its upload is one that nobody knows.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from uploader import below, files, layout
from uploader.bounds import Count
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import CorruptError
from uploader.layout import RunDirectory
from uploader.parts import MAX_PARTS
from uploader.record import FileRecord, decode
from uploader.seal import Sealed
from uploader.settings import SCHEMA_VERSION

log = logging.getLogger("uploader")

Number = Annotated[int, Field(ge=1, le=MAX_PARTS)]

DAMAGED = "damaged"
"""The name under which the last journal that could not be read is kept for a person to look at."""


def _key(key: str) -> str:
    if not layout.is_safe_key(key):
        raise ValueError(f"the key {key[:100]!r} could leave the run")
    return key


class Unfinished(Sealed):
    """One multipart upload, and the file that it is of.

    Attributes:
        destination: the URI where the keys begin.
        size_bytes, crc64nvme: of the whole file: one that has others is another file.
        part_size_bytes: how the file is cut; parts that are stored keep their bounds.
        etags: by number: the parts that the store has taken.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    destination: str
    key: Annotated[str, AfterValidator(_key)]
    upload_id: str
    size_bytes: Count
    crc64nvme: str
    part_size_bytes: Annotated[int, Field(ge=BLOCK_SIZE_BYTES, multiple_of=BLOCK_SIZE_BYTES)]
    etags: dict[Number, str] = {}

    @property
    def step(self) -> str | None:
        """The step of its file, as ``step_N@gG``."""
        parsed = layout.parse_step_key(self.key)
        return layout.step_at(*parsed) if parsed else None

    def is_of(self, destination: str, file: FileRecord) -> bool:
        """Whether it can go on: it sends these bytes to this place."""
        there = (self.destination, self.size_bytes, self.crc64nvme)
        return there == (destination, file.size_bytes, file.crc64nvme)


class PartTaken(Sealed):
    """A further line: the store has this part."""

    number: Number
    etag: str


class Journal:
    """The unfinished uploads of one run directory; written by the one uploader that holds the directory."""

    def __init__(self, directory: RunDirectory) -> None:
        self._path = directory.uploads
        with files.disk_errors("tidying", self._path):
            for path in self._path.glob(".*.tmp"):
                path.unlink()

    def find(self, key: str) -> Unfinished | None:
        """The unfinished upload of a key; None where there is none, or none that can be read.

        Raises:
            DiskError: the disk does not give it back.
        """
        return self._read(self._file(key))

    def all(self) -> list[Unfinished]:
        """Every unfinished upload, by key.

        Raises:
            DiskError: the disk does not give them back.
        """
        found = [self._read(path) for path in _journals(self._path)]
        return sorted((one for one in found if one is not None), key=lambda one: one.key)

    def begin(self, upload: Unfinished) -> None:
        """Write an upload down, durably, with the parts it has.

        A disk that is full must not stop the upload that will free it: without its journal it is sent again
        if this process dies.
        """
        try:
            files.make_directory(self._path)
            files.replace(self._file(upload.key), upload.encode())
        except OSError as error:
            log.warning("%s can't be written: %s", self._file(upload.key), os.strerror(error.errno or 0))

    def took(self, key: str, number: int, etag: str) -> None:
        """Note that the store has a part. Survives this process, but perhaps not the machine."""
        path = self._file(key)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(descriptor, PartTaken(number=number, etag=etag).encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("%s can't be written: %s", path, os.strerror(error.errno or 0))

    def forget(self, key: str) -> None:
        """Drop what is known of the upload of a key: it is completed or aborted.

        Raises:
            DiskError: the disk refuses.
        """
        path = self._file(key)
        with files.disk_errors("deleting", path):
            path.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        """A name of its own for each key, however long and nested that is."""
        return self._path / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.jsonl"

    def _read(self, path: Path) -> Unfinished | None:
        try:
            return _read(path)
        except CorruptError as error:
            aside = self._path / DAMAGED
            with files.disk_errors("setting aside", path):
                os.replace(path, aside)
            log.warning("%s; it is kept as %s, and its file is sent anew", error, aside)
            return None


def unfinished(directory: RunDirectory) -> tuple[list[Unfinished], list[CorruptError]]:
    """The uploads in the journal of a run directory, and an error for each that can't be read.

    Only looks, and so may be used while an uploader is at work.

    Raises:
        DiskError: the disk does not give them back.
    """
    uploads, errors = [], []
    for path in _journals(directory.uploads):
        try:
            uploads.append(_read(path))
        except CorruptError as error:
            errors.append(error)
    return [one for one in uploads if one is not None], errors


def _journals(path: Path) -> list[Path]:
    with files.disk_errors("reading", path):
        return sorted(path.glob("*.jsonl"))


def _read(path: Path) -> Unfinished | None:
    """One upload; None where there is none.

    Raises:
        CorruptError: it can't be read.
        DiskError: the disk does not give it back.
    """
    with files.disk_errors("reading", path):
        try:
            data = below.read_small(path)
        except FileNotFoundError:
            return None
    first, *further = data.split(b"\n")[:-1] or [b""]  # what follows the last newline is torn
    upload = decode(Unfinished, first, subject=str(path))
    parts = [decode(PartTaken, line, subject=str(path)) for line in further]
    return upload.model_copy(update={"etags": {**upload.etags, **{one.number: one.etag for one in parts}}})
