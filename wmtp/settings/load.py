"""The two files, ``--set`` and the environment become a config and a recipe, or a list of what is wrong.

The order in which they are laid over each other: built-in default, file, ``--set``. Every leaf remembers
its source: ``default`` (no entry), ``configs/config.yaml:7``, the same with ``, environment variable NAME``
added, or ``--set``.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from uploader.errors import SettingsError
from wmtp.settings.config import Config
from wmtp.settings.expand import expand
from wmtp.settings.fields import Section
from wmtp.settings.problems import problems_of, section_at, suggestion, together
from wmtp.settings.read import Tree, dotted, read_yaml
from wmtp.settings.recipe import Recipe
from wmtp.settings.resolve import resolve
from wmtp.settings.resolved import Flags, Resolved

SET = "--set"
VARIABLE = ", environment variable "
DOCUMENTS: dict[str, type[Section]] = {"config": Config, "recipe": Recipe}

M = TypeVar("M", bound=Section)


@dataclass(frozen=True, slots=True)
class Override:
    """One ``--set key=value``: the document (config or recipe), the key's path in it, the value."""

    document: str
    path: tuple[str, ...]
    value: Tree


def load_settings(
    config_path: str | Path | None,
    recipe_path: str | Path | None,
    overrides: Sequence[str],
    flags: Flags,
    env: Mapping[str, str],
    cwd: Path,
) -> Resolved:
    """Everything that is set, from files, options and environment, with where it came from.

    Args:
        config_path: None means ``configs/config.yaml`` of ``cwd`` if it is there, else the built-in defaults.
        recipe_path: None likewise means ``configs/recipe.yaml``.
        overrides: texts of ``--set``, as ``parse_override`` reads them.
        env: variables that ``${NAME}`` refers to.
        cwd: directory that relative paths start from.

    Raises:
        SettingsError: anything that is wrong, all of it in one message.
    """
    problems: list[SettingsError] = []
    wanted: list[Override] = []
    for text in overrides:
        try:
            wanted.append(parse_override(text))
        except SettingsError as error:
            problems.append(error)
    loader = _Loader(wanted, env, cwd, problems)
    config = loader.load(Config, "config", config_path)
    recipe = loader.load(Recipe, "recipe", recipe_path)
    if config is None or recipe is None or problems:
        raise together(problems)
    return resolve(config, recipe, flags, cwd, loader.sources)


def load_config(config_path: str | Path | None, env: Mapping[str, str], cwd: Path) -> Config:
    """The config alone, for commands that train nothing.

    Raises:
        SettingsError: anything that is wrong, all of it in one message.
    """
    problems: list[SettingsError] = []
    config = _Loader([], env, cwd, problems).load(Config, "config", config_path)
    if config is None or problems:
        raise together(problems)
    return config


def parse_override(text: str) -> Override:
    """Read ``key=value``: dotted key, value in YAML.

    The first word of the key tells the document; ``config.`` or ``recipe.`` may stand before it.

    Raises:
        SettingsError: no ``=``, an unknown first word, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    words = tuple(key.strip().split("."))
    if not equals or not all(words):
        raise SettingsError("it is not key=value", subject=f"{SET} {text}", hint="write train.max_steps=100")
    prefix, path = (words[0], words[1:]) if words[0] in DOCUMENTS and words[1:] else ("", words)
    owners = [name for name, model in DOCUMENTS.items() if path[0] in model.model_fields]
    document = prefix or (owners[0] if owners else "")
    if not document:
        known = [name for model in DOCUMENTS.values() for name in model.model_fields]
        hint = suggestion(path[0], known)
        raise SettingsError("unknown key", subject=f"{'.'.join(words)} ({SET})", hint=hint)
    return Override(document, path, read_yaml(value, SET, ".".join(path))[0])


@dataclass
class _Loader:
    """Reads documents one after the other; gathers sources by dotted key, and what is wrong."""

    overrides: Sequence[Override]
    env: Mapping[str, str]
    cwd: Path
    problems: list[SettingsError]
    sources: dict[str, str] = field(default_factory=dict)

    def load(self, model: type[M], document: str, path: str | Path | None) -> M | None:
        """The validated document, or None where something was wrong with it."""
        before = len(self.problems)
        try:
            tree = self._read(path, Path("configs", f"{document}.yaml"))
        except SettingsError as error:
            self.problems.append(error)
            return None
        for override in self.overrides:
            if override.document == document:
                _lay_over(tree, override, self.sources)
        expanded = self._expanded(tree, "")
        unset = {problem.subject for problem in self.problems[before:]}
        try:
            validated = model.model_validate(_without_empty_sections(model, expanded))
        except ValidationError as error:
            found = problems_of(error, model, DOCUMENTS, self.sources)
            self.problems += [each for each in found if each.subject not in unset]
            return None
        return None if unset else validated

    def _read(self, path: str | Path | None, default: Path) -> dict[str, Tree]:
        """The file's mapping; the place of each key goes to ``sources``."""
        name = str(default if path is None else path)
        file = self.cwd / os.path.expanduser(name)
        if path is None and not file.exists():
            return {}
        tree, lines = read_yaml(_text_of(file, name), name)
        if not isinstance(tree, dict | None):
            hint = "begin with a key, as 'run:' in a recipe or 'paths:' in a config"
            raise SettingsError("it is not a mapping of keys", doing="reading", subject=name, hint=hint)
        self.sources.update({key: f"{name}:{line}" for key, line in lines.items()})
        return tree or {}

    def _expanded(self, tree: Tree, path: str) -> Tree:
        """The tree with the references in its texts replaced; for ``--set`` the shell has done that."""
        if isinstance(tree, dict):
            return {key: self._expanded(value, dotted(path, key)) for key, value in tree.items()}
        if isinstance(tree, list):
            keys = [dotted(path, at) for at in range(len(tree))]
            items = [self._expanded(value, key) for key, value in zip(keys, tree, strict=True)]
            notes = [self.sources[key].partition(VARIABLE) for key in keys]
            self.sources[path] += "".join(mark + name for _, mark, name in notes)
            return items
        source = self.sources[path]
        if tree is None or source == SET:
            return tree
        try:
            text, names = expand(tree, self.env, f"{path} ({source})")
        except SettingsError as error:
            self.problems.append(error)
            return tree
        self.sources[path] += "".join(VARIABLE + name for name in names)
        return text


def _text_of(file: Path, name: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        beside = sorted(each.name for each in file.parent.glob("*.y*ml"))
        hint = suggestion(file.name, beside) if beside else "check the path"
        raise SettingsError("no such file", doing="reading", subject=name, hint=hint) from error
    except UnicodeDecodeError as error:
        raise SettingsError("it is not UTF-8 text", doing="reading", subject=name) from error
    except OSError as error:
        problem = error.strerror or str(error)
        raise SettingsError(problem, doing="reading", subject=name) from error


def _lay_over(tree: dict[str, Tree], override: Override, sources: dict[str, str]) -> None:
    """Put the override's value in its place; the sources of what was there are forgotten."""
    *above, last = override.path
    here, path = tree, ""
    for word in above:
        path = dotted(path, word)
        below = here.get(word)
        if not isinstance(below, dict):
            here[word] = below = {}
            sources[path] = SET
        here = below
    here[last] = override.value
    key = dotted(path, last)
    for old in [old for old in sources if old.startswith(f"{key}.")]:
        del sources[old]
    sources.update(dict.fromkeys(_keys(override.value, key), SET))


def _keys(tree: Tree, path: str) -> Iterator[str]:
    """The path of the tree and of every key and item in it."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree if isinstance(tree, list) else ())
    for key, value in items:
        yield from _keys(value, dotted(path, key))


def _without_empty_sections(model: type[Section], tree: Tree, path: tuple[str, ...] = ()) -> Tree:
    """A section whose keys are all commented out reads as null: leave it to its defaults."""
    if not isinstance(tree, dict):
        return tree
    return {
        key: _without_empty_sections(model, value, (*path, key))
        for key, value in tree.items()
        if value is not None or section_at(model, (*path, key)) is None
    }
