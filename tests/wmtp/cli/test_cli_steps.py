"""Disk and manifest together: nothing is left out, nothing stands twice."""

from pathlib import Path

from cli_runs import NOW
from hypothesis import given, settings
from hypothesis import strategies as st

from uploader.generation import Branch, Claim, Lineage
from uploader.layout import RunKeys
from uploader.manifest import Entry, Manifest, adopted, deleting
from uploader.record import CommitRecord, NodeRecord
from uploader.watch import LocalStep
from wmtp.cli.steps import merged

CLAIM = Claim(
    generation=2, lineage=Lineage(branches=[Branch(generation=1), Branch(generation=2, after_step=4)])
)
pairs = st.sets(st.tuples(st.integers(0, 8), st.integers(1, 2)))
COMMON = {"run": "run", "world_size": 1, "created_at": NOW, "files": []}


def local_step(step: int, number: int) -> LocalStep:
    record = NodeRecord(step=step, generation=number, node=0, nodes=1, ranks=[0], **COMMON)
    return LocalStep(Path(f"step_{step}"), record, record.encode())


def manifest_of(stored: set[tuple[int, int]], pruned: set[tuple[int, int]]) -> Manifest:
    records = [CommitRecord(step=step, generation=number, nodes=1, **COMMON) for step, number in stored]
    entries = [Entry.of(record, RunKeys()) for record in records]
    index = adopted(Manifest(run="run")._with([], entries, []), CLAIM)
    return deleting(index, [f"step_{step}@g{number}" for step, number in pruned], CLAIM)


@settings(deadline=None)
@given(stored=pairs, pruned=pairs, here=st.dictionaries(st.integers(0, 8), st.integers(1, 2)))
def test_every_step_stands_once_under_a_name_of_its_own(
    stored: set[tuple[int, int]], pruned: set[tuple[int, int]], here: dict[int, int]
) -> None:
    index = manifest_of(stored, pruned)
    steps = merged(index, [local_step(*pair) for pair in here.items()], {}, CLAIM)
    assert sorted((step.step, step.generation) for step in steps) == sorted(stored | set(here.items()))
    assert [step.step for step in steps] == sorted((step.step for step in steps), reverse=True)
    assert len({step.full_name for step in steps}) == len(steps)
    assert {step.name for step in steps if step.live and step.durable} == index.live.keys()
    assert {step.full_name for step in steps if step.pruning} == index.deleting.keys()
    assert all(step.states for step in steps)
    assert all(("local" in step.states) == (here.get(step.step) == step.generation) for step in steps)


@settings(deadline=None)
@given(stored=pairs, step=st.integers(0, 8))
def test_an_unreadable_record_is_shown_with_its_step(stored: set[tuple[int, int]], step: int) -> None:
    index = manifest_of(stored, set())
    steps = merged(index, [], {f"step_{step}": "garbage"}, CLAIM)
    (damaged,) = [one for one in steps if one.damaged]
    assert (damaged.step, damaged.name) == (step, f"step_{step}")
    assert damaged.durable == (f"step_{step}" in index.live)
