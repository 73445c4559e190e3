"""Foreign checkpoints as seen from outside: found by name, watched until they are still, judged once.

A checkpoint is whole when its format says so and it has been still for ``SETTLE_S``, or when nothing speaks
against it and it has been quiet for ``quiet_s``. Both are counted from our own looks, never by the times of
files: the clock of a file server is not ours.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from uploader import layout, patterns
from uploader.completeness import Verdict, judge
from uploader.patterns import Found, Kind
from uploader.tree import Identity, Tree, look_at, shown

log = logging.getLogger("uploader")

SETTLE_S = 1.0
"""For how long a checkpoint must be still whose format says that it is whole."""
LOOK_EVERY_S = 30.0
"""How often each file of a whole checkpoint is looked at: a waiting uploader takes no time of others."""


def sight(path: Path, found: Found, before: "Sighting | None", now_s: float, quiet_s: float) -> "Sighting":
    """Look at a checkpoint; ``before`` is what was seen last.

    Raises:
        FileNotFoundError: it is gone, or a part of it went meanwhile.
        CorruptError: something in it can't be uploaded; the message names it.
        OSError: it can't be read.
    """
    if before is not None and before.rests(now_s):
        return before
    entry, tree = Identity.of(path.lstat()), look_at(path)
    if before is None or before.tree != tree:
        return Sighting(path, found, tree, now_s, quiet_s, entry, now_s)
    before.entry = entry
    before.look_again(now_s)
    return before


@dataclass(slots=True)
class Sighting:
    """A checkpoint as it was seen last, and since when it has been like that.

    Attributes:
        since_s: when it was first seen with these files, by the monotonic clock of the looks.
        quiet_s: for how long it must be quiet if no format says that it is whole.
        entry: the file or directory itself.
        looked_s: when its files were looked at last.
        verdict: of its format; None until it has been still for long enough that reading it is worth it.
    """

    path: Path
    found: Found
    tree: Tree
    since_s: float
    quiet_s: float
    entry: Identity
    looked_s: float
    verdict: Verdict | None = None

    def rests(self, now_s: float) -> bool:
        """Whether it needs no look into its directory now: it is whole, and the entry itself is as it was.

        Whatever changes deeper in it is found a little later, and before a commit in any case.
        """
        is_due = now_s - self.looked_s >= LOOK_EVERY_S
        return not is_due and self.is_whole(now_s) and Identity.of(self.path.lstat()) == self.entry

    def look_again(self, now_s: float) -> None:
        """It is unchanged: judge it, once, as soon as it is still."""
        self.looked_s = now_s
        if self.verdict is None and now_s - self.since_s >= self._wait_s:
            try:
                self.verdict = judge(self.tree, self.found.kind)
            except OSError as error:
                self.give_up(error)
            else:
                if self.verdict.flaw:
                    log.info("%s: not complete: %s", shown(self.path), self.verdict.flaw)

    def give_up(self, error: OSError) -> None:
        """It can't be read: not complete, until it changes."""
        self.verdict = Verdict(f"it can't be read: {os.strerror(error.errno or 0)}")
        log.warning("%s: %s", shown(self.path), self.verdict.flaw)

    @property
    def _wait_s(self) -> float:
        judged = self.verdict is not None and not self.verdict.proven
        return self.quiet_s if judged else min(SETTLE_S, self.quiet_s)

    def is_whole(self, now_s: float) -> bool:
        return self.verdict is not None and not self.is_flawed and self.settles_in_s(now_s) <= 0

    @property
    def is_flawed(self) -> bool:
        """Whether no look finds more in it until it changes."""
        return self.verdict is not None and bool(self.verdict.flaw)

    def settles_in_s(self, now_s: float) -> float:
        """After how long it has been still for long enough."""
        return max(0.0, self.since_s + self._wait_s - now_s)

    @property
    def why_not(self) -> str:
        """Why it is not whole yet, for people."""
        if self.verdict is None:
            return "it is being written"
        return self.verdict.flaw or f"it changed less than {self.quiet_s:g} s ago"


def checkpoints_in(path: Path) -> Iterator[tuple[Path, Found]]:
    """What in a directory has the name of a checkpoint and is not one of ours; complete or not."""
    with os.scandir(path) as entries:
        for entry in entries:
            is_directory = entry.is_dir()
            found = patterns.parse(entry.name, is_directory=is_directory)
            if found is not None and not (is_directory and _is_other(entry.path, found.kind)):
                yield Path(entry.path), found


def _is_other(path: str, kind: Kind) -> bool:
    """One with a node record is ours. One whose name only ends in a number must hold what DCP writes."""
    try:
        names = os.listdir(path)
    except OSError:  # gone, or a look at it will tell
        return kind is Kind.DCP
    if kind is Kind.DCP:
        return layout.DCP_METADATA not in names
    return any(name.startswith("node-") and layout.is_node_record(name) for name in names)
