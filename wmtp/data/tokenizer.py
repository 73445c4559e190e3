"""Bytes to token ids and back: a token for each of the 256 bytes, and three special ones.

Every tokenizer is a value: equal names mean equal ids for equal bytes, so the name stands for the tokenizer
wherever packed tokens are keyed by what went into them.
"""

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]


class Tokenizer(Protocol):
    """What packing needs to know of a tokenizer; ids are below ``vocab_size``."""

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...

    def encode(self, text: bytes) -> Tokens:
        """The ids of ``text``, without special tokens."""
        ...

    def decode(self, tokens: Tokens) -> bytes:
        """The bytes ``tokens`` stand for; special tokens stand for none."""
        ...


class ByteTokenizer:
    """One token a byte: ids 0–255 are the bytes, then bos, eos and pad.

    ``vocab_size`` is rounded up to 264, a multiple of eight; the last five ids are never used.
    """

    name = "bytes-264"
    vocab_size = 264
    bos_id = 256
    eos_id = 257
    pad_id = 258

    def encode(self, text: bytes) -> npt.NDArray[np.uint16]:
        """The ids of ``text``, shape [len(text)]."""
        return np.frombuffer(text, dtype=np.uint8).astype(np.uint16)

    def decode(self, tokens: Tokens) -> bytes:
        """The bytes of ``tokens``, leaving out everything that is not a byte."""
        return tokens[tokens < 256].astype(np.uint8).tobytes()


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest type that holds every id: two bytes up to 65,536 tokens, else four; little-endian."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
