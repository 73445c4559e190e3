"""All tokens of a corpus in one file, built once and memory-mapped ever after.

The file is named by what went into it: names and bytes of the documents, and the tokenizer. Its record is
renamed into place last, so tokens without a record were never finished; those, and tokens that are not what
it says, are built again. Losing the cache directory loses nothing but time.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from uploader import checksum
from uploader.below import private
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import DiskError, SettingsError
from uploader.files import make_directory
from wmtp.data.document import Document, Documents
from wmtp.data.tokenizer import Tokenizer, Tokens, token_dtype

log = logging.getLogger("wmtp")

Spans: TypeAlias = npt.NDArray[np.int64]
"""Ranges of tokens, [N, 2]: the first of each and the one after its last, in order."""

FORMAT = "wmtp packed tokens 1"
"""Goes into every fingerprint: files of another layout get other names."""


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """What a tokens file holds; its JSON lies beside it.

    Attributes:
        fingerprint: hexadecimal SHA-256 of documents and tokenizer.
        dtype: the NumPy type of one token.
        tokens: how many, special ones included.
        text_bytes: size of the texts of all documents together, without their prompts.
        prompts: documents that have a prompt; where those lie is in a file of its own.
        crc64nvme: of the tokens, and then of where the prompts lie.
    """

    fingerprint: str
    tokenizer: str
    dtype: str
    tokens: int
    text_bytes: int
    prompts: int = 0
    crc64nvme: str = ""


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """A corpus as one array: for each document bos, its tokens, eos.

    Attributes:
        array: the memory-mapped tokens, read-only, shape [record.tokens].
        prompts: where tokens are read but not learnt: bos and prompt of each document that has one.
    """

    array: Tokens
    record: PackedRecord
    prompts: Spans = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))

    @classmethod
    def open(cls, corpus: Documents, tokenizer: Tokenizer, cache: Path) -> "PackedTokens":
        """The packed tokens of ``corpus``, from the directory ``cache`` if they lie there, else built.

        Raises:
            SettingsError: there is no text in it.
            DiskError: the corpus can't be read or the cache can't be written.
        """
        fingerprint = fingerprint_of(corpus, tokenizer)
        try:
            with _locked(cache):
                return _load(cache, fingerprint) or _build(corpus, tokenizer, cache)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DiskError(reason, doing="packing tokens in", subject=str(cache)) from error

    @property
    def fingerprint(self) -> str:
        """Equal for equal documents under an equal tokenizer."""
        return self.record.fingerprint

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for each token that is learnt, over the whole corpus."""
        return self.record.text_bytes / (self.record.tokens - int(np.diff(self.prompts).sum()))

    def is_prompt(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the tokens at ``places`` belong to a prompt; any shape."""
        if not len(self.prompts):
            return np.zeros(places.shape, dtype=np.bool_)
        nearest = np.searchsorted(self.prompts[:, 0], places, side="right") - 1
        inside: npt.NDArray[np.bool_] = (nearest >= 0) & (places < self.prompts[nearest, 1])
        return inside

    def __len__(self) -> int:
        return self.record.tokens


def fingerprint_of(corpus: Documents, tokenizer: Tokenizer) -> str:
    """The name of the packed tokens of ``corpus``; reads every document.

    Raises:
        DiskError: a document can't be read.
    """
    digest = _digest(tokenizer)
    for document in corpus.documents():
        digest.update(_identity(document))
    return digest.hexdigest()


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One builder at a time: what a killed one left is the next one's to write over, and ranks build once."""
    make_directory(cache)
    with open(cache / "lock", "wb", opener=private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _load(cache: Path, fingerprint: str) -> PackedTokens | None:
    """The finished file of that name; None where there is none."""
    try:
        record = PackedRecord(**json.loads((cache / f"{fingerprint}.json").read_bytes()))
        array = np.memmap(cache / f"{fingerprint}.tokens", dtype=record.dtype, mode="r")
        spans = cache / f"{fingerprint}.prompts"
        prompts = np.fromfile(spans, "<i8") if record.prompts else np.empty(0, "<i8")
    except (FileNotFoundError, TypeError, ValueError):
        return None
    if (len(array), len(prompts), _checksum(array, prompts)) != (
        record.tokens, 2 * record.prompts, record.crc64nvme
    ):  # fmt: skip
        log.warning("%s: the packed tokens are damaged; they are built again", cache)
        return None
    return PackedTokens(array, record, prompts.reshape(-1, 2))


def _checksum(*arrays: npt.NDArray[Any]) -> str:
    """Read whole, as the documents were for their fingerprint."""
    crc = 0
    for array in arrays:
        for at in range(0, len(array), BLOCK_SIZE_BYTES):
            crc = checksum.crc64nvme(array[at : at + BLOCK_SIZE_BYTES].view(np.uint8).data, crc)
    return checksum.encode(crc)


def _build(corpus: Documents, tokenizer: Tokenizer, cache: Path) -> PackedTokens:
    """Write the tokens, then their record, named by the bytes read *here*, not by those hashed before."""
    digest, dtype = _digest(tokenizer), token_dtype(tokenizer.vocab_size)
    staged, tokens, text_bytes = cache / "building.tmp", 0, 0
    spans: list[tuple[int, int]] = []
    with open(staged, "wb", opener=private) as file:
        for document in corpus.documents():
            digest.update(_identity(document))
            ids, learnt_from = _pack(document, tokenizer)
            if learnt_from:
                spans.append((tokens, tokens + learnt_from))
            file.write(ids.astype(dtype).data)
            tokens, text_bytes = tokens + len(ids), text_bytes + len(document.text)
        _sync(file)
    if not tokens:
        hint = "name other data, or in data.text_field the field that holds the text"
        raise SettingsError("all of its records are empty", subject="data.train", hint=hint)
    name, prompts = digest.hexdigest(), np.array(spans, dtype="<i8").reshape(-1, 2)
    tokens_path = staged.rename(cache / f"{name}.tokens")
    array = np.memmap(tokens_path, dtype=dtype, mode="r")
    crc = _checksum(array, prompts.reshape(-1))
    record = PackedRecord(name, tokenizer.name, dtype.str, tokens, text_bytes, len(spans), crc)
    if spans:
        _write(staged, prompts.tobytes(), cache / f"{record.fingerprint}.prompts")
    _write(staged, json.dumps(asdict(record), indent=1).encode(), cache / f"{record.fingerprint}.json")
    return PackedTokens(array, record, prompts)


def _pack(document: Document, tokenizer: Tokenizer) -> tuple[Tokens, int]:
    """A document's tokens between bos and eos, and the first one to be learnt: 0 without a prompt."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    if document.prompt:
        ids, first = tokenizer.encode_after(document.prompt, document.text)
        learnt_from = len(bos) + first
    else:
        ids, learnt_from = tokenizer.encode(document.text), 0
    before, after = np.array(bos, dtype=ids.dtype), np.array([tokenizer.eos_id], dtype=ids.dtype)
    return np.concatenate((before, ids, after)), learnt_from


def _write(staged: Path, data: bytes, path: Path) -> None:
    with open(staged, "wb", opener=private) as file:
        file.write(data)
        _sync(file)
    staged.rename(path)


def _digest(tokenizer: Tokenizer) -> "hashlib._Hash":
    return hashlib.sha256(f"{FORMAT}\n{tokenizer.name}\n".encode())


def _identity(document: Document) -> bytes:
    """Name and text with their lengths before them, so that no two lists of documents read the same."""
    name, prompt = os.fsencode(document.name), document.prompt
    if not prompt:
        return b"%d %d\n%b%b" % (len(name), len(document.text), name, document.text)
    return b"%d %d %d\n%b%b%b" % (len(name), len(prompt), len(document.text), name, prompt, document.text)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
