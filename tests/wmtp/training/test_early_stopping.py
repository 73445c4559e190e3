"""When a run that gets no better ends: the decision, and what is kept of it."""

import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp.settings.recipe import EarlyStopping as Section
from wmtp.training.early_stopping import Best, EarlyStopping, judged

VALUES = st.lists(st.floats(0, 10) | st.just(math.nan) | st.just(math.inf), max_size=12)


def watch(values: list[float], **settings: Any) -> EarlyStopping:
    stopping = EarlyStopping(Section(**settings))
    for step, value in enumerate(values, 1):
        stopping.observe({"bits_per_byte": value, "held_out_accuracy": value}, step)
    return stopping


@pytest.mark.parametrize(
    ("values", "mode", "min_delta", "best"),
    [
        ([], "min", 0.0, Best()),
        ([3.0, 2.0, 2.5], "min", 0.0, Best(2.0, 2, 1)),
        ([3.0, 2.0, 2.5], "max", 0.0, Best(3.0, 1, 2)),
        ([3.0, 3.0, 3.0], "min", 0.0, Best(3.0, 1, 2)),
        ([3.0, 2.9, 2.8], "min", 0.15, Best(2.8, 3, 0)),
        ([3.0, 2.5], "min", 0.5, Best(3.0, 1, 1)),
        ([math.nan, math.inf], "min", 0.0, Best(None, 0, 2)),
        ([math.nan, 4.0, math.nan], "min", 0.0, Best(4.0, 2, 1)),
        ([-math.inf, 1.0], "min", 0.0, Best(1.0, 2, 0)),
    ],
)
def test_the_best_and_how_long_ago(
    values: list[float], mode: Literal["min", "max"], min_delta: float, best: Best
) -> None:
    found = Best()
    for step, value in enumerate(values, 1):
        found = judged(found, value, step, mode=mode, min_delta=min_delta)
    assert found == best


@given(values=VALUES, patience=st.integers(1, 4))
def test_it_ends_a_run_just_when_the_last_validations_had_no_new_best(
    values: list[float], patience: int
) -> None:
    finite = [(value, at) for at, value in enumerate(values) if math.isfinite(value)]
    since = len(values) - 1 - min(finite)[1] if finite else len(values)
    reason = watch(values, patience=patience).reason
    assert (reason is not None) == (since >= patience)


@given(values=VALUES, more=VALUES)
def test_state_is_all_there_is(values: list[float], more: list[float]) -> None:
    whole, resumed = watch(values + more, patience=2), EarlyStopping(Section(patience=2))
    resumed.load_state_dict(watch(values, patience=2).state_dict())
    for step, value in enumerate(more, 1 + len(values)):
        resumed.observe({"bits_per_byte": value}, step)
    assert (resumed.best, resumed.reason) == (whole.best, whole.reason)


def test_it_says_why_and_more_patience_goes_on() -> None:
    stopped = watch([3.0, 2.25, 2.5, 2.5], patience=2)
    why = "bits_per_byte has been no better than 2.25 of step 2 in the last 2 validations"
    assert stopped.reason == why
    assert (
        watch([math.nan], patience=1).reason == "bits_per_byte was no finite number in the last 1 validation"
    )
    for patience in (3, None):
        resumed = EarlyStopping(Section(patience=patience))
        resumed.load_state_dict(stopped.state_dict())
        assert resumed.reason is None and resumed.best.value == 2.25


def test_the_best_of_another_metric_is_forgotten() -> None:
    resumed = EarlyStopping(Section(metric="held_out_accuracy", mode="max", patience=1))
    resumed.load_state_dict(watch([3.0, 4.0], patience=1).state_dict())
    assert resumed.best == Best() and resumed.reason is None


def test_a_validation_without_the_metric_is_none() -> None:
    stopping = EarlyStopping(Section(metric="ema_bits_per_byte"))
    stopping.observe({"bits_per_byte": 1.0}, 1)
    assert stopping.best == Best()
