"""All tokens of a corpus in one file, built once and memory-mapped ever after.

The file is named by what went into it: names and bytes of the documents, and the tokenizer. Its record is
renamed into place last, so tokens without a record, or of another size than it says, were never finished and
are built again. Losing the cache directory loses nothing but time.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from uploader.errors import DiskError
from wmtp.data.corpus import Corpus, Document
from wmtp.data.tokenizer import Tokenizer, Tokens, token_dtype

FORMAT = "wmtp packed tokens 1"
"""Goes into every fingerprint: files of another layout get other names."""


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """What a tokens file holds; its JSON lies beside it.

    Attributes:
        fingerprint: hexadecimal SHA-256 of documents and tokenizer.
        dtype: the NumPy type of one token.
        tokens: how many, special ones included.
        text_bytes: size of all documents together.
    """

    fingerprint: str
    tokenizer: str
    dtype: str
    tokens: int
    text_bytes: int


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """A corpus as one array: for each document bos, its tokens, eos.

    Attributes:
        array: the memory-mapped tokens, read-only, shape [record.tokens].
    """

    array: Tokens
    record: PackedRecord

    @classmethod
    def open(cls, corpus: Corpus, tokenizer: Tokenizer, cache: Path) -> "PackedTokens":
        """The packed tokens of ``corpus``, from the directory ``cache`` if they lie there, else built.

        Raises:
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
        """Bytes of text for each token, over the whole corpus."""
        return self.record.text_bytes / self.record.tokens

    def __len__(self) -> int:
        return self.record.tokens


def fingerprint_of(corpus: Corpus, tokenizer: Tokenizer) -> str:
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
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _load(cache: Path, fingerprint: str) -> PackedTokens | None:
    """The finished file of that name; None where there is none."""
    try:
        record = PackedRecord(**json.loads((cache / f"{fingerprint}.json").read_bytes()))
        array = np.memmap(cache / f"{fingerprint}.tokens", dtype=record.dtype, mode="r")
    except (FileNotFoundError, TypeError, ValueError):
        return None
    return PackedTokens(array, record) if len(array) == record.tokens else None


def _build(corpus: Corpus, tokenizer: Tokenizer, cache: Path) -> PackedTokens:
    """Write the tokens, then their record, named by the bytes read *here*, not by those hashed before."""
    digest, dtype = _digest(tokenizer), token_dtype(tokenizer.vocab_size)
    staged, tokens, text_bytes = cache / "building.tmp", 0, 0
    with staged.open("wb") as file:
        for document in corpus.documents():
            digest.update(_identity(document))
            ids = tokenizer.encode(document.text)
            ids = np.concatenate(([tokenizer.bos_id], ids, [tokenizer.eos_id])).astype(dtype)
            file.write(ids.data)
            tokens, text_bytes = tokens + len(ids), text_bytes + len(document.text)
        _sync(file)
    record = PackedRecord(digest.hexdigest(), tokenizer.name, dtype.str, tokens, text_bytes)
    tokens_path = staged.rename(cache / f"{record.fingerprint}.tokens")
    with staged.open("wb") as file:
        file.write(json.dumps(asdict(record), indent=1).encode())
        _sync(file)
    staged.rename(cache / f"{record.fingerprint}.json")
    return PackedTokens(np.memmap(tokens_path, dtype=dtype, mode="r"), record)


def _digest(tokenizer: Tokenizer) -> "hashlib._Hash":
    return hashlib.sha256(f"{FORMAT}\n{tokenizer.name}\n".encode())


def _identity(document: Document) -> bytes:
    """Name and text with their lengths before them, so that no two lists of documents read the same."""
    name = os.fsencode(document.name)
    return b"%d %d\n%b%b" % (len(name), len(document.text), name, document.text)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
