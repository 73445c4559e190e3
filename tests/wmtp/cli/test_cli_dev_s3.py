"""``wmtp dev-s3`` as a process."""

import signal
from pathlib import Path

import pytest
from cli_runs import Run, one_error, start_wmtp, wmtp

from uploader.errors import SettingsError
from uploader.location import Location
from wmtp.dev_s3 import DevS3
from wmtp.seaweedfs import find_weed


@pytest.mark.e2e
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_a_signal(tmp_path: Path, number: int, code: int) -> None:
    try:
        find_weed()
    except SettingsError as error:
        pytest.skip(str(error))
    process = start_wmtp("dev-s3", "--data", "data", "--bucket", "mine")
    assert process.stdout is not None
    server = DevS3(tmp_path / "data")
    try:
        lines = [process.stdout.readline().strip() for _ in range(4)]
        assert lines[0].startswith(f"S3 at {server.endpoint_url}, bucket mine, data in {server.data}")
        assert lines[1] == f"export AWS_ENDPOINT_URL={server.endpoint_url}"
        run = Run(tmp_path / "ckpt" / "demo", Location("mine", "demo"), server.storage())
        run.start()
        run.save(10)
        run.upload()
        assert wmtp("checkpoints", "verify", run.path).exit_code == 0
        second = wmtp("dev-s3", "--data", "data")
        assert second.exit_code == 1
        one_error(second, "another process serves it")
    finally:
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    assert not server.running()
    stopped = wmtp("checkpoints", "ls", run.path)
    assert stopped.exit_code == 1
    one_error(stopped, f"`wmtp dev-s3 --data {server.data}`")


def test_a_file_where_the_data_should_be(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    result = wmtp("dev-s3", "--data", "data/below")
    assert result.exit_code == 1
    one_error(result, "serving", "data")


def test_a_port_that_can_not_be(tmp_path: Path) -> None:
    assert wmtp("dev-s3", "--port", "70000").exit_code == 2
    assert not (tmp_path / ".dev-s3").exists()
