"""``status.json``: whole at every moment, and without a secret."""

import json
import os
from pathlib import Path

import pytest
from steps import NOW, make_step, run_file

from uploader import files
from uploader.errors import CorruptError, SettingsError, StoreDenied, StoreUnavailable
from uploader.flow import FlowState
from uploader.layout import RunDirectory
from uploader.settings import StorageSettings
from uploader.status import RECENT, Status, StatusFile, read_status


@pytest.fixture
def status(directory: RunDirectory) -> StatusFile:
    files.make_directory(directory.uploader_directory)
    first = Status(run="run", destination="s3://bucket/run", pid=1, updated_at=NOW)
    return StatusFile(directory, lambda: NOW, first)


def shown(directory: RunDirectory) -> Status:
    status = read_status(directory.status_file)
    assert status is not None
    return status


def test_an_upload_from_beginning_to_end(directory: RunDirectory, status: StatusFile) -> None:
    record = make_step(directory, 7).record
    assert shown(directory).state == "waiting"
    status.located(7, None)
    assert shown(directory).durability_lag_steps is None
    status.uploading(record)
    status.retrying(StoreUnavailable("no answer", doing="uploading", subject="key"), 1, 0.5)
    assert (shown(directory).state, shown(directory).error) == ("retrying", "uploading key: no answer")
    status.progressed(100)
    status.progressed(200)
    upload = shown(directory).upload
    assert upload is not None
    assert (upload.step, upload.done_bytes, upload.size_bytes) == (7, 300, record.size_bytes)
    assert (shown(directory).state, shown(directory).error) == ("uploading", None)
    status.durable(record, 2.5)
    status.located(9, 7)
    found = shown(directory)
    assert (found.newest_local_step, found.newest_durable_step, found.durability_lag_steps) == (9, 7, 2)
    assert (found.durable_total, found.retries_total, found.upload) == (1, 1, None)
    assert [(one.step, one.upload_s) for one in found.recent] == [(7, 2.5)]


def test_the_bounds_of_an_upload_are_shown(directory: RunDirectory, status: StatusFile) -> None:
    status.uploading(make_step(directory, 7).record)
    status.progressed(100, FlowState(3, 40e6, 50e6, 0.25))
    upload = shown(directory).upload
    assert upload is not None
    assert (upload.done_bytes, upload.parts_limit, upload.pacing) == (100, 3, 0.25)
    assert (upload.bandwidth_bytes_per_s, upload.bandwidth_limit_bytes_per_s) == (40e6, 50e6)


def test_what_went_wrong_is_kept(directory: RunDirectory, status: StatusFile) -> None:
    record = make_step(directory, 7).record
    status.step_failed("step_7@g1", CorruptError("it is short", subject="model"))
    status.failed(StoreDenied("access denied"))
    status.skipped(record)
    status.pruned([1, 2], where="remote")
    status.pruned([1], where="local")
    status.progressed(5)  # nothing is being uploaded
    found = shown(directory)
    assert (found.state, found.error) == ("failed", "access denied")
    assert found.failed_steps == {"step_7@g1": "model: it is short"}
    assert (found.skipped_total, found.pruned_remote_total, found.pruned_local_total) == (1, 2, 1)


def test_recent_steps_are_bounded(directory: RunDirectory, status: StatusFile) -> None:
    record = make_step(directory, 7).record
    for _ in range(RECENT + 5):
        status.durable(record, 1.0)
    assert len(shown(directory).recent) == RECENT
    assert shown(directory).durable_total == RECENT + 5


def test_the_file_is_replaced_whole(
    directory: RunDirectory, status: StatusFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, seen = os.replace, []

    def look(source: str, target: str) -> None:
        seen.append((shown(directory).state, json.loads(Path(source).read_bytes())["state"]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    status.show(state="drained")
    assert seen == [("waiting", "drained")]


def test_a_full_disk_stops_no_upload(
    directory: RunDirectory,
    status: StatusFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    status.show(state="drained")
    assert status.status.state == "drained"
    assert "No space left on device" in caplog.text


def test_no_status_and_no_readable_status(directory: RunDirectory) -> None:
    assert read_status(directory.status_file) is None
    files.make_directory(directory.uploader_directory)
    directory.status_file.write_text('{"run": ')
    with pytest.raises(CorruptError, match=r"status\.json.*start the uploader again"):
        read_status(directory.status_file)


def test_no_credential_can_get_into_run_file_or_status() -> None:
    secrets = {"secret", "password", "token", "key", "credential", "credentials"}
    for model in (Status, StorageSettings):
        for name in model.model_fields:
            if name not in ("credentials_file", "sse_kms_key_id", "sse_c_key_file"):  # paths; a key's name
                assert not secrets & {*name.split("_")}
    for destination in ("s3://AKIA:hunter2@bucket/run", "s3://bucket/run?X-Amz-Signature=hunter2"):
        with pytest.raises(SettingsError) as caught:
            run_file(destination=destination)
        assert "hunter2" not in str(caught.value)
