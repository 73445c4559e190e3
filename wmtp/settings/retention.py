"""Retention as the settings say it: rule by rule, the recipe's before the config's.

``keep_last`` is the short form of ``retention.keep_last``; in one file the two may not say different things.
A rule that is null is not set. To keep everything: ``keep_every: 1``.
"""

from collections.abc import Callable

from pydantic import ValidationError

from uploader.errors import SettingsError
from uploader.retention import Retention
from wmtp.settings.config import CheckpointPaths
from wmtp.settings.fields import RetentionRules
from wmtp.settings.problems import problems_of
from wmtp.settings.recipe import Checkpointing

OWN, SHARED = "train.checkpointing", "paths.checkpoints"

Note = Callable[[str, str], None]
"""Told the name of a value and the key that sets it."""


def resolve_retention(own: Checkpointing, shared: CheckpointPaths, note: Note) -> tuple[Retention, Retention]:
    """What stays in the store, and what of it stays on the local disk.

    Raises:
        SettingsError: the short form and the long one contradict each other.
    """
    chosen = {OWN: _rules(OWN, own), SHARED: _rules(SHARED, shared)}
    remote = _over(chosen[OWN], chosen[SHARED])
    key = next((key for key, rules in chosen.items() if rules.keep_last is not None), SHARED)
    is_long = _short(own if key == OWN else shared) is None and chosen[key].keep_last is not None
    note("keep_last", f"{key}.retention.keep_last" if is_long else f"{key}.keep_last")
    retention = _policy(remote, Retention())
    local = _over(own.local_retention, shared.local_retention)
    if local == RetentionRules():
        note("local_retention", "as many of the last as in the store")
        return retention, retention.on_disk()
    note("local_retention", f"{SHARED if own.local_retention == RetentionRules() else OWN}.local_retention")
    return retention, _policy(local, retention.on_disk())


def retention_of_flags(**rules: object) -> Retention:
    """Retention as options of those names say it, as if a settings file did.

    Args:
        rules: by their names; None is no rule.

    Raises:
        SettingsError: one is wrong; its subject is the option.
    """
    try:
        found = RetentionRules.model_validate(rules)
    except ValidationError as error:
        wrong = next(problems_of(error, RetentionRules, {}, {}))
        raise SettingsError(wrong.problem, subject=f"--{wrong.subject.replace('_', '-')}") from None
    return _policy(found, Retention())


def _rules(key: str, section: Checkpointing | CheckpointPaths) -> RetentionRules:
    """The rules of one file, the short form among them."""
    short, long = _short(section), section.retention.keep_last
    if short is not None and long not in (None, short):
        raise SettingsError(
            f"it is {short}, but {key}.retention.keep_last is {long}",
            subject=f"{key}.keep_last",
            hint="the one is short for the other: set one of them to null",
        )
    return section.retention if short is None else section.retention.model_copy(update={"keep_last": short})


def _short(section: Checkpointing | CheckpointPaths) -> int | None:
    """The short form where somebody wrote it: a default contradicts nobody."""
    return section.keep_last if "keep_last" in section.model_fields_set else None


def _over(own: RetentionRules, shared: RetentionRules) -> RetentionRules:
    return shared.model_copy(update={name: value for name, value in own if value is not None})


def _policy(rules: RetentionRules, otherwise: Retention) -> Retention:
    """A policy always says how many of the last it keeps: where no rule does, as many as another one."""
    last = otherwise.keep_last if rules.keep_last is None else rules.keep_last
    return Retention(**{**dict(rules), "keep_last": last})
