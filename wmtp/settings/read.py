"""YAML text to a tree of mappings, lists, texts and None, with the line of each key.

Scalars stay text (an unquoted ``null``, ``~`` or nothing is None): the type of the field they are for decides
what they become. So ``1e-3`` is a number where a number is wanted and ``no`` or ``007`` a name where a name
is. Nothing is constructed: anchors and tags are refused.
"""

from typing import TYPE_CHECKING, TypeAlias

from uploader.errors import SettingsError

if TYPE_CHECKING:
    import yaml

Tree: TypeAlias = dict[str, "Tree"] | list["Tree"] | str | None
Lines: TypeAlias = dict[str, int]

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
"""What YAML reads as null when it is not quoted."""


def dotted(path: str, key: object) -> str:
    """The path of ``key`` in the mapping or list at ``path``."""
    return f"{path}.{key}" if path else str(key)


def read_yaml(text: str, source: str, path: str = "") -> tuple[Tree, Lines]:
    """The tree of one YAML document, and the line of each of its keys and items by dotted path.

    Args:
        source: file name or option, for messages.
        path: dotted path the document will have (for a value from the command line).

    Raises:
        SettingsError: a syntax error, a key that is there twice, an anchor, a tag.
    """
    import yaml

    lines: Lines = {}
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise SettingsError("anchors (&) and aliases (*) are not read here", subject=path or source)
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{source}:{mark.line + 1}" if mark and not path else path or source
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise SettingsError(problem, doing="reading", subject=at, hint="it is not valid YAML") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise SettingsError(problem, doing="reading", subject=path or source) from error
    except RecursionError as error:
        raise SettingsError("it is nested too deeply", doing="reading", subject=path or source) from error
    return (None if root is None else _tree(root, source, path, lines)), lines


def _tree(node: "yaml.Node", source: str, path: str, lines: Lines) -> Tree:
    import yaml

    line = node.start_mark.line + 1
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python/"):
        raise SettingsError(f"the tag {node.tag!r} is not read here", subject=f"{path} ({source}:{line})")
    if path:
        lines.setdefault(path, line)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, source, path, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item, source, dotted(path, at), lines) for at, item in enumerate(node.value)]
    quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
    return None if node.value in NULLS and not quoted else str(node.value)


def _mapping(node: "yaml.MappingNode", source: str, path: str, lines: Lines) -> Tree:
    import yaml

    seen: dict[str, int] = {}
    values: dict[str, Tree] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise SettingsError("a key must be a plain word", subject=f"{path or source} ({source}:{line})")
        key = str(key_node.value)
        below = dotted(path, key)
        if key in seen:
            raise SettingsError(
                f"it is there twice, in lines {seen[key]} and {line}",
                subject=f"{below} ({source})",
                hint="keep one",
            )
        seen[key] = line
        lines[below] = line
        values[key] = _tree(value_node, source, below, lines)
    return values
