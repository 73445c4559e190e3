"""What validation, early stopping, averages and the guard may be set to; what is wrong names its key."""

from pathlib import Path

import pytest

from uploader.errors import SettingsError
from wmtp.settings import Flags, Resolved, load_settings

EVERY = "train.validation.every=50"


def load(*overrides: str) -> Resolved:
    return load_settings(None, None, overrides, Flags(), {}, Path("/here"))


def test_all_of_it_is_off_unless_it_is_set() -> None:
    recipe = load().recipe
    assert (recipe.train.validation.every, recipe.train.validation.samples) == (None, 256)
    assert (recipe.train.early_stopping.patience, recipe.optim.ema_decay) == (None, None)
    assert recipe.optim.max_bad_steps == 3
    assert not load().config.devices.activation_checkpointing


def test_what_fits_together_is_taken() -> None:
    stopping = "{metric: ema_held_out_accuracy, mode: max, patience: 3, min_delta: 1e-3}"
    recipe = load(EVERY, f"train.early_stopping={stopping}", "optim.ema_decay=0.999").recipe
    assert recipe.train.early_stopping.metric == "ema_held_out_accuracy"
    assert recipe.train.early_stopping.min_delta == 1e-3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.validation.every=0"], "train.validation.every (--set): "),
        (["train.validation.samples=0"], "train.validation.samples (--set): "),
        (["train.validation.evry=5"], "train.validation.evry (--set): unknown key; did you mean every?"),
        (["train.early_stopping.patience=0"], "train.early_stopping.patience (--set): "),
        (["train.early_stopping.min_delta=-1"], "train.early_stopping.min_delta (--set): "),
        (
            ["train.early_stopping.metric=loss"],
            "train.early_stopping.metric (--set): 'loss' should be 'bits_",
        ),
        (
            ["train.early_stopping.mode=max"],
            "train.early_stopping (--set): mode max is worse for bits_per_byte",
        ),
        (["train.early_stopping.metric=held_out_accuracy"], "mode min is worse for held_out_accuracy"),
        (["optim.ema_decay=1"], "optim.ema_decay (--set): '1' should be less than 1"),
        (["optim.ema_decay=0"], "optim.ema_decay (--set): '0' should be greater than 0"),
        (["optim.ema_decay=nan"], "optim.ema_decay (--set): "),
        (["optim.max_bad_steps=0"], "optim.max_bad_steps (--set): "),
        (["devices.activation_checkpointing=2"], "devices.activation_checkpointing (--set): "),
        (["train.early_stopping.patience=5"], "train.early_stopping.patience: early stopping waits for"),
        (
            [EVERY, "data.validation_fraction=0"],
            "train.validation.every: data.validation_fraction is 0: there is no text to measure on; hold",
        ),
        (
            [EVERY, "train.early_stopping={patience: 5, metric: ema_held_out}"],
            "train.early_stopping.metric: ema_held_out is that of averaged weights, and there are none; set",
        ),
    ],
)
def test_what_is_wrong_names_its_key(overrides: list[str], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(*overrides)
    assert says in str(caught.value)
