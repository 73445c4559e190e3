"""``${NAME}`` and ``${NAME:-default}`` in a text, as a shell reads them; ``$${`` is a plain ``${``.

Pure, and one pass: what a variable holds is never expanded again.
"""

import re
from collections.abc import Mapping

from uploader.errors import SettingsError
from wmtp.settings.read import NULLS

_REFERENCE = re.compile(
    r"""
      (?P<escaped> \$\$\{ )
    | \$\{ (?P<name> [A-Za-z_][A-Za-z0-9_]* ) (?: :- (?P<default> (?: (?!\$\{) [^}] )* ) )? \}
    | (?P<broken> \$\{ )
    """,
    re.VERBOSE,
)


def expand(text: str, env: Mapping[str, str], subject: str = "") -> tuple[str | None, tuple[str, ...]]:
    """The text with its references replaced, and the names of the variables whose values are in it.

    A default is taken where the variable is unset or empty. A text that is wholly one reference, and comes
    out empty or ``null``, is None.

    Args:
        subject: path of the key, for messages.

    Raises:
        SettingsError: a variable without default is not set, or a ``${`` begins no reference.
    """
    used: list[str] = []

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match["escaped"]:
            return "${"
        if match["broken"]:
            raise SettingsError(
                f"{text!r} holds a '${{' that begins no reference",
                subject=subject,
                hint="write ${NAME}, ${NAME:-default} (not nested), or $${ for a plain ${",
            )
        if default is not None and not env.get(name):
            return default
        if name not in env:
            raise SettingsError(
                f"the environment variable {name} is not set",
                subject=subject,
                hint=f"set it, or write ${{{name}:-default}}",
            )
        used.append(name)
        return env[name]

    expanded = _REFERENCE.sub(value, text)
    whole = _REFERENCE.fullmatch(text)
    is_null = whole is not None and whole["name"] and expanded in NULLS
    return (None if is_null else expanded), tuple(used)
