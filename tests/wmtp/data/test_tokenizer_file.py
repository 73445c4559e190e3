"""``tokenizer.json``: the ids of ``tokenizers``, and text that stays text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from uploader.errors import SettingsError
from wmtp.data.document import Document
from wmtp.data.packed import PackedTokens
from wmtp.data.tokenizer import ByteTokenizer
from wmtp.data.tokenizer_file import FileTokenizer

TEXT = "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n" * 3 + "Übergröße naïve 数据 🙂"


@pytest.fixture(scope="module")
def trained() -> str:
    """A byte-level BPE with merges, as the JSON of its file."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=512)
    return str(tokenizer.to_str())


@pytest.fixture
def path(tmp_path: Path, trained: str) -> Path:
    (tmp_path / "tokenizer.json").write_text(trained)
    return tmp_path


def test_ids_are_those_of_tokenizers_without_its_truncation_and_padding(path: Path) -> None:
    ours, theirs = FileTokenizer(path), tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    ids = ours.encode(TEXT.encode())
    assert ids.tolist() == theirs.encode(TEXT).ids
    assert 4 < len(ids) < len(TEXT.encode()) / 1.5
    assert ours.vocab_size == theirs.get_vocab_size() == 300
    assert ours.decode(ids) == TEXT.encode()


def test_text_never_becomes_a_special_token(path: Path) -> None:
    tokenizer = FileTokenizer(path)
    ids = tokenizer.encode(b"a</s>b<s>")
    assert not {tokenizer.bos_id, tokenizer.eos_id} & {*ids.tolist()}
    assert tokenizer.decode(ids) == b"a</s>b<s>"


def test_bytes_that_are_no_utf8_are_replaced(path: Path) -> None:
    tokenizer = FileTokenizer(path)
    assert tokenizer.decode(tokenizer.encode(b"a\xffb")) == "a\ufffdb".encode()


@given(prompt=st.text(max_size=20), text=st.text(min_size=1, max_size=20))
def test_prompt_and_text_are_one_text_to_the_tokenizer(trained: str, prompt: str, text: str) -> None:
    tokenizer = _from_text(trained)
    ids, first = tokenizer.encode_after(prompt.encode("utf-8", "replace"), text.encode("utf-8", "replace"))
    whole = (prompt + text).encode("utf-8", "replace")
    assert ids.tolist() == tokenizer.encode(whole).tolist()
    assert len(tokenizer.decode(ids[:first])) <= len(prompt.encode("utf-8", "replace")) + 2
    assert first < len(ids)


def _from_text(trained: str, made: dict[str, FileTokenizer] = {}) -> FileTokenizer:  # noqa: B006
    import tempfile

    if trained not in made:
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "tokenizer.json").write_text(trained)
            made[trained] = FileTokenizer(Path(directory))
    return made[trained]


def test_a_token_across_the_border_is_learnt(path: Path) -> None:
    tokenizer = FileTokenizer(path)
    whole = tokenizer.encode(b"return")
    assert len(whole) < 4
    ids, first = tokenizer.encode_after(b"retur", b"n")
    assert ids.tolist() == whole.tolist()
    assert first == len(whole) - 1
    assert tokenizer.encode_after(b"a\n", b"return")[1] == 2


def test_packed_prompts_are_hidden(path: Path, tmp_path: Path) -> None:
    class One:
        def documents(self) -> Any:
            yield Document("a", b"return a + b\n", b"def add(a, b):\n    ")

    tokenizer = FileTokenizer(path)
    packed = PackedTokens.open(One(), tokenizer, tmp_path / "cache")
    learnt = packed.array[~packed.is_prompt(np.arange(len(packed)))]
    assert tokenizer.decode(learnt).lstrip() == b"return a + b\n"
    assert learnt[-1] == tokenizer.eos_id
    assert packed.array[0] == tokenizer.bos_id and packed.is_prompt(np.array([0]))[0]


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({}, (0, 1)),
        ({"tokenizer_config.json": {"bos_token": "a", "eos_token": {"content": "b"}}}, ("a", "b")),
        ({"config.json": {"bos_token_id": 7, "eos_token_id": [8, 9]}}, (7, 8)),
        ({"tokenizer_config.json": {"eos_token": "b"}, "config.json": {"eos_token_id": 9}}, (0, "b")),
    ],
)
def test_what_says_how_a_text_begins_and_ends(path: Path, beside: Any, expected: Any) -> None:
    for name, tree in beside.items():
        (path / name).write_text(json.dumps(tree))
    tokenizer = FileTokenizer(path)
    ids = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab()
    assert (tokenizer.bos_id, tokenizer.eos_id) == tuple(ids.get(one, one) for one in expected)


def test_the_name_follows_the_content(path: Path) -> None:
    before = FileTokenizer(path)
    assert FileTokenizer(path / "tokenizer.json").name == before.name
    (path / "config.json").write_text('{"eos_token_id": 9}')
    after = FileTokenizer(path)
    assert after.name != before.name  # its documents end otherwise
    assert after.vocabulary == before.vocabulary


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"data\.tokenizer .*tokenizer\.json: No such file or directory; name a tokenizer\.json"),
        ("{", r"it is no tokenizer\.json: "),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(SettingsError, match=says):
        FileTokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SettingsError, match="nothing says which token ends a text; put a tokenizer_config"):
        FileTokenizer(tmp_path)


def test_a_tokenizer_without_a_beginning_packs_without_one(tmp_path: Path) -> None:
    tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "<eos>": 1}, merges=[])).save(
        str(tmp_path / "tokenizer.json")
    )

    class One:
        def documents(self) -> Any:
            yield Document("x", b"aa")

    packed = PackedTokens.open(One(), FileTokenizer(tmp_path), tmp_path / "cache")
    assert packed.array.tolist() == [0, 0, 1]


def test_the_byte_tokenizer_as_a_file_gives_text_the_same_ids(tmp_path: Path) -> None:
    own = ByteTokenizer()
    for name, data in own.files().items():
        (tmp_path / name).write_bytes(data)
    other = FileTokenizer(tmp_path)
    assert other.encode(TEXT.encode()).tolist() == own.encode(TEXT.encode()).tolist()
    assert (other.bos_id, other.eos_id, other.vocabulary) == (own.bos_id, own.eos_id, own.vocabulary)
    assert other.decode(other.encode(TEXT.encode())) == TEXT.encode()
    assert other.files() == own.files()
