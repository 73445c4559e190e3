"""The checkpoints of a trainer that knows nothing of us, as local steps.

Each is seen, watched until it is still, judged by its format, read once for its checksums, and taken. From
then on it is a local step like any other, with two differences: nothing of it is ever deleted here, and it is
committed only if no file of it changed from before it was read until after it was uploaded. Of several names
of one step the one taken before stays; of new ones ``patterns.choose`` says which. Every other is an error.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Set
from datetime import datetime
from pathlib import Path

from anyio import to_thread

from uploader import layout, patterns
from uploader.errors import CorruptError
from uploader.layout import RunDirectory
from uploader.manifest import Manifest
from uploader.record import FileRecord
from uploader.restore import damage
from uploader.retention import Committed, Retention, steps_to_keep
from uploader.run import RunFile
from uploader.sighting import Sighting, checkpoints_in, sight
from uploader.taken import ForeignStep, TakenSteps, read
from uploader.tree import look_at, shown
from uploader.watch import LocalStep, LocalSteps

log = logging.getLogger("uploader")


def worth_reading(
    found: Iterable[Committed], index: Manifest, policy: Retention, *, now: datetime
) -> tuple[Set[int], Set[int]]:
    """Of whole checkpoints, the steps to read, for they are new or changed; and those to leave out.

    Left out is what retention would prune on arrival.
    """
    durable = {entry.step: entry.created_at for entry in index.live.values()}
    changed = {one.step: one for one in found if one.created_at != durable.get(one.step)}
    new = [one for one in changed.values() if one.step not in durable]
    keep = steps_to_keep([*index.committed(), *new], policy, now=now)
    return changed.keys() & keep, {one.step for one in new} - keep


class ForeignSteps(LocalSteps):
    """The committed steps of a run directory, and the whole checkpoints of its foreign trainer.

    Args:
        run: the run as the command line names it.
        clock: seconds, monotonic.
    """

    end_with_trainer = False

    def __init__(self, directory: RunDirectory, run: RunFile, clock: Callable[[], float]) -> None:
        super().__init__(directory, node=run.node)
        self._run, self._clock = run, clock
        self._seen: dict[str, Sighting] = {}
        self._chosen: list[Sighting] = []
        self._taken = TakenSteps(directory, run.run)
        self._vanished: set[int] = set()

    def _scan(self) -> tuple[list[LocalStep], list[CorruptError]]:
        ours, errors = super()._scan()
        refused = self._look()
        doubles = self._choose({one.step for one in ours})
        self._taken.forget_all_but(one.found.step for one in self._chosen)
        steps = [*ours, *self._taken.steps(self._chosen)]
        return sorted(steps, key=lambda one: -one.step), [*errors, *refused, *doubles]

    def _look(self) -> list[CorruptError]:
        """See what is there now; an error for each checkpoint that can't be uploaded as it is."""
        now_s, errors, there = self._clock(), [], set()
        seen: dict[str, Sighting] = {}
        for path, found in checkpoints_in(self._directory.path):
            before, quiet_s = self._seen.get(path.name), self._run.upload.quiet_s
            try:
                seen[path.name] = sight(path, found, before, now_s, quiet_s)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except CorruptError as error:
                errors.append(error)
            except OSError as error:
                errors.append(_unreadable(path, error))
            there.add(found.step)
        self._vanished |= {one.found.step for one in self._seen.values()} - there
        self._seen = seen
        return errors

    def _choose(self, ours: Set[int]) -> list[CorruptError]:
        """Choose one checkpoint for each step; an error for every other that has its number."""
        by_step: dict[int, list[Sighting]] = {}
        for one in self._seen.values():
            by_step.setdefault(one.found.step, []).append(one)
        self._chosen, errors = [], []
        for step, several in by_step.items():
            names = {one.path.name: one.found for one in several}
            chosen = layout.step_name(step) if step in ours else self._taken.entry(step)
            if step not in ours and chosen not in names:
                chosen = patterns.choose(names.items())
            self._chosen += [one for one in several if one.path.name == chosen]
            errors += [_double(one, str(chosen)) for one in several if one.path.name != chosen]
        return errors

    async def take(self, choose: Callable[[list[Committed]], Set[int]]) -> bool:
        """Read the newest checkpoint that is whole, not taken yet and wanted; whether there was one."""
        now_s = self._clock()
        whole = {one.found.step: one for one in self._untaken() if one.is_whole(now_s)}
        wanted = choose([Committed(step, one.tree.created_at, {}) for step, one in whole.items()])
        if not wanted:
            return False
        one = whole[max(wanted)]
        for name in one.tree.hidden:
            log.info("%s: left out, for it is hidden: %s", shown(one.path), shown(name))
        try:
            record = await read(one, self._run.run, self._run.generation)
        except OSError as error:
            one.give_up(error)
            return True
        if record is not None:
            await to_thread.run_sync(self._taken.add, one, record)
        else:
            log.info("%s: it changed while it was read; tried again when it is still", shown(one.path))
            self._seen.pop(one.path.name, None)
        return True

    def _untaken(self) -> list[Sighting]:
        return [one for one in self._chosen if not self._taken.has(one)]

    def vanished(self) -> Set[int]:
        """Steps whose checkpoints were deleted since this was asked last."""
        gone, self._vanished = self._vanished, set()
        return gone

    def incomplete(self) -> list[str]:
        """The checkpoints that are not whole yet, each with the reason."""
        now_s = self._clock()
        return [
            f"{shown(one.path.name)} ({one.why_not})" for one in self._untaken() if not one.is_whole(now_s)
        ]

    def settles_in_s(self) -> float | None:
        """After how long another look can find more that is whole, if nobody writes; None if none can."""
        now_s = self._clock()
        return max((one.settles_in_s(now_s) for one in self._untaken() if not one.is_flawed), default=None)


def _unreadable(path: Path, error: OSError) -> CorruptError:
    subject, hint = shown(error.filename or path), "give this user permission, or check the disk"
    return CorruptError(os.strerror(error.errno or 0), doing="looking at", subject=subject, hint=hint)


def _double(one: Sighting, chosen: str) -> CorruptError:
    problem = f"{shown(chosen)} is the checkpoint of step {one.found.step} already; this one is not uploaded"
    hint = "move it to another directory if it is to be kept too"
    return CorruptError(problem, doing="looking at", subject=shown(one.path), hint=hint)


def disagreements(steps: Iterable[LocalStep], index: Manifest) -> list[CorruptError]:
    """An error for each foreign checkpoint that is another than the one of its step in the store. Pure."""
    errors = []
    for one in steps:
        entry = index.live.get(layout.step_name(one.step))
        if isinstance(one, ForeignStep) and entry is not None and entry.created_at != one.record.created_at:
            problem = f"the store has another checkpoint of step {one.step}, written {entry.created_at}"
            hint = "that one stays; to upload this one too, move it to a directory with another name"
            errors.append(CorruptError(problem, doing="comparing", subject=shown(one.entry), hint=hint))
    return errors


def differences(path: Path, files: Iterable[FileRecord]) -> Iterator[CorruptError]:
    """What differs between a foreign checkpoint and the record of it; every byte is read.

    Raises:
        FileNotFoundError: it is gone, or a part of it went meanwhile.
        CorruptError: something in it can't be looked at; the message names it.
    """
    tree, recorded = look_at(path), {file.path: file for file in files}
    for name in sorted(tree.files.keys() - recorded):
        yield CorruptError("the record does not name it", doing="verifying", subject=shown(tree.root / name))
    root = os.path.realpath(tree.root)
    for name, file in recorded.items():
        real = os.path.relpath(os.path.realpath(tree.root / name), root) if name in tree.files else name
        yield from damage(tree.root, [file.model_copy(update={"path": real})])
