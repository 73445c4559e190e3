"""One Ceph node on loopback for the conformance suite: ``python tests/servers/ceph.py COMMAND…``.

A monitor, one OSD on a file and a RADOS Gateway, in a temporary directory and on free ports, while the
command runs; the three are killed after it. The command learns of them from the environment:
``WMTP_CEPH_ENDPOINT`` and ``WMTP_CEPH_CREDENTIALS`` (a shared credentials file). What is missing of Debian's
packages is installed, which needs root, as do the daemons.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HOST = "127.0.0.1"
PACKAGES = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw", "ceph": "ceph-common"}
"""Each program that is needed, and the Debian package that has it."""
START_S = 60.0
"""How long the first start of all three may take."""

CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = [v2:{host}:{mon_v2},v1:{host}:{mon_v1}]
keyring = {home}/keyring
public_addr = {host}
cluster_addr = {host}
ms_bind_ipv6 = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 1073741824
osd_class_load_list = *
osd_class_default_list = *
run_dir = {home}
admin_socket = {home}/$name.asok
log_file = {home}/$name.log
mon_cluster_log_file = {home}/cluster.log
crash_dir = {home}/crash
mon_data = {home}/mon
osd_data = {home}/osd
rgw_frontends = beast endpoint={host}:{rgw}
rgw_dns_name = localhost
rgw_crypt_require_ssl = false
[osd]
keyring = {home}/osd/keyring
"""


def main(command: list[str]) -> int:
    if os.geteuid() != 0:
        print("Ceph's daemons, and installing them, need root: run this as root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the daemons would outlive us
    _install()
    with tempfile.TemporaryDirectory(prefix="ceph-") as home, _cluster(Path(home)) as endpoint:
        credentials = Path(home) / "credentials"
        environment = {"WMTP_CEPH_ENDPOINT": endpoint, "WMTP_CEPH_CREDENTIALS": str(credentials)}
        return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode


def _install() -> None:
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if not missing:
        return
    apt_get = shutil.which("apt-get")
    if apt_get is None:
        sys.exit(f"{', '.join(missing)}: not installed, and there is no apt-get to install it with")
    quietly = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        subprocess.run([apt_get, "--quiet", *arguments], env=quietly, stdout=subprocess.DEVNULL, check=True)


@contextmanager
def _cluster(home: Path) -> Iterator[str]:
    """The three daemons, running while the context lasts; yields the gateway's endpoint."""
    mon_v1, mon_v2, rgw = _free_ports(3)
    fsid, key, secret = str(uuid.uuid4()), secrets.token_hex(10), secrets.token_hex(20)
    (home / "mon").mkdir()
    (home / "osd").mkdir()
    settings = {"fsid": fsid, "host": HOST, "home": home, "mon_v1": mon_v1, "mon_v2": mon_v2, "rgw": rgw}
    (home / "ceph.conf").write_text(CONFIGURATION.format(**settings))
    credentials = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    (home / "credentials").write_text(credentials)
    with ExitStack() as daemons:
        _make_monitor(home, fsid, mon_v1, mon_v2)
        daemons.enter_context(_daemon(home, "ceph-mon", "--id", "0"))
        _make_osd(home)
        daemons.enter_context(_daemon(home, "ceph-osd", "--id", "0"))
        _run(home, "radosgw-admin", "user", "create", "--uid", "tests", "--display-name", "tests",
             "--access-key", key, "--secret-key", secret)  # fmt: skip
        gateway = daemons.enter_context(_daemon(home, "radosgw", "-n", "client.admin"))
        endpoint = f"http://{HOST}:{rgw}"
        _wait_for(home, endpoint, gateway)
        yield endpoint


def _make_monitor(home: Path, fsid: str, mon_v1: int, mon_v2: int) -> None:
    keyring = str(home / "keyring")
    _run(
        home,
        "ceph-authtool",
        "--create-keyring",
        keyring,
        "--gen-key",
        "-n",
        "mon.",
        "--cap",
        "mon",
        "allow *",
    )
    every = (word for daemon in ("mon", "osd", "mgr", "mds") for word in ("--cap", daemon, "allow *"))
    _run(home, "ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *every)
    addresses = f"[v2:{HOST}:{mon_v2},v1:{HOST}:{mon_v1}]"
    monmap = str(home / "monmap")
    _run(home, "monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "0", addresses, monmap)
    _run(home, "ceph-mon", "--id", "0", "--mkfs", "--monmap", monmap, "--keyring", keyring)


def _make_osd(home: Path) -> None:
    key = _run(home, "ceph-authtool", "--gen-print-key").strip()
    keyring, identity = str(home / "osd" / "keyring"), str(uuid.uuid4())
    _run(home, "ceph-authtool", "--create-keyring", keyring, "-n", "osd.0", "--add-key", key)
    _run(home, "ceph", "osd", "new", identity, "0", "-i", "-", given=json.dumps({"cephx_secret": key}))
    _run(home, "ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", identity)


@contextmanager
def _daemon(home: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground, killed when the context ends: all it holds is thrown away then."""
    with (home / f"{command[0]}.out").open("wb") as out:
        process = subprocess.Popen([*command, "-f"], env=_environment(home), stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _run(home: Path, *command: str, given: str | None = None) -> str:
    done = subprocess.run(
        command,
        env=_environment(home),
        input=given,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "CEPH_CONF": str(home / "ceph.conf")}


def _wait_for(home: Path, endpoint: str, gateway: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while gateway.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()  # noqa: S310  (our own address)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in sorted(home.glob("*.out")))
    sys.exit(f"the gateway does not answer\n{logs}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["sh"]))
