"""Where the values come from: precedence, locations, the run's name joined once, resume."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from uploader.errors import SettingsError
from uploader.location import Location
from uploader.settings import StorageSettings
from wmtp.settings import Config, Flags, Recipe, Resolved, Resume, describe, resolve

CWD = Path("/here")


def resolved(
    config: dict[str, Any] | None = None, recipe: dict[str, Any] | None = None, cwd: Path = CWD, **flags: Any
) -> Resolved:
    return resolve(
        Config.model_validate(config or {}), Recipe.model_validate(recipe or {}), Flags(**flags), cwd, {}
    )


def at_base(base: str, local: str | None = None, **flags: Any) -> Resolved:
    return resolved({"paths": {"checkpoints": {"base_path": base, "local_path": local}}}, **flags)


@pytest.mark.parametrize(
    ("base", "location", "local_dir", "in_place"),
    [
        ("file://./x", "file:///here/x/run1", "/here/x/run1", True),
        ("file:///abs", "file:///abs/run1", "/abs/run1", True),
        ("file:///abs/", "file:///abs/run1", "/abs/run1", True),
        ("bare/path", "file:///here/bare/path/run1", "/here/bare/path/run1", True),
        ("../up", "file:///up/run1", "/up/run1", True),
        ("s3://b", "s3://b/run1", "/here/ckpt/run1", False),
        ("s3://b/p/", "s3://b/p/run1", "/here/ckpt/run1", False),
        ("s3://b/run1", "s3://b/run1/run1", "/here/ckpt/run1", False),
        ("file:///abs/run1", "file:///abs/run1/run1", "/abs/run1/run1", True),
        ("s3://b/run10", "s3://b/run10/run1", "/here/ckpt/run1", False),
    ],
)
def test_the_run_name_is_joined_exactly_once(
    base: str, location: str, local_dir: str, in_place: bool
) -> None:
    got = at_base(base, run_name="run1")
    assert str(got.location) == location
    assert got.location == got.base.join("run1")
    assert (str(got.local_dir), got.in_place) == (local_dir, in_place)


def test_run1_is_not_run10() -> None:
    one, ten = at_base("s3://b/p", run_name="run1"), at_base("s3://b/p", run_name="run10")
    assert one.location != ten.location
    assert one.location.parent == ten.location.parent == one.base
    assert not ten.location.path.startswith(f"{one.location.path}/")


@given(
    st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.sampled_from(["s3://b", "s3://b/p", "x", "file:///abs", "s3://b/run1"]),
)
def test_every_run_lies_directly_below_its_base(name: str, base: str) -> None:
    got = at_base(base, run_name=name)
    assert (got.location.parent, got.location.name) == (got.base, name)
    assert got.local_dir.name == name


@pytest.mark.parametrize(
    ("local", "local_dir", "in_place"),
    [
        (None, "/data/x/stdlib-mtp", True),
        ("/data/x", "/data/x/stdlib-mtp", True),
        ("file:///data/../data/x/", "/data/x/stdlib-mtp", True),
        ("/nvme", "/nvme/stdlib-mtp", False),
        ("nvme", "/here/nvme/stdlib-mtp", False),
    ],
)
def test_a_local_path_elsewhere_makes_a_directory_a_remote(
    local: str | None, local_dir: str, in_place: bool
) -> None:
    got = at_base("/data/x", local)
    assert (str(got.local_dir), got.in_place) == (local_dir, in_place)


def test_a_link_to_the_base_is_the_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to("base")
    assert at_base(str(tmp_path / "base"), str(tmp_path / "link")).in_place


def test_local_path_must_be_local() -> None:
    with pytest.raises(SettingsError, match=r"paths\.checkpoints\.local_path: .* is not on this machine"):
        at_base("s3://b", "s3://c")


@pytest.mark.parametrize("base", ["", "s3://", "gs://b", "s3://b?x=1"])
def test_a_base_that_is_no_location_names_its_key(base: str) -> None:
    with pytest.raises(SettingsError) as caught:
        at_base(base)
    assert caught.value.subject == "paths.checkpoints.base_path"


def test_local_and_s3_mix_in_one_config() -> None:
    got = resolved(
        {
            "paths": {
                "checkpoints": {"base_path": "s3://b/p"},
                "models": {"ref": "s3://m/ref", "rm": "./rm"},
                "datasets": {"code": "~/../code", "far": "s3://d/far"},
            },
            "storage": {"credentials_file": "keys", "ca_bundle": "/ca.pem", "dev_s3": "./.dev-s3"},
        },
        {"data": {"train": "far"}},
    )
    assert got.models == {"ref": Location("m", "ref"), "rm": Location("", "/here/rm")}
    assert got.dataset == Location("d", "far")
    assert got.storage == StorageSettings(credentials_file="/here/keys", ca_bundle="/ca.pem")
    assert type(got.storage) is StorageSettings
    assert got.dev_s3 == Path("/here/.dev-s3")
    assert got.cache == Path("/here/.cache")


@pytest.mark.parametrize(
    ("train", "dataset"),
    [("stdlib", None), ("./corpus", Location("", "/here/corpus")), ("s3://b/c", Location("b", "c"))],
)
def test_a_dataset_may_be_a_path(train: str, dataset: Location | None) -> None:
    assert resolved(recipe={"data": {"train": train}}).dataset == dataset


def test_an_unknown_dataset_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SettingsError, match=r"did you mean code\? \(a path needs a slash: ./cod\)"):
        resolved({"paths": {"datasets": {"code": "/c"}}}, {"data": {"train": "cod"}})


CHECKPOINTING = {"save_interval": 200, "keep_last": 9, "save_final": False}


@pytest.mark.parametrize(
    ("config", "recipe", "flags", "name", "value", "source"),
    [
        ({}, {}, {}, "run_name", "stdlib-mtp", "run.name (default)"),
        ({}, {"run": {"name": "r"}}, {}, "run_name", "r", "run.name (default)"),
        ({}, {"run": {"name": "r"}}, {"run_name": "f"}, "run_name", "f", "--run-name"),
        ({}, {}, {}, "base", Location("", "/here/checkpoints"), "paths.checkpoints.base_path (default)"),
        (
            {"base_path": "s3://c"},
            {"checkpointing": {"checkpoint_path": "s3://r"}},
            {},
            "base",
            Location("r", ""),
            "train.checkpointing.checkpoint_path (default)",
        ),
        ({"save_interval": 7}, {}, {}, "save_interval", 7, "paths.checkpoints.save_interval (default)"),
        (
            {"save_interval": 7},
            {"checkpointing": CHECKPOINTING},
            {},
            "save_interval",
            200,
            "train.checkpointing.save_interval (default)",
        ),
        ({}, {}, {}, "keep_last", 3, "paths.checkpoints.keep_last (default)"),
        (
            {},
            {"checkpointing": CHECKPOINTING},
            {},
            "keep_last",
            9,
            "train.checkpointing.keep_last (default)",
        ),
        ({}, {}, {}, "save_final", True, "paths.checkpoints.save_final (default)"),
        (
            {"save_final": True},
            {"checkpointing": CHECKPOINTING},
            {},
            "save_final",
            False,
            "train.checkpointing.save_final (default)",
        ),
        ({}, {}, {}, "max_steps", 400, "train.max_steps (default)"),
        ({}, {"max_steps": 30}, {}, "max_steps", 30, "train.max_steps (default)"),
        ({}, {"max_steps": 30}, {"max_steps": 20}, "max_steps", 20, "--max-steps"),
        ({}, {"num_epochs": 2}, {}, "max_steps", None, "train.num_epochs (default)"),
        ({}, {"num_epochs": 2}, {"max_steps": 20}, "num_epochs", None, None),
        ({}, {"run": {"tags": ["a"]}}, {}, "tags", ("a",), "run.tags (default)"),
        ({}, {"run": {"tags": ["a"]}}, {"tags": ("b ", "c")}, "tags", ("b", "c"), "--tags"),
        ({}, {}, {}, "resume", None, "train.checkpointing.auto_resume_latest (default)"),
        (
            {},
            {"checkpointing": {"auto_resume_latest": True}},
            {},
            "resume",
            Resume("auto", "auto"),
            "train.checkpointing.auto_resume_latest (default)",
        ),
        (
            {},
            {"checkpointing": {"auto_resume_latest": True}},
            {"resume": "step_7"},
            "resume",
            Resume("step_7", "step", 7),
            "--resume",
        ),
        ({}, {"checkpointing": {"auto_resume_latest": True}}, {"fresh": True}, "resume", None, "--fresh"),
    ],
)
def test_precedence(
    config: dict[str, Any],
    recipe: dict[str, Any],
    flags: dict[str, Any],
    name: str,
    value: object,
    source: str | None,
) -> None:
    sections = {"run": recipe.pop("run")} if "run" in recipe else {}
    got = resolved({"paths": {"checkpoints": config}}, {**sections, "train": recipe}, **flags)
    assert getattr(got, name) == value
    assert got.sources.get(name) == source


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"run_name": "a b"}, "--run-name: 'a b' cannot be a run's name"),
        ({"run_name": ""}, "--run-name: '' cannot be a run's name"),
        ({"run_name": "x" * 129}, "cannot be a run's name"),
        ({"run_name": "a\n"}, "cannot be a run's name"),
        ({"max_steps": 0}, "--max-steps: 0 is no number of steps"),
        ({"tags": ("a", " ")}, "--tags: a tag is empty"),
        ({"fresh": True, "resume": "auto"}, "--fresh and --resume contradict each other"),
        ({"resume": "lastest"}, "did you mean latest?"),
        ({"resume": "step1000"}, "did you mean step_1000?"),
        ({"resume": "1000"}, "did you mean step_1000?"),
        ({"resume": "step-1000"}, "did you mean step_1000?"),
        ({"resume": "ckpt"}, "a path with a slash (./ckpt)"),
        ({"resume": "gs://x"}, "--resume: 'gs://x' has the unknown scheme"),
    ],
)
def test_malformed_flags_are_refused(flags: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolved(**flags)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "resume"),
    [
        ("latest", Resume("latest", "latest")),
        ("step_700@g2", Resume("step_700@g2", "step", 700, 2)),
        ("./old", Resume("./old", "location", location=Location("", "/here/old"))),
        ("s3://b/run/step_5", Resume("s3://b/run/step_5", "location", location=Location("b", "run/step_5"))),
    ],
)
def test_resume_is_read(text: str, resume: Resume) -> None:
    assert resolved(resume=text).resume == resume


def test_warm_up_follows_the_steps_unless_set() -> None:
    assert resolved(max_steps=20).recipe.optim.warmup_of(20) == 2
    with pytest.raises(SettingsError, match=r"optim\.warmup_steps: 50 steps of warm-up"):
        resolved(recipe={"optim": {"warmup_steps": 50}}, max_steps=50)


def test_describe_tells_every_value_once_and_no_secret() -> None:
    config = {
        "launcher": {"resources": {"env": {"TOKEN": "hidden"}, "import": {"/code": "git://x"}}},
        "mlflow": {"tracking_uri": "https://me:hidden@host/x"},
    }
    rows = describe(resolved(config, max_steps=9))
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names))
    assert ("max steps", "9", "--max-steps") in rows
    assert ("location", "file:///here/checkpoints/stdlib-mtp", "base and run name") in rows
    assert ("launcher.resources.import./code", "git://x", "default") in rows
    assert ("mlflow.tracking_uri", "https://***@host/x", "default") in rows
    assert ("optim.betas", "[0.9, 0.95]", "default") in rows
    assert not any("hidden" in value for _, value, _ in rows)


def uploading(**upload: Any) -> dict[str, Any]:
    return {"paths": {"checkpoints": {"upload": upload, "delete_grace_s": 5.0}}}


@pytest.mark.parametrize(
    ("written", "bytes_per_s"),
    [
        ("50MB", 50_000_000),
        ("50 MB/s", 50_000_000),
        ("400Mbit", 50_000_000),
        ("1.5GB", 1_500_000_000),
        ("64KiB", 65_536),
        ("2Gi", 2 * 1024**3),
        ("1000000", 1_000_000),
        (1_000_000, 1_000_000),
    ],
)
def test_a_bandwidth_is_written_as_people_write_it(written: str | int, bytes_per_s: int) -> None:
    got = resolved(uploading(max_bandwidth=written))
    assert got.upload.max_bandwidth_bytes_per_s == bytes_per_s
    if isinstance(written, str):
        assert resolved(max_bandwidth=written).upload.max_bandwidth_bytes_per_s == bytes_per_s


def test_the_flag_outranks_the_config_and_says_so() -> None:
    got = resolved(uploading(max_bandwidth="1MB", parts_in_flight=3, pacing=False), max_bandwidth="2MB")
    assert (got.upload.max_bandwidth_bytes_per_s, got.upload.parts_in_flight) == (2_000_000, 3)
    assert (got.upload.pacing, got.upload.delete_grace_s) == (False, 5.0)
    rows = {name: (value, source) for name, value, source in describe(got)}
    assert rows["max bandwidth"] == ("2 MB/s", "--max-bandwidth")
    assert rows["paths.checkpoints.upload.parts_in_flight"][0] == "3"
    plain = {name: (value, source) for name, value, source in describe(resolved())}
    assert plain["max bandwidth"] == ("no limit", "paths.checkpoints.upload.max_bandwidth (default)")


@pytest.mark.parametrize("written", ["fast", "50 parsecs", "-5MB", "1KB", "", "1e9"])
def test_a_bad_bandwidth_is_told_with_its_place(written: str) -> None:
    with pytest.raises(SettingsError, match="--max-bandwidth: "):
        resolved(max_bandwidth=written)
    with pytest.raises(ValidationError, match=r"paths.checkpoints.upload.max_bandwidth"):
        resolved(uploading(max_bandwidth=written))
