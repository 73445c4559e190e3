"""Credentials that expire in the middle of a run, against a server that knows which ones are good."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from key_process import giving_keys

from uploader.errors import StoreDenied, WmtpError
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.s3 import S3Store

pytestmark = pytest.mark.anyio

REFUSED = b"<Error><Code>%s</Code><Message>no</Message></Error>"


@dataclass
class Server:
    """Takes every request that is signed with the good key; of the others it says ``refusal``."""

    good: str
    refusal: bytes = b"ExpiredToken"
    seen: list[str] = field(default_factory=list)

    async def talk(self, stream: SocketStream) -> None:
        async with stream:
            received = b""
            while chunk := await self._receive(stream):
                received += chunk
                head, found, rest = received.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                size = int(length[1]) if length else 0
                if b"100-continue" in head.lower() and found and not rest:
                    await stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                elif found and len(rest) >= size:
                    received = rest[size:]
                    await stream.send(self._answer(head))

    async def _receive(self, stream: SocketStream) -> bytes:
        try:
            return await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return b""

    def _answer(self, head: bytes) -> bytes:
        signed_with = re.search(rb"Credential=([^/]+)/", head)
        assert signed_with
        self.seen.append(signed_with[1].decode())
        good = self.seen[-1] == self.good
        body = b"" if good or head.startswith(b"HEAD") else REFUSED % self.refusal
        status, etag = (b"200 OK", b'ETag: "e"\r\n') if good else (b"400 Bad Request", b"")
        return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, etag, len(body), body)


@asynccontextmanager
async def store_of(server: Server, **storage: str) -> AsyncIterator[S3Store]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610
    settings = StorageSettings(endpoint_url=f"http://127.0.0.1:{port}", addressing_style="path", **storage)  # type: ignore[arg-type]
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, server.talk)
        async with S3Store.open(Location("bucket", "run"), settings) as store:
            yield store
        group.cancel_scope.cancel()


def write(path: Path, key: str) -> None:
    path.write_text(
        f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = t\n"
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "credentials"
    write(path, "OLD")
    return path


@pytest.mark.parametrize("refusal", [b"ExpiredToken", b"InvalidAccessKeyId", b"TokenRefreshRequired"])
async def test_a_file_that_was_rewritten_is_read_again_once(file: Path, refusal: bytes) -> None:
    server = Server("NEW", refusal)
    async with store_of(server, credentials_file=str(file)) as store:
        write(file, "NEW")
        await store.get("key")
        await store.get("key")
        assert server.seen == ["OLD", "NEW", "NEW"]
        server.good = "NEWER"
        write(file, "NEWER")
        assert (await store.head("key")).etag == "e"  # an answer to HEAD gives no code
    assert server.seen[-1] == "NEWER"


async def test_the_file_of_the_aws_chain_too(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    server = Server("NEW")
    async with store_of(server) as store:
        write(file, "NEW")
        await store.get("key")
    assert server.seen == ["OLD", "NEW"]


async def test_requests_that_were_under_way_are_all_sent_again(file: Path) -> None:
    server = Server("NEW")
    async with store_of(server, credentials_file=str(file)) as store:
        write(file, "NEW")
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(store.get, f"key{number}")
    assert server.seen.count("NEW") == 8


async def test_a_file_that_says_the_same_is_a_clear_error(file: Path) -> None:
    server = Server("NEW")
    async with store_of(server, credentials_file=str(file)) as store:
        with pytest.raises(StoreDenied, match=r"expired credentials \(ExpiredToken\); renew"):
            await store.get("key")
        assert server.seen == ["OLD"]
        write(file, "WRONG")
        with pytest.raises(StoreDenied, match="renew"):
            await store.get("key")
        assert server.seen == ["OLD", "OLD", "OLD", "WRONG"]  # by us, by botocore, renewed: not for ever


async def test_another_refusal_is_no_reason_to_read_it_again(file: Path) -> None:
    server = Server("NEW", b"AccessDenied")
    async with store_of(server, credentials_file=str(file)) as store:
        write(file, "NEW")
        with pytest.raises(WmtpError, match="access denied"):
            await store.get("key")
    assert server.seen == ["OLD"]


async def test_what_can_be_refreshed_is_refreshed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process gives keys that are about to expire, so each request asks it for the next."""
    aws = giving_keys(tmp_path)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(aws / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(aws / "none"))
    server, count = Server(""), aws / "count"
    async with store_of(server, profile="agent") as store:
        for _ in range(2):
            server.good = f"KEY{int(count.read_text()) + 1}"
            await store.get("key")
    assert len({*server.seen}) == 2
