"""Retention: pure, idempotent, independent of order; the newest and the pinned stay."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from steps import NOW

from uploader.retention import Committed, KeepBest, Retention, steps_to_keep, why_kept

values = st.one_of(st.none(), st.floats(), st.integers(-5, 5), st.just("text"), st.just(10**400))
policies = st.builds(
    Retention,
    keep_last=st.integers(1, 5),
    keep_every=st.one_of(st.none(), st.integers(1, 7)),
    keep_best=st.one_of(
        st.none(),
        st.builds(
            KeepBest, metric=st.just("loss"), mode=st.sampled_from(["min", "max"]), n=st.integers(1, 3)
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
    reasons = why_kept(all_steps, policy, now=NOW)
    assert reasons.keys() == keep and all(reasons.values())
    assert all(("pinned" in reasons[one.step]) == one.pinned for one in all_steps if one.step in keep)
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
    best = KeepBest(metric="loss", n=2)
    assert steps_to_keep(losses, Retention(keep_last=1, keep_best=best), now=NOW) == {0, 4, 6}
    one = KeepBest(metric="loss")
    assert steps_to_keep(losses, Retention(keep_last=1, keep_best=one), now=NOW) == {4, 6}
    worst = KeepBest(metric="loss", mode="max")
    assert steps_to_keep([*losses, *some()], Retention(keep_last=1, keep_best=worst), now=NOW) == {6}


def test_what_is_not_finite_never_wins_in_either_direction() -> None:
    losses = some(float("inf"), float("-inf"), float("nan"), None, 10**400, 7.0, 8.0)
    for mode, wins in (("min", 5), ("max", 4)):
        best = KeepBest(metric="loss", mode=mode)  # type: ignore[arg-type]
        assert steps_to_keep(losses, Retention(keep_last=1, keep_best=best), now=NOW) == {wins, 6}
    assert steps_to_keep(some(float("nan"), 1.0), Retention(keep_last=1), now=NOW) == {1}


def test_each_step_is_told_by_which_rules_it_stays() -> None:
    steps = [*some(3.0, 1.0, 2.0, 5.0, 6.0), Committed(9, NOW + timedelta(seconds=9), {}, pinned=True)]
    policy = Retention(keep_last=2, keep_every=3, keep_best=KeepBest(metric="loss"), keep_for_s=8)
    assert why_kept(steps, policy, now=NOW + timedelta(seconds=10)) == {
        9: ("newest", "pinned", "keep_last", "keep_every", "keep_for_s"),
        4: ("keep_last", "keep_for_s"),
        3: ("keep_every", "keep_for_s"),
        1: ("keep_best",),
        0: ("keep_every",),
    }


def test_the_disk_keeps_the_last_ones_where_nothing_else_is_said() -> None:
    policy = Retention(keep_last=4, keep_every=10, keep_best=KeepBest(metric="loss"), keep_for_s=60)
    assert policy.on_disk() == Retention(keep_last=4)
    assert Retention(keep_last=None).on_disk() == Retention(keep_last=1)
    assert str(policy) == "keep_last 4, keep_every 10, keep_best 1 by loss (min), keep_for_s 60.0"


def test_an_age_beyond_all_calendars_keeps_everything() -> None:
    assert len(steps_to_keep(some(1, 2, 3), Retention(keep_last=1, keep_for_s=1e300), now=NOW)) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep_last": 0},
        {"keep_every": 0},
        {"keep_for_s": 0},
        {"keep_for_s": float("nan")},
        {"kep_last": 1},
        {"keep_best": {"metric": "loss", "mode": "least"}},
        {"keep_best": {"metric": "", "n": 1}},
        {"keep_best": {"metric": "loss", "n": 0}},
    ],
)
def test_a_policy_that_keeps_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Retention.model_validate(wrong)
