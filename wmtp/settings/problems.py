"""What pydantic found wrong, as one ``SettingsError`` a key: path, place, problem, suggestion."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import BaseModel, ValidationError

from uploader.errors import SettingsError
from wmtp.settings.read import dotted


def together(problems: Sequence[SettingsError]) -> SettingsError:
    """One error for all: itself where there is one, else a line for each."""
    if len(problems) == 1:
        return problems[0]
    return SettingsError("\n  ".join([f"{len(problems)} settings are wrong:", *map(str, problems)]))


def problems_of(
    error: ValidationError,
    model: type[BaseModel],
    documents: Mapping[str, type[BaseModel]],
    sources: Mapping[str, str],
) -> Iterator[SettingsError]:
    """Each problem of the error, in the order of the document's keys."""
    for each in error.errors(include_url=False):
        loc = each["loc"]
        key = ".".join(str(part) for part in loc)
        place = _place(key, sources)
        subject = f"{key} ({place})" if place else key
        if each["type"] == "extra_forbidden":
            hint = _where_it_belongs(tuple(map(str, loc)), model, documents)
            yield SettingsError("unknown key", subject=subject, hint=hint)
        elif each["type"] == "value_error":
            yield SettingsError(each["msg"].removeprefix("Value error, "), subject=subject)
        elif each["type"] == "model_type":
            yield SettingsError(f"{_shown(each['input'])} stands where keys belong", subject=subject)
        else:
            message = each["msg"].removeprefix("Input ")
            yield SettingsError(f"{_shown(each['input'])} {message}", subject=subject)


def suggestion(word: str, known: Iterable[str]) -> str:
    """``did you mean x?``, or where nothing is near, all there is."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"


def section_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """The section that lies at ``path``, or None where something else or nothing is."""
    section: type[BaseModel] | None = model
    for name in path:
        section = _sections(section).get(name) if section else None
    return section


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every dotted key of the model, sections included."""
    for name in _names(model):
        yield dotted(path, name)
    for name, section in _sections(model).items():
        yield from _keys(section, dotted(path, name))


def _where_it_belongs(
    loc: tuple[str, ...], model: type[BaseModel], documents: Mapping[str, type[BaseModel]]
) -> str:
    """A sibling with a similar name, else the key of that name elsewhere, else all siblings."""
    *above, word = loc
    siblings = _names(section_at(model, above) or model)
    if difflib.get_close_matches(word, siblings, n=1):
        return suggestion(word, siblings)
    for document, each in sorted(documents.items(), key=lambda item: item[1] is not model):
        for key in _keys(each):
            if key.rpartition(".")[2] == word:
                return f"did you mean {key}?" if each is model else f"{key} belongs to the {document}"
    return suggestion(word, siblings)


def _place(key: str, sources: Mapping[str, str]) -> str:
    """Where the key was written, or the nearest one above it."""
    while key and key not in sources:
        key = key.rpartition(".")[0]
    return sources.get(key, "")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "null" if value is None else repr(value)
