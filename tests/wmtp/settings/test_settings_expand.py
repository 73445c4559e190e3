"""``${NAME}`` and ``${NAME:-default}``: what a shell would say, in one pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import SettingsError
from wmtp.settings.expand import expand

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
ENV = {"HOME": "/home/me", "N": "12", "EMPTY": "", "TRICK": "${HOME}"}


@pytest.mark.parametrize(
    ("text", "expanded", "used"),
    [
        ("plain $HOME", "plain $HOME", ()),
        ("${HOME}/ckpt", "/home/me/ckpt", ("HOME",)),
        ("${N}", "12", ("N",)),
        ("${NONE:-x}/${N}", "x/12", ("N",)),
        ("${EMPTY:-x}", "x", ()),
        ("s3://${NONE:-b}/p", "s3://b/p", ()),
        ("a${EMPTY}", "a", ("EMPTY",)),
        ("${EMPTY}", None, ("EMPTY",)),
        ("${NONE:-}", None, ()),
        ("${NONE:-null}", None, ()),
        ("$${HOME}", "${HOME}", ()),
        ("${TRICK}", "${HOME}", ("TRICK",)),
    ],
)
def test_references_are_replaced(text: str, expanded: str | None, used: tuple[str, ...]) -> None:
    assert expand(text, ENV) == (expanded, used)


def test_unset_variable_names_key_and_variable() -> None:
    with pytest.raises(SettingsError) as caught:
        expand("${BUCKET}", {}, "paths.cache (c.yaml:3)")
    assert str(caught.value) == (
        "paths.cache (c.yaml:3): the environment variable BUCKET is not set;"
        " set it, or write ${BUCKET:-default}"
    )


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A", "${A:x}", "${A:-${HOME}}", "${A-x}"])
def test_what_begins_no_reference_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="begins no reference"):
        expand(text, {"HOME": "/"})


@given(st.text(), st.dictionaries(NAMES, st.text()))
def test_text_without_reference_stays(text: str, env: dict[str, str]) -> None:
    escaped = text.replace("${", "$${")
    assert expand(escaped, env) == (text, ())


@given(st.lists(st.tuples(st.text().filter(lambda text: "$" not in text), NAMES)), st.text())
def test_values_are_put_in_and_never_expanded_again(pieces: list[tuple[str, str]], value: str) -> None:
    env = {name: value for _, name in pieces}
    text = "|" + "".join(f"{before}${{{name}}}" for before, name in pieces)
    expanded, used = expand(text, env)
    assert expanded == "|" + "".join(before + value for before, _ in pieces)
    assert used == tuple(name for _, name in pieces)
