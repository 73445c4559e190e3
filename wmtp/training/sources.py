"""What settings name, brought to this machine: the data set, its tokenizer, and directories of models."""

from functools import partial
from pathlib import Path

from uploader.errors import SettingsError
from wmtp.data.corpus import Corpus, is_data, open_corpus
from wmtp.data.records import Records
from wmtp.data.tokenizer import TOKENIZER, TOKENIZER_CONFIG, ByteTokenizer, Tokenizer
from wmtp.data.tokenizer_file import FileTokenizer
from wmtp.model.fetch import fetch
from wmtp.model.hf_config import read_config
from wmtp.model.pretrained import vocabulary_of
from wmtp.model.stored_step import locate_step
from wmtp.settings import Resolved
from wmtp.settings.recipe import BYTES, MODELS_NEEDED

_say = partial(print, flush=True)


def open_data(settings: Resolved) -> Corpus | Records:
    """The documents that ``data.train`` names, fetched if they lie in a store.

    Raises:
        SettingsError: there is no such data, or no text in it.
        WmtpError: it can't be fetched.
    """
    data = settings.recipe.data
    if settings.dataset is None:
        return open_corpus("stdlib", field="data.train")
    path = fetch(
        settings.dataset, settings.storage, settings.cache, field="data.train", wanted=is_data, say=_say
    )
    return open_corpus(str(path), field="data.train", format=data.format, text_field=data.text_field)


def model_directory(settings: Resolved, name: str) -> Path:
    """The directory of ``paths.models.<name>`` on this machine, fetched if it lies in a store.

    Raises:
        SettingsError: there is nothing.
        WmtpError: it can't be fetched.
    """
    field = f"paths.models.{name}"
    location = locate_step(settings.models[name], settings.storage, field=field)
    return fetch(location, settings.storage, settings.cache, field=field, wanted=_is_of_a_model, say=_say)


def _is_of_a_model(name: str) -> bool:
    """Weights that can be read without running anything, and the JSON beside them; no optimizer's state."""
    is_other_state = name.startswith(("optim-", "extra-"))
    return "/" not in name and name.endswith((".safetensors", ".json")) and not is_other_state


def open_tokenizer(settings: Resolved) -> Tokenizer:
    """The tokenizer of ``data.tokenizer``; where that is unset, the base model's, or bytes.

    Raises:
        SettingsError: it can't be read, or the base model has none and does not read bytes.
    """
    if settings.tokenizer is not None:
        wanted = {TOKENIZER, TOKENIZER_CONFIG, "config.json"}
        path = fetch(
            settings.tokenizer,
            settings.storage,
            settings.cache,
            field="data.tokenizer",
            wanted=wanted.__contains__,
            say=_say,
        )
        return FileTokenizer(path)
    if settings.recipe.data.tokenizer == BYTES or "base" not in settings.models:
        return ByteTokenizer()
    base = model_directory(settings, "base")
    if (base / TOKENIZER).exists():
        return FileTokenizer(base, field="paths.models.base")
    if read_config(base, field="paths.models.base").vocab_size == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    hint = f"name a {TOKENIZER}, or say {BYTES} if the model reads those"
    raise SettingsError(f"the base model has no {TOKENIZER}", subject="data.tokenizer", hint=hint)


def require_one_vocabulary(settings: Resolved, tokenizer: Tokenizer) -> None:
    """Base, reference and reward model must mean the same by every id, as far as they bring a tokenizer.

    Raises:
        SettingsError: one that the run reads has another tokenizer than its data.
    """
    asked = [name for name in MODELS_NEEDED[settings.recipe.train.algo] if name in settings.models]
    for name in {*asked[:1], *settings.models.keys() & {"base"}}:
        _require_same(settings, name, tokenizer)


def _require_same(settings: Resolved, name: str, tokenizer: Tokenizer) -> None:
    directory, field = model_directory(settings, name), f"paths.models.{name}"
    detail = ""
    if (directory / TOKENIZER).exists():
        own = FileTokenizer(directory, field=field)
        vocabulary: str | None = own.vocabulary
        detail = f" ({own.vocab_size} tokens here, {tokenizer.vocab_size} there)"
    else:
        vocabulary = vocabulary_of(directory)
    if vocabulary not in (None, tokenizer.vocabulary):
        raise SettingsError(
            f"its tokenizer is not that of the data{detail}",
            subject=field,
            hint="set data.tokenizer to the model's, or name a model made with the data's tokenizer",
        )
