"""Retention: pure, idempotent, independent of order; the newest and the pinned stay."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from steps import NOW

from uploader.retention import Committed, KeepBest, Retention, steps_to_keep

values = st.one_of(st.none(), st.floats(), st.integers(-5, 5), st.just("text"))
policies = st.builds(
    Retention,
    keep_last=st.integers(1, 5),
    keep_every=st.one_of(st.none(), st.integers(1, 7)),
    keep_best=st.one_of(
        st.none(),
        st.builds(
            KeepBest, metric=st.just("loss"), mode=st.sampled_from(["min", "max"]), count=st.integers(1, 3)
        ),
    ),
    keep_for_s=st.one_of(st.none(), st.floats(0.001, 1e300)),
)
checkpoints = st.lists(
    st.builds(
        Committed,
        step=st.integers(0, 60),
        created_at=st.integers(-100, 100).map(lambda seconds: NOW + timedelta(seconds=seconds)),
        metrics=st.fixed_dictionaries({}, optional={"loss": values}),
        pinned=st.booleans(),
    ),
    unique_by=lambda one: one.step,
)


@given(checkpoints, policies, st.randoms())
def test_what_always_holds(all_steps: list[Committed], policy: Retention, random: object) -> None:
    keep = steps_to_keep(all_steps, policy, now=NOW)
    steps = {one.step for one in all_steps}
    assert keep <= steps
    assert {max(steps)} <= keep if steps else not keep
    assert {one.step for one in all_steps if one.pinned} <= keep
    assert {*sorted(steps)[-policy.keep_last :]} <= keep
    shuffled = list(all_steps)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert steps_to_keep(shuffled, policy, now=NOW) == keep
    kept = [one for one in all_steps if one.step in keep]
    assert steps_to_keep(kept, policy, now=NOW) == keep


@given(checkpoints, policies, st.data())
def test_what_was_let_go_does_not_matter(
    all_steps: list[Committed], policy: Retention, data: st.DataObject
) -> None:
    keep = steps_to_keep(all_steps, policy, now=NOW)
    partly = [one for one in all_steps if one.step in keep or data.draw(st.booleans())]
    assert steps_to_keep(partly, policy, now=NOW) == keep


def some(*metrics: float | str | None) -> list[Committed]:
    return [
        Committed(step, NOW + timedelta(seconds=step), {"loss": loss}) for step, loss in enumerate(metrics)
    ]


def test_each_rule_alone() -> None:
    ten = some(*range(10))
    assert steps_to_keep(ten, Retention(keep_last=2), now=NOW) == {8, 9}
    assert steps_to_keep(ten, Retention(keep_last=None), now=NOW) == {*range(10)}
    assert steps_to_keep(ten, Retention(keep_last=1, keep_every=4), now=NOW) == {0, 4, 8, 9}
    now = NOW + timedelta(seconds=9)
    assert steps_to_keep(ten, Retention(keep_last=1, keep_for_s=2), now=now) == {8, 9}


def test_the_best_are_numbers_and_ties_go_to_the_newer() -> None:
    losses = some(1.0, float("nan"), None, "low", 1.0, 2.0, 3.0)
    best = KeepBest(metric="loss", count=2)
    assert steps_to_keep(losses, Retention(keep_last=1, keep_best=best), now=NOW) == {0, 4, 6}
    one = KeepBest(metric="loss")
    assert steps_to_keep(losses, Retention(keep_last=1, keep_best=one), now=NOW) == {4, 6}
    worst = KeepBest(metric="loss", mode="max")
    assert steps_to_keep([*losses, *some()], Retention(keep_last=1, keep_best=worst), now=NOW) == {6}


def test_an_age_beyond_all_calendars_keeps_everything() -> None:
    assert len(steps_to_keep(some(1, 2, 3), Retention(keep_last=1, keep_for_s=1e300), now=NOW)) == 3


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_every": 0}, {"keep_for_s": 0}, {"kep_last": 1}])
def test_a_policy_that_keeps_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Retention.model_validate(wrong)
