"""Files, ``--set`` and environment: what is taken, what is refused and in which words, and the sources."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uploader.errors import SettingsError
from wmtp.settings import Config, Flags, Recipe, Resolved, load_settings
from wmtp.settings.load import Override, parse_override

NOTHING: Mapping[str, str] = {}


def load(
    cwd: Path,
    config: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] = NOTHING,
) -> Resolved:
    """Load the texts as ``c.yaml`` and ``r.yaml`` of ``cwd``."""
    for name, text in (("c.yaml", config), ("r.yaml", recipe)):
        if text is not None:
            (cwd / name).write_text(text, encoding="utf-8")
    return load_settings(
        None if config is None else "c.yaml",
        None if recipe is None else "r.yaml",
        overrides,
        Flags(),
        env,
        cwd,
    )


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., list[str]]:
    """The lines of the error that loading the given texts raises."""

    def lines(*args: object, **kwargs: object) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            load(tmp_path, *args, **kwargs)  # type: ignore[arg-type]
        return [line.strip() for line in str(caught.value).splitlines()]

    return lines


def test_nothing_given_is_the_built_in_defaults(tmp_path: Path) -> None:
    resolved = load(tmp_path)
    assert (resolved.config, resolved.recipe) == (Config(), Recipe())
    assert resolved.leaf_sources == {}


def test_files_of_the_working_directory_are_found(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/config.yaml").write_text("seed: 7\n")
    (tmp_path / "configs/recipe.yaml").write_text("# none\nrun:\n  name: found\n")
    resolved = load(tmp_path)
    assert (resolved.seed, resolved.run_name) == (7, "found")
    assert resolved.leaf_sources["seed"] == "configs/config.yaml:1"
    assert resolved.sources["run_name"] == "run.name (configs/recipe.yaml:3)"


def test_scalars_become_what_the_field_is(tmp_path: Path) -> None:
    recipe = "run: {name: 007, tags: [no, 1e3]}\noptim: {learning_rate: 1e-3}\ntrain: {max_steps: ~}\n"
    resolved = load(tmp_path, recipe=recipe)
    assert resolved.run_name == "007"
    assert resolved.tags == ("no", "1e3")
    assert resolved.recipe.optim.learning_rate == 0.001
    assert resolved.recipe.train.max_steps is None


def test_empty_file_and_empty_section_are_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "", "train:\n  # max_steps: 3\n").recipe == Recipe()


def test_sources_tell_default_file_set_and_variable(tmp_path: Path) -> None:
    config = "seed: ${SEED}\nlog_interval: 3\npaths:\n  cache: ${CACHE:-./c}\nmlflow:\n  experiment: a\n"
    recipe = "run:\n  tags: [a, '${TAG}']\n"
    overrides = ["mlflow.experiment=b", "paths.checkpoints={keep_last: 2}"]
    resolved = load(tmp_path, config, recipe, overrides, {"SEED": "5", "TAG": "x"})
    assert resolved.seed == 5
    assert resolved.tags == ("a", "x")
    assert resolved.cache == tmp_path / "c"
    sources = resolved.leaf_sources
    assert sources["seed"] == "c.yaml:1, environment variable SEED"
    assert sources["log_interval"] == "c.yaml:2"
    assert sources["paths.cache"] == "c.yaml:4"
    assert sources["mlflow.experiment"] == "--set"
    assert sources["paths.checkpoints.keep_last"] == "--set"
    assert sources["run.tags"] == "r.yaml:2, environment variable TAG"
    assert "project" not in sources
    assert "paths.checkpoints.save_interval" not in sources


def test_set_wins_over_file_and_spares_its_unset_variable(tmp_path: Path) -> None:
    resolved = load(tmp_path, "paths: {cache: '${NOT_SET}'}", overrides=["paths.cache=${x"])
    assert resolved.cache == tmp_path / "${x"


def test_unknown_keys_are_refused_by_path_with_suggestion(refused: Callable[..., list[str]]) -> None:
    config = "paths:\n  checkpoints:\n    keep_lst: 2\nrun:\n  name: x\n"
    recipe = "train:\n  save_interval: 3\nloss:\n  critic:\n    zzz: 1\n"
    assert refused(config, recipe) == [
        "4 settings are wrong:",
        "paths.checkpoints.keep_lst (c.yaml:3): unknown key; did you mean keep_last?",
        "run (c.yaml:4): unknown key; run belongs to the recipe",
        "train.save_interval (r.yaml:2): unknown key; did you mean train.checkpointing.save_interval?",
        "loss.critic.zzz (r.yaml:5): unknown key;"
        " there are: stage1_steps, value_learning_rate, gamma, gae_lambda, delta_lambda, temperature,"
        " value_weight",
    ]


def test_all_problems_are_listed_one_a_line(refused: Callable[..., list[str]]) -> None:
    config = "seed: abc\nstorage: 5\npaths: {cache: '${GONE}', checkpoints: {keep_last: 0, save_interval: 0}}"
    lines = refused(config, "train: {algo: sgd}", ["nonsense", "sed=1"])
    assert lines[0] == "8 settings are wrong:"
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "--set nonsense",
        "sed (--set)",
        "paths.cache (c.yaml",
        "seed (c.yaml",
        "paths.checkpoints.save_interval (c.yaml",
        "paths.checkpoints.keep_last (c.yaml",
        "storage (c.yaml",
        "train.algo (r.yaml",
    ]
    text = "\n".join(lines)
    assert "0 would prune every checkpoint; the newest is always kept: use 1 or more" in text
    assert "0 is no number of steps: use 1 or more (above max_steps, only the final step is saved)" in text
    assert "the environment variable GONE is not set" in text


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ("model: {hidden_size: 100}", "hidden_size 100 is not attention_heads 4 times an even number"),
        ("model: {kv_heads: 3}", "attention_heads 4 is not a multiple of kv_heads 3"),
        ("train: {max_steps: 9, num_epochs: 1}", "max_steps and num_epochs are both set"),
        ("optim: {warmup_steps: 400}", "400 steps of warm-up are not fewer than max_steps 400"),
        ("loss: {rho1: {clip: [3, 1]}}", "is not [lowest, highest]"),
        ("train: {algo: rho1-tokenskip}\nloss: {rho1: {selection_mode: weighted}}", "contradicts"),
        ("data: {sequence_length: 4}", "leaves no target"),
        ("optim: {learning_rate: nan}", "should be a finite number"),
        ("run: {name: a/b}", "cannot be a run's name"),
        ("run: {name: .a}", "no dot first"),
        ("train: {algo: rho1-wmtp}", "paths.models.ref: train.algo rho1-wmtp needs it"),
    ],
)
def test_contradictions_are_refused(refused: Callable[..., list[str]], recipe: str, problem: str) -> None:
    assert problem in " ".join(refused(None, recipe))


@pytest.mark.parametrize(
    ("storage", "problem"),
    [
        ("{endpoint_url: 'http://a:b@h'}", "it holds credentials"),
        ("{endpoint_url: localhost}", "it is no URL"),
        ("{endpoint_url: 'http://h', dev_s3: ./d}", "name two servers"),
        ("{sse_kms_key_id: k}", "no effect without sse"),
    ],
)
def test_storage_is_checked(refused: Callable[..., list[str]], storage: str, problem: str) -> None:
    assert problem in " ".join(refused(f"storage: {storage}"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\n b: 2\n", "reading c.yaml:2: "),
        ("a: [1\n", "reading c.yaml:2: "),
        ("seed: 1\nseed: 2\n", "seed (c.yaml): it is there twice, in lines 1 and 2; keep one"),
        ("paths:\n  cache: a\n  cache: a\n", "paths.cache (c.yaml): it is there twice"),
        ("- 1\n", "reading c.yaml: it is not a mapping of keys"),
        ("a: &x 1\nb: *x\n", "anchors (&) and aliases (*) are not read here"),
        ("a: &x [*x]\n", "anchors (&) and aliases (*) are not read here"),
        ("seed: !!python/object/apply:os.getcwd []\n", "seed (c.yaml:1): the tag"),
        ("seed: !x 1\n", "seed (c.yaml:1): the tag"),
        ("? [a]\n: 1\n", "a key must be a plain word"),
        ("a: 1\n---\nb: 2\n", "reading c.yaml:2: "),
        ("a: \x07\n", "reading c.yaml: unacceptable character"),
        ("a: " + "[" * 500 + "]" * 500, "reading c.yaml: it is nested too deeply"),
    ],
)
def test_bad_yaml_is_refused_with_its_place(
    refused: Callable[..., list[str]], text: str, problem: str
) -> None:
    lines = refused(text)
    assert len(lines) == 1
    assert problem in lines[0]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"a: \xff")
    for name, problem in [
        ("recpe.yaml", "reading recpe.yaml: no such file; did you mean recipe.yaml?"),
        ("none/x.yaml", "reading none/x.yaml: no such file; check the path"),
        ("recipe.yaml", "reading recipe.yaml: it is not UTF-8 text"),
        (".", "reading .: Is a directory"),
    ]:
        with pytest.raises(SettingsError) as caught:
            load_settings(None, name, (), Flags(), {}, tmp_path)
        assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("train.max_steps=10", Override("recipe", ("train", "max_steps"), "10")),
        ("paths.checkpoints.keep_last=2", Override("config", ("paths", "checkpoints", "keep_last"), "2")),
        ("config.seed=1", Override("config", ("seed",), "1")),
        ("recipe.run.name='null'", Override("recipe", ("run", "name"), "null")),
        ("run.tags=[a, b]", Override("recipe", ("run", "tags"), ["a", "b"])),
        ("train.max_steps=", Override("recipe", ("train", "max_steps"), None)),
        ("launcher.resources.command=a=b", Override("config", ("launcher", "resources", "command"), "a=b")),
        ("config.train=1", Override("config", ("train",), "1")),
    ],
)
def test_overrides_find_their_document(text: str, override: Override) -> None:
    assert parse_override(text) == override


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train.max_steps", "--set train.max_steps: it is not key=value"),
        ("=1", "it is not key=value"),
        ("train..x=1", "it is not key=value"),
        ("tran.max_steps=1", "tran.max_steps (--set): unknown key; did you mean train?"),
        ("run.tags=[a", "reading run.tags: "),
    ],
)
def test_overrides_that_say_nothing_are_refused(text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_override(text)
    assert problem in str(caught.value)


PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f")).filter(
    lambda text: all(character.isprintable() for character in text)
)


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(PLAIN, inner)))
def test_any_value_written_as_yaml_comes_back(value: object) -> None:
    written = yaml.safe_dump(value, default_flow_style=True, default_style='"', width=10**6)
    assert parse_override(f"run.name={written}").value == value


KEYS = st.sampled_from(["paths", "checkpoints", "keep_last", "seed", "datasets", "storage", "x", "models"])
SCALARS = st.sampled_from([None, "${A:-1}", "${", "s3://b", "-1", "abc", "0.5", "true", 3, ""])
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(TREES, st.lists(st.tuples(KEYS, KEYS, st.sampled_from(["1", "{a: 1}", "[1]", "", "${"])), max_size=2))
def test_any_tree_loads_or_is_refused_in_words(
    tmp_path: Path, tree: object, overrides: list[tuple[str, str, str]]
) -> None:
    texts = [f"{first}.{second}={value}" for first, second, value in overrides]
    try:
        resolved = load(tmp_path, yaml.safe_dump(tree), overrides=texts)
    except SettingsError as error:
        assert error.problem
    else:
        assert resolved.base.path


def test_importing_settings_imports_neither_torch_nor_yaml() -> None:
    code = (
        "import sys, wmtp.settings; print(sorted({'torch', 'numpy', 'yaml', 'aioboto3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
