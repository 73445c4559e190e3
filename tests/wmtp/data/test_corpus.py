"""Corpora: what is read, in which order, and what is refused."""

from pathlib import Path

import pytest

from uploader.errors import DiskError, SettingsError
from wmtp.data.corpus import Corpus, Document, open_corpus


def test_a_directory_gives_its_text_files_by_sorted_name(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.md", "a/c.txt", "a-b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert open_corpus(str(tmp_path)).names == ("a-b.py", "a/c.txt", "a/z.md", "b.py")


def test_binary_empty_hidden_and_test_files_are_left_out(tmp_path: Path) -> None:
    for name in ("kept.py", "image.png", "tests/t.py", ".git/c.txt", "__pycache__/p.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.py").touch()
    assert open_corpus(str(tmp_path)).names == ("kept.py",)


def test_a_file_is_a_corpus_of_one_whatever_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "notes.log").write_bytes(b"\x00\xff")
    assert list(open_corpus(str(tmp_path / "notes.log")).documents()) == [Document("notes.log", b"\x00\xff")]


def test_the_standard_library_is_there_without_its_tests() -> None:
    names = open_corpus("stdlib").names
    assert {"abc.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert list(names) == sorted(names)


@pytest.mark.parametrize("content", [None, b""])
def test_missing_and_empty_paths_name_the_field(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^data\.train: .*corpus\.txt.*; name a"):
        open_corpus(str(path), field="data.train")


def test_a_directory_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no text in"):
        open_corpus(str(tmp_path))


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("text")

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DiskError, match=rf"reading {tmp_path}: Permission denied"):
        open_corpus(str(tmp_path))


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"reading .*gone\.py"):
        list(Corpus(tmp_path, ("gone.py",)).documents())
