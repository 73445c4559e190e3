"""Retention in the settings: rules by themselves, the short form, and what is said of the disk."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import SettingsError
from uploader.retention import KeepBest, Retention
from wmtp.settings import Flags, describe, load_settings
from wmtp.settings.config import CheckpointPaths
from wmtp.settings.recipe import Checkpointing
from wmtp.settings.retention import resolve_retention

SHORT, LONG = "paths.checkpoints.keep_last", "paths.checkpoints.retention.keep_last"
OWN, OWN_LONG = "train.checkpointing.keep_last", "train.checkpointing.retention.keep_last"
BEST = {"metric": "loss", "mode": "max", "n": 2}


def resolved(own: dict[str, Any], shared: dict[str, Any]) -> tuple[Retention, Retention, dict[str, str]]:
    sources: dict[str, str] = {}
    checkpointing, paths = Checkpointing.model_validate(own), CheckpointPaths.model_validate(shared)
    remote, local = resolve_retention(checkpointing, paths, sources.__setitem__)
    return remote, local, sources


def test_with_nothing_said_three_stay_here_and_there() -> None:
    remote, local, sources = resolved({}, {})
    assert remote == local == Retention(keep_last=3)
    assert sources["keep_last"] == SHORT


@pytest.mark.parametrize(
    ("own", "shared", "remote", "source"),
    [
        ({}, {"keep_last": 5}, {"keep_last": 5}, SHORT),
        ({}, {"retention": {"keep_last": 5}}, {"keep_last": 5}, LONG),
        ({}, {"keep_last": 5, "retention": {"keep_last": 5}}, {"keep_last": 5}, SHORT),
        ({}, {"keep_last": None, "retention": {"keep_last": 7}}, {"keep_last": 7}, LONG),
        ({}, {"retention": {"keep_every": 9}}, {"keep_last": 3, "keep_every": 9}, SHORT),
        ({}, {"retention": {"keep_best": BEST}}, {"keep_last": 3, "keep_best": BEST}, SHORT),
        ({}, {"retention": None}, {"keep_last": 3}, SHORT),
        ({"keep_last": 2}, {"keep_last": 5}, {"keep_last": 2}, OWN),
        ({"keep_last": 2}, {"retention": {"keep_last": 5}}, {"keep_last": 2}, OWN),
        ({"retention": {"keep_last": 4}}, {"keep_last": 5}, {"keep_last": 4}, OWN_LONG),
        (
            {"retention": {"keep_every": 10, "keep_for_s": None}},
            {"keep_last": 5, "retention": {"keep_every": 100, "keep_for_s": 60}},
            {"keep_last": 5, "keep_every": 10, "keep_for_s": 60},
            SHORT,
        ),
    ],
)  # fmt: skip
def test_rule_by_rule_the_recipe_comes_first(
    own: dict[str, Any], shared: dict[str, Any], remote: dict[str, Any], source: str
) -> None:
    got, _, sources = resolved(own, shared)
    assert got == Retention.model_validate(remote)
    assert sources["keep_last"] == source


@pytest.mark.parametrize(("where", "key"), [("own", "train.checkpointing"), ("shared", "paths.checkpoints")])
def test_two_forms_that_contradict_each_other_are_refused_by_name(where: str, key: str) -> None:
    both = {where: {"keep_last": 2, "retention": {"keep_last": 5}}}
    with pytest.raises(
        SettingsError, match=rf"{key}\.keep_last: it is 2, but {key}\.retention\.keep_last is 5"
    ):
        resolved(both.get("own", {}), both.get("shared", {}))


def test_the_disk_has_what_is_said_of_it_else_the_last_ones() -> None:
    shared = {"keep_last": 5, "retention": {"keep_every": 100, "keep_best": BEST, "keep_for_s": 9}}
    assert resolved({}, shared)[1] == Retention(keep_last=5)
    one = {"local_retention": {"keep_last": 1}}
    assert resolved({}, shared | one)[1] == Retention(keep_last=1)
    assert resolved({}, shared | {"local_retention": {"keep_every": 50}})[1] == Retention(
        keep_last=5, keep_every=50
    )
    remote, local, sources = resolved({"local_retention": {"keep_last": 2}}, shared | one)
    assert (remote.keep_last, local) == (5, Retention(keep_last=2))
    assert sources["local_retention"] == "train.checkpointing.local_retention"


rules = st.fixed_dictionaries(
    {},
    optional={
        "keep_last": st.integers(1, 5),
        "keep_every": st.integers(1, 5),
        "keep_for_s": st.floats(1, 9),
        "keep_best": st.just(BEST),
    },
)


@given(rules, rules, rules, rules)
def test_every_policy_keeps_at_least_the_newest(
    own: dict[str, Any], shared: dict[str, Any], own_local: dict[str, Any], shared_local: dict[str, Any]
) -> None:
    remote, local, _ = resolved(
        {"retention": own, "local_retention": own_local},
        {"retention": shared, "local_retention": shared_local},
    )
    for got, first, then in ((remote, own, shared), (local, own_local, shared_local)):
        for name, value in {**then, **first}.items():
            expected = KeepBest.model_validate(value) if name == "keep_best" else value
            assert getattr(got, name) == expected
        assert (got.keep_last or 0) >= 1


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load(config: str, *overrides: str) -> Any:
        path = tmp_path / "c.yaml"
        path.write_text(config)
        return load_settings(path, None, list(overrides), Flags(), {}, tmp_path)

    return load


def test_dry_run_shows_both_and_where_they_came_from(load: Any) -> None:
    got = load("paths: {checkpoints: {retention: {keep_every: 50}}}", "paths.checkpoints.keep_last=2")
    rows = {name: (value, source) for name, value, source in describe(got)}
    assert rows["retention"] == ("keep_last 2, keep_every 50", "paths.checkpoints.keep_last (--set)")
    assert rows["local retention"][0] == "keep_last 2"
    assert rows["paths.checkpoints.purge_versions"] == ("false", "default")
    assert not any(name.startswith("paths.checkpoints.retention") for name in rows)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("keep_last: 0", "retention.keep_last (c.yaml:1): 0 would prune every checkpoint"),
        ("keep_lst: 2", "retention.keep_lst (c.yaml:1): unknown key; did you mean keep_last?"),
        (
            "keep_best: {metric: loss, mode: least}",
            "keep_best.mode (c.yaml:1): 'least' should be 'min' or 'max'",
        ),
        ("keep_best: {mode: min}", "keep_best.metric"),
        ("keep_for_s: -1", "retention.keep_for_s"),
        ("keep_for_s: .inf", "retention.keep_for_s"),
    ],
)
@pytest.mark.parametrize("name", ["retention", "local_retention"])
def test_what_is_wrong_is_refused_by_its_key(
    load: Any, tmp_path: Path, name: str, written: str, words: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        load(f"paths: {{checkpoints: {{{name}: {{{written}}}}}}}")
    assert words in str(refused.value).replace(f"{tmp_path}/", "")
