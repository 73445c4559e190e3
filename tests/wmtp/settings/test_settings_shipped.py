"""The files in ``configs/`` load, and say what their names promise."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from uploader.location import Location
from uploader.retention import KeepBest
from wmtp.settings import Config, Flags, Recipe, Resolved, Resume, load_settings
from wmtp.settings.config import LauncherResources
from wmtp.settings.fields import RetentionRules
from wmtp.settings.read import read_yaml
from wmtp.settings.recipe import Model

ROOT = Path(__file__).parents[3]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("config*.yaml"))
RECIPES = sorted(path.name for path in (ROOT / "configs").glob("recipe*.yaml"))


def load(config: str, recipe: str = "recipe.yaml") -> Resolved:
    return load_settings(f"configs/{config}", f"configs/{recipe}", (), Flags(), {}, ROOT)


def test_all_are_there() -> None:
    assert {name for pair in PAIRS for name in pair} == {*CONFIGS, *RECIPES}
    assert {"config.yaml", "config.dev-s3.yaml", "config.vessl.yaml"} <= set(CONFIGS)
    assert {"recipe.yaml", "recipe.cluster_rho1_wmtp.yaml"} <= set(RECIPES)


# The cluster's recipe names a model and a dataset that only the cluster's config has.
PAIRS = [
    (config, recipe)
    for config in CONFIGS
    for recipe in RECIPES
    if "cluster" not in recipe or config == "config.vessl.yaml"
]


@pytest.mark.parametrize(("config", "recipe"), PAIRS)
def test_they_load(config: str, recipe: str) -> None:
    resolved = load(config, recipe)
    assert resolved.location == resolved.base.join(resolved.run_name)


def test_plain_files_are_the_built_in_defaults() -> None:
    resolved = load("config.yaml")
    assert resolved.config == Config()
    assert resolved.recipe == Recipe.model_validate({"train": {"max_steps": 400}})
    assert resolved.max_steps == 400
    assert resolved.in_place


def test_dev_s3() -> None:
    resolved = load("config.dev-s3.yaml")
    assert resolved.location == Location("wmtp", "checkpoints/stdlib-mtp")
    assert resolved.dev_s3 == ROOT / ".dev-s3"
    assert resolved.local_dir == ROOT / "ckpt" / "stdlib-mtp"
    assert (resolved.save_interval, resolved.keep_last, resolved.in_place) == (50, 3, False)


def test_vessl() -> None:
    resolved = load("config.vessl.yaml")
    assert resolved.base == Location("wmtp", "checkpoints")
    assert (resolved.save_interval, resolved.keep_last, resolved.save_final) == (500, 5, True)
    assert resolved.config.launcher.target == "vessl"
    assert resolved.config.launcher.resources.cluster is None


def test_cluster_rho1() -> None:
    resolved = load("config.vessl.yaml", "recipe.cluster_rho1_wmtp.yaml")
    assert resolved.base == Location("wmtp", "prod/checkpoints")
    assert (resolved.save_interval, resolved.keep_last, resolved.save_final) == (200, 3, True)
    assert (resolved.recipe.train.algo, resolved.max_steps) == ("rho1-wmtp", 5000)
    assert resolved.resume == Resume("auto", "auto")
    assert resolved.dataset == Location("wmtp", "datasets/codecontests")
    assert resolved.recipe.model == Model()  # the base decides its shape


LEFT_OUT = {
    "paths.checkpoints.retention.keep_last",  # `keep_last` is short for it
    *(f"paths.checkpoints.local_retention.{rule}" for rule in RetentionRules.model_fields),
    *(f"paths.checkpoints.retention.keep_best.{name}" for name in KeepBest.model_fields),  # in a comment
    *(f"paths.checkpoints.local_retention.keep_best.{name}" for name in KeepBest.model_fields),
    *(f"launcher.resources.{name}" for name in LauncherResources.model_fields),  # of config.vessl.yaml
}


def keys_of(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        sections = [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]
        yield from keys_of(sections[0], f"{above}{name}.") if sections else [above + name]


def test_the_plain_config_shows_every_key() -> None:
    _, lines = read_yaml((ROOT / "configs/config.yaml").read_text(), "config.yaml")
    assert {*keys_of(Config)} - LEFT_OUT - lines.keys() == set()
