"""Which steps of this disk have been in the store: their keys are used, and no key is used twice.

A copy here may stay longer than the one in the store, and a rewind may make it the newest. Were it uploaded
again, under the keys it had, a deletion of the former objects that was lost on its way could still arrive. So
a step is noted when the manifest lists it, which is before anything of it can be pruned. Of a store that has
lost everything nothing is noted: whatever is here goes there again.
"""

import logging
from collections.abc import Iterable, Set
from typing import Annotated

from pydantic import Field

from uploader import below, files
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
        self._path, self._destination = directory.used_file, destination
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
        """Note the local steps that the manifest lists, durably. One that leaves this disk is forgotten."""
        here = {one.name for one in local}
        self._keep(here & (self.names | index.names()))

    def forget(self) -> None:
        """The store knows nothing of the run: no key of it is used."""
        self.pruned.clear()
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
