"""The embedded S3 server: kept from time to time, shared by a lease, and none the worse for SIGKILL."""

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from uploader import files
from uploader.errors import CorruptError, OwnershipError, SettingsError, StoreDenied, StoreError
from uploader.location import Location
from uploader.retry import RetryPolicy
from uploader.settings import StorageSettings
from uploader.store.retrying import RetryingStore
from uploader.store.s3 import S3Store
from wmtp import seaweedfs
from wmtp.dev_s3 import DevS3, ensure_running, hold, serve_until_unused


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    try:
        seaweedfs.find_weed()
    except SettingsError as error:
        pytest.skip(str(error))
    yield tmp_path / "dev-s3"
    left = seaweedfs.find_process(tmp_path / "dev-s3" / "objects")
    assert left is None, "a test left its server running"


def put(storage: StorageSettings, key: str, body: bytes) -> None:
    async def run() -> None:
        async with S3Store.open(Location("wmtp", "run"), storage) as store:
            await store.put(key, body)

    anyio.run(run)


def get(storage: StorageSettings, key: str) -> bytes:
    async def run() -> bytes:
        async with S3Store.open(Location("wmtp", "run"), storage) as store:
            # A server that has just started may answer InternalError for a moment: it heals.
            return (await RetryingStore(store, RetryPolicy(deadline_s=60.0)).get(key))[0]

    return anyio.run(run)


def supervisors(data: Path) -> list[int]:
    """The supervisors of a data directory, by their command lines."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if {"wmtp.dev_s3", str(data)} <= set(seaweedfs.command_line(pid))]


def wait_until_unserved(data: Path) -> None:
    """Block until no supervisor serves the directory any more."""
    with open(data / "supervisor.lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def test_data_ports_and_credentials_are_kept_for_the_next_time(data: Path) -> None:
    first = DevS3(data)
    url = first.start()
    try:
        assert first.running()
        first.ensure_bucket("wmtp")
        first.ensure_bucket("wmtp")
        put(first.storage(), "key", b"kept")
        credentials = first.credentials_file.read_text()
        with pytest.raises(OwnershipError, match="another process serves it"):
            DevS3(data).start()
        assert first.answers()
    finally:
        first.stop()
    assert not first.running()
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE(first.credentials_file.stat().st_mode) == 0o600

    second = DevS3(data)
    try:
        assert second.start() == url
        assert second.credentials_file.read_text() == credentials
        assert get(second.storage(), "key") == b"kept"
        (data / "wrong").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
        with pytest.raises(StoreDenied):
            get(second.storage().model_copy(update={"credentials_file": str(data / "wrong")}), "key")
    finally:
        second.stop()


def test_a_port_taken_by_another_is_chosen_anew(data: Path) -> None:
    server = DevS3(data)
    data.mkdir(mode=0o700)
    seaweedfs.choose_ports(data / "server.json", None)
    before = seaweedfs.read_ports(data / "server.json")
    seaweedfs.choose_ports(data / "server.json", None)
    assert seaweedfs.read_ports(data / "server.json") == before
    with socket.socket() as other:
        other.bind((seaweedfs.HOST, before["filer"] + seaweedfs.GRPC_OFFSET))
        other.listen()
        seaweedfs.choose_ports(data / "server.json", None)
        after = seaweedfs.read_ports(data / "server.json")
        assert after["filer"] != before["filer"]
        with pytest.raises(SettingsError, match="--port"):
            DevS3(data, port=before["filer"]).start()
    assert len(set(after.values())) == len(seaweedfs.DAEMONS)
    assert not server.running()


def test_the_port_asked_for_is_used(data: Path) -> None:
    data.mkdir(mode=0o700)
    seaweedfs.choose_ports(data / "server.json", None)
    port = seaweedfs.read_ports(data / "server.json")["s3"]
    (data / "server.json").unlink()
    seaweedfs.choose_ports(data / "server.json", port)
    assert seaweedfs.read_ports(data / "server.json")["s3"] == port
    with pytest.raises(SettingsError, match="--port"):
        seaweedfs.choose_ports(data / "server.json", 60_000)  # its twin would be no port


def test_a_server_that_does_not_come_up_is_quoted(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.parent.mkdir(exist_ok=True)
    broken = data.parent / "weed"
    broken.write_text("#!/bin/sh\necho one; echo two; echo no space left; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(seaweedfs, "find_weed", lambda: str(broken))
    server = DevS3(data)
    with pytest.raises(StoreError, match=r"its log ends: one \| two \| no space left"):
        server.start()
    assert not files.is_locked(server.lock_file)


def test_without_the_binary_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for attempt in (DevS3(tmp_path / "data").start, lambda: ensure_running(tmp_path / "data", "wmtp")):
        with pytest.raises(SettingsError, match=r"pip install 'wmtp\[dev-s3\]'"):
            attempt()


def test_ports_that_cannot_be_read_are_corrupt(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text('{"ports": {"s3": 1}}')
    with pytest.raises(CorruptError, match=r"server\.json: it holds no ports"):
        seaweedfs.choose_ports(tmp_path / "server.json", None)


def test_the_server_runs_while_anyone_holds_its_lease(data: Path) -> None:
    mine = hold(data)
    url, credentials = ensure_running(data, "wmtp", idle_s=0)
    storage = DevS3(data).storage()
    assert (storage.endpoint_url, storage.credentials_file) == (url, str(credentials))
    put(storage, "key", b"shared")
    first = supervisors(data)
    assert len(first) == 1
    assert ensure_running(data, "other") == (url, credentials)
    assert supervisors(data) == first

    # A child keeps the lease when this process lets go; the server stops after the child.
    child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, pass_fds=[mine])
    assert child.stdin
    os.close(mine)
    with open(data / "lease", "rb") as lease, pytest.raises(BlockingIOError):
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert get(storage, "key") == b"shared"
    child.stdin.close()
    child.wait()
    wait_until_unserved(data)
    assert not DevS3(data).running()


def test_without_a_bucket_there_is_just_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where checkpoints go to a directory, and a model comes from the server."""
    made: list[str] = []
    monkeypatch.setattr(seaweedfs, "find_weed", lambda: tmp_path)
    monkeypatch.setattr(files, "is_locked", lambda path: True)
    monkeypatch.setattr(DevS3, "answers", lambda server: True)
    monkeypatch.setattr(DevS3, "endpoint_url", "http://127.0.0.1:1")
    monkeypatch.setattr(DevS3, "ensure_bucket", lambda server, name: made.append(name))
    for bucket in ("", "wmtp"):
        assert ensure_running(tmp_path, bucket)[0] == "http://127.0.0.1:1"
    assert made == ["wmtp"]


def test_killed_supervisor_and_killed_server_are_replaced_and_lose_nothing(data: Path) -> None:
    lease = hold(data)
    try:
        url, _ = ensure_running(data, "wmtp", idle_s=0)
        storage = DevS3(data).storage()
        put(storage, "key", b"acknowledged")
        weed = seaweedfs.find_process(data / "objects")
        assert weed
        (supervisor,) = supervisors(data)
        os.kill(supervisor, signal.SIGKILL)
        wait_until_unserved(data)
        assert ensure_running(data, "wmtp", idle_s=0)[0] == url
        assert seaweedfs.find_process(data / "objects") == weed  # the orphan was adopted

        (supervisor,) = supervisors(data)
        os.kill(weed, signal.SIGKILL)
        os.kill(supervisor, signal.SIGKILL)
        wait_until_unserved(data)
        assert ensure_running(data, "wmtp", idle_s=0)[0] == url
        assert seaweedfs.find_process(data / "objects") not in (None, weed)
        assert get(storage, "key") == b"acknowledged"
    finally:
        os.close(lease)
        wait_until_unserved(data)


def test_an_orphan_with_other_settings_is_replaced(data: Path) -> None:
    first = DevS3(data)
    first.start()
    assert first._process and first._lock is not None
    os.close(first._lock)  # as if its supervisor had died
    first._lock = None
    port = next(port for port in seaweedfs.PORTS if seaweedfs._is_free(port))
    second = DevS3(data, port=port)
    try:
        assert second.start() == f"http://{seaweedfs.HOST}:{port}"
        assert first._process.poll() is not None
        assert second.running()
    finally:
        second.stop()


def test_a_server_that_died_is_started_again_while_its_lease_is_held(tmp_path: Path) -> None:
    lease = hold(tmp_path)

    class Server:
        """Dies at once, and counts how often it was started and stopped."""

        data, started, stopped = tmp_path, 0, 0

        def running(self) -> bool:
            return self.started > 0

        def start(self) -> None:
            self.started += 1

        def stop(self) -> None:
            self.stopped += 1

    server, turns = Server(), iter([None, None, os.close])

    def sleep(_: float) -> None:
        let_go = next(turns)
        if let_go:
            let_go(lease)

    serve_until_unused(server, 0, sleep)  # type: ignore[arg-type]
    assert (server.started, server.stopped) == (1, 1)
    assert next(turns, "all turns taken") == "all turns taken"


def test_importing_it_does_not_import_the_s3_client() -> None:
    heavy = {"aioboto3", "botocore", "aiohttp", "torch"}
    code = f"import sys, wmtp.dev_s3; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
