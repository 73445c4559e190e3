"""The files in ``configs/`` load, and say what their names promise."""

from pathlib import Path

import pytest

from uploader.location import Location
from wmtp.settings import Config, Flags, Recipe, Resolved, Resume, load_settings

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
