"""An S3 server on this machine: SeaweedFS on one data directory, shared by all who hold its lease.

One process serves a data directory, by flock on ``supervisor.lock``; weed runs in a session of its own. A
weed whose supervisor was killed is adopted, or killed where it does not fit: what it acknowledged is on disk.
Ports, credentials and objects are kept for the next time.
"""

import argparse
import fcntl
import http.client
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from uploader import files
from uploader.below import private
from uploader.errors import OwnershipError, StoreError, WmtpError
from uploader.location import Location
from uploader.settings import StorageSettings
from wmtp import seaweedfs

START_S = 30.0
STOP_S = 5.0
POLL_S = 0.05
IDLE_S = 30.0
SUPERVISE_S = 0.5


class DevS3:
    """The server of one data directory; nothing is started or written before ``start``.

    Args:
        data: its directory, created readable by this user only.
        port: the S3 port; None means the one of last time or a free one.
        cert_file, key_file: PEM files with which S3 is served over TLS.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
    ) -> None:
        self.data = data.absolute()
        self.credentials_file = self.data / "credentials"
        self.log_file = self.data / "log"
        self.lock_file = self.data / "supervisor.lock"
        self._objects, self._state_file = self.data / "objects", self.data / "server.json"
        self._port, self._tls = port, (cert_file, key_file) if cert_file and key_file else None
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """The URL of S3, once the server was started here at least once."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{seaweedfs.HOST}:{seaweedfs.read_ports(self._state_file)['s3']}"

    def storage(self, *, ca_bundle: Path | None = None) -> StorageSettings:
        """The settings with which a client reaches this server."""
        return StorageSettings(
            endpoint_url=self.endpoint_url,
            region="us-east-1",
            credentials_file=str(self.credentials_file),
            addressing_style="path",
            ca_bundle=str(ca_bundle) if ca_bundle else None,
        )

    def start(self) -> str:
        """Serve until ``stop``; return the endpoint's URL once it answers.

        Raises:
            SettingsError: SeaweedFS is not installed, or the port asked for is taken.
            OwnershipError: another process serves this data directory.
            StoreError: the server did not come up; the hint quotes its log.
        """
        weed = seaweedfs.find_weed()
        if self._lock is None:
            make_private(self.data)
            self._lock = self._take_lock()
        try:
            if not (self._fits(weed) and self._wait_until_answers(STOP_S)):
                self._kill()
                self._spawn(weed)
        except BaseException:
            self.stop()
            raise
        return self.endpoint_url

    def ensure_bucket(self, name: str, storage: StorageSettings | None = None) -> None:
        """Create the bucket unless it is there. Not for use inside an event loop.

        Args:
            storage: how to reach the server; None means ``storage()``.
        """
        import anyio

        from uploader.store.s3 import S3Store  # here, as aioboto3 takes a third of a second to import

        async def create() -> None:
            async with S3Store.open(Location(name, ""), storage or self.storage()) as store:
                await store.create_bucket()

        anyio.run(create)

    def running(self) -> bool:
        """Whether a weed works on this data directory, whoever started it."""
        return self._pid() is not None

    def answers(self) -> bool:
        """Whether the server runs and answers requests."""
        if not self.running():
            return False
        port = seaweedfs.read_ports(self._state_file)["s3"]
        connection = http.client.HTTPConnection(seaweedfs.HOST, port, timeout=STOP_S)
        if self._tls:
            context = ssl.create_default_context(cafile=str(self._tls[0]))
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(seaweedfs.HOST, port, timeout=STOP_S, context=context)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500  # 403: it is up and asks who we are
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End the server that was started here, and let others serve the directory."""
        if self._lock is not None:
            self._kill()
            os.close(self._lock)
            self._lock = None

    def _pid(self) -> int | None:
        # A process just started has no command line for an instant: one's own is known without it.
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        return seaweedfs.find_process(self._objects)

    def _take_lock(self) -> int:
        # Whoever asks whether it is taken holds it shared for an instant: a second look tells them apart.
        for _ in range(10):
            descriptor = files.lock(self.lock_file)
            if descriptor is not None:
                return descriptor
            time.sleep(POLL_S)
        raise OwnershipError(
            "another process serves it",
            doing="serving",
            subject=str(self.data),
            hint="use it, or stop it first",
        )

    def _fits(self, weed: str) -> bool:
        """Whether a weed runs that is just the one ``start`` would start."""
        pid = seaweedfs.find_process(self._objects)
        if pid is None:
            return False
        ports = seaweedfs.read_ports(self._state_file)
        wanted = seaweedfs.command(weed, self._objects, ports, self._tls)
        return self._port in (None, ports["s3"]) and seaweedfs.command_line(pid) == wanted

    def _spawn(self, weed: str) -> None:
        seaweedfs.choose_ports(self._state_file, self._port)
        make_private(self._objects)
        ports = seaweedfs.read_ports(self._state_file)
        with open(self.log_file, "wb", opener=private) as log:
            self._process = subprocess.Popen(
                seaweedfs.command(weed, self._objects, ports, self._tls),
                env=seaweedfs.environment(self.data, *self._credentials()),
                cwd=self.data,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if not self._wait_until_answers(START_S):
            last = " | ".join(self.log_file.read_text(errors="replace").splitlines()[-3:])
            raise StoreError(
                f"it ended early or did not answer within {START_S:.0f} s",
                doing="starting SeaweedFS in",
                subject=str(self.data),
                hint=f"its log ends: {last}",
            )

    def _wait_until_answers(self, timeout_s: float) -> bool:
        ends = time.monotonic() + timeout_s
        while self.running() and time.monotonic() < ends:
            if self.answers():
                return True
            time.sleep(POLL_S)
        return False

    def _kill(self) -> None:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            pid, ends = self._pid(), time.monotonic() + STOP_S
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, sent)
            while self.running() and time.monotonic() < ends:
                time.sleep(POLL_S)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _credentials(self) -> tuple[str, str]:
        """Access key and secret, made once, in a file that every AWS client reads."""
        if not self.credentials_file.exists():
            temporary = self.data / "credentials.tmp"
            temporary.unlink(missing_ok=True)
            with open(temporary, "x", opener=private) as file:
                file.write(f"[default]\naws_access_key_id = {secrets.token_hex(10)}\n")
                file.write(f"aws_secret_access_key = {secrets.token_hex(20)}\n")
            temporary.rename(self.credentials_file)
        pairs = [line.partition("=") for line in self.credentials_file.read_text().splitlines()]
        values = {name.strip(): value.strip() for name, _, value in pairs}
        return values["aws_access_key_id"], values["aws_secret_access_key"]


def hold(data: Path) -> int:
    """Hold the lease: a server of ``data`` runs on while the returned descriptor is open.

    Waits while a server is being stopped. A child process holds it too if it is given the descriptor
    (``pass_fds``).
    """
    make_private(data)
    descriptor = os.open(data / "lease", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def ensure_running(data: Path, bucket: str, *, idle_s: float = IDLE_S) -> tuple[str, Path]:
    """Have the server of ``data`` run, with this bucket; hold the lease first. Not for use in an event loop.

    Args:
        bucket: empty where checkpoints go to a directory, and only models or data come from the server.
        idle_s: how long a server started here outlives the last lease.

    Returns:
        the endpoint's URL and the credentials file.

    Raises:
        SettingsError: SeaweedFS is not installed.
        StoreError: the server did not come up.
    """
    seaweedfs.find_weed()
    server, ends = DevS3(data), time.monotonic() + START_S
    while not (files.is_locked(server.lock_file) and server.answers()):
        if not files.is_locked(server.lock_file):
            _start_supervisor(server, idle_s)
        elif time.monotonic() > ends:
            raise StoreError("it does not answer", doing="waiting for the S3 server of", subject=str(data))
        time.sleep(POLL_S)
    if bucket:
        server.ensure_bucket(bucket)
    return server.endpoint_url, server.credentials_file


def serve_until_unused(server: DevS3, idle_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Keep a started ``server`` running until nobody has held its lease for ``idle_s``, then stop it.

    The lease is kept until it has stopped: whoever wants it by then waits, and starts a server again.
    """
    lease = os.open(server.data / "lease", os.O_RDWR | os.O_CREAT, 0o600)
    used_at = time.monotonic()
    try:
        while not (_take(lease) and time.monotonic() - used_at >= idle_s):
            if not _take(lease):
                used_at = time.monotonic()
            fcntl.flock(lease, fcntl.LOCK_UN)
            if not server.running():
                server.start()
            sleep(SUPERVISE_S)
    finally:
        server.stop()
        os.close(lease)


def _take(lease: int) -> bool:
    """Take the lease for oneself alone; taking it again changes nothing."""
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_private(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)


def _start_supervisor(server: DevS3, idle_s: float) -> None:
    """Start a supervisor, which comes back once its server answers and goes on in the background."""
    log = server.data / "supervisor.log"
    make_private(server.data)
    with open(log, "wb", opener=private) as output:
        done = subprocess.run(
            [sys.executable, "-m", "wmtp.dev_s3", "--data", str(server.data), f"--idle-s={idle_s}"],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode and not files.is_locked(server.lock_file):
        said = log.read_text(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise StoreError(
            said[0], doing="starting the S3 server of", subject=str(server.data), hint=f"{log} tells more"
        )


def main() -> None:
    """Serve a data directory in the background until nobody holds its lease any more."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = DevS3(arguments.data)
    try:
        server.start()
        if os.fork() == 0:  # the child serves on; the parent's end says that the server answers
            serve_until_unused(server, arguments.idle_s)
    except WmtpError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
