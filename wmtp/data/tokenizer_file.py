"""A ``tokenizer.json`` of Hugging Face's ``tokenizers``, as it lies in a model's directory.

Text never becomes a special token, whatever it spells: a document ends where the data end it.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from uploader.errors import SettingsError
from wmtp.data.tokenizer import TOKENIZER, TOKENIZER_CONFIG, Tokens, vocabulary_digest

if TYPE_CHECKING:
    import tokenizers

BESIDE = (TOKENIZER_CONFIG, "special_tokens_map.json")
_WELL_KNOWN = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"),
}


class FileTokenizer:
    """A tokenizer from a file.

    Bytes that are not UTF-8 are read as U+FFFD. Which tokens begin and end a text say, in this order,
    ``tokenizer_config.json``, ``config.json`` beside it, and the names that Llama's tokenizers use.

    Args:
        path: the file, or the directory that holds it.
        field: the setting that named it, for messages.

    Raises:
        SettingsError: it is not there, can't be read, or nothing says which token ends a text.
    """

    def __init__(self, path: Path, *, field: str = "data.tokenizer") -> None:
        self.path = path / TOKENIZER if path.is_dir() else path
        data = _read(self.path, field)
        self._tokenizer = _parse(data, self.path, field)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._ids.values(), default=-1) + 1
        self.bos_id = self._special("bos")
        eos_id = self._special("eos")
        if eos_id is None:
            hint = f"put a {TOKENIZER_CONFIG} with an eos_token beside it"
            raise SettingsError(
                "nothing says which token ends a text", subject=f"{field} {self.path}", hint=hint
            )
        self.eos_id = eos_id
        digest = hashlib.sha256(data + f"{self.bos_id} {self.eos_id}".encode())
        self.name = f"{TOKENIZER}-{digest.hexdigest()[:32]}"

    @property
    def vocabulary(self) -> str:
        return vocabulary_digest(self._ids)

    def encode(self, text: bytes) -> npt.NDArray[np.uint32]:
        """The ids of ``text``."""
        ids = self._tokenizer.encode(_decode(text), add_special_tokens=False).ids
        return np.asarray(ids, dtype=np.uint32)

    def encode_after(self, prompt: bytes, text: bytes) -> tuple[npt.NDArray[np.uint32], int]:
        """The ids of both as one text; a token with the end of one and the start of the other is text."""
        before = _decode(prompt)
        encoding = self._tokenizer.encode(before + _decode(text), add_special_tokens=False)
        inside = [at for at, (_, end) in enumerate(encoding.offsets) if end > len(before)]
        return np.asarray(encoding.ids, dtype=np.uint32), inside[0] if inside else len(encoding.ids)

    def decode(self, tokens: Tokens) -> bytes:
        """The text of ``tokens`` without the special ones, as UTF-8."""
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True).encode()

    def files(self) -> dict[str, bytes]:
        """The file and what lies beside it, unchanged."""
        beside = [path for name in BESIDE if (path := self.path.parent / name).exists()]
        own = {path.name: _read(path, "tokenizer") for path in beside}
        return {TOKENIZER: _read(self.path, "tokenizer"), **own}

    def _special(self, which: str) -> int | None:
        """The id of ``bos`` or ``eos``; None where nothing says."""
        token = self._beside(TOKENIZER_CONFIG).get(f"{which}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in self._ids:
            return self._ids[token]
        number = self._beside("config.json").get(f"{which}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and 0 <= number < self.vocab_size:
            return number
        return next((self._ids[name] for name in _WELL_KNOWN[which] if name in self._ids), None)

    def _beside(self, name: str) -> dict[str, Any]:
        path = self.path.parent / name
        if not path.exists():
            return {}
        try:
            tree = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"it can't be read: {error}", subject=str(path)) from error
        return tree if isinstance(tree, dict) else {}


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = f"name a {TOKENIZER} or the directory that holds one"
        raise SettingsError(error.strerror or str(error), subject=f"{field} {path}", hint=hint) from error


def _parse(data: bytes, path: Path, field: str) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError as error:
        hint = "install it: pip install 'wmtp[train]'"
        problem = "the package tokenizers is not installed"
        raise SettingsError(problem, subject=f"{field} {path}", hint=hint) from error
    try:
        return tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # the package raises nothing narrower
        problem = f"it is no {TOKENIZER}: {error}"
        raise SettingsError(problem, subject=f"{field} {path}") from error


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "replace")
