"""What is uploaded, skipped, discarded: never the wrong one, whatever lies on disk and in the manifest."""

from datetime import timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from steps import FIRST, NOW, claim, node_record

from uploader import layout, manifest, pins
from uploader.backlog import Backlog, sort_out
from uploader.generation import Claim
from uploader.layout import RunKeys
from uploader.manifest import Entry, Manifest
from uploader.record import CommitRecord
from uploader.retention import Committed, KeepBest, Retention, steps_to_keep
from uploader.watch import LocalStep

CLAIMS = [FIRST, claim((1, None), (2, 4)), claim((1, None), (2, 4), (3, 6)), claim((3, None))]


def here(step: int, number: int = 1, loss: float = 0.0, nodes: int = 1) -> LocalStep:
    record = node_record(step, number, metrics={"loss": loss}, nodes=nodes)
    return LocalStep(Path(f"/run/{layout.step_name(step)}"), record, record.encode())


def there(index: Manifest, *steps: LocalStep, by: Claim = FIRST) -> Manifest:
    for one in steps:
        record = CommitRecord.merge([one.encoded])
        index = manifest.committed(index, Entry.of(record, RunKeys()), by)
    return index


def numbers(steps: list[LocalStep]) -> list[int]:
    return [one.step for one in steps]


def sort(
    local: list[LocalStep],
    index: Manifest,
    one: Claim = FIRST,
    keep_last: int = 2,
    failed: tuple[str, ...] = (),
    refused: tuple[str, ...] = (),
    in_flight: tuple[str, ...] = (),
    on_disk: Retention | None = None,
) -> Backlog:
    policy = Retention(keep_last=keep_last)
    return sort_out(
        local,
        index,
        one,
        policy,
        now=NOW,
        on_disk=on_disk,
        failed=failed,
        refused=refused,
        in_flight=in_flight,
    )


def test_newest_first_and_what_would_be_pruned_on_arrival_is_skipped() -> None:
    backlog = sort([here(step) for step in (1, 2, 3, 4)], Manifest(run="run"))
    assert numbers(backlog.upload) == [4, 3]
    assert sorted(numbers(backlog.skip)) == [1, 2]
    assert backlog.discard == []


def test_what_is_in_flight_is_finished_first_if_it_is_worth_it() -> None:
    steps = [here(step) for step in (1, 2, 3, 4)]
    backlog = sort(steps, Manifest(run="run"), keep_last=3, in_flight=("step_2@g1", "step_1@g1"))
    assert numbers(backlog.upload) == [2, 4, 3]
    assert numbers(backlog.skip) == [1]


def test_what_the_store_refused_is_tried_again_and_pushes_no_other_out() -> None:
    steps = [here(step) for step in (1, 2, 3)]
    backlog = sort(steps, Manifest(run="run"), keep_last=1, refused=("step_3@g1",))
    assert numbers(backlog.upload) == [3, 2]
    assert numbers(backlog.skip) == [1]
    backlog = sort([*steps, here(4)], Manifest(run="run"), keep_last=1, refused=("step_3@g1",))
    assert numbers(backlog.upload) == [4]
    assert backlog.discard == []


def test_with_several_nodes_nothing_is_skipped_before_something_newer_is_committed() -> None:
    """Each node sees other steps come; one that skipped what another uploads would never complete it."""
    steps = [here(step, nodes=2) for step in (1, 2, 3, 4)]
    backlog = sort(steps, Manifest(run="run"), keep_last=1)
    assert numbers(backlog.upload) == [4, 3, 2, 1]
    assert backlog.skip == []
    index = there(Manifest(run="run"), here(3))  # as the last of the nodes committed it
    backlog = sort(steps, index, keep_last=1)
    assert numbers(backlog.upload) == [4]
    assert sorted(numbers(backlog.skip)) == [1, 2]


def test_the_disk_keeps_what_retention_keeps_and_what_waits() -> None:
    steps = [here(step) for step in range(1, 6)]
    backlog = sort(steps, there(Manifest(run="run"), *steps[1:4]))
    assert numbers(backlog.upload) == [5]
    assert numbers(backlog.discard) == [1, 2]


def test_the_disk_has_a_policy_of_its_own() -> None:
    steps = [here(step) for step in range(1, 7)]
    index = there(Manifest(run="run"), *steps)
    every = Retention(keep_last=2, keep_every=1)
    assert sort_out(steps, index, FIRST, every, now=NOW).discard == steps[:4]  # what grows is for the store
    assert numbers(sort(steps, index, on_disk=Retention(keep_last=1)).discard) == [1, 2, 3, 4, 5]
    assert sort(steps, index, keep_last=1, on_disk=Retention(keep_last=9)).discard == []


def test_the_disk_may_keep_what_the_store_has_pruned() -> None:
    steps = [here(step) for step in range(1, 6)]
    backlog = sort(steps, there(Manifest(run="run"), *steps[3:]), on_disk=Retention(keep_last=4))
    assert backlog.upload == []
    assert numbers(backlog.discard) == [1]


def test_a_pin_is_for_the_store() -> None:
    steps = [here(step) for step in (1, 2, 3)]
    index = there(Manifest(run="run"), *steps)
    index = pins.marked(index, index.live["step_1"], pinned=True)
    assert numbers(sort(steps, index, keep_last=1).discard) == [1, 2]


def test_nothing_goes_while_nothing_newer_is_durable() -> None:
    steps = [here(step) for step in (3, 4, 5)]
    backlog = sort(steps, there(Manifest(run="run"), here(2)), keep_last=1)
    assert backlog.discard == []


def test_a_failed_step_is_never_uploaded_and_stays_as_long_as_retention_would_keep_it() -> None:
    steps = [here(step) for step in (1, 2, 3, 4)]
    index = there(Manifest(run="run"), *steps[:2], steps[3])
    backlog = sort(steps, index, failed=("step_3@g1",))
    assert backlog.upload == []
    assert numbers(backlog.discard) == [1]  # 2 and 4 are kept; 3 pushes neither out
    index = there(index, here(5))
    assert numbers(sort([*steps, here(5)], index, failed=("step_3@g1",)).discard) == [1, 2, 3]


def test_a_branch_that_was_left_goes_when_the_new_one_is_durable() -> None:
    second = claim((1, None), (2, 4))
    old, new = [here(4), here(6), here(8)], here(5, 2)
    index = there(Manifest(run="run"), *old)
    backlog = sort([*old, new], manifest.adopted(index, second), second)
    assert numbers(backlog.upload) == [5]
    assert backlog.discard == []
    index = there(index, new, by=second)
    assert numbers(sort([*old, new], index, second).discard) == [6, 8]


def test_a_step_of_a_start_that_is_not_heard_of_yet_never_goes() -> None:
    """Found by the simulation: an uploader serving generation 1 still looks at what generation 2 saved."""
    old, newer = here(20), here(10, 2)
    index = there(Manifest(run="run"), old)
    assert sort([old, newer], index).discard == []


Situation = tuple[list[LocalStep], Manifest, Claim, Retention, Retention | None, set[str], set[str]]

policies = st.builds(
    Retention,
    keep_last=st.integers(1, 3),
    keep_every=st.sampled_from([None, 3]),
    keep_best=st.sampled_from([None, KeepBest(metric="loss")]),
    keep_for_s=st.sampled_from([None, 5.0]),
)


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    one = draw(st.sampled_from(CLAIMS))
    ids = st.tuples(st.integers(0, 12), st.integers(1, 3))
    local = draw(st.lists(ids, unique_by=lambda both: both[0], max_size=8))  # one directory a step
    remote = draw(st.lists(st.one_of(ids, st.sampled_from(local) if local else ids), max_size=8))
    loss = st.floats(0, 1)
    index = there(Manifest(run="run"), *(here(*both, draw(loss)) for both in remote), by=one)
    index = manifest.deleting(index, draw(st.lists(st.sampled_from(sorted(index.names()) or ["none"]))), one)
    nodes = draw(st.sampled_from([1, 2]))
    steps = [here(*both, draw(loss), nodes) for both in local]
    failed = {each.name for each in steps if draw(st.integers(0, 4)) == 0}
    refused = {each.name for each in steps if draw(st.integers(0, 3)) == 0}
    on_disk = draw(st.one_of(st.none(), policies))
    return steps, index, one, draw(policies), on_disk, failed, refused


@given(situations())
def test_what_always_holds(situation: Situation) -> None:
    local, index, one, policy, on_disk, failed, refused = situation
    now = NOW + timedelta(seconds=10)
    backlog = sort_out(local, index, one, policy, now=now, on_disk=on_disk, failed=failed, refused=refused)
    durable = {entry.name for entry in index.live.values()}
    upload, skip, discard = ({each.name for each in part} for part in
                             (backlog.upload, backlog.skip, backlog.discard))  # fmt: skip
    # Each waiting step is uploaded or skipped, newest first, and never one that waits is discarded.
    live = {each.name for each in local if one.is_live(each.step, each.generation)}
    assert upload | skip == live - durable - failed - {*index.deleting}
    assert not upload & skip
    assert not upload & discard
    assert numbers(backlog.upload) == sorted(numbers(backlog.upload), reverse=True)
    # The newest waiting step waits for its upload, unless something newer is durable.
    waiting = [each for each in local if each.name in upload | skip]
    newest = max(waiting, key=lambda each: each.step, default=None)
    if newest is not None and newest.step > (index.latest if index.latest is not None else -1):
        assert newest.name in upload
    # So does the newest of those that the store does not refuse.
    taken = max(
        (each for each in waiting if each.name not in refused), key=lambda each: each.step, default=None
    )
    if taken is not None and taken.step > (index.latest if index.latest is not None else -1):
        assert taken.name in upload
    # What other nodes may be about to complete is not skipped.
    newer = [each for each in waiting if index.latest is None or each.step > index.latest]
    assert not {each.name for each in newer if each.record.nodes > 1} & skip
    # Nothing goes while nothing newer of the lineage is durable, and the newest durable one stays.
    if index.latest is None:
        assert not discard
    for each in backlog.discard:
        if each.name in live:
            assert index.latest is not None
            assert each.step < index.latest
        else:
            assert index.live[layout.step_name(index.latest or 0)].generation == one.generation
    here_and_there = [each for each in local if each.name in durable]
    if here_and_there:
        assert max(here_and_there, key=lambda each: each.step).name not in discard
    # Somewhere the newest there ever was is whole, and so is each that the disk's policy keeps.
    last = max((one.step for one in local if one.name in live), default=-1)
    if last > (-1 if index.latest is None else index.latest):
        assert layout.step_at(last, next(one.generation for one in local if one.step == last)) not in discard
    durable_here = [Committed(one.step, one.record.created_at, one.record.metrics) for one in here_and_there]
    keep = steps_to_keep(durable_here, on_disk or policy.on_disk(), now=now)
    assert not keep & {one.step for one in backlog.discard if one.name in durable}
    # Idempotent: with the discarded steps gone, nothing more goes and the same waits.
    rest = [each for each in local if each.name not in discard]
    again = sort_out(rest, index, one, policy, now=now, on_disk=on_disk, failed=failed, refused=refused)
    assert again.discard == []
    assert again.upload == backlog.upload
