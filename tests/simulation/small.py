"""Files of some hundred bytes have parts: two blocks of 64 bytes each."""

from collections.abc import Callable
from typing import Any

from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.flow import Flow, Flows
from uploader.settings import UploadSettings

PART_BYTES = 2 * BLOCK_SIZE_BYTES


class SmallFlow(Flow):
    """Parts of two blocks."""

    def part_size(self, size_bytes: int) -> int:
        return PART_BYTES


class SmallFlows(Flows):
    """The flows of one simulated process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def to(self, location: Any, storage: Any, settings: UploadSettings) -> Flow:
        return SmallFlow(settings, self._clock)
