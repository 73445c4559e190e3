"""Packed tokens: built once, keyed by content, whole or not there."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from uploader.errors import DiskError, SettingsError
from wmtp.data import packed as module
from wmtp.data.corpus import Corpus, open_corpus
from wmtp.data.document import Documents
from wmtp.data.packed import PackedTokens, fingerprint_of
from wmtp.data.tokenizer import ByteTokenizer, Tokenizer


class OtherBytes(ByteTokenizer):
    name = "other bytes"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_bytes(b"one")
    (tmp_path / "text/b.txt").write_bytes(b"two!")
    return open_corpus(str(tmp_path / "text"))


def test_documents_lie_side_by_side_between_bos_and_eos(corpus: Corpus, tmp_path: Path) -> None:
    packed = PackedTokens.open(corpus, ByteTokenizer(), tmp_path / "cache")
    assert packed.array.tolist() == [256, *b"one", 257, 256, *b"two!", 257]
    assert packed.array.dtype == np.uint16
    assert len(packed) == 11
    assert packed.bytes_per_token == 7 / 11


def test_the_second_opening_builds_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PackedTokens.open(corpus, ByteTokenizer(), tmp_path / "cache")
    monkeypatch.delattr(module, "_build")
    second = PackedTokens.open(corpus, ByteTokenizer(), tmp_path / "cache")
    assert second.record == first.record
    assert np.array_equal(second.array, first.array)


def test_the_name_follows_bytes_names_order_and_tokenizer(corpus: Corpus) -> None:
    fingerprints = {fingerprint_of(corpus, ByteTokenizer()), fingerprint_of(corpus, OtherBytes())}
    fingerprints.add(fingerprint_of(Corpus(corpus.root, corpus.names[::-1]), ByteTokenizer()))
    (corpus.root / "a.txt").write_bytes(b"One")
    fingerprints.add(fingerprint_of(corpus, ByteTokenizer()))
    (corpus.root / "a.txt").rename(corpus.root / "aa.txt")
    fingerprints.add(fingerprint_of(open_corpus(str(corpus.root)), ByteTokenizer()))
    assert len(fingerprints) == 5


@pytest.mark.parametrize(
    "damage", ["record gone", "record torn", "tokens gone", "tokens short", "tokens changed"]
)
def test_what_was_never_finished_or_is_damaged_is_built_again(
    corpus: Corpus, tmp_path: Path, damage: str
) -> None:
    cache = tmp_path / "cache"
    packed = PackedTokens.open(corpus, ByteTokenizer(), cache)
    tokens, record = (cache / f"{packed.fingerprint}.{kind}" for kind in ("tokens", "json"))
    match damage:
        case "record gone":
            record.unlink()
        case "record torn":
            record.write_bytes(record.read_bytes()[:20])
        case "tokens gone":
            tokens.unlink()
        case "tokens short":
            tokens.write_bytes(tokens.read_bytes()[:-2])
        case "tokens changed":
            data = bytearray(tokens.read_bytes())
            data[4] ^= 1
            tokens.write_bytes(data)
    again = PackedTokens.open(corpus, ByteTokenizer(), cache)
    assert again.array.tolist() == [256, *b"one", 257, 256, *b"two!", 257]
    assert json.loads(record.read_bytes())["tokens"] == 11


def test_nothing_is_left_but_tokens_record_and_lock(corpus: Corpus, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "building.tmp").write_bytes(b"left by a killed builder")
    name = PackedTokens.open(corpus, ByteTokenizer(), cache).fingerprint
    assert sorted(path.name for path in cache.iterdir()) == [f"{name}.json", f"{name}.tokens", "lock"]


def test_text_that_changes_while_it_is_read_gets_its_own_name(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fingerprint_of", lambda *_: "stale")
    packed = PackedTokens.open(corpus, ByteTokenizer(), tmp_path / "cache")
    assert packed.fingerprint == fingerprint_of(corpus, ByteTokenizer()) != "stale"


def test_a_cache_that_cannot_be_written_is_named(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"packing tokens in .*/file/cache"):
        PackedTokens.open(corpus, ByteTokenizer(), tmp_path / "file" / "cache")


class Built:
    """Counts what is built, by hooking into the module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times, self._build = 0, module._build
        monkeypatch.setattr(module, "_build", self)

    def __call__(self, corpus: Documents, tokenizer: Tokenizer, cache: Path) -> PackedTokens:
        self.times += 1
        return self._build(corpus, tokenizer, cache)


def test_only_another_content_is_built_anew(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, cache = Built(monkeypatch), tmp_path / "cache"
    first = PackedTokens.open(corpus, ByteTokenizer(), cache)
    os.utime(corpus.root / "a.txt", (1, 1))
    shutil.copytree(corpus.root, tmp_path / "elsewhere")
    for path in ("text", "elsewhere"):
        found = PackedTokens.open(open_corpus(str(tmp_path / path)), ByteTokenizer(), cache)
        assert found.fingerprint == first.fingerprint
    assert built.times == 1
    stat = (corpus.root / "a.txt").stat()
    (corpus.root / "a.txt").write_bytes(b"two")  # as long, and then as old
    os.utime(corpus.root / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = PackedTokens.open(corpus, ByteTokenizer(), cache)
    assert built.times == 2
    assert changed.array.tolist() == [256, *b"two", 257, 256, *b"two!", 257]


def test_who_comes_at_the_same_time_waits_and_builds_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Built(monkeypatch)
    with ThreadPoolExecutor(4) as pool:  # each opens the lock for itself, as processes do
        opened = [
            pool.submit(PackedTokens.open, corpus, ByteTokenizer(), tmp_path / "cache") for _ in range(4)
        ]
    assert {one.result().array.tobytes() for one in opened} == {opened[0].result().array.tobytes()}
    assert built.times == 1


@pytest.mark.parametrize("content", [b"\n\n", b'{"text": ""}\n'])
def test_records_without_any_text_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    for _ in range(2):
        with pytest.raises(
            SettingsError, match=r"^data\.train: all of its records are empty; name other data"
        ):
            PackedTokens.open(open_corpus(str(tmp_path / "a.jsonl")), ByteTokenizer(), tmp_path / "cache")
