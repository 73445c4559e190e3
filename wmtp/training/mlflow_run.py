"""A run in MLflow: created with its settings, or continued; steps and checkpoints as metrics and tags.

Its id is part of every checkpoint, so a resumed run continues it. A run that begins with another run's
checkpoint is one of its own, with tags that name the other. Nothing secret is sent or told: neither what
came from the environment nor the user of a URL. Meant for a background thread: its methods block.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from wmtp.settings import Resolved, describe
from wmtp.settings.config import Mlflow
from wmtp.settings.load import VARIABLE
from wmtp.training.tracking import Entry, Outcome, Refused

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")

METRICS_A_REQUEST, TEXTS_A_REQUEST = 1000, 100
"""What MLflow takes at once, of metrics and of parameters or tags."""

LONGEST_NAME, LONGEST_TEXT = 250, 500
"""Characters of a parameter or tag that every version takes."""

_NO_NAME = re.compile(r"[^A-Za-z0-9_. :-]")

REFUSALS = frozenset(range(400, 500)) - {408, 429}
"""Answers that stay the same, whenever they are asked for."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the background thread tries again, and can be told to end
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""How MLflow's client is to behave, where the user's environment says nothing: it has no other way."""


class Unreachable(Exception):
    """MLflow did not answer, or failed: that may heal."""


@dataclass
class TrackedRun:
    """Which MLflow run this run is: part of every checkpoint, whether MLflow is enabled or not.

    Attributes:
        location: of the run, to tell its own checkpoints from another run's.
        run_id: None until MLflow has given one.
        parent: location of the run whose checkpoint this one began with.
        parent_id: that run's id, if it had one.
    """

    location: str
    run_id: str | None = None
    parent: str | None = None
    parent_id: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """The location stands beside an id alone: else equal states are equal wherever they lie."""
        where = {} if self.run_id is None else {"location": self.location}
        return {**where, "mlflow_run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("location", self.location) == self.location:
            self.run_id = state["mlflow_run_id"]
        else:
            self.parent, self.parent_id = state["location"], state["mlflow_run_id"]


@dataclass(frozen=True)
class About:
    """What MLflow is told of a run at its start: parameters hold for all of it, tags for this start."""

    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]


def about_run(settings: Resolved, generation: int) -> About:
    """All settings but those that change from start to start or say where MLflow is."""
    params = {
        _NO_NAME.sub("_", name)[:LONGEST_NAME]: "(from the environment)" if VARIABLE in source else value
        for name, value, source in describe(settings)
        if not name.startswith(("resume", "mlflow.", "tensorboard.", "launcher."))
    }
    tags = {
        "wmtp.run": settings.run_name,
        "wmtp.generation": str(generation),
        "wmtp.location": str(settings.location),
        "wmtp.tags": ", ".join(settings.tags),
    }
    return About(settings.run_name, params, tags)


class MlflowRun:
    """Writes to one run in MLflow, which it creates or continues when first written to.

    Args:
        tracked: which run that is; it learns the id once MLflow has given one.
        tell: takes a line for people.
    """

    def __init__(self, where: Mlflow, tracked: TrackedRun, about: About, tell: Callable[[str], None]) -> None:
        self._where, self._tracked, self._about, self._tell = where, tracked, about, tell
        self._client: MlflowClient | None = None
        self._run_id = ""

    def write(self, entries: Sequence[Entry]) -> None:
        """Write entries. All of them may be written again: MLflow knows what it has.

        Raises:
            Refused: MLflow does not take them.
            Unreachable: it can't be reached, or fails.
        """
        labels = {name: text for entry in entries for name, text in entry.labels.items()}
        with self._plain_errors():
            from mlflow.entities import Metric

            client, run_id = self._open()
            metrics = [
                Metric(name, value, int(entry.at_s * 1e3), entry.step)
                for entry in entries
                for name, value in entry.scalars()
            ]
            for some in _cut(metrics, METRICS_A_REQUEST):
                client.log_batch(run_id, metrics=some)
            self._set_tags(client, run_id, labels)

    def close(self, outcome: Outcome) -> None:
        """Say how the run ended. Raises as ``write`` does."""
        with self._plain_errors():
            client, run_id = self._open()
            client.set_terminated(run_id, outcome.value)

    def _open(self) -> "tuple[MlflowClient, str]":
        """The client and the run's id. The id is in the checkpoints from then on, so it is known early."""
        if self._client is None:
            self._client = _client(self._where.tracking_uri)
        if not self._run_id:
            run = self._continued(self._client) or self._created(self._client)
            self._tracked.run_id = run.info.run_id
            self._describe(self._client, run)
            self._run_id = run.info.run_id
            self._tell(f"MLflow run {self._run_id} in experiment {self._where.experiment}")
        return self._client, self._run_id

    def _continued(self, client: "MlflowClient") -> "Run | None":
        """The run that the checkpoint names; None where it names none, or one that is gone."""
        from mlflow.exceptions import MlflowException

        run_id = self._tracked.run_id
        if run_id is None:
            return None
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            self._tell(f"MLflow does not have run {run_id} any more: this is a new one")
            return None
        client.update_run(run_id, status="RUNNING")
        return run

    def _created(self, client: "MlflowClient") -> "Run":
        name = self._where.experiment
        found = client.get_experiment_by_name(name)
        experiment_id = found.experiment_id if found is not None else client.create_experiment(name)
        return client.create_run(experiment_id, run_name=self._about.name)

    def _describe(self, client: "MlflowClient", run: "Run") -> None:
        """Give the run what it lacks of the parameters, which never change, and the tags of this start."""
        from mlflow.entities import Param

        params = [
            Param(name, value[:LONGEST_TEXT])
            for name, value in self._about.params.items()
            if name not in run.data.params
        ]
        for some in _cut(params, TEXTS_A_REQUEST):
            client.log_batch(run.info.run_id, params=some)
        parents = {"wmtp.parent": self._tracked.parent, "wmtp.parent_run_id": self._tracked.parent_id}
        self._set_tags(client, run.info.run_id, {**self._about.tags, **parents})

    def _set_tags(self, client: "MlflowClient", run_id: str, tags: Mapping[str, str | None]) -> None:
        from mlflow.entities import RunTag

        wanted = [RunTag(name, text[:LONGEST_TEXT]) for name, text in tags.items() if text]
        for some in _cut(wanted, TEXTS_A_REQUEST):
            client.log_batch(run_id, tags=some)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """What MLflow raises, in a line without secrets, and told apart by whether it may heal."""
        try:
            yield
        except Exception as error:
            status = getattr(error, "get_http_status_code", lambda: 500)()
            raise (Refused if status in REFUSALS else Unreachable)(_in_a_line(error)) from None


def _client(tracking_uri: str | None) -> "MlflowClient":
    """MLflow's client, made to fail soon, to print nothing and to report nothing to its makers."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # what goes wrong is told once, and by us
    return MlflowClient(tracking_uri)


def _cut(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _in_a_line(error: BaseException) -> str:
    """What went wrong: ``[Errno 111] Connection refused``, not the tale of all who passed it on."""
    told, cause = error, error.__cause__ or error.__context__
    while cause is not None:
        told, cause = (cause if isinstance(cause, OSError) else told), cause.__cause__ or cause.__context__
    line = next(iter(str(told).splitlines()), "") or type(told).__name__
    return re.sub(r"(?<=://)[^/\s]+@", "***@", line)[:LONGEST_TEXT]
