"""The events a trainer announces. Hints: whatever the disk can tell, the disk tells.

Each is one line of JSON. A reader passes over types it does not know, so that an older uploader serves
a newer trainer.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from uploader.bounds import Count, Generation, Rank
from uploader.record import FileRecord
from uploader.settings import Strict


class CheckpointSaved(Strict):
    """A step was committed locally; written after the rename is durable."""

    type: Literal["checkpoint_saved"] = "checkpoint_saved"
    generation: Generation
    step: Count
    rank: Rank = 0


class ShardSaved(Strict):
    """A file of a step that is still being written is complete and durable in the ``.tmp`` directory.

    Its upload may begin; the step exists only with its record.
    """

    type: Literal["shard_saved"] = "shard_saved"
    generation: Generation
    step: Count
    rank: Rank = 0
    file: FileRecord


class RunFinished(Strict):
    """The trainer ended as planned after ``step``; nothing follows in this generation."""

    type: Literal["run_finished"] = "run_finished"
    generation: Generation
    step: Count
    rank: Rank = 0


Event: TypeAlias = CheckpointSaved | ShardSaved | RunFinished

decoder: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])
