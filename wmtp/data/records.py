"""Files of JSON records, one a line (or one array), as documents: texts, or prompts with solutions.

The shape of each record is told by its fields:

- HumanEval (arXiv 2107.03374): ``prompt`` and ``canonical_solution``.
- MBPP (arXiv 2108.07732): ``text`` or ``prompt``, and ``code``; the tests in ``test_list`` are shown, too.
- CodeContests (arXiv 2203.07814): ``description`` and ``solutions``, each of which makes a document.
- ``prompt`` and ``solution`` or ``completion``.
- a field with the text: ``text``, or the one that ``data.text_field`` names.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uploader.errors import SettingsError
from wmtp.data.document import Document, refuse

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz")
PAIRS = (("prompt", "canonical_solution"), ("prompt", "solution"), ("prompt", "completion"))
TEXT_FIELD = "text"


@dataclass(frozen=True, slots=True)
class Records:
    """The record files of one data set.

    Attributes:
        root: the directory the names are relative to.
        names: relative POSIX paths, sorted; at least one.
        text_field: holds the text of every record; None tells the shape by the fields.
    """

    root: Path
    names: tuple[str, ...]
    text_field: str | None = None

    def documents(self) -> Iterator[Document]:
        """The documents in order; records without text are left out.

        Raises:
            DiskError: a file can't be read.
            SettingsError: a line is no JSON object, or has no shape we know; names file, line and fields.
        """
        for name in self.names:
            for place, record in _records(self.root / name, name):
                for number, (prompt, text) in enumerate(_texts(record, self.text_field, place)):
                    if text:
                        own = place if not number else f"{place}#{number}"
                        yield Document(own, _encode(text), _encode(prompt))


def _records(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record of a file with its place, ``name:line`` (``name:number`` in an array)."""
    try:
        with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
            buffered = io.BufferedReader(file) if isinstance(file, gzip.GzipFile) else file
            is_array = buffered.peek(64).lstrip()[:1] == b"["
            for number, one in enumerate(_array(buffered.read(), name) if is_array else buffered, 1):
                if is_array or one.strip():
                    yield f"{name}:{number}", _object(one, f"{name}:{number}")
    except (EOFError, zlib.error) as error:
        raise SettingsError(f"it is damaged: {error}", doing="reading", subject=name) from error
    except OSError as error:
        error.filename = error.filename or str(path)
        refuse(error)


def _array(data: bytes, name: str) -> list[Any]:
    try:
        array: list[Any] = json.loads(data)
    except ValueError as error:
        raise SettingsError(f"it is not JSON: {error}", doing="reading", subject=name) from error
    return array


def _object(one: Any, place: str) -> dict[str, Any]:
    try:
        record = json.loads(one) if isinstance(one, bytes) else one
    except ValueError as error:
        raise SettingsError(f"it is not JSON: {error}", doing="reading", subject=place) from error
    if not isinstance(record, dict):
        hint = "each line must be an object; of plain text, set data.format: text"
        raise SettingsError("it is no JSON object", doing="reading", subject=place, hint=hint)
    return record


def _texts(record: dict[str, Any], text_field: str | None, place: str) -> list[tuple[str, str]]:
    """The (prompt, text) pairs of a record."""
    fields = {key for key, value in record.items() if value is not None}
    if text_field is not None:
        return [("", _string(record, text_field, place))]
    if "code" in fields and fields & {"text", "prompt"}:
        return [(_mbpp_prompt(record, place), _string(record, "code", place))]
    if "description" in fields and fields & {"solutions", "solution"}:
        prompt = _string(record, "description", place).rstrip() + "\n\n"
        return [(prompt, solution) for solution in _solutions(record, place)]
    for prompt_field, solution_field in PAIRS:
        if {prompt_field, solution_field} <= fields:
            prompt = _string(record, prompt_field, place)
            return [(prompt, _string(record, solution_field, place))]
    return [("", _string(record, TEXT_FIELD, place))]


def _mbpp_prompt(record: dict[str, Any], place: str) -> str:
    """The task and its tests as a docstring, as in the paper's prompts."""
    task = _string(record, "text" if record.get("text") is not None else "prompt", place)
    tests = record.get("test_list") or []
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise SettingsError("it is no list of texts", doing="reading", subject=f"{place} test_list")
    return '"""\n' + "\n".join([task, *tests]) + '\n"""\n'


def _solutions(record: dict[str, Any], place: str) -> list[str]:
    """A text; a list of texts or of objects; or, as the data set has it, an object of parallel lists."""
    field = "solutions" if record.get("solutions") is not None else "solution"
    found = record[field]
    if isinstance(found, dict):
        found = found.get("solution")
    listed = found if isinstance(found, list) else [found]
    texts: list[Any] = [one.get("solution") if isinstance(one, dict) else one for one in listed]
    if not all(isinstance(text, str) for text in texts):
        problem = "there are solutions that are no texts"
        raise SettingsError(problem, doing="reading", subject=f"{place} {field}")
    return texts


def _string(record: dict[str, Any], field: str, place: str) -> str:
    value = record.get(field)
    if isinstance(value, str):
        return value
    problem = "it is no text" if field in record else f"the record has only {', '.join(sorted(record))}"
    hint = "name the field that holds the text: data.text_field"
    raise SettingsError(problem, doing="reading", subject=f"{place} {field}", hint=hint)


def _encode(text: str) -> bytes:
    """UTF-8; halves of surrogate pairs, which JSON can write and UTF-8 can't, become question marks."""
    return text.encode("utf-8", "replace")
