"""No credential, key or signature in anything that is said or written, whatever goes wrong.

Real processes against a real server, with secrets that are easy to recognise. Every byte is searched: output,
logs, status, run files, records, manifest, events, metrics, objects; and the command lines of all processes.
"""

import contextlib
import io
import logging
import socket
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from real_runs import Finished, Lab, end
from secrets_of import (
    ACCESS_KEY,
    API_KEY,
    CUSTOMER_KEY,
    PASSWORD,
    SECRET_KEY,
    SECRETS,
    SESSION_TOKEN,
    forms,
    leaks,
    leaks_below,
)

from uploader.errors import StoreError
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.s3 import S3Store
from wmtp.dev_s3 import DevS3
from wmtp.seaweedfs import command_line

pytestmark = pytest.mark.e2e

BUCKET = "secrets"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_SESSION_TOKEN": SESSION_TOKEN,
}
HASTY = ("--set", "paths.checkpoints.store_timeout_s=1", "--set", "storage.connect_timeout_s=1")
TRAIN = ("train", "--verbose", "--max-steps", "10")
LOOK_S = 0.05
"""How often the command lines of all processes are read."""


@dataclass(frozen=True)
class Scene:
    """One command and what it is told.

    Attributes:
        code: how it must end.
    """

    words: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    code: int = 0


SCENES: dict[str, Scene] = {
    "a run that succeeds": Scene(TRAIN),
    "resumed, its uploads encrypted with the customer's key": Scene(
        (*TRAIN, "--run-name", "sse", "--set", "storage.sse_c_key_file=./customer-key")
    ),
    "a session token that the server does not know": Scene(
        (*TRAIN, *HASTY, "--run-name", "token", "--set", "storage.credentials_file=./with-token"), code=1
    ),
    "credentials from the environment, and a wrong secret": Scene(
        (*TRAIN, *HASTY, "--run-name", "env", "--set", "storage.credentials_file=null"),
        {**ENVIRONMENT, "AWS_SECRET_ACCESS_KEY": SECRET_KEY[::-1] + SECRET_KEY},
        code=1,
    ),
    "a bucket that is not there": Scene(
        (*TRAIN, "--set", "paths.checkpoints.base_path=s3://no-such-bucket/x"), code=1
    ),
    "nobody answers": Scene((*TRAIN, *HASTY, "--set", "storage.endpoint_url={dead}"), code=1),
    "a proxy with a password that does not answer": Scene(
        (*TRAIN, *HASTY, "--run-name", "proxy", "--set", "storage.endpoint_url=http://s3.invalid"),
        {"HTTP_PROXY": "http://me:" + PASSWORD + "@{dead_host}", "NO_PROXY": "", "no_proxy": ""},
        code=1,
    ),
    "a password in the endpoint's URL": Scene(
        (*TRAIN, "--set", "storage.endpoint_url=http://me:" + PASSWORD + "@127.0.0.1:9"), code=2
    ),
    "a signed URL for an endpoint": Scene(
        (*TRAIN, "--set", "storage.endpoint_url=http://127.0.0.1:9/?X-Amz-Signature=" + API_KEY), code=2
    ),
    "a password in a location": Scene(
        (*TRAIN, "--set", "paths.checkpoints.base_path=s3://" + f"{ACCESS_KEY}:{PASSWORD}@bucket/x"), code=2
    ),
    "a secret where no setting is": Scene((*TRAIN, "--set", f"storage.secret_key={API_KEY}"), code=2),
    "every setting, with where it came from": Scene(
        ("train", "--dry-run", "--set", f"launcher.resources.env.WANDB_API_KEY={API_KEY}"), ENVIRONMENT
    ),
    "a run left to another uploader": Scene(
        (*TRAIN, "--no-uploader", "--run-name", "left", "--set", "storage.credentials_file=./changing")
    ),
    "how to go on, with secrets in the flags": Scene(
        (*TRAIN, "--run-name", "flags", "--set", f"launcher.resources.env.WANDB_API_KEY={API_KEY}")
    ),
}

LEFT = "uploader whose credentials changed"
AFTERWARDS: dict[str, tuple[str, ...]] = {
    "ls": ("checkpoints", "ls", "ckpt/tiny", "--json"),
    "show": ("checkpoints", "show", "ckpt/tiny", "latest", "--json"),
    "verify": ("checkpoints", "verify", "ckpt/tiny", "--json"),
    "status": ("status", "ckpt/tiny", "--json"),
    LEFT: ("uploader", "--watch", "ckpt/left", "--once"),
}


@dataclass
class Stage:
    """Where all of it happened.

    Attributes:
        private: the files in which the secrets lie.
        said: what each command said.
        seen: the command lines of processes that were alive meanwhile.
    """

    server: DevS3
    lab: Lab
    private: list[Path]
    said: dict[str, Finished] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)

    def play(self, name: str, words: tuple[str, ...], env: Mapping[str, str]) -> None:
        running = self.lab.start(*words, env=env)
        while not running.ends_within(LOOK_S):
            self._look()
        self.said[name] = running.wait()

    def _look(self) -> None:
        """At every process of this machine that has to do with us."""
        marks = (str(self.server.data).encode(), str(self.lab.path).encode())
        for entry in Path("/proc").glob("[0-9]*"):
            line = b"\0".join(word.encode() for word in command_line(int(entry.name)))
            if any(mark in line for mark in marks):
                self.seen.add(line)


def _prepare(lab: Lab) -> list[Path]:
    """The secrets' own files, and a config that has some."""
    keys = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    (lab.path / "with-token").write_text(keys + f"aws_session_token = {SESSION_TOKEN}\n")
    (lab.path / "changing").write_text(keys)
    (lab.path / "customer-key").write_bytes(CUSTOMER_KEY)
    config = lab.path / "configs/config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["mlflow"] = {"tracking_uri": f"http://me:{PASSWORD}@tracking.invalid"}
    config.write_text(yaml.safe_dump(tree))
    return [*(lab.path / name for name in ("with-token", "changing", "customer-key")), config]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("secrets")
    server = DevS3(root / "server")
    server.data.mkdir(mode=0o700)
    keys = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    server.credentials_file.write_text(keys)
    server.start()
    server.ensure_bucket(BUCKET)
    with (
        contextlib.closing(Lab(root / "lab", Location(BUCKET, "base"), server.storage())) as lab,
        contextlib.closing(socket.socket()) as dead,
    ):
        dead.bind(("127.0.0.1", 0))  # nobody listens here, and nobody else can
        dead_host = f"127.0.0.1:{dead.getsockname()[1]}"
        places = {"dead": f"http://{dead_host}", "dead_host": dead_host}
        stage = Stage(server, lab, _prepare(lab))

        def play(name: str) -> None:
            words = tuple(word.format(**places) for word in SCENES[name].words)
            stage.play(name, words, {key: value.format(**places) for key, value in SCENES[name].env.items()})

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(play, SCENES))
        wrong = (lab.path / "changing").read_text().replace(SECRET_KEY, SECRET_KEY[::-1])
        (lab.path / "changing").write_text(wrong)
        for name, words in AFTERWARDS.items():
            stage.play(name, words, {**ENVIRONMENT, "AWS_SESSION_TOKEN": SESSION_TOKEN})
        yield stage
    end(server)


def test_the_search_finds_what_is_there() -> None:
    for name, secret in SECRETS.items():
        for form in forms(secret):
            assert name in leaks(b"x" + form + b"y")
    assert leaks(b"https://b/k?X-Amz-Signature=00") == leaks(b"'Authorization': b'AWS4'") == {"signed"}
    assert leaks(b"the signature of the record, authorization, a customer-key file") == set()


@pytest.mark.parametrize("name", SCENES)
def test_what_a_command_says(stage: Stage, name: str) -> None:
    said = stage.said[name]
    assert said.code == SCENES[name].code, said.err
    assert said.out or said.err
    assert leaks((said.out + said.err).encode()) == set()


@pytest.mark.parametrize("name", AFTERWARDS)
def test_what_is_told_afterwards(stage: Stage, name: str) -> None:
    said = stage.said[name]
    assert said.code == (1 if name == LEFT else 0) and (said.out or said.err)
    assert leaks((said.out + said.err).encode()) == set()


def test_what_is_on_disk(stage: Stage) -> None:
    """Run files, status, events, metrics, records, shards, the uploaders' logs, the server's log."""
    logs = [path for path in stage.lab.path.rglob("log") if path.parent.name == ".uploader"]
    assert logs and (stage.lab.directory / ".uploader/status.json").exists()
    assert leaks_below(stage.lab.path, but=stage.private) == {}
    # SeaweedFS names the key that it was started with, which is no secret; never the secret.
    assert leaks(stage.server.log_file.read_bytes()) <= {"access key"}


def test_what_is_in_the_store(stage: Stage) -> None:
    bucket = stage.lab.bucket
    assert bucket.live_steps() == [5, 10]
    told = {key: leaks(key.encode() + (bucket.get(key) or b"")) for key in bucket.keys()}  # noqa: SIM118
    assert {key: found for key, found in told.items() if found} == {}


def test_what_anybody_sees_of_the_processes(stage: Stage) -> None:
    lines = b"\n".join(stage.seen)
    assert b"mini" in lines and b"uploader" in lines and b"--watch" in lines
    assert leaks(lines) == set()


@contextlib.contextmanager
def everything_logged() -> Iterator[io.StringIO]:
    """As where a trainer logs all that there is."""
    root, heard = logging.getLogger(), io.StringIO()
    handler, level = logging.StreamHandler(heard), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield heard
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["", "secret", "token", "bucket", "endpoint", "customer key"])
async def test_at_level_debug_and_in_tracebacks(stage: Stage, tmp_path: Path, wrong: str) -> None:
    secret = SECRET_KEY[::-1] if wrong == "secret" else SECRET_KEY
    keys = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret}\n"
    (tmp_path / "keys").write_text(
        keys + (f"aws_session_token = {SESSION_TOKEN}\n" if wrong == "token" else "")
    )
    (tmp_path / "customer-key").write_bytes(CUSTOMER_KEY)
    changes: dict[str, object] = {"credentials_file": str(tmp_path / "keys"), "connect_timeout_s": 1.0}
    if wrong == "endpoint":
        changes["endpoint_url"] = "http://127.0.0.1:9"
    if wrong == "customer key":
        changes["sse_c_key_file"] = str(tmp_path / "customer-key")
    storage = stage.server.storage().model_copy(update=changes)
    location = Location("no-such-bucket" if wrong == "bucket" else BUCKET, "debug")
    with everything_logged() as heard:
        async with S3Store.open(location, storage) as store:
            for call in (
                lambda: store.put("k", b"x"),
                lambda: store.get("nothing"),
                lambda: store.delete(["k"]),
            ):
                try:
                    await call()
                except StoreError as error:
                    heard.write("".join(traceback.format_exception(error)))
                    heard.write(repr(error) + repr(vars(error)))
    said = heard.getvalue()
    assert "Traceback" in said
    assert leaks(said.encode()) == set()


@pytest.mark.parametrize(
    "url", [f"https://me:{PASSWORD}@host", f"https://host/?X-Amz-Signature={API_KEY}", API_KEY]
)
def test_settings_do_not_repeat_what_they_refuse(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StorageSettings(endpoint_url=url)
    told = "".join(traceback.format_exception(caught.value)) + str(caught.value)
    assert leaks(told.encode()) == set()
