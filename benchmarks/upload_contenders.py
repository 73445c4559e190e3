"""Every way to upload a directory that is compared; each imports its own library only."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BUCKET = "bench"
REGION = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is uploaded, and how.

    Attributes:
        directory: a step as our trainer leaves it; its files go, its record only with ours.
        files: names and sizes in bytes.
        prefix: of the keys, without a slash at its end.
        part_size_bytes, parts_in_flight: for all who can be told.
    """

    contender: str
    directory: str
    files: dict[str, int]
    endpoint_url: str
    prefix: str
    part_size_bytes: int
    parts_in_flight: int

    @property
    def files_at_once(self) -> int:
        """With parts in flight for each file apart: one file, or two, or as many as are a part each."""
        if max(self.files.values()) <= self.part_size_bytes:
            return self.parts_in_flight
        return min(2, len(self.files), self.parts_in_flight)

    @property
    def parts_of_a_file(self) -> int:
        """How many parts of each of these files are in flight."""
        return max(1, self.parts_in_flight // self.files_at_once)

    def paths(self) -> Iterator[tuple[Path, str]]:
        """Each file and its key."""
        for name in self.files:
            yield Path(self.directory) / name, f"{self.prefix}/{name}"


Upload = Callable[[], Any]
"""Uploads everything; returns when the store has it all. Made by a contender, which prepares what it can."""


def ours(order: Order) -> Upload:
    """``commit`` of a step, as the uploader's service does it: files, node record, commit record."""
    from uploader.commit import commit
    from uploader.flow import Flow
    from uploader.journal import Journal
    from uploader.layout import RunDirectory, RunKeys
    from uploader.location import Location
    from uploader.retry import RetryPolicy
    from uploader.settings import StorageSettings, UploadSettings
    from uploader.store import open_store
    from uploader.store.retrying import RetryingStore
    from uploader.store.s3 import S3Store
    from uploader.watch import read_step

    storage = StorageSettings(endpoint_url=order.endpoint_url, region=REGION, addressing_style="path")
    settings = UploadSettings(part_size_bytes=order.part_size_bytes, parts_in_flight=order.parts_in_flight)
    step, flow = Path(order.directory), Flow(settings)
    local, journal = read_step(step), Journal(RunDirectory(step.parent))
    runner, stack = asyncio.Runner(), AsyncExitStack()
    opened = runner.run(stack.enter_async_context(open_store(Location(BUCKET, order.prefix), storage, flow)))
    assert isinstance(opened, S3Store)
    runner.run(opened.capabilities())  # which a service asks for once
    store = RetryingStore(opened, RetryPolicy(), on_sent=flow.sent)
    return lambda: runner.run(commit(local, store, RunKeys(), flow, journal, lambda size_bytes: None))


def boto3_threads(order: Order) -> Upload:
    """What ``upload_file`` of boto3 is made of: one ``TransferManager`` for all files."""
    from boto3.s3.transfer import (  # type: ignore[import-untyped]
        TransferConfig,
        create_transfer_manager,
    )

    settings = TransferConfig(
        multipart_threshold=order.part_size_bytes,
        multipart_chunksize=order.part_size_bytes,
        max_concurrency=order.parts_in_flight,
        preferred_transfer_client="classic",
    )
    return partial(_transfer, create_transfer_manager(_boto3_client(order), settings), order)


def boto3_crt(order: Order) -> Upload:
    """The CRT transfer manager of boto3, from its parts: boto3 itself leads it to AWS and TLS only."""
    from botocore.session import Session  # type: ignore[import-untyped]
    from s3transfer.crt import (  # type: ignore[import-untyped]
        BotocoreCRTCredentialsWrapper,
        BotocoreCRTRequestSerializer,
        CRTTransferManager,
        create_s3_crt_client,
    )

    session = Session()
    credentials = BotocoreCRTCredentialsWrapper(session.get_credentials()).to_crt_credentials_provider()
    client = create_s3_crt_client(REGION, credentials, part_size=order.part_size_bytes, use_ssl=False)
    where = {"region_name": REGION, "endpoint_url": order.endpoint_url}
    return partial(_transfer, CRTTransferManager(client, BotocoreCRTRequestSerializer(session, where)), order)


def _boto3_client(order: Order) -> Any:
    import boto3  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]

    config = Config(max_pool_connections=order.parts_in_flight, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=order.endpoint_url, region_name=REGION, config=config)


def _transfer(manager: Any, order: Order) -> None:
    with manager:
        for future in [manager.upload(str(path), BUCKET, key) for path, key in order.paths()]:
            future.result()


def aioboto3_upload_file(order: Order) -> Upload:
    """``upload_file`` of aioboto3, file by file."""
    import aioboto3
    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
    from boto3.s3.transfer import TransferConfig

    config = AioConfig(max_pool_connections=order.parts_in_flight, s3={"addressing_style": "path"})
    opening = aioboto3.Session().client(
        "s3", endpoint_url=order.endpoint_url, region_name=REGION, config=config
    )
    runner, stack = asyncio.Runner(), AsyncExitStack()
    client = runner.run(stack.enter_async_context(opening))
    settings = TransferConfig(
        multipart_threshold=order.part_size_bytes,
        multipart_chunksize=order.part_size_bytes,
        max_concurrency=order.parts_of_a_file,
    )

    async def upload() -> None:
        turn = asyncio.Semaphore(order.files_at_once)

        async def one(path: Path, key: str) -> None:
            async with turn:
                await client.upload_file(str(path), BUCKET, key, Config=settings)

        await asyncio.gather(*(one(path, key) for path, key in order.paths()))

    return lambda: runner.run(upload())


def obstore(order: Order) -> Upload:
    """obstore's ``put`` of files, without hashing the payload for the signature."""
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=order.endpoint_url,
        region=REGION,
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        virtual_hosted_style_request=False,
        unsigned_payload=True,
        client_options={"allow_http": True},
    )

    def put(path: Path, key: str) -> None:
        store.put(key, path, chunk_size=order.part_size_bytes, max_concurrency=order.parts_of_a_file)

    return partial(_file_by_file, put, order)


def s3torchconnector(order: Order) -> Upload:
    """The writer of s3torchconnector's client; how many parts are in flight is its own affair."""
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client

    config = S3ClientConfig(part_size=order.part_size_bytes, force_path_style=True)
    client = S3Client(REGION, endpoint=order.endpoint_url, s3client_config=config)

    def put(path: Path, key: str) -> None:
        with open(path, "rb") as file, client.put_object(BUCKET, key) as writer:
            shutil.copyfileobj(file, writer, 1024**2)

    return partial(_file_by_file, put, order)


def _file_by_file(put: Callable[[Path, str], None], order: Order) -> None:
    with ThreadPoolExecutor(order.files_at_once) as pool:
        list(pool.map(lambda pair: put(*pair), order.paths()))


def rclone(order: Order) -> Upload:
    """``rclone copy`` of the directory. Its start is measured with it: it can't be had without."""
    command = _find("rclone")
    part = f"{order.part_size_bytes}B"
    options = ["--config=", "--exclude=node-*.json", "--s3-no-check-bucket"]
    options += ["--s3-use-multipart-etag=false"]  # the sink's are no MD5s
    options += [f"--transfers={order.files_at_once}", f"--s3-upload-concurrency={order.parts_of_a_file}"]
    options += [f"--s3-chunk-size={part}", f"--s3-upload-cutoff={part}"]
    remote = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "FORCE_PATH_STYLE": "true"}
    remote |= {"REGION": REGION, "ENDPOINT": order.endpoint_url}
    environment = os.environ | {f"RCLONE_CONFIG_SINK_{name}": value for name, value in remote.items()}
    copy = [command, "copy", order.directory, f"sink:{BUCKET}/{order.prefix}", *options]
    return partial(_call, copy, environment)


def _call(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why


def _find(name: str) -> str:
    command = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if command is None:
        raise FileNotFoundError(f"{name} is not installed")
    return command


def raw(order: Order) -> Upload:
    """The limit of this machine: threads and ``sendfile``, a plain PUT for each part, nothing checked."""
    url = urlsplit(order.endpoint_url)
    each = order.part_size_bytes
    parts = [
        (path, start, min(each, order.files[path.name] - start), f"/{BUCKET}/{key}/{start}")
        for path, key in order.paths()
        for start in range(0, order.files[path.name], each)
    ]
    mine = threading.local()

    def send(part: tuple[Path, int, int, str]) -> None:
        path, start, size_bytes, target = part
        if not hasattr(mine, "connection"):
            mine.connection = socket.create_connection((url.hostname, url.port))
        head = f"PUT {target} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {size_bytes}\r\n\r\n"
        with open(path, "rb") as file:
            mine.connection.sendall(head.encode())
            mine.connection.sendfile(file, start, size_bytes)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += mine.connection.recv(4096) or _hung_up(target)
        assert answer.startswith(b"HTTP/1.1 200"), answer.splitlines()[0]

    def upload() -> None:
        with ThreadPoolExecutor(order.parts_in_flight) as pool:
            list(pool.map(send, parts))

    return upload


def _hung_up(target: str) -> bytes:
    raise ConnectionError(f"{target}: the server hung up")


RAW = "raw sendfile"
OURS = "ours"
CONTENDERS: dict[str, Callable[[Order], Upload]] = {
    RAW: raw,
    OURS: ours,
    "boto3": boto3_threads,
    "boto3-crt": boto3_crt,
    "aioboto3": aioboto3_upload_file,
    "obstore": obstore,
    "s3torchconnector": s3torchconnector,
    "rclone": rclone,
}
SINK_ONLY = {RAW}
"""Who signs nothing: a real server refuses them."""
