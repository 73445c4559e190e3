"""What needs validation has it: settings that would otherwise wait for numbers that nothing measures."""

from typing import get_args

from uploader.errors import SettingsError
from uploader.retention import KeepBest
from wmtp.settings.problems import suggestion
from wmtp.settings.recipe import HeldOutMetric, Recipe
from wmtp.settings.resolved import Resolved
from wmtp.settings.retention import OWN, SHARED

EVERY, PATIENCE = "train.validation.every", "train.early_stopping.patience"


def require_validation(recipe: Recipe) -> None:
    """Validation has text, and early stopping has validation.

    Raises:
        SettingsError: something is to be measured or waited for that is not there; names the key.
    """
    validation, stopping = recipe.train.validation, recipe.train.early_stopping
    if validation.every is not None and not recipe.data.validation_fraction:
        raise SettingsError(
            "data.validation_fraction is 0: there is no text to measure on",
            subject=EVERY,
            hint="hold some out, 0.01 for example, or set it to null",
        )
    if stopping.patience is None:
        return
    if validation.every is None:
        raise SettingsError(
            "early stopping waits for validations, and there are none",
            subject=PATIENCE,
            hint=f"set {EVERY} to a number of steps, or this to null",
        )
    if stopping.metric.startswith("ema_") and recipe.optim.ema_decay is None:
        raise SettingsError(
            f"{stopping.metric} is that of averaged weights, and there are none",
            subject="train.early_stopping.metric",
            hint=f"set optim.ema_decay, or wait for {stopping.metric.removeprefix('ema_')}",
        )


def require_best(settings: Resolved) -> None:
    """What ``keep_best`` compares stands in every checkpoint, or in those of the steps that are validated.

    Raises:
        SettingsError: it compares a metric that no checkpoint of this run will have; names the key.
    """
    recipe = settings.recipe
    own, shared = recipe.train.checkpointing, settings.config.paths.checkpoints
    for section, rules in ((OWN, own), (SHARED, shared)):
        for name in ("retention", "local_retention"):
            best: KeepBest | None = getattr(rules, name).keep_best
            if best is not None:
                _require_metric(best.metric, recipe, f"{section}.{name}.keep_best.metric")


def _require_metric(metric: str, recipe: Recipe, key: str) -> None:
    known = ("loss", *get_args(HeldOutMetric))
    if metric not in known:
        problem, hint = f"no checkpoint has a metric {metric!r}", suggestion(metric, known)
    elif metric != "loss" and recipe.train.validation.every is None:
        problem, hint = (
            f"{metric} is measured by validations, and there are none",
            f"set {EVERY}, or use loss",
        )
    elif metric.startswith("ema_") and recipe.optim.ema_decay is None:
        problem, hint = f"{metric} is that of averaged weights, and there are none", "set optim.ema_decay"
    else:
        return
    raise SettingsError(problem, subject=key, hint=hint)
