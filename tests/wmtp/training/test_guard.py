"""Steps that are not finite: counted, thrown away, and in the end too many."""

import math

import pytest
import torch

from wmtp.training.guard import Guard, not_finite
from wmtp.training.objective import on_host


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [
        ({"loss": 1.0, "grad_norm": 0.0}, []),
        ({"loss": math.nan, "grad_norm": 1.0}, ["loss"]),
        ({"loss": 1.0, "grad_norm": math.inf}, ["grad_norm"]),
        ({"loss": -math.inf, "value_grad_norm": math.nan, "lr": 1.0}, ["loss", "value_grad_norm"]),
        ({"loss": 1.0, "grad_norm": 1.0, "weight_max": math.nan}, []),
    ],
)
def test_the_loss_and_every_norm_are_watched(numbers: dict[str, float], wrong: list[str]) -> None:
    assert list(not_finite(numbers)) == wrong
    assert Guard(3).admits(numbers) == (not wrong)


def test_it_gives_up_at_the_last_of_so_many_in_a_row() -> None:
    guard, gave_up = Guard(2), []
    for loss in (math.nan, 1.0, math.nan, math.nan):
        guard.admits({"loss": loss})
        gave_up.append(guard.gives_up)
    assert gave_up == [False, False, False, True]
    assert (guard.in_a_row, guard.total) == (2, 3)


def test_the_count_goes_on_after_a_resume() -> None:
    guard, resumed = Guard(2), Guard(2)
    guard.admits({"loss": math.nan})
    resumed.load_state_dict(guard.state_dict())
    assert not resumed.admits({"loss": math.nan})
    assert resumed.gives_up and resumed.total == 2


def test_measures_come_to_the_host_as_they_are() -> None:
    measures = {
        "loss": torch.tensor(1.5),
        "heads": torch.tensor([0.1, 2.0]),
        "one": torch.tensor([3.0]),
        "stage": torch.tensor(2),
        "grad_norm": torch.tensor(math.inf),
    }
    assert on_host(measures) == {
        "loss": 1.5,
        "heads": torch.tensor([0.1, 2.0]).tolist(),
        "one": [3.0],
        "stage": 2,
        "grad_norm": math.inf,
    }
