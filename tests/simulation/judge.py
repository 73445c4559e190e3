"""What must hold, looked at after each event. Reads JSON and bytes as a stranger would, and believes nothing.

Of every step it knows who wrote it and what its files hold; of every generation which steps lead to it
(``histories``), from what was loaded and saved. The manifest, the store and the disks are compared with that.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .network import SharedStore
from .truth import NAMES, Index, Keeping, Key, content

_STEP = re.compile(r"step_([0-9]+)")
_STEP_KEY = re.compile(r"step_([0-9]+)/g([0-9]+)/(.+)")


class Broken(BaseException):
    """An invariant does not hold: the message says which."""


class Judge:
    """Knows what happened, and says when something should not have.

    Attributes:
        histories: by generation: the steps that lead to its newest, in order.
        index: the manifest now.
        local: by machine: the steps whose local write ended, and that were not discarded.
        acknowledged: every step that ever stood in the manifest as live.
        pruned: every step that the manifest has dropped.
    """

    def __init__(
        self,
        store: SharedStore,
        keeping: Keeping,
        keep_superseded_s: float,
        now_s: Callable[[], float],
        fail: Callable[[str], None],
    ) -> None:
        self._store, self._keeping, self._now_s, self._fail = store, keeping, now_s, fail
        self._keep_superseded_s = keep_superseded_s
        self.histories: dict[int, list[Key]] = {0: []}
        self.index = Index()
        self.local: dict[str, set[Key]] = {}
        self.acknowledged: set[Key] = set()
        self._gone: set[str] = set()
        self._deleted: set[str] = set()
        self.pruned: set[Key] = set()
        self._records: dict[str, list[tuple[str, int, str]]] = {}
        store.changed, store.kept, store.came_late = self._changed, self._kept, self._came_late

    def require(self, holds: object, problem: str) -> None:
        if not holds:
            self._fail(problem)

    # --- the store -------------------------------------------------------------------------------------

    def _kept(self, key: str, before: bytes | None, data: bytes) -> None:
        """Nobody writes over anybody: a key is used once, but for the index and what tells the time."""
        is_mutable = key == "manifest.json" or "heartbeat" in key or "lease" in key
        self.require(is_mutable or before in (None, data), f"{key} is used twice")
        if (found := _STEP_KEY.fullmatch(key)) and found[3] in NAMES:
            whole = data == content((int(found[1]), int(found[2])), found[3])
            self.require(whole, f"{key} is not what was written")

    def _changed(self, name: str, key: str) -> None:
        if name == "put" and key == "manifest.json":
            self._index_changed()
        if name == "delete":
            self._deleted.add(key)
        if name == "delete" or key.endswith("/checkpoint.json"):
            self._records_are_whole()
            self._index_is_whole()

    def _came_late(self, key: str) -> None:
        """A request landed that nobody waited for any more, perhaps in a prefix that was swept meanwhile."""
        if key.endswith("/checkpoint.json") and key not in self._records:
            self._gone.add(key)

    def _records_are_whole(self) -> None:
        """A step exists when its record exists: then every file it names does.

        But a record may come when its files were swept or pruned: from a former owner that has not heard yet,
        or from a request that was in the network for long. Nobody goes on from that one, for something newer
        is listed, or it does not lead to now.
        """
        there = {key for key in self._store.all_keys() if key.endswith("/checkpoint.json")}
        self._gone |= self._records.keys() - there
        for key in sorted(there - self._gone):
            found = _STEP_KEY.fullmatch(key)
            assert found is not None
            leads = (int(found[1]), int(found[2])) in self.histories.get(self.index.generation, [])
            if leads and int(found[1]) > self.index.newest:
                self._is_whole(key)

    def _is_whole(self, record: str) -> None:
        for path, size_bytes, crc in self._record(record):
            there = self._store.peek(path)
            whole = there is not None and (there[0].size_bytes, there[0].crc64nvme) == (size_bytes, crc)
            self.require(whole, f"{record} exists, but not {path}")

    def _record(self, key: str) -> list[tuple[str, int, str]]:
        if key not in self._records:
            there = self._store.peek(key)
            assert there is not None
            prefix = key.removesuffix("checkpoint.json")
            self._records[key] = [
                (prefix + file["path"], file["size_bytes"], file["crc64nvme"])
                for file in json.loads(there[1])["files"]
            ]
        return self._records[key]

    def _index_is_whole(self) -> None:
        """What the manifest lists for reading can be read."""
        for key, record in [*self.index.live.items(), *self.index.superseded.items()]:
            self.require(self._store.peek(record), f"step {key} is listed, but has no commit record")
            self._is_whole(record)

    def _index_changed(self) -> None:
        there = self._store.peek("manifest.json")
        assert there is not None
        old, self.index = self.index, Index.parse(there[1])
        self._compare(old, self.index)
        self._index_is_whole()
        self.acknowledged |= set(self.index.live)

    def _compare(self, old: Index, new: Index) -> None:
        """Committed steps go by retention or because a newer generation left them behind, else never."""
        history = self.histories.get(new.generation, [])
        self.require(new.generation >= old.generation, f"generation {new.generation} took the index back")
        for key in new.live:
            self.require(key in history, f"step {key} is live, but does not lead to {new.generation}")
        kept = self._keeping.keep(old.live)
        for key in old.live.keys() - new.live.keys():
            if key in new.deleting:
                self.require(key in history, f"step {key} is pruned by whoever left it behind")
                self.require(key not in kept, f"step {key} is pruned, but retention keeps it")
            else:
                self.require(key in new.superseded, f"the committed step {key} is lost")
                self.require(key not in history, f"step {key} leads to now, but is superseded")
        for key in old.superseded.keys() - new.superseded.keys() - new.live.keys():
            self.require(key in new.deleting, f"the superseded step {key} is lost")
            began = self._store.peek(f"generations/{old.superseded_by[key]:04d}.json")
            age_s = self._now_s() - (began[0].modified_at or 0.0 if began else 0.0)
            self.require(age_s >= self._keep_superseded_s, f"the superseded step {key} goes too early")
        self.pruned |= old.deleting.keys() - new.deleting.keys()
        back = sorted(self.pruned & new.live.keys())
        self.require(not back, f"{back} are back, under keys of which a deletion may be on its way")
        for key in old.deleting.keys() - new.deleting.keys():
            record = old.deleting[key]  # a request that created it may come after the one that deleted it
            went = record in self._deleted or not self._store.peek(record)
            self.require(went, f"the deleted step {key} has its record")
            self.require(key not in new.live, f"step {key} was being deleted, and is live")

    # --- disks -----------------------------------------------------------------------------------------

    def adopts(self, directory: Path, loaded: Key | None) -> None:
        """A trainer wrote ``run.json``: from now on its generation has a history."""
        generation = _generation(directory)
        if generation not in self.histories:
            before = self.histories.get(loaded[1], []) if loaded else []
            steps = [key for key in before if loaded and key[0] <= loaded[0]]
            self.require(loaded is None or loaded in steps, f"{loaded} was loaded, which nobody saved")
            self.histories[generation] = steps

    def saving(self, key: Key) -> None:
        """A local write begins; if it ends, or its rename is there, the step leads to what comes."""
        self.histories[key[1]].append(key)

    def saved(self, machine: str, key: Key) -> None:
        """The local write ended: the step is there, whatever happens."""
        self.local.setdefault(machine, set()).add(key)

    def discarded(self, machine: str, run: Path, trashed: Path) -> None:
        """A step's directory went to the trash: it was not the only copy of anything that leads to now."""
        key = _key_of(trashed)
        if key is None:
            return
        self.local.setdefault(machine, set()).discard(key)
        leads = key in self.histories.get(_generation(run), [])
        replaced = self.index.newest >= key[0]
        self.require(not leads or replaced, f"the only copy of step {key} is deleted on {machine}")

    def acknowledges(self, machine: str, run: Path, events: Path) -> None:
        """An event file goes: each save it announces is durable, left behind, or superfluous.

        For the generation that the uploader serves: of a start that has just written ``run.json`` it hears
        in its next round, which looks at the disk, whatever was announced.
        """
        history, here = self.histories.get(_served(run), []), self.whole(machine, run)
        wanted = self._keeping.keep(key for key in {*self.index.live, *here} if key in history)
        for event in _events(events):
            key = (event["step"], event["generation"])
            waits = key in wanted and key in here and key not in self.acknowledged
            if event["type"] == "checkpoint_saved":
                self.require(not waits, f"the event of step {key} is acknowledged before it is durable")

    def whole(self, machine: str, run: Path) -> set[Key]:
        """The steps on a disk, each of which must be whole: a step exists when its record exists."""
        found = set()
        for path in sorted(run.glob("step_*/node-0000.json")):
            if not _STEP.fullmatch(path.parent.name):
                continue
            key = _key_of(path.parent)
            self.require(key is not None, f"{path} of {machine} can't be read")
            assert key is not None
            for name in NAMES:
                file = path.parent / name
                whole = file.exists() and file.read_bytes() == content(key, name)
                self.require(whole, f"step {key} is on {machine}, but {name} is not what was written")
            found.add(key)
        return found

    def look_at_disk(self, machine: str, run: Path) -> None:
        """After a death: what was committed here is here."""
        missing = self.local.get(machine, set()) - self.whole(machine, run)
        self.require(not missing, f"the committed steps {sorted(missing)} are lost on {machine}")

    def wiped(self, machine: str) -> None:
        self.local[machine] = set()

    # --- starts and ends -------------------------------------------------------------------------------

    def resumable(self, machine: str, run: Path) -> Key | None:
        """The step that a trainer on this machine has to go on from, as far as anybody can know it there."""
        owner = max(self.index.generation, _generation(run))
        there = {*self.index.live, *self.whole(machine, run)}
        return max((key for key in self.histories.get(owner, []) if key in there), default=None)

    def drained(self, machine: str, run: Path) -> None:
        """An uploader ended without an error: nothing here waits, as far as it has heard of starts."""
        generation = _served(run)
        if generation < self.index.generation:
            return
        history = set(self.histories.get(generation, []))
        here = self.whole(machine, run) & history
        wanted = self._keeping.keep(here | (set(self.index.live) & history))
        missing = {key for key in here if key in wanted} - self.acknowledged
        self.require(not missing, f"the uploader of {machine} ended, but {sorted(missing)} are not durable")

    def settled(self, machine: str, run: Path, latest: int) -> None:
        """The end, when all faults have ended: records, objects, manifest and disk say the same."""
        index = self.index
        self.require(index.newest == latest, f"latest is {index.newest} at the end, not {latest}")
        self.require(not index.deleting, f"{sorted(index.deleting)} are still being deleted at the end")
        self.require(set(index.live) == self._keeping.keep(index.live), f"not pruned: {sorted(index.live)}")
        named = set(_named(self._record, {**index.live, **index.superseded}.values()))
        debris = [
            key
            for key in self._store.all_keys()
            if key not in named and key != "manifest.json" and not key.startswith("generations/")
        ]
        self.require(not debris, f"objects that nothing names: {debris}")
        self.require(not self._store.unfinished(), f"uploads for ever: {self._store.unfinished()}")
        self.look_at_disk(machine, run)
        left = [path.relative_to(run) for path in _debris(run)]
        self.require(not left, f"left on {machine}: {[str(path) for path in left]}")


def _generation(run: Path) -> int:
    try:
        generation: int = json.loads((run / "run.json").read_bytes())["generation"]
    except FileNotFoundError:
        return 0
    return generation


def _served(run: Path) -> int:
    """The generation that the uploader of a directory serves, as its status says."""
    generation: int = json.loads((run / ".uploader/status.json").read_bytes())["generation"]
    return generation


def _key_of(step: Path) -> Key | None:
    try:
        read = json.loads((step / "node-0000.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return read["step"], read["generation"]


def _events(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # torn by a loss of power


def _named(record: Callable[[str], list[tuple[str, int, str]]], keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        yield key
        yield from (path for path, _, _ in record(key))


def _debris(run: Path) -> list[Path]:
    patterns = (
        "*.tmp",
        ".*.tmp",
        ".trash/*",
        ".uploader/uploads/*.jsonl",
        ".uploader/uploads/.*",
        "events-*",
    )
    return [path for pattern in patterns for path in sorted(run.glob(pattern))]
