"""A damaged copy is named and the other one used; where both are damaged, the step before is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import LATEST, Machine, index_of, live, said
from toys import damage, make_step

from uploader.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

FILE, RECORD, COMMIT = "data.bin", "node-0000.json", "checkpoint.json"


def flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


Change = Callable[[bytes], bytes] | None
KINDS: dict[str, tuple[str, Change]] = {
    "a bit flipped": (FILE, flipped),
    "a file truncated": (FILE, truncated),
    "a file empty": (FILE, lambda _: b""),
    "a file missing": (FILE, None),
    "the record's bit flipped": (RECORD, flipped),
    "the record truncated": (RECORD, truncated),
    "the record missing": (RECORD, None),
}
"""What may be wrong with a copy: of which file, and what becomes of it; None: it is gone."""
STORED = {
    **KINDS,
    "the commit record's bit flipped": (COMMIT, flipped),
    "the commit record missing": (COMMIT, None),
}
WHOLE, NONE = "intact", "not there"


def damage_local(here: Machine, kind: str) -> None:
    if kind == NONE:
        shutil.rmtree(here.directory.step(20))
    elif kind != WHOLE:
        name, change = KINDS[kind]
        path = here.directory.step(20) / name
        data = path.read_bytes()
        path.unlink()
        if change is not None:
            path.write_bytes(change(data))


async def damage_stored(store: MemoryStore, kind: str) -> None:
    if kind != WHOLE:
        name, change = STORED[kind]
        key = f"step_20/g1/{name}"
        data, _ = await store.get(key)
        await store.delete([key])
        if change is not None:
            await store.put(key, change(data))


@pytest.mark.parametrize("stored", [WHOLE, NONE, *STORED])
@pytest.mark.parametrize("local", [WHOLE, NONE, *KINDS])
async def test_the_newest_intact_copy_is_loaded(tmp_path: Path, local: str, stored: str) -> None:
    store = MemoryStore()
    here = Machine(tmp_path / "run", store)
    await here.trained(10)
    step = here.save(20)
    if stored != NONE:
        await here.upload(step)
        await damage_stored(store, stored)
    damage_local(here, local)
    before = set(await here.keys())

    started = await here.start(LATEST)

    told = "\n".join([*here.said, *started.skipped])
    has_local_record = local not in (
        NONE,
        "the record's bit flipped",
        "the record truncated",
        "the record missing",
    )
    if local == WHOLE:
        assert (started.step, started.source, here.said) == (20, str(here.directory.step(20)), [])
    elif stored == WHOLE:
        assert (started.step, started.source, started.skipped) == (20, "memory:///step_20/g1", [])
        assert (here.directory.step(20) / FILE).read_text() == said(20)
    else:
        assert (started.step, here.loaded) == (10, [said(10)])
        if stored != NONE:
            assert f"step_20/g1/{STORED[stored][0]}" in started.skipped[0]
            assert await live(store) == ["step_10@g1"], "what can't be loaded leads nowhere"
            assert [*(await index_of(store)).superseded] == ["step_20@g1"], "and is kept to be looked at"
    if local not in (WHOLE, NONE, "the record missing"):
        assert str(here.directory.step(20) / KINDS[local][0]) in told, "the local copy is named"
    if local == "a bit flipped":
        assert "(block 0) differ from the record" in told
    if stored == "a bit flipped" and local != WHOLE:
        assert "(part 1) differ from the record" in told
    if not has_local_record and stored == NONE:
        assert started.skipped == []
    assert here.loaded == [said(started.step)]
    assert before <= set(await here.keys()), "nothing in the store is deleted by a start"


@pytest.mark.parametrize("block", [0, 1, 2])
async def test_the_damaged_part_of_a_large_file_is_named(tmp_path: Path, block: int) -> None:
    from uploader.checksum import BLOCK_SIZE_BYTES
    from uploader.settings import UploadSettings

    store = MemoryStore()
    here = Machine(tmp_path / "run", store)
    here.run = here.run.model_copy(update={"upload": UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES)})
    await here.trained(10)
    await here.upload(make_step(here.directory, 20, 1, size_bytes=2 * BLOCK_SIZE_BYTES + 100))
    path = here.directory.step(20) / FILE
    data = bytearray(path.read_bytes())
    at = min(block * BLOCK_SIZE_BYTES + 50, len(data) - 1)
    data[at] ^= 1
    path.write_bytes(data)
    start, end = block * BLOCK_SIZE_BYTES, min((block + 1) * BLOCK_SIZE_BYTES, len(data))
    started = await here.start(LATEST)
    assert started.step == 20
    words = (
        f"{path}: bytes {start} to {end} (block {block}) differ from the record; using the copy in the store"
    )
    assert any(words in line for line in here.said)

    key = f"step_20/g1/{FILE}"
    stored = bytearray((await store.get(key))[0])
    stored[at] ^= 1
    await store.put(key, bytes(stored))
    damage(path)
    started = await here.start(LATEST)
    assert started.step == 10
    assert f"{key}: bytes {start} to {end} (part {block + 1}) differ from the record" in started.skipped[0]
    assert str(path) in started.skipped[0], "and so is the local copy"
