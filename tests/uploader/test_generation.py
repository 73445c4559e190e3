"""Generations are taken once; a lineage says which steps lead to now."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import FIRST, Time, claim, generation_file, lineage, taken

from uploader import generation
from uploader.errors import CorruptError, OwnershipError, StoreUnavailable
from uploader.generation import Claim, Lineage
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.store.retrying import RetryingStore

pytestmark = pytest.mark.anyio


def test_a_rewind_leaves_the_newer_steps_behind() -> None:
    one = lineage((1, None), (2, 500))
    assert one.is_live(500, 1)
    assert not one.is_live(501, 1)
    assert one.is_live(501, 2)
    assert not one.is_live(1, 3)


def test_a_rewind_of_a_rewind() -> None:
    one = lineage((1, None), (2, 500), (3, 300))
    assert [step for step in (100, 300, 400, 500) if one.is_live(step, 1)] == [100, 300]
    assert not one.is_live(600, 2)  # the second branch is left behind altogether
    assert one.is_live(301, 3)


def test_a_fresh_start_leaves_everything_behind() -> None:
    assert not lineage((1, None), (2, None)).is_live(1, 1)
    assert Lineage.fresh(2).is_live(1, 2)


@st.composite
def histories(draw: st.DrawFn) -> list[Lineage]:
    """The lineages of successive generations, each resuming from a live step of any earlier one."""
    made = [Lineage.fresh(1)]
    for number in range(2, draw(st.integers(2, 7))):
        parent = made[draw(st.integers(0, len(made) - 1))]
        began = parent.branches[-1].after_step or 0
        made.append(parent.child(number, after_step=draw(st.integers(began, began + 5))))
    return made


@given(histories())
def test_a_child_goes_on_where_its_parent_was(made: list[Lineage]) -> None:
    for child in made[1:]:
        *before, last = child.branches
        parent = Lineage(branches=before)
        assert last.after_step is not None
        for number in range(1, 8):
            for step in range(40):
                if number != last.generation:
                    expected = parent.is_live(step, number) and step <= last.after_step
                    assert child.is_live(step, number) == expected
        assert child.is_live(last.after_step + 1, last.generation)


def test_a_trainer_without_generations_has_one_line_of_steps() -> None:
    assert Claim().is_live(5, 0)
    assert Claim().is_live(5, 3)


async def test_a_generation_is_taken_once() -> None:
    store = MemoryStore()
    assert await generation.newest(store) == 0
    mine, other = generation_file(FIRST), generation_file(Claim(generation=1, lineage=Lineage.fresh(1)))
    await generation.take(store, mine)
    await generation.take(store, mine)  # the answer may have been lost
    with pytest.raises(OwnershipError, match=r"taken by me@host1 \(process 1\)"):
        await generation.take(store, other)
    assert await generation.read(store, 1) == mine
    await taken(store, claim((1, None), (12, 3)))
    await store.put("generations/notes.txt", b"")
    assert await generation.newest(store) == 12


async def test_a_lost_answer_is_not_a_lost_race() -> None:
    lost = [Fault(StoreUnavailable("no answer"), "after")]

    def faults(operation: Operation) -> Fault | None:
        return lost.pop() if operation.name == "put" and lost else None

    store = MemoryStore(faults=faults)
    await generation.take(RetryingStore(store, Time().clocks.retry), generation_file(FIRST))
    assert [operation.name for operation in store.operations] == ["put", "put", "get"]


async def test_a_generation_that_is_missing_or_corrupt() -> None:
    store = MemoryStore()
    with pytest.raises(CorruptError, match=r"memory:///generations/0001\.json: the object is missing"):
        await generation.read(store, 1)
    await store.put("generations/0001.json", generation_file(FIRST).model_dump_json().encode()[:-5])
    with pytest.raises(CorruptError, match=r"memory:///generations/0001\.json"):
        await generation.read(store, 1)
