"""Which steps of this disk have been in the store: their keys are used, and no key is used twice.

A copy here may stay longer than the one in the store, and a rewind may make it the newest. Were it uploaded
again, under the keys it had, a deletion of the former objects that was lost on its way could still arrive. So
a step is noted when the manifest lists it, which is before anything of it can be pruned. One that was fetched
says so itself (``.origin``): its owner, elsewhere, may have pruned it since. Of a store that has lost
everything nothing is noted: whatever is here goes there again.
"""

import logging
import os
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Annotated

from pydantic import Field

from uploader import below, files, layout
from uploader.errors import CorruptError, DiskError
from uploader.layout import RunDirectory
from uploader.manifest import Manifest
from uploader.record import decode
from uploader.seal import Sealed
from uploader.settings import SCHEMA_VERSION
from uploader.watch import LocalStep

log = logging.getLogger("uploader")


class _Used(Sealed):
    """``.uploader/used.json``: steps as ``step_N@gG``, and where they have been."""

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    destination: str
    names: list[str]


class UsedKeys:
    """The steps that were in the store once, of those that are on this disk.

    Attributes:
        names: as ``step_N@gG``.
        pruned: those of them that were found to be gone from the store; never to be uploaded again.
    """

    def __init__(self, directory: RunDirectory, destination: str) -> None:
        self._directory, self._destination = directory, destination
        self._path = directory.used_file
        self.names: Set[str] = frozenset(self._read())
        self.pruned: set[str] = set()

    def _read(self) -> list[str]:
        """What cannot be read is lost: the steps that are in the store now are noted again."""
        try:
            with files.disk_errors("reading", self._path):
                found = decode(_Used, below.read_small(self._path), subject=str(self._path))
                return found.names if found.destination == self._destination else []
        except CorruptError as error:
            log.warning("%s; it is made anew", error)
        except DiskError:
            if self._path.exists():
                raise
        return []

    def note(self, local: Iterable[LocalStep], index: Manifest) -> None:
        """Note the local steps that the manifest lists, or that were fetched, durably.

        One that leaves this disk is forgotten.
        """
        known = self.names | index.names()
        self._keep({one.name for one in local if one.name in known or self._is_fetched(one.path)})

    def _is_fetched(self, step: Path) -> bool:
        origin = step / layout.ORIGIN_NAME
        try:
            with files.disk_errors("reading", origin):
                return below.read_small(origin) == self._destination.encode()
        except DiskError:
            if os.path.lexists(origin):
                raise
        except CorruptError as error:  # too large, or a link: not ours
            log.warning("%s; ignored", error)
        return False

    def forget(self) -> None:
        """The store knows nothing of the run: no key of it is used."""
        self.pruned.clear()
        with files.disk_errors("writing", self._directory.path):
            for origin in self._directory.path.glob(f"*/{layout.ORIGIN_NAME}"):
                origin.unlink()
        self._keep(frozenset())

    def _keep(self, names: Set[str]) -> None:
        """A disk that is full must not stop the uploads that will free it: the log tells."""
        if names == self.names:
            return
        self.names = names
        try:
            with files.disk_errors("writing", self._path):
                files.replace(self._path, _Used(destination=self._destination, names=sorted(names)).encode())
        except DiskError as error:
            log.warning("%s", error)
