"""The documented policies are enough, and no more than that: in life on a server that enforces them.

The server is SeaweedFS with its IAM API open, which evaluates real policy documents.
"""

import configparser
import contextlib
import itertools
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import boto3
import pytest
from policies import DOCUMENT, NEEDS, WITH_PARAMETERS, Request, actions_of, allows, documented, without
from real_runs import Lab, end
from steps import IN_PARTS, make_step, run_file

from uploader import files
from uploader.buffers import PartBuffers
from uploader.checksum import BLOCK_SIZE_BYTES, of_bytes
from uploader.errors import ObjectMissing, StoreDenied, WmtpError
from uploader.generation import Claim
from uploader.host import serve_run
from uploader.journal import Journal, Unfinished
from uploader.layout import RunDirectory, RunKeys
from uploader.location import Location
from uploader.manifest_file import ManifestFile
from uploader.restore import check, check_stored, read_commit_record, restore
from uploader.retention import Retention
from uploader.settings import StorageSettings, UploadSettings
from uploader.store import s3
from uploader.store.s3 import S3Store
from uploader.watch import read_step
from wmtp import seaweedfs
from wmtp.checkpoint.session import take_over
from wmtp.dev_s3 import DevS3
from wmtp.settings.resume import Resume

pytestmark = pytest.mark.e2e

BUCKET, PREFIX = "policies", "base"
WRITER, READER = documented(BUCKET, PREFIX)
UPLOADS = UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=2)
NOT_ENFORCED = {"s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"}
"""SeaweedFS lets whoever may put an object do that; so for these only the requests that are made speak."""
LARGE = next(name for name, data in IN_PARTS.items() if len(data) > BLOCK_SIZE_BYTES)


class Guarded:
    """A server that lets each user do what a policy says."""

    def __init__(self, data: Path) -> None:
        self.server, self._numbers = DevS3(data), itertools.count(1)
        self.server.start()
        self.server.ensure_bucket(BUCKET)
        keys = configparser.ConfigParser()
        keys.read(self.server.credentials_file)
        self._iam = boto3.client(
            "iam",
            endpoint_url=self.server.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=keys["default"]["aws_access_key_id"],
            aws_secret_access_key=keys["default"]["aws_secret_access_key"],
        )

    def user(self, policy: dict[str, Any]) -> StorageSettings:
        """How a new user with this policy, and no other right, reaches the store."""
        name = f"user{next(self._numbers)}"
        self._iam.create_user(UserName=name)
        made = self._iam.create_policy(PolicyName=f"of-{name}", PolicyDocument=json.dumps(policy))
        self._iam.attach_user_policy(UserName=name, PolicyArn=made["Policy"]["Arn"])
        key = self._iam.create_access_key(UserName=name)["AccessKey"]
        file = self.server.data / f"{name}.credentials"
        pair = f"aws_access_key_id = {key['AccessKeyId']}\naws_secret_access_key = {key['SecretAccessKey']}\n"
        file.write_text(f"[default]\n{pair}")
        return self.server.storage().model_copy(update={"credentials_file": str(file)})


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    command = seaweedfs.command
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(seaweedfs, "command", lambda *words: [*command(*words), "-s3.iam.readOnly=false"])
        server = Guarded(tmp_path_factory.mktemp("guarded") / "s3")
        yield server
        end(server.server)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Every request that is made of S3 from now on."""
    made: list[Request] = []
    make_client = s3.make_client

    def note(params: dict[str, Any], model: Any, **_: object) -> None:
        made.append(Request(model.name, params))

    async def make_and_listen(*arguments: Any) -> Any:
        client, bulk = await make_client(*arguments)
        client.meta.events.register("before-parameter-build.s3", note)
        return client, bulk

    monkeypatch.setattr(s3, "make_client", make_and_listen)
    return made


@dataclass
class Life:
    """A run: steps, an upload that goes on and one that is given up, pruning, the machine lost, a resume."""

    root: Path
    storage: StorageSettings
    location: Location = field(
        default_factory=lambda: Location(BUCKET, f"{PREFIX}/{secrets.token_hex(4)}/run")
    )

    def __post_init__(self) -> None:
        self.directory = RunDirectory(self.root / "run")
        run = run_file(
            Claim(), destination=str(self.location), retention=Retention(keep_last=1), upload=UPLOADS
        )
        self.run = run.model_copy(update={"storage": self.storage})

    def live(self) -> None:
        """All of it.

        Raises:
            WmtpError: something was refused.
        """
        files.make_directory(self.directory.path)
        self.start(None)
        make_step(self.directory, 5, files=IN_PARTS)
        self._serve()
        make_step(self.directory, 6, files=IN_PARTS)
        anyio.run(self._leave_unfinished, 6, LARGE)
        anyio.run(self._leave_unfinished, 1, "nobody-wants-it.bin")
        self._serve()
        shutil.rmtree(self.directory.path)
        self.start(Resume.parse("latest", self.root))
        check(self.directory.step(6), read_step(self.directory.step(6)).record.files)
        self._serve()
        anyio.run(self._require_tidy)

    def start(self, resume: Resume | None) -> None:
        """Take the run over, as a trainer does before its first step."""
        take_over(
            self.directory, self.run, resume, lambda *_: None, lambda _: None, fresh=False, store_timeout_s=5
        )

    def _serve(self) -> None:
        anyio.run(partial(serve_run, self.directory.path, once=True))

    async def _leave_unfinished(self, step: int, name: str) -> None:
        """As a process does that dies after it began an upload."""
        key, data = f"step_{step}/g1/{name}", IN_PARTS[LARGE]
        async with S3Store.open(self.location, self.storage) as store:
            await store.put(f"step_{step}/g1/{next(iter(IN_PARTS))}", next(iter(IN_PARTS.values())))
            upload_id = await store.create_upload(key)
            await store.upload_part(
                key, upload_id, 1, data[:BLOCK_SIZE_BYTES], of_bytes(data[:BLOCK_SIZE_BYTES])
            )
            Journal(self.directory).begin(
                Unfinished(
                    destination=store.uri,
                    key=key,
                    upload_id=upload_id,
                    size_bytes=len(data),
                    crc64nvme=of_bytes(data),
                    part_size_bytes=BLOCK_SIZE_BYTES,
                )
            )

    async def _require_tidy(self) -> None:
        async with S3Store.open(self.location, self.storage) as store:
            steps = {info.key.split("/")[0] async for info in store.list()}
            assert steps == {"manifest.json", "generations", "step_6"}
            assert [upload async for upload in store.list_uploads()] == []

    async def read(self, storage: StorageSettings) -> None:
        """Look at the run, verify what is stored, and restore its latest step."""
        async with S3Store.open(self.location, storage) as store:
            file = ManifestFile(store, "run", RunKeys())
            index = await file.read()
            assert index is not None and (await file.from_records()).live == index.live
            entry = index.find("latest")
            assert entry is not None
            record, prefix, problems = await read_commit_record(store, entry), "step_6/g1/", list[WmtpError]()
            await check_stored(store, prefix, record, problems.append)
            assert problems == []
            target, buffers = self.root / "restored/step_6", PartBuffers(BLOCK_SIZE_BYTES, 2)
            paths = self.root / "restored/step_6.g1.tmp", target, self.root / "restored/.trash"
            await restore(store, prefix, record, *paths, buffers, lambda _: None)
            check(target, read_step(target).record.files)
            with pytest.raises(ObjectMissing):  # and not StoreDenied: absence can be proven
                await store.get("no-such-key")


@pytest.fixture
def life(tmp_path: Path, guarded: Guarded) -> Life:
    """A run whose writer may do what the document says."""
    return Life(tmp_path, guarded.user(WRITER))


def test_a_run_lives_and_every_request_is_allowed(life: Life, requests: list[Request]) -> None:
    life.live()
    assert {request.name for request in requests} == NEEDS.keys() - {"HeadBucket"}
    needed = {need for request in requests for need in request.needs()}
    assert [need for need in needed if not allows(WRITER, *need)] == []
    assert {action for action, _ in needed} == {*actions_of(WRITER)}, "an action that nothing needs"


def test_wmtp_train_needs_no_more(tmp_path: Path, guarded: Guarded) -> None:
    with contextlib.closing(Lab(tmp_path / "lab", Location(BUCKET, PREFIX), guarded.user(WRITER))) as lab:
        lab.train("--max-steps", "10").require()
        lab.train("--max-steps", "15", "--resume", "latest").require()
        assert lab.bucket.live_steps() == lab.steps() == [5, 10, 15]


def test_a_reader_reads_and_every_request_is_allowed(
    life: Life, guarded: Guarded, requests: list[Request]
) -> None:
    life.live()
    requests.clear()
    anyio.run(life.read, guarded.user(READER))
    needed = {need for request in requests for need in request.needs()}
    assert [need for need in needed if not allows(READER, *need)] == []
    assert {action for action, _ in needed} == {*actions_of(READER)}, "an action that nothing needs"


@pytest.mark.parametrize("action", sorted({*actions_of(WRITER)} - NOT_ENFORCED))
def test_a_writer_needs_each_action(tmp_path: Path, guarded: Guarded, action: str) -> None:
    with pytest.raises(WmtpError, match=r"denied|credentials"):
        Life(tmp_path, guarded.user(without(WRITER, action))).live()


@pytest.mark.parametrize("action", actions_of(READER))
def test_a_reader_needs_each_action(life: Life, guarded: Guarded, action: str) -> None:
    life.live()
    with pytest.raises(StoreDenied):
        anyio.run(life.read, guarded.user(without(READER, action)))


def test_a_reader_changes_nothing(life: Life, guarded: Guarded) -> None:
    life.live()
    reader = guarded.user(READER)
    with pytest.raises(StoreDenied):
        Life(life.root / "again", reader, life.location).start(Resume.parse("latest", life.root))

    async def try_all() -> None:
        async with S3Store.open(life.location, reader) as store:
            for call in (
                store.put("manifest.json", b""),
                store.delete(["manifest.json"]),
                store.create_upload("x"),
                store.abort_upload("x", "y"),
            ):
                with pytest.raises(StoreDenied):
                    await call
            assert await ManifestFile(store, "run", RunKeys()).read() is not None

    anyio.run(try_all)


@pytest.mark.parametrize("policy", [WRITER, READER], ids=["writer", "reader"])
def test_nobody_touches_what_lies_beside(guarded: Guarded, policy: dict[str, Any]) -> None:
    storage = guarded.user(policy)

    async def try_all() -> None:
        async with S3Store.open(Location(BUCKET, "beside"), guarded.server.storage()) as store:
            await store.put("x", b"x")
        for location in (Location(BUCKET, "beside"), Location(BUCKET, f"{PREFIX}-2"), Location(BUCKET, "")):
            async with S3Store.open(location, storage) as store:
                for call in (
                    store.get("x"),
                    store.put("x", b""),
                    store.delete(["x"]),
                    store.create_upload("x"),
                ):
                    with pytest.raises(StoreDenied):
                        await call
        async with S3Store.open(Location("another-bucket", PREFIX), storage) as store:
            with pytest.raises(StoreDenied):
                await store.create_bucket()

    anyio.run(try_all)


def test_each_action_is_explained_and_nothing_else() -> None:
    text = DOCUMENT.read_text()
    explained = re.findall(r"^\| `(s3:\w+)`", text, re.MULTILINE)
    assert sorted(explained) == sorted(actions_of(WRITER))
    assert {*actions_of(READER)} < {*actions_of(WRITER)}
    further = text.partition("## With further settings")[2]
    assert {*re.findall(r"`((?:s3|kms):\w+)`", further)} == {
        one for many in WITH_PARAMETERS.values() for one in many
    }


def test_what_further_settings_need(guarded: Guarded, tmp_path: Path, requests: list[Request]) -> None:
    added = {"tags": {"team": "a b"}, "acl": "private"}
    Life(tmp_path, guarded.server.storage().model_copy(update=added)).live()
    needed = {action for request in requests for action, _ in request.needs()}
    assert needed - {*actions_of(WRITER)} == {"s3:PutObjectTagging", "s3:PutObjectAcl"}
