"""What a job writes to its trackers: every step to each, the id of its MLflow run to its checkpoints."""

import contextlib
import json
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from uploader.errors import DiskError, SettingsError, WmtpError
from uploader.layout import RunDirectory
from uploader.location import Location
from uploader.seal import sealed
from uploader.status import Durable, Status
from wmtp.checkpoint.checkpointer import Checkpointer
from wmtp.checkpoint.saver import Saved
from wmtp.checkpoint.uploader_process import Uploading
from wmtp.settings import Flags, load_settings
from wmtp.training.background import Background
from wmtp.training.checkpoint_log import CheckpointLog
from wmtp.training.job import run_job
from wmtp.training.mlflow_run import ENVIRONMENT
from wmtp.training.progress import Progress
from wmtp.training.tensorboard import TensorBoard
from wmtp.training.trackers import Trackers
from wmtp.training.tracking import Entry, MetricsLog, Outcome

RECIPE: dict[str, Any] = {
    "data": {"train": "./text", "sequence_length": 16, "batch_size": 2},
    "model": {
        "hidden_size": 16, "intermediate_size": 24, "trunk_layers": 1,
        "heads": 2, "attention_heads": 2, "kv_heads": 1,
    },
}  # fmt: skip

Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    """Runs a job in ``tmp_path``, every second step saved; returns the run directory."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/words.txt").write_text("".join(f"the {n}th of {n * n} words. " for n in range(400)))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    fixed = ["paths.checkpoints.save_interval=2", "paths.checkpoints.keep_last=9"]
    state = torch.get_rng_state()

    def run(*overrides: str, max_steps: int, **flags: Any) -> Path:
        settings = load_settings(
            None, "recipe.yaml", [*fixed, *overrides], Flags(max_steps=max_steps, **flags), {}, tmp_path
        )
        assert run_job(settings, Uploading.NONE, again="wmtp train") == 0
        return settings.local_dir

    yield run
    torch.set_rng_state(state)


def tracked(directory: Path, step: int) -> str | None:
    """The id of the MLflow run in a checkpoint."""
    tree = json.loads((directory / f"step_{step}/state-rank00000.json").read_text())
    found: str | None = tree["extra"]["tracking"]["mlflow_run_id"]
    return found


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_job_and_those_that_resume_it_are_one_mlflow_run(train: Train, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    uri = f"file://{tmp_path}/mlruns"
    on = ("mlflow.enabled=true", f"mlflow.tracking_uri={uri}", "tensorboard.enabled=false")
    client = mlflow.MlflowClient(uri)

    def runs() -> list[Any]:
        experiment = client.get_experiment_by_name("wmtp")
        return list(client.search_runs([experiment.experiment_id]))

    directory = train(*on, max_steps=4)
    (run,) = runs()
    assert [tracked(directory, step) for step in (2, 4)] == [run.info.run_id] * 2
    train(max_steps=6, resume="latest")  # MLflow is off: the checkpoint keeps the id all the same
    train(*on, max_steps=8, resume="latest")
    (run,) = runs()
    assert (run.info.status, run.data.params["max steps"]) == ("FINISHED", "4")
    assert run.data.tags["wmtp.generation"] == "3"
    assert run.data.tags["checkpoint/step_8"] == f"file://{directory}/step_8"
    history = client.get_metric_history(run.info.run_id, "head1")
    assert [one.step for one in history] == [1, 2, 3, 4, 7, 8]
    assert [one.value for one in history[:4]] == [line["heads"][1] for line in lines(directory)[:4]]
    stalls = client.get_metric_history(run.info.run_id, "checkpoint/stall_ms")
    assert [one.step for one in stalls] == [2, 4, 8] and all(one.value > 0 for one in stalls)
    fork = train(*on, max_steps=6, run_name="fork", resume=f"{directory}/step_4")
    (other,) = [one for one in runs() if one.info.run_id != run.info.run_id]
    assert tracked(fork, 6) == other.info.run_id
    assert other.data.tags["wmtp.parent_run_id"] == run.info.run_id
    assert other.data.tags["wmtp.parent"] == f"file://{directory}"
    train(*on, max_steps=2, fresh=True)
    assert len(runs()) == 3 and tracked(directory, 2) not in (run.info.run_id, None)


def test_a_server_that_nobody_reaches_ends_nothing_and_is_told(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setattr("wmtp.training.trackers.Background", impatient)
    with contextlib.closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://me:hunter2@127.0.0.1:{nobody.getsockname()[1]}"
        directory = train("mlflow.enabled=true", f"mlflow.tracking_uri={uri}", max_steps=4)
    assert [line["step"] for line in lines(directory)] == [1, 2, 3, 4]
    assert tracked(directory, 4) is None
    out = capsys.readouterr().out
    assert out.count("MLflow: [Errno 111] Connection refused; training goes on, and it is tried again") == 1
    assert out.count("MLflow: given up after 0.01 s") == 1
    assert "hunter2" not in out


def impatient(*args: Any) -> Background:
    return Background(*args, gather_s=0.001, flush_s=0.01)


@pytest.mark.parametrize(
    ("package", "key", "hint"),
    [
        ("mlflow", "mlflow.enabled", "pip install 'wmtp[mlflow]'"),
        ("tensorboard", "tensorboard.enabled", "pip install tensorboard"),
    ],
)
def test_a_missing_package_is_named_before_the_start(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, key: str, hint: str
) -> None:
    monkeypatch.setitem(sys.modules, package, cast(Any, None))
    with pytest.raises(SettingsError) as caught:
        train(f"{key}=true", max_steps=2)
    assert str(caught.value).startswith(f"{key}: ") and hint in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def test_a_directory_that_is_not_on_this_machine_is_named_before_the_start(train: Train) -> None:
    with pytest.raises(SettingsError, match=r"tensorboard\.directory: .*not on this machine"):
        train("tensorboard.directory=s3://bucket/boards", max_steps=2)


def test_tensorboard_shows_what_the_last_start_wrote_of_each_step(train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = train(max_steps=5)
    losses = [line["loss"] for line in lines(directory)]
    train("optim.learning_rate=1", max_steps=6, resume="step_2")
    board = EventAccumulator(str(directory / "tensorboard"))
    board.Reload()
    found = {one.step: one.value for one in board.Scalars("loss")}
    assert [one.step for one in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert found == pytest.approx({line["step"]: line["loss"] for line in lines(directory)})
    assert found[5] != pytest.approx(losses[4])
    assert {"head0", "head1", "lr", "checkpoint/stall_ms"} <= set(board.Tags()["scalars"])
    train("tensorboard.directory=./boards", max_steps=2, run_name="other")
    (file,) = (tmp_path / "boards/other").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (file, file.parent)] == [0o600, 0o700]
    train("tensorboard.enabled=false", max_steps=2, run_name="none")
    assert not (tmp_path / "checkpoints/none/tensorboard").exists()


def test_a_board_that_was_never_written_to_is_closed(tmp_path: Path) -> None:
    TensorBoard(tmp_path, resume_step=0).close(Outcome.FINISHED)
    assert not list(tmp_path.iterdir())


class Collected:
    """A tracker that keeps everything."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.outcome: Outcome | None = None

    def write(self, entries: Sequence[Entry]) -> None:
        self.entries += entries

    def close(self, outcome: Outcome) -> None:
        self.outcome = outcome


def collected(path: Path, say: Callable[[str], None] = lambda line: None) -> tuple[Trackers, Collected]:
    sink = Collected()
    log = MetricsLog(path / "metrics.jsonl", resume_step=0)
    trackers = Trackers(log, [Background(sink, "sink", say, gather_s=0.001)], say=say, now_s=lambda: 1000.0)
    return trackers, sink


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, Outcome.FINISHED), (KeyboardInterrupt(), Outcome.KILLED), (WmtpError("x"), Outcome.FAILED)],
)
def test_how_a_run_ended(tmp_path: Path, error: BaseException | None, outcome: Outcome) -> None:
    trackers, sink = collected(tmp_path)
    with contextlib.suppress(WmtpError, KeyboardInterrupt), trackers:
        trackers.log(1, {"loss": 1.0})
        if error is not None:
            raise error
    assert sink.outcome is outcome
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 1.0}
    ]


def test_a_full_disk_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    class Full(MetricsLog):
        def log(self, step: int, metrics: Any) -> None:
            if step < 4:
                raise DiskError("no space left", doing="writing")
            super().log(step, metrics)

    trackers = Trackers(Full(tmp_path / "metrics.jsonl", resume_step=0), say=lambda line: None)
    with trackers:
        for step in range(1, 5):
            trackers.log(step, {})
        assert list(trackers.news()) == ["writing: no space left"]


class Run:
    """A checkpointer whose saves and whose uploader's status are made up."""

    def __init__(self, path: Path) -> None:
        self.directory = RunDirectory(path)
        self.directory.uploader_directory.mkdir()
        self.saved: list[Saved] = []
        self.skipped = 0
        self.started = SimpleNamespace(step=0, run=SimpleNamespace(generation=2))

    def news(self) -> Iterator[str]:
        return iter(())

    def says(self, newest_durable: int | None, *steps: int, generation: int = 2) -> None:
        """The uploader writes its status."""
        recent = [
            Durable(step=step, generation=2, size_bytes=1, upload_s=0.5, at=datetime.fromtimestamp(1003, UTC))
            for step in steps
        ]
        status = Status(
            run="r", destination="s3://b/r", pid=1, generation=generation, updated_at=datetime.now(UTC),
            newest_durable_step=newest_durable, recent=recent,
        )  # fmt: skip
        temporary = self.directory.status_file.with_suffix(".tmp")
        temporary.write_bytes(sealed(status.model_dump_json(indent=1).encode()))
        temporary.replace(self.directory.status_file)


def test_each_checkpoint_is_followed_until_it_is_durable(tmp_path: Path, capsys: Any) -> None:
    run, progress = Run(tmp_path), Progress(100)
    trackers, sink = collected(tmp_path)
    with trackers:
        log = CheckpointLog(
            cast(Checkpointer, run), Location("b", "r"), trackers, progress, now_s=lambda: 1000.0
        )
        log.look(9)
        run.saved.append(Saved(10))
        log.look(10)
        run.saved[0].copy_ms, run.saved[0].local_ms, run.saved[0].size_bytes = 2.0, 5.0, 2_000_000
        run.says(99, 99, generation=1)  # another start's uploader
        log.look(11)
        assert progress.checkpoints == "durable none, lag 10"
        run.says(10, 10)
        log.look(15)
        log.look(16)
        assert progress.checkpoints == "durable step_10"
        run.saved.append(Saved(20, error=WmtpError("no space left")))
        run.skipped = 1
        log.look(20)
    found = [(one.step, dict(one.metrics), dict(one.labels)) for one in sink.entries]
    assert found == [
        (9, {"checkpoint/lag_steps": 0}, {}),
        (10, {"checkpoint/stall_ms": 0.0, "checkpoint/copy_ms": 2.0, "checkpoint/local_ms": 5.0,
              "checkpoint/size_bytes": 2_000_000}, {"checkpoint/step_10": f"file://{tmp_path}/step_10"}),
        (11, {"checkpoint/lag_steps": 10}, {}),
        (10, {"checkpoint/upload_s": 0.5, "checkpoint/durable_s": 3.0},
         {"checkpoint/step_10": "s3://b/r/step_10", "checkpoint/newest_durable": "s3://b/r/step_10"}),
        (15, {"checkpoint/lag_steps": 0}, {}),
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "step_10  local    2.0 MB in 5 ms, copied in 2.0 ms, stalled 0.00 ms",
        "step_20  skipped: the last save is still being written",
        "step_20  not saved: no space left",
    ]
