"""What has become of each step, beyond what disk and manifest say. Every change is told to ``status``, once.

Nothing here outlives the process: the next one finds out again.
"""

import logging
from collections.abc import Iterable, Set

from uploader import layout
from uploader.errors import CorruptError, StoreError, TooLarge, WmtpError
from uploader.record import NodeRecord
from uploader.status import StatusFile
from uploader.watch import LocalStep

log = logging.getLogger("uploader")


class Ledger:
    """Steps by their names, ``step_N@gG``.

    Attributes:
        failed: corrupt on disk; never uploaded.
        refused: the store would not take them; they are tried again when something changes.
        tried: in this round.
        handed_in: the node that comes last makes their commit records.
    """

    def __init__(self, status: StatusFile) -> None:
        self._status = status
        self.failed: dict[str, CorruptError] = {}
        self.refused: dict[str, StoreError | TooLarge] = {}
        self.tried: set[str] = set()
        self.handed_in: set[str] = set()
        self._unreadable: set[str] = set()
        self._told: set[str] = set()

    @property
    def error(self) -> WmtpError | None:
        """Why something is not durable; None where all is well."""
        errors: list[WmtpError] = [*self.refused.values(), *self.failed.values()]
        return errors[0] if errors else None

    def waits(self, step: LocalStep) -> bool:
        """Whether a step that is to be uploaded can be tried now."""
        return step.name not in self.tried and step.name not in self.handed_in

    def fail(self, name: str, error: CorruptError) -> None:
        """A step that is corrupt on disk never blocks the next one."""
        if name not in self.failed:
            self.failed[name] = error
            self._status.step_failed(name, error)

    def looked(self, errors: Iterable[CorruptError]) -> None:
        """What a look at the disk found wrong, by subject; what it does not find any more was put right."""
        wrong = {error.subject: error for error in errors}
        for name, error in wrong.items():
            self.fail(name, error)
        healed = self._unreadable - wrong.keys()
        self._unreadable = set(wrong)
        if healed:
            self.failed = {name: self.failed[name] for name in self.failed if name not in healed}
            self._status.show(failed_steps={name: str(error) for name, error in self.failed.items()})

    def refuse(self, step: LocalStep, error: StoreError | TooLarge) -> None:
        """The store refused a step; the others are not held up."""
        log.error("%s: not committed: %s", step.name, error)
        self.refused[step.name] = error

    def taken(self, step: LocalStep) -> None:
        """The store has a step: it is not refused, and if it is pruned some day, it was not skipped."""
        self.refused.pop(step.name, None)
        self._told.add(step.name)

    def retain(self, names: Set[str]) -> None:
        """Of the refused steps only these are still wanted."""
        self.refused = {name: error for name, error in self.refused.items() if name in names}

    def skip(self, records: Iterable[NodeRecord]) -> None:
        """Steps that retention would prune on arrival."""
        for record in records:
            name = layout.step_at(record.step, record.generation)
            if name not in self._told:
                self._told.add(name)
                self._status.skipped(record)

    def leave_out(self, name: str, why: str) -> None:
        """A step that will not be uploaded, for another reason than retention."""
        if name not in self._told:
            self._told.add(name)
            self._status.left_out(name, why)
