"""A run in MLflow is continued by whoever resumes it, and by nobody else; no secret gets there."""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from real_runs import until

from uploader.errors import SettingsError
from wmtp.settings import Flags, Resolved, load_settings
from wmtp.settings.config import Mlflow
from wmtp.settings.describe import shown
from wmtp.training.background import Background
from wmtp.training.mlflow_run import ENVIRONMENT, About, MlflowRun, TrackedRun, Unreachable, about_run
from wmtp.training.tracking import Entry, Outcome, Refused

mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")

HERE, THERE = "s3://bucket/runs/here", "s3://bucket/runs/there"
ABOUT = About("here", {"optim.betas": "[0.9, 0.95]", "max steps": "40"}, {"wmtp.generation": "1"})


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for MLflow's client is gone after a test."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]:
        monkeypatch.delenv(name)


@pytest.fixture
def store(tmp_path: Path) -> Mlflow:
    return Mlflow(enabled=True, experiment="tests", tracking_uri=f"file://{tmp_path}/mlruns")


def client(store: Mlflow) -> Any:
    return mlflow.MlflowClient(store.tracking_uri)


def runs(store: Mlflow) -> list[Any]:
    """All runs of the experiment, oldest first."""
    experiment = client(store).get_experiment_by_name(store.experiment)
    return list(client(store).search_runs([experiment.experiment_id], order_by=["attribute.start_time ASC"]))


def entry(step: int, labels: dict[str, str] | None = None, **metrics: Any) -> Entry:
    return Entry(step, metrics, 1.7e9 + step, labels or {})


def test_a_run_has_its_settings_its_steps_and_how_it_ended(store: Mlflow) -> None:
    told: list[str] = []
    tracked = TrackedRun(HERE)
    run = MlflowRun(store, tracked, ABOUT, told.append)
    run.write([])
    assert tracked.run_id is not None and told == [f"MLflow run {tracked.run_id} in experiment tests"]
    assert [one.info.status for one in runs(store)] == ["RUNNING"]
    run.write([entry(1, loss=2.0, heads=[1.0, 3.0]), entry(2, loss=1.5, lr=1e-3)])
    run.write([entry(2, {"checkpoint/step_2": "s3://bucket/runs/here/step_2"}, stall_ms=0.5)])
    run.close(Outcome.KILLED)
    (found,) = runs(store)
    assert (found.info.run_name, found.info.status) == ("here", "KILLED")
    assert found.data.params == ABOUT.params
    assert found.data.metrics == {"loss": 1.5, "head0": 1.0, "head1": 3.0, "lr": 1e-3, "stall_ms": 0.5}
    assert found.data.tags["wmtp.generation"] == "1"
    assert found.data.tags["checkpoint/step_2"] == "s3://bucket/runs/here/step_2"
    history = client(store).get_metric_history(tracked.run_id, "loss")
    assert [(one.step, one.value, one.timestamp) for one in history] == [
        (1, 2.0, 1_700_000_001_000),
        (2, 1.5, 1_700_000_002_000),
    ]


def resumed(tracked: TrackedRun, location: str) -> TrackedRun:
    """What a run at ``location`` knows after it has loaded a checkpoint, through JSON as that is."""
    loaded = TrackedRun(location)
    loaded.load_state_dict(json.loads(json.dumps(tracked.state_dict())))
    return loaded


def test_a_resumed_run_continues_it(store: Mlflow) -> None:
    first = TrackedRun(HERE)
    run = MlflowRun(store, first, ABOUT, lambda line: None)
    run.write([entry(1, loss=2.0)])
    run.close(Outcome.KILLED)
    second = resumed(first, HERE)
    later = About("here", {"max steps": "80", "seed": "1"}, {"wmtp.generation": "2"})
    run = MlflowRun(store, second, later, lambda line: None)
    run.write([entry(2, loss=1.0)])
    assert [one.info.status for one in runs(store)] == ["RUNNING"]
    run.close(Outcome.FINISHED)
    (found,) = runs(store)
    assert found.info.run_id == first.run_id == second.run_id
    assert found.info.status == "FINISHED"
    assert found.data.params == {**ABOUT.params, "seed": "1"}
    assert found.data.tags["wmtp.generation"] == "2"
    assert [one.step for one in client(store).get_metric_history(first.run_id, "loss")] == [1, 2]


def test_a_run_that_begins_with_anothers_checkpoint_is_one_of_its_own(store: Mlflow) -> None:
    first = TrackedRun(HERE)
    MlflowRun(store, first, ABOUT, lambda line: None).write([])
    fork = resumed(first, THERE)
    MlflowRun(store, fork, ABOUT, lambda line: None).write([])
    assert fork.run_id != first.run_id and len(runs(store)) == 2
    tags = client(store).get_run(fork.run_id).data.tags
    assert (tags["wmtp.parent"], tags["wmtp.parent_run_id"]) == (HERE, first.run_id)
    assert fork.state_dict() == {"location": THERE, "mlflow_run_id": fork.run_id}


@pytest.mark.parametrize("gone", ["deleted", "unknown"])
def test_a_run_that_mlflow_no_longer_has_is_a_new_one_and_that_is_told(store: Mlflow, gone: str) -> None:
    told: list[str] = []
    tracked = TrackedRun(HERE)
    MlflowRun(store, tracked, ABOUT, told.append).write([])
    was = tracked.run_id
    if gone == "deleted":
        client(store).delete_run(was)
    else:
        was = tracked.run_id = "0123456789abcdef" * 2
    MlflowRun(store, tracked, ABOUT, told.append).write([entry(1, loss=1.0)])
    assert tracked.run_id not in (None, was)
    assert f"MLflow does not have run {was} any more: this is a new one" in told
    assert client(store).get_run(tracked.run_id).data.metrics == {"loss": 1.0}


def test_more_than_one_request_takes_and_texts_that_are_too_long(store: Mlflow) -> None:
    about = About("here", {f"key{number}": "x" * 2000 for number in range(201)}, {})
    tracked = TrackedRun(HERE)
    run = MlflowRun(store, tracked, about, lambda line: None)
    labels = {f"checkpoint/step_{number}": "y" * 9000 for number in range(101)}
    run.write([entry(step, labels, heads=[0.0] * 501) for step in (1, 2)])
    found = client(store).get_run(tracked.run_id).data
    assert (len(found.params), len(found.params["key200"])) == (201, 500)
    assert (len(found.metrics), len(found.tags["checkpoint/step_100"])) == (501, 500)


def test_what_mlflow_does_not_take_is_refused(store: Mlflow) -> None:
    run = MlflowRun(store, TrackedRun(HERE), ABOUT, lambda line: None)
    with pytest.raises(Refused, match="Names may only contain"):
        run.write([Entry(1, {"what?": 1.0}, 0.0)])
    run.write([entry(1, loss=1.0)])
    assert [one.data.metrics for one in runs(store)] == [{"loss": 1.0}]


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens, as long as the test lasts."""
    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_a_server_that_cannot_be_reached_may_heal_and_its_password_is_not_told(nobody: str) -> None:
    where = Mlflow(enabled=True, tracking_uri=f"http://me:hunter2@{nobody}")
    tracked = TrackedRun(HERE)
    run = MlflowRun(where, tracked, ABOUT, lambda line: None)
    for act in (lambda: run.write([entry(1, loss=1.0)]), lambda: run.close(Outcome.FINISHED)):
        with pytest.raises(Unreachable) as caught:
            act()
        assert str(caught.value) == "[Errno 111] Connection refused"
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert tracked.run_id is None


def settings(tmp_path: Path, config: str, **flags: Any) -> Resolved:
    (tmp_path / "config.yaml").write_text(config)
    env = {"TOKEN": "hunter2", "CACHE": "/hunter2"}
    return load_settings("config.yaml", None, (), Flags(**flags), env, tmp_path)


def test_all_settings_are_told_but_no_secret(tmp_path: Path) -> None:
    about = about_run(
        settings(
            tmp_path,
            "mlflow: {enabled: true, tracking_uri: 'http://me:hunter2@host/x'}\n"
            "paths: {cache: '${CACHE}/x', datasets: {'my//books?': 's3://books'}}\n"
            "storage: {profile: '${TOKEN}'}\n"
            "launcher: {resources: {env: {KEY: hunter2}}}\n",
            tags=("one", "two"),
            max_steps=7,
        ),
        generation=3,
    )
    assert "hunter2" not in str(about)
    assert about.params["optim.betas"] == "[0.9, 0.95]" and about.params["max steps"] == "7"
    assert about.params["paths.cache"] == "(from the environment)"
    assert about.params["paths.datasets.my__books_"] == "s3://books"
    assert about.params["storage.profile"] == "(from the environment)"
    assert not any(name.startswith(("mlflow", "launcher")) for name in about.params)
    assert about.name == "stdlib-mtp"
    assert about.tags == {
        "wmtp.run": "stdlib-mtp",
        "wmtp.generation": "3",
        "wmtp.location": f"file://{tmp_path}/checkpoints/stdlib-mtp",
        "wmtp.tags": "one, two",
    }


@pytest.mark.parametrize(
    "uri", ["htp://host", "mlruns", "", "http:host", "https://a b", "ftp://me:hunter2@host"]
)
def test_a_tracking_uri_that_cannot_be_one_is_named_before_the_start(tmp_path: Path, uri: str) -> None:
    with pytest.raises(SettingsError, match=r"^mlflow\.tracking_uri .*no URI of a tracking server") as caught:
        settings(tmp_path, json.dumps({"mlflow": {"tracking_uri": uri}}))
    assert "hunter2" not in str(caught.value)


def test_a_password_with_an_at_sign_is_not_shown_either() -> None:
    assert shown("mlflow.tracking_uri", "http://me:hun@ter2@host/x@y") == "http://***@host/x@y"


@pytest.mark.parametrize(
    "uri", ["https://host:5000/x", "sqlite:///m.db", "mysql+pymysql://a@b/c", "databricks", "file:///x"]
)
def test_tracking_uris_that_can_be(uri: str) -> None:
    assert Mlflow(tracking_uri=uri).tracking_uri == uri


def real_server() -> str:
    """The command of MLflow's server, which the client alone doesn't bring."""
    found = os.environ.get("WMTP_MLFLOW") or shutil.which("mlflow", path=str(Path(sys.executable).parent))
    if found is None or (not os.environ.get("WMTP_MLFLOW") and find_spec("flask") is None):
        pytest.skip("no MLflow server: install mlflow, or name the command of one in WMTP_MLFLOW")
    return found


@contextlib.contextmanager
def served(command: str, path: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server as its own processes, which answers from the first moment on."""
    words = [command, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (path / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [*words, "--backend-store-uri", f"sqlite:///{path}/mlflow.db"],
            cwd=path, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
    try:
        until(lambda: answers(port), "the server answers")
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        return bool(answer.status == 200)
    return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_server_that_dies_and_comes_back_has_every_step(tmp_path: Path) -> None:
    command, told = real_server(), list[str]()
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = Mlflow(enabled=True, experiment="tests", tracking_uri=f"http://127.0.0.1:{port}")
    tracked = TrackedRun(HERE)
    tracker = Background(MlflowRun(where, tracked, ABOUT, told.append), "MLflow", told.append, gather_s=0.1)
    with served(command, tmp_path, port):
        until(lambda: tracked.run_id, "the run is created, once there is a server")
        tracker.write([entry(step, loss=float(step)) for step in range(1, 700)])
        until(lambda: runs(where)[0].data.metrics.get("loss") == 699.0, "all of them are there")
    tracker.write([entry(700, heads=[0.5, 0.25])])
    until(lambda: "tried again" in told[-1], "it is told that nobody answers")
    with served(command, tmp_path, port):
        until(lambda: told[-1] == "MLflow: it works again", "it works again")
        tracker.close(Outcome.FINISHED)
        (found,) = runs(where)
        assert (found.info.run_id, found.info.status) == (tracked.run_id, "FINISHED")
        assert found.data.metrics == {"loss": 699.0, "head0": 0.5, "head1": 0.25}
        assert len(client(where).get_metric_history(found.info.run_id, "loss")) == 699
        other = TrackedRun(HERE, run_id="0123456789abcdef" * 2)
        MlflowRun(where, other, ABOUT, told.append).write([])
        assert f"MLflow does not have run {'0123456789abcdef' * 2} any more: this is a new one" in told
        with pytest.raises(Refused, match="Names may only contain"):
            MlflowRun(where, other, ABOUT, told.append).write([Entry(1, {"what?": 1.0}, 0.0)])


@pytest.mark.slow
def test_a_database_without_a_server(tmp_path: Path) -> None:
    """What MLflow takes where nothing is set."""
    pytest.importorskip("sqlalchemy", reason="the extra mlflow is not installed")
    where = Mlflow(enabled=True, experiment="tests", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, of its use of SQLAlchemy
        run = MlflowRun(where, TrackedRun(HERE), ABOUT, lambda line: None)
        run.write([entry(1, loss=1.0, heads=[float("nan"), 2.0])])
        run.close(Outcome.FAILED)
        (found,) = runs(where)
    assert (found.info.status, found.data.metrics["head1"]) == ("FAILED", 2.0)
    assert math.isnan(found.data.metrics["head0"]) and found.data.params == ABOUT.params
