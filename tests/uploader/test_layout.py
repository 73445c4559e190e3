"""Names parse back to what they were made of, and no path of a record leaves its directory."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader import layout
from uploader.layout import RunDirectory, RunKeys

steps = st.integers(0, 10**18 - 1)
generations = st.integers(0, 10**9 - 1)
nasty = st.text(st.sampled_from("aA./\\:\0\n\x7f\x9b~-_ ") | st.characters(), max_size=12)


@given(steps, generations)
def test_names_come_back(step: int, generation: int) -> None:
    assert layout.parse_step(layout.step_name(step)) == step
    assert layout.parse_step_at(layout.step_at(step, generation)) == (step, generation)
    temporary = RunDirectory(Path("/run")).temporary(step, generation)
    assert layout.parse_temporary(temporary.name) == (step, generation)
    assert layout.parse_step(temporary.name) is None
    for keys in (RunKeys(), RunKeys(in_place=True)):
        assert layout.parse_commit_record_key(keys.commit_record(step, generation)) == step
    file = RunKeys().step_prefix(step, generation) + "model.safetensors"
    assert layout.parse_step_key(file) == (step, generation)


@given(st.integers(0, 10**9 - 1))
def test_generation_keys_come_back(generation: int) -> None:
    assert layout.parse_generation_key(layout.generation_key(generation)) == generation


@pytest.mark.parametrize(
    "name", ["step_", "step_01", "step_-1", "step_1.tmp", "xstep_1", "step_1\n", "step_1/"]
)
def test_only_a_step_is_a_step(name: str) -> None:
    assert layout.parse_step(name) is None


@pytest.mark.parametrize(
    "key",
    [
        "step_1/other/checkpoint.json",
        "step_1/g1/sub/checkpoint.json",
        "/step_1/checkpoint.json",
        "step_1//checkpoint.json",
        "checkpoint.json",
        "step_1/g01/checkpoint.json",
        "step_1/checkpoint.json\n",
        "step_01/checkpoint.json",
    ],
)
def test_only_a_commit_record_is_one(key: str) -> None:
    assert layout.parse_commit_record_key(key) is None


@pytest.mark.parametrize("key", ["generations/1.json", "generations/00001.json", "generations/0001.json.x"])
def test_a_generation_has_one_key(key: str) -> None:
    assert layout.parse_generation_key(key) is None


def test_one_prefix_never_holds_another_step() -> None:
    assert not RunKeys().step_prefix(10, 1).startswith(RunKeys().step_prefix(1, 1))
    assert not RunKeys().step_prefix(1, 10).startswith(RunKeys().step_prefix(1, 1))


@given(nasty)
def test_a_safe_path_stays_below_its_directory(path: str) -> None:
    if layout.is_safe_path(path):
        os.fsencode(path)
        joined = os.path.normpath(os.path.join("/root/step_1", path))
        assert joined == f"/root/step_1/{path}"
        assert not any(part.startswith(".") for part in path.removesuffix(".metadata").split("/"))


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "a/",
        "a\0b",
        "a\\b",
        "C:x",
        ".x",
        "a/.x",
        ".metadata/x",
        ".metadata.tmp",
        "a/..metadata",
        "a\nb",
        "\ud800",
        "a\x9b0m",
        "x" * 513,
    ],
)
def test_unsafe_paths(path: str) -> None:
    assert not layout.is_safe_path(path)


@pytest.mark.parametrize(
    "path",
    [
        *(layout.model_shard(0, 1), layout.optim_shard(3, 2), layout.state_file(99999), "a/b"),
        *("__0_0.distcp", ".metadata", "a/.metadata"),
    ],
)
def test_safe_paths(path: str) -> None:
    assert layout.is_safe_path(path)
    assert not layout.is_record(path)


def test_records_have_reserved_names() -> None:
    assert all(map(layout.is_record, ["checkpoint.json", layout.node_record(3), layout.rank_record(12)]))


@pytest.mark.parametrize("name", ["run1", "run-1_a.b", "-x"])
def test_run_names(name: str) -> None:
    assert layout.is_run_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "x" * 129, "a\n"])
def test_no_run_names(name: str) -> None:
    assert not layout.is_run_name(name)


def test_steps_are_suggested_newest_first() -> None:
    assert layout.suggest_steps([1, 3, 2]) == "step_3, step_2, step_1"
    assert layout.suggest_steps([]) == "none"
    assert layout.suggest_steps(range(5), most=2) == "step_4, step_3 and 3 more"
