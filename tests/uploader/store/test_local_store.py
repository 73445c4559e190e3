"""What a directory adds to the protocol: names that stay inside, no debris, and errors of the disk."""

import errno
import os
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader import checksum
from uploader.errors import DiskError, StoreError, StoreUnavailable, UploadMissing
from uploader.store import FileSlice, files
from uploader.store.body import PIECE_BYTES
from uploader.store.body import crc64nvme as body_checksum
from uploader.store.local import HIDDEN, STALE_S, LocalStore

pytestmark = pytest.mark.anyio

OUTSIDE = ["/etc/passwd", "../x", "a/../../x", "a/./b", "a//b", "", "a/", "a\0b", f"{HIDDEN}/lock", "link/x"]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "remote")


@pytest.mark.parametrize("key", OUTSIDE)
async def test_no_key_leaves_the_directory(store: LocalStore, tmp_path: Path, key: str) -> None:
    await store.put("inside", b"x")
    (tmp_path / "remote" / "link").symlink_to(tmp_path)
    (tmp_path / "x").write_bytes(b"not ours")
    for attempt in (store.get(key), store.put(key, b"y"), store.delete([key]), store.create_upload(key)):
        with pytest.raises(StoreError, match="this is no key"):
            await attempt
    assert (tmp_path / "x").read_bytes() == b"not ours"


@pytest.mark.parametrize("upload_id", ["../../..", "", "x" * 32, "0" * 32])
async def test_no_upload_id_leaves_the_directory(store: LocalStore, upload_id: str) -> None:
    await store.put("key", b"x")
    with pytest.raises(UploadMissing):
        await store.list_parts("key", upload_id)
    await store.abort_upload("key", upload_id)
    assert (await store.get("key"))[0] == b"x"


async def test_an_upload_belongs_to_its_key(store: LocalStore) -> None:
    upload_id = await store.create_upload("key")
    with pytest.raises(UploadMissing):
        await store.list_parts("other", upload_id)
    await store.abort_upload("other", upload_id)
    assert await store.list_parts("key", upload_id) == []


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.ENOSPC, DiskError, "free some space"),
        (errno.EDQUOT, DiskError, "quota"),
        (errno.EROFS, DiskError, "mount it writable"),
        (errno.EACCES, DiskError, "writable for this user"),
        (errno.ESTALE, StoreUnavailable, "check the mount"),
        (errno.EIO, DiskError, ""),
    ],
)
async def test_errors_of_the_disk_say_what_to_do(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], hint: str
) -> None:
    await store.put("before", b"x")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(kind) as caught:
        await store.put("run/key", b"y")
    assert "writing" in str(caught.value)
    assert "run/key" in str(caught.value)
    assert hint in str(caught.value)
    monkeypatch.undo()
    assert [info.key async for info in store.list()] == ["before"]
    assert os.listdir(Path(store.uri.removeprefix("file://")) / HIDDEN / "tmp") == []


async def test_directories_left_empty_go_with_their_last_object(store: LocalStore, tmp_path: Path) -> None:
    await store.put("run/step_1/g1/a", b"x")
    await store.put("run/step_2/g1/a", b"x")
    await store.delete(["run/step_1/g1/a"])
    assert os.listdir(tmp_path / "remote" / "run") == ["step_2"]


async def test_only_old_temporary_files_are_debris(store: LocalStore, tmp_path: Path) -> None:
    await store.put("key", b"x")
    staging = tmp_path / "remote" / HIDDEN / "tmp"
    (staging / "old").write_bytes(b"x")
    (staging / "young").write_bytes(b"x")
    (staging / "old-upload").mkdir()
    (staging / "old-upload" / "key").write_bytes(b"x")
    past = (staging / "young").stat().st_mtime - STALE_S - 60
    os.utime(staging / "old", (past, past))
    os.utime(staging / "old-upload", (past, past))
    await LocalStore(tmp_path / "remote").put("key", b"y")
    assert os.listdir(staging) == ["young"]


async def test_a_crash_between_two_versions_of_a_part_leaves_one_to_choose(
    store: LocalStore, tmp_path: Path
) -> None:
    upload_id = await store.create_upload("key")
    await store.upload_part("key", upload_id, 1, b"one", checksum.of_bytes(b"one"))
    upload = tmp_path / "remote" / HIDDEN / "uploads" / upload_id
    kept = next(path for path in upload.iterdir() if path.name != "key")
    await store.upload_part("key", upload_id, 1, b"two", checksum.of_bytes(b"two"))
    kept.write_bytes(b"one")  # as if the process had died before it removed the first
    (part,) = await store.list_parts("key", upload_id)
    crc = str(part.crc64nvme)
    await store.complete_upload("key", upload_id, [part], size_bytes=3, crc64nvme=crc)
    assert checksum.of_bytes((await store.get("key"))[0]) == crc


async def test_a_listing_longer_than_a_page_of_s3_is_whole(store: LocalStore, tmp_path: Path) -> None:
    await store.put("n/00000", b"")
    for number in range(1, 1500):
        (tmp_path / "remote" / "n" / f"{number:05}").touch()
    assert [info.key async for info in store.list("n/")] == [f"n/{number:05}" for number in range(1500)]


async def test_a_directory_not_made_yet_holds_nothing(store: LocalStore) -> None:
    assert [info async for info in store.list()] == []
    assert [upload async for upload in store.list_uploads()] == []


def test_the_parts_are_joined_without_the_kernels_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(files.os, "copy_file_range", refuse)
    pieces = [tmp_path / "1", tmp_path / "2"]
    for piece in pieces:
        piece.write_bytes(piece.name.encode() * 100_000)
    files.concatenate(tmp_path / "whole", pieces)
    assert (tmp_path / "whole").read_bytes() == b"1" * 100_000 + b"2" * 100_000


words = st.text(alphabet="abz.-_ä/", min_size=1, max_size=12).map(
    lambda text: "/".join(word for word in text.split("/") if word.strip(".")) or "a"
)


@given(names=st.sets(words, max_size=12), prefix=st.text(alphabet="ab/.", max_size=3))
def test_a_walk_is_in_the_order_of_keys(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], prefix: str
) -> None:
    root, made = tmp_path_factory.mktemp("walk"), set()
    for name in sorted(names):
        path = root / name
        if not any(name.startswith(f"{other}/") for other in made):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            made.add(name)
    found = [info.key for info in files.walk(root, prefix, hidden=HIDDEN)]
    assert found == sorted(name for name in made if name.startswith(prefix))


async def test_a_file_is_written_no_faster_than_is_allowed_and_a_record_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, waits = list[int](), list[float]()

    def pace(size_bytes: int) -> float:
        asked.append(size_bytes)
        return 0.25

    monkeypatch.setattr("uploader.store.local.time.sleep", waits.append)
    source, store = tmp_path / "source", LocalStore(tmp_path / "remote", pace)
    source.write_bytes(bytes(3 * PIECE_BYTES + 1))
    with source.open("rb") as file:
        body = FileSlice(file.fileno(), 0, 3 * PIECE_BYTES + 1, str(source))
        await store.put("record.json", b"{}")
        assert asked == []
        await store.put("whole", body)
        upload_id = await store.create_upload("part")
        await store.upload_part("part", upload_id, 1, body, body_checksum(body))
    assert asked == [PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 1] * 2
    assert sum(waits) == pytest.approx(0.25 * len(asked))


async def test_one_that_waits_for_its_turn_can_be_cancelled(tmp_path: Path) -> None:
    source, store = tmp_path / "source", LocalStore(tmp_path / "remote", lambda size_bytes: 3600.0)
    source.write_bytes(b"some")
    with source.open("rb") as file:
        body = FileSlice(file.fileno(), 0, 4, str(source))
        with anyio.move_on_after(0.05) as scope:
            await store.put("key", body)
    assert scope.cancelled_caught
    assert [info.key async for info in store.list()] == []
    assert list((tmp_path / "remote" / HIDDEN / "tmp").iterdir()) == []
