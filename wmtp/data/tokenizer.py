"""Bytes to token ids and back: a token for each of the 256 bytes, or a ``tokenizer.json``.

Every tokenizer is a value: equal names mean equal ids for equal bytes, so the name stands for the tokenizer
wherever packed tokens are keyed by what went into them.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


class Tokenizer(Protocol):
    """What packing needs to know of a tokenizer; ids are below ``vocab_size``."""

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None:
        """Before each document; None where the tokenizer has no such token."""
        ...

    @property
    def eos_id(self) -> int: ...

    @property
    def vocabulary(self) -> str:
        """Equal for tokenizers whose every id means the same; hexadecimal."""
        ...

    def encode(self, text: bytes) -> Tokens:
        """The ids of ``text``, without special tokens."""
        ...

    def encode_after(self, prompt: bytes, text: bytes) -> tuple[Tokens, int]:
        """The ids of both as one text, and the number of the first one that reaches into ``text``."""
        ...

    def decode(self, tokens: Tokens) -> bytes:
        """The bytes ``tokens`` stand for; special tokens stand for none."""
        ...

    def files(self) -> dict[str, bytes]:
        """The tokenizer as files of a Hugging Face directory, by name."""
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

    _SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}

    @property
    def vocabulary(self) -> str:
        added = {token: 256 + at for at, token in enumerate(self._SPECIAL.values())}
        return vocabulary_digest(_byte_vocabulary() | added)

    def encode(self, text: bytes) -> npt.NDArray[np.uint16]:
        """The ids of ``text``, shape [len(text)]."""
        return np.frombuffer(text, dtype=np.uint8).astype(np.uint16)

    def encode_after(self, prompt: bytes, text: bytes) -> tuple[npt.NDArray[np.uint16], int]:
        """The ids of both, and the number of the first of ``text``."""
        return self.encode(prompt + text), len(prompt)

    def decode(self, tokens: Tokens) -> bytes:
        """The bytes of ``tokens``, leaving out everything that is not a byte."""
        return tokens[tokens < 256].astype(np.uint8).tobytes()

    def files(self) -> dict[str, bytes]:
        """A byte-level BPE without merges, which gives text the same ids."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added = [
            {"id": 256 + at, "content": token, **flags} for at, token in enumerate(self._SPECIAL.values())
        ]
        tree = {
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": level,
            "decoder": level,
            "model": {"type": "BPE", "vocab": _byte_vocabulary(), "merges": []},
        }
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._SPECIAL}
        return {TOKENIZER: _encode(tree), TOKENIZER_CONFIG: _encode(config)}


def _byte_vocabulary() -> dict[str, int]:
    """A printable character for each byte, as GPT-2's byte-level BPE writes them, to the byte itself."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    characters = {byte: chr(256 + at) for at, byte in enumerate(others)}
    return {characters.get(byte, chr(byte)): byte for byte in range(256)}


def _encode(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, ensure_ascii=False, indent=1).encode() + b"\n"


def vocabulary_digest(ids: Mapping[str, int]) -> str:
    """A fingerprint of which token has which id."""
    return hashlib.sha256(json.dumps(sorted(ids.items())).encode()).hexdigest()


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest type that holds every id: two bytes up to 65,536 tokens, else four; little-endian."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
