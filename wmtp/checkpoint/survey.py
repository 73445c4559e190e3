"""What there is of a run, on this disk and in its store, before anything is taken or loaded."""

import os
from collections.abc import Callable

from uploader import generation, manifest
from uploader.errors import CorruptError
from uploader.files import disk_errors
from uploader.generation import Claim
from uploader.layout import RunDirectory
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.run import RunFile
from uploader.store.base import ObjectStore
from uploader.watch import LocalSteps
from wmtp.checkpoint.candidates import Found


class Survey:
    """Looks at one run. What can't be read is named, once, and never guessed.

    Args:
        run: which run, and where.
        say: tells a person what is wrong.
    """

    def __init__(
        self, directory: RunDirectory, run: RunFile, store: ObjectStore, say: Callable[[str], None]
    ) -> None:
        self._directory, self._run, self._store, self._say = directory, run, store, say
        self._keys = run.keys(directory.path)
        self._manifest = ManifestFile(store, run.run, self._keys)
        self._steps = LocalSteps(directory, node=run.node, run=run.run)
        self._said: set[str] = set()

    async def look(self) -> Found:
        """What there is, with one GET where there is a manifest. Absence is proven by an empty listing.

        On a disk that is not the owner's the store's listing tells of steps that no manifest knows.

        Raises:
            CorruptError: the manifest can't be read.
        """
        index = await self._manifest.read() or await self._manifest.from_records()
        local, errors = self._steps.scan()
        for error in errors:
            self.tell(f"passed over: {error}")
        claim: Claim = self.run_file() or Claim()
        if index.generation > claim.generation:
            return await self._as_its_owner_left_it(Found(self._store.uri, index, local, claim, errors))
        if claim.generation:
            index = manifest.adopted(index, claim)  # a start that died just before it wrote this itself
        # Before the first trainer of ours there was no lineage: every step is live.
        return Found(self._store.uri, index, local, claim, errors)

    def run_file(self) -> RunFile | None:
        """``run.json``. One that can't be read is set aside: the store knows whatever it said that counts."""
        path = self._directory.run_file
        try:
            found = RunFile.read(self._directory)
            if found is None or found.run == self._run.run:
                return found
            raise CorruptError(f"it is that of run {found.run!r}", doing="reading", subject=str(path))
        except CorruptError as error:
            aside = path.with_name(f"{path.name}.damaged")
            with disk_errors("setting aside", path):
                os.replace(path, aside)
            self.tell(f"{error}; it is kept as {aside.name}, and the store tells who owned the run")
            return None

    async def _as_its_owner_left_it(self, found: Found) -> Found:
        """By the lineage of an owner with another disk. If that can't be read, local steps lead nowhere."""
        index = found.manifest
        try:
            claim: Claim = await generation.read(self._store, index.generation, run=self._run.run)
        except CorruptError as error:
            self.tell(f"passed over: {error}")
            claim = Claim(generation=index.generation, owner=index.owner)
            return Found(found.uri, index, found.local, claim, [*found.unreadable, error])
        if self._keys.in_place:
            return Found(found.uri, index, found.local, claim, found.unreadable)
        return await self._with_unlisted(index, claim, found)

    async def _with_unlisted(self, index: Manifest, claim: Claim, found: Found) -> Found:
        """Its owner may have died between a commit record and the manifest, and no disk here tells."""
        entries, errors = await self._manifest.unlisted(index, claim)
        for error in errors:
            self.tell(f"passed over: {error}")
        for entry in entries:
            self.tell(f"{entry.name} was committed, but its owner died before the manifest said so")
            index = manifest.committed(index, entry, claim)
        return Found(found.uri, index, found.local, claim, found.unreadable, entries)

    def tell(self, line: str) -> None:
        """Say it once, however often it is found."""
        if line not in self._said:
            self._said.add(line)
            self._say(line)
