"""``wmtp checkpoints prune``: says what would go and why the rest stays, and does just that."""

from pathlib import Path
from typing import Any

import pytest
from cli_runs import NOW, Run, as_json, one_error, states, wmtp

from uploader import files
from uploader.generation import Owner
from uploader.heartbeat import Heartbeat
from uploader.layout import heartbeat_key
from uploader.lease import Lease
from uploader.pins import Pin
from uploader.retention import KeepBest, Retention
from uploader.run import RunFile
from uploader.settings import UploadSettings
from wmtp.cli import pruning

POLICY = Retention(keep_last=1, keep_every=40, keep_best=KeepBest(metric="loss"))


def set_run(run: Run, **changes: Any) -> None:
    run_file = RunFile.read(run.directory)
    assert run_file is not None
    run_file.model_copy(update=changes).write(run.directory)


@pytest.fixture
def six(run: Run) -> Run:
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 5.0), (50, 4.0), (60, 6.0)):
        run.save(step, metrics={"loss": loss})
    run.upload()
    assert wmtp("checkpoints", "pin", run.path, "step_30").exit_code == 0
    set_run(run, retention=POLICY, owner=None)
    return run


def plan(run: Run, *more: str) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    found = as_json(wmtp("checkpoints", "prune", run.path, "--json", *more))
    rows = {(one["name"].removesuffix("@g1"), one["where"]): one for one in found["steps"]}
    return found, {key: None if one["goes"] else one["why"] for key, one in rows.items()}


def test_a_dry_run_says_why_and_changes_nothing(six: Run) -> None:
    before = states(six.path)
    lock = files.lock(six.directory.uploader_lock)  # an uploader may be at work
    assert lock is not None
    found, rows = plan(six, "--dry-run")
    assert (found["dry_run"], found["pruned"]) == (True, [])
    assert rows == {
        ("step_60", "store"): ["newest", "keep_last"],
        ("step_50", "store"): None,
        ("step_40", "store"): ["keep_every"],
        ("step_30", "store"): ["pinned"],
        ("step_20", "store"): ["keep_best"],
        ("step_10", "store"): None,
        ("step_60", "local"): ["newest", "keep_last"],
        **{(f"step_{step}", "local"): None for step in (10, 20, 30, 40, 50)},
    }
    assert states(six.path) == before
    lines = wmtp("checkpoints", "prune", six.path, "--dry-run").stdout.splitlines()
    assert lines[1] == "  the store keeps keep_last 1, keep_every 40, keep_best 1 by loss (min)"
    assert lines[2] == "  this disk keeps keep_last 1"
    assert next(line.split() for line in lines if "step_10@g1" in line) == [
        "step_10@g1", "store", "would", "go", "no", "rule", "keeps", "it",
    ]  # fmt: skip


def test_a_pin_that_died_halfway_is_told_by_a_dry_run(six: Run) -> None:
    pin = Pin(run="demo", step=10, generation=1, by="me", at=NOW)
    (six.store / "pins/step_10@g1.json").write_bytes(pin.encode())
    _, rows = plan(six, "--dry-run")
    assert rows["step_10", "store"] == ["pinned"]
    assert {one["name"] for one in plan(six)[0]["pruned"] if one["where"] == "store"} == {"step_50@g1"}
    assert wmtp("checkpoints", "unpin", six.path, "step_10").exit_code == 0
    assert {one["name"] for one in plan(six)[0]["pruned"]} == {"step_10@g1"}


def test_what_the_store_has_pruned_does_not_wait_for_an_upload(six: Run) -> None:
    """The disk keeps more; should the store, too, from now on, nothing of it goes back there."""
    set_run(six, local_retention=Retention(keep_last=6))
    plan(six)
    set_run(six, retention=Retention(keep_last=6))
    rows = plan(six, "--dry-run")[1]
    assert rows["step_50", "local"] == ["keep_last"]
    six.upload()
    assert "step_50@g1" not in {one["name"] for one in plan(six)[0]["steps"] if one["where"] == "store"}


def test_it_does_what_it_said(six: Run) -> None:
    _, rows = plan(six, "--dry-run")
    found, _ = plan(six)
    gone = {(one["name"].removesuffix("@g1"), one["where"]) for one in found["pruned"]}
    assert gone == {key for key, stays in rows.items() if stays is None}
    assert states(six.path) == {
        "step_60": ["local", "durable"],
        "step_40": ["durable"],
        "step_30": ["durable", "pinned"],
        "step_20": ["durable"],
    }
    assert not (six.store / "step_10").exists()
    assert [*six.directory.trash.iterdir()] == []
    assert as_json(wmtp("checkpoints", "verify", six.path, "--json"))["ok"]
    assert plan(six)[0]["pruned"] == []


def test_while_an_uploader_serves_the_run_only_that_prunes(six: Run) -> None:
    before = states(six.path)
    lock = files.lock(six.directory.uploader_lock)
    assert lock is not None
    result = wmtp("checkpoints", "prune", six.path)
    assert result.exit_code == 1
    one_error(result, "an uploader serves it", "--dry-run")
    assert states(six.path) == before


def test_what_waits_for_its_upload_stays(six: Run) -> None:
    six.save(70)
    _, rows = plan(six, "--dry-run")
    assert rows["step_70", "local"] == ["it waits for its upload"]
    assert rows["step_60", "local"] == ["newest", "keep_last"]


def test_a_grace_is_told_and_kept(six: Run) -> None:
    set_run(six, upload=UploadSettings(delete_grace_s=3600))
    found, _ = plan(six)
    assert {one["name"] for one in found["left"]} == {"step_10@g1", "step_50@g1"}
    assert "its objects go in 3" in found["left"][0]["why"]
    assert states(six.location)["step_10@g1"] == ["pruning"]
    assert (six.store / "step_10").exists()
    set_run(six, upload=UploadSettings())
    assert {one["name"] for one in plan(six)[0]["pruned"]} == {"step_10@g1", "step_50@g1"}


def test_the_disk_has_its_own_policy(six: Run) -> None:
    set_run(six, local_retention=Retention(keep_last=2, keep_every=20))
    assert [key[0] for key, stays in plan(six, "--dry-run")[1].items() if key[1] == "local" and stays] == [
        "step_60", "step_50", "step_40", "step_20",
    ]  # fmt: skip


def test_without_a_policy_nothing_goes(six: Run) -> None:
    result = wmtp("checkpoints", "prune", six.location)
    assert result.exit_code == 2
    one_error(result, "nobody has said what to keep", "--config")


def test_the_policy_of_a_config(six: Run) -> None:
    config = six.path.parent / "c.yaml"
    config.write_text("paths: {checkpoints: {retention: {keep_last: 2}}}")
    found = as_json(wmtp("checkpoints", "prune", six.location, "--config", config, "--dry-run", "--json"))
    assert found["policy"] == "keep_last 2"
    stays = [one["name"] for one in found["steps"] if not one["goes"]]
    assert stays == ["step_60@g1", "step_50@g1", "step_30@g1"]


@pytest.fixture
def config(six: Run) -> Path:
    """What a machine knows that has nothing of the run; the owner on another one gave a sign of life."""
    config = six.path.parent / "c.yaml"
    config.write_text("paths: {checkpoints: {retention: {keep_last: 2}}}")
    beat(six, 1)
    return config


def beat(run: Run, count: int) -> None:
    owner = Owner(host="host", pid=1, user="me")
    made = Heartbeat(generation=1, owner=owner, count=count, every_s=1.0)
    (run.store / heartbeat_key(1)).write_bytes(made.encode())


@pytest.mark.parametrize("lives", [True, False])
def test_an_owner_elsewhere_is_watched(
    six: Run, config: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    now_s = [0.0]

    async def sleep(wait_s: float) -> None:
        now_s[0] += wait_s
        if lives:
            beat(six, 2)

    monkeypatch.setattr(pruning, "Lease", lambda: Lease(sleep=sleep, clock=lambda: now_s[0]))
    result = wmtp("checkpoints", "prune", six.location, "--config", config)
    assert result.exit_code == lives
    assert "watching its heartbeat" in result.stderr
    assert ("its uploader prunes by itself" in result.stderr) == lives
    steps = ["step_60", "step_50", "step_40", "step_30", "step_20", "step_10"]
    assert [*states(six.location)] == (steps if lives else ["step_60", "step_50", "step_30"])


def test_a_run_in_place(in_place: Run) -> None:
    for step in (10, 20, 30):
        in_place.save(step)
    in_place.upload()
    set_run(in_place, retention=Retention(keep_last=1), owner=None)
    assert wmtp("checkpoints", "prune", in_place.path).exit_code == 0
    assert states(in_place.path) == {"step_30": ["local", "durable"]}
    assert [path.name for path in in_place.path.glob("step_*")] == ["step_30"]
