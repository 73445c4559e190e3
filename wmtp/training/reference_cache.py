"""The reference's cross entropies of every window, kept on disk: computed once, for all epochs and runs.

One file for each pair of data and reference: a row a window, its numbers and then their CRC-32. A row whose
checksum is wrong was never finished, is torn or damaged: it is computed again. So nothing has to be synced,
and losing the file loses nothing but time.
"""

import logging
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uploader.below import private
from uploader.files import disk_errors, make_directory

_CRC_BYTES = 4

log = logging.getLogger(__name__)


class ReferenceCache:
    """Rows of ``length`` float32 numbers, one for each of ``windows`` windows.

    Args:
        path: the file; made, sparse, if it isn't there or has another size.

    Raises:
        DiskError: it can't be made.
    """

    def __init__(self, path: Path, *, windows: int, length: int) -> None:
        self.path, self._row_bytes = path, 4 * length + _CRC_BYTES
        self._writable = True
        with disk_errors("opening", path):
            make_directory(path.parent)
            if not path.exists() or path.stat().st_size != windows * self._row_bytes:
                self._create(windows)

    def _create(self, windows: int) -> None:
        """Beside and renamed: whoever opens it finds all of its rows, empty."""
        staged = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        with open(staged, "wb", opener=private) as file:
            file.truncate(windows * self._row_bytes)
        staged.replace(self.path)

    def read(self, window: int) -> Tensor | None:
        """The row of a window, float32 [length]; None where it is not there, whole.

        Raises:
            DiskError: the disk failed.
        """
        with disk_errors("reading", self.path):
            try:
                with open(self.path, "rb", buffering=0) as file:
                    data = os.pread(file.fileno(), self._row_bytes, window * self._row_bytes)
            except FileNotFoundError:
                return None
        numbers, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
        return torch.from_numpy(np.frombuffer(numbers, "<f4").copy()) if _crc(numbers) == crc else None

    def write(self, window: int, row: Tensor) -> None:
        """Keep the row of a window. A disk that is full ends that, not the training: it is told once."""
        data = row.cpu().numpy().astype("<f4").tobytes()
        try:
            if self._writable:
                with open(self.path, "r+b", buffering=0) as file:
                    os.pwrite(file.fileno(), data + _crc(data), window * self._row_bytes)
        except OSError as error:
            self._writable = False
            log.warning("%s: %s; from now on nothing is kept there", self.path, error.strerror)


def _crc(data: bytes) -> bytes:
    """Of zeros it is no zeros, so an empty row is not a row."""
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "little")
