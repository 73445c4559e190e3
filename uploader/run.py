"""``run.json``: what a trainer tells the uploader of its run; rewritten atomically at each start."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from uploader import below, files
from uploader.bounds import Node, Nodes, Ranks, WorldSize
from uploader.generation import Claim, Lineage
from uploader.layout import RunDirectory, RunKeys
from uploader.location import Location
from uploader.record import decode
from uploader.retention import Retention
from uploader.seal import Sealed, sealed
from uploader.settings import SCHEMA_VERSION, StorageSettings, UploadSettings


def _absolute(destination: str) -> str:
    return str(Location.parse(destination, field="destination"))


class RunFile(Claim, Sealed):
    """A run as one node sees it.

    Attributes:
        destination: the run's location in the store, absolute, without credentials.
        local_retention: what stays on this disk of what is durable; None: ``retention.on_disk()``.
        nodes: how many nodes write to the run; ``node`` is which of them this directory is.
        local_ranks: the ranks that write into this directory.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    run: str
    destination: Annotated[str, AfterValidator(_absolute)]
    storage: StorageSettings = StorageSettings()
    upload: UploadSettings = UploadSettings()
    retention: Retention = Retention()
    local_retention: Retention | None = None
    node: Node = 0
    nodes: Nodes = 1
    local_ranks: Ranks = [0]
    world_size: WorldSize = 1

    @classmethod
    def read(cls, directory: RunDirectory) -> Self | None:
        """The run file of a run directory; None where no trainer wrote one yet.

        Raises:
            CorruptError: it can't be read.
        """
        try:
            data = below.read_small(directory.run_file)
        except FileNotFoundError:
            return None
        hint = "start the trainer again: it writes a new one"
        return decode(cls, data, subject=str(directory.run_file), hint=hint)

    def write(self, directory: RunDirectory) -> None:
        """Replace the run file, atomically and durably.

        Raises:
            DiskError: the directory can't be written.
        """
        with files.disk_errors("writing", directory.run_file):
            files.replace(directory.run_file, sealed(self.model_dump_json(indent=1).encode(), "run.json"))

    def setting(self) -> Self:
        """All but what an uploader takes over while it serves: who owns the run, and its retention."""
        plain: dict[str, object] = {"generation": 0, "lineage": Lineage(), "owner": None}
        return self.model_copy(update={**plain, "retention": Retention(), "local_retention": None})

    @property
    def on_disk(self) -> Retention:
        """The policy of the local disk."""
        return self.local_retention or self.retention.on_disk()

    @property
    def location(self) -> Location:
        return Location.parse(self.destination, field="destination")

    def keys(self, directory: Path) -> RunKeys:
        """The run's keys; without a generation where the destination is the run directory itself."""
        return RunKeys(in_place=is_in_place(self.location, directory))


def is_in_place(location: Location, directory: Path) -> bool:
    """Whether checkpoints stay where the trainer writes them: the rename is the commit."""
    return not location.is_s3 and location.directory.resolve() == directory.resolve()
