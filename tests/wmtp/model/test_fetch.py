"""Models and data sets from a store: fetched once, verified, cached by content."""

import hashlib
import os
from pathlib import Path

import anyio
import pytest

from uploader import checksum
from uploader.errors import CorruptError, SettingsError, StoreError
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store import ObjectInfo, open_store
from wmtp.model import fetch as module
from wmtp.model.fetch import PART_SIZE_BYTES, fetch

Place = tuple[Location, StorageSettings]

LARGE = os.urandom(PART_SIZE_BYTES * 2 + 12_345)
FILES = {"config.json": b"{}", "sub/model.safetensors": LARGE, "empty.txt": b"", "weights.bin": b"pickle"}


def store_files(place: Place, objects: dict[str, bytes]) -> None:
    async def put() -> None:
        async with open_store(*place) as store:
            for key, data in objects.items():
                await store.put(key, memoryview(data))

    anyio.run(put)


def tree(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


@pytest.fixture
def place(s3_place: Place) -> Place:
    store_files(s3_place, {f"model/{name}": data for name, data in FILES.items()} | {"model2/x.json": b"x"})
    return s3_place


def get(place: Place, cache: Path, name: str = "model", **options: object) -> Path:
    location, storage = place
    return fetch(location.join(name), storage, cache, field="paths.models.ref", **options)  # type: ignore[arg-type]


def test_a_prefix_is_fetched_once(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    path = get(place, tmp_path, say=told.append)
    assert tree(path) == FILES
    assert len(told) == 1 and "4 files" in told[0]
    monkeypatch.delattr(module, "_download")
    assert get(place, tmp_path, say=told.append) == path
    assert len(told) == 1


def test_only_what_is_wanted_is_fetched(place: Place, tmp_path: Path) -> None:
    path = get(place, tmp_path, wanted=lambda name: not name.endswith(".bin"))
    assert sorted(tree(path)) == ["config.json", "empty.txt", "sub/model.safetensors"]
    with pytest.raises(SettingsError, match=r"nothing that can be used.*there are: config\.json, empty\.txt"):
        get(place, tmp_path, wanted=lambda name: False)


def test_one_object_is_a_file(place: Place, tmp_path: Path) -> None:
    path = get(place, tmp_path, "model/config.json")
    assert (path.name, path.read_bytes()) == ("config.json", b"{}")


def test_changed_content_is_another_copy(place: Place, tmp_path: Path) -> None:
    before = get(place, tmp_path)
    store_files(place, {"model/config.json": b"[]"})
    after = get(place, tmp_path)
    assert before != after
    assert tree(before) == FILES
    assert tree(after) == {**FILES, "config.json": b"[]"}


@pytest.mark.parametrize("damage", ["record", "file", "short"])
def test_an_unfinished_copy_is_fetched_again(place: Place, tmp_path: Path, damage: str) -> None:
    path = get(place, tmp_path)
    match damage:
        case "record":
            path.with_name(f"{path.name}.json").unlink()
        case "file":
            (path / "config.json").unlink()
        case "short":
            os.truncate(path / "sub/model.safetensors", 100)
    (path.with_name(f"{path.name}.tmp")).mkdir()
    assert get(place, tmp_path) == path
    assert tree(path) == FILES


def test_nothing_there_is_named(place: Place, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^paths\.models\.ref s3://tests/.*/modem: nothing lies there"):
        get(place, tmp_path, "modem")
    with pytest.raises(SettingsError, match=r"paths\.models\.ref file:///.*: there is no such file"):
        fetch(Location("", str(tmp_path / "no")), StorageSettings(), tmp_path, field="paths.models.ref")


def test_a_local_path_stays_where_it_is(tmp_path: Path) -> None:
    here = fetch(Location("", str(tmp_path)), StorageSettings(), tmp_path / "cache", field="data.train")
    assert here == tmp_path
    assert not (tmp_path / "cache").exists()


class Store:
    """Answers as told; the bytes it holds are not always those it says."""

    uri = "s3://bucket/models"

    def __init__(self, data: bytes, told: ObjectInfo) -> None:
        self.data, self.told = data, told

    async def get_range(self, key: str, start: int, into: memoryview) -> None:
        into[:] = self.data[start : start + len(into)]

    async def head(self, key: str) -> ObjectInfo:
        return self.told


RIGHT, WRONG = b"right" * 5_000_000, b"right" * 4_999_999 + b"wrong"
MD5, CRC = hashlib.md5(RIGHT, usedforsecurity=False).hexdigest(), checksum.of_bytes(RIGHT)  # type: ignore[call-arg]


async def download(data: bytes, told: ObjectInfo, path: Path, md5_etags: bool = True) -> str:
    listed = ObjectInfo("key", len(RIGHT), MD5)
    buffers = module.PartBuffers(PART_SIZE_BYTES, 2)
    return await module._download_file(Store(data, told), listed, path, buffers, md5_etags)  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("crc", [CRC, None])
async def test_bytes_are_compared_with_the_stores_checksum(tmp_path: Path, crc: str | None) -> None:
    told = ObjectInfo("key", len(RIGHT), MD5, crc)
    assert await download(RIGHT, told, tmp_path / "right") == CRC
    assert (tmp_path / "right").read_bytes() == RIGHT
    with pytest.raises(CorruptError, match=r"fetching s3://bucket/models/key: its checksum is"):
        await download(WRONG, told, tmp_path / "wrong")


@pytest.mark.anyio
async def test_an_etag_that_is_no_md5_is_not_taken_for_one(tmp_path: Path) -> None:
    told = ObjectInfo("key", len(RIGHT), MD5)
    assert await download(WRONG, told, tmp_path / "kms", md5_etags=False) != CRC
    assert not module._has_md5_etags(StorageSettings(sse="aws:kms"))
    assert module._has_md5_etags(StorageSettings())


@pytest.mark.anyio
async def test_an_object_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="it changed while it was read"):
        await download(RIGHT, ObjectInfo("key", len(RIGHT), "another"), tmp_path / "file")


def test_a_store_that_refuses_is_an_error(place: Place, tmp_path: Path) -> None:
    storage = place[1]
    with pytest.raises(StoreError):
        fetch(Location("no-such-bucket-here", "model"), storage, tmp_path, field="paths.models.ref")
    assert [*tmp_path.rglob("*")] == []
