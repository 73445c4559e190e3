"""Locations: absolute once made, joined once, and no secret in a message."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import SettingsError
from uploader.location import Location

words = st.text(
    st.characters(codec="utf-8", exclude_characters="/?#\0", exclude_categories=["Cc"]), min_size=1
)
prefixes = st.lists(words.filter(lambda word: word not in (".", "..")), max_size=3).map("/".join)


@pytest.mark.parametrize(
    ("text", "path"),
    [("file://./x", "{cwd}/x"), ("file:///abs/y", "/abs/y"), ("x/y/", "{cwd}/x/y"), ("/a/../b", "/b")],
)
def test_file_locations(text: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    location = Location.parse(text)
    assert location == Location("", path.format(cwd=tmp_path))
    assert location.directory == Path(location.path)
    assert str(location) == f"file://{location.path}"
    monkeypatch.chdir("/")
    assert Location.parse(str(location)) == location


@pytest.mark.parametrize(
    ("text", "bucket", "path"),
    [
        ("s3://b", "b", ""),
        ("s3://b/", "b", ""),
        ("s3://b/p/", "b", "p"),
        ("s3://my.b-1/p//q", "my.b-1", "p/q"),
    ],
)
def test_s3_locations(text: str, bucket: str, path: str) -> None:
    assert Location.parse(text) == Location(bucket, path)


@given(prefixes)
def test_a_location_survives_its_text(prefix: str) -> None:
    location = Location.parse(f"s3://bucket/{prefix}")
    assert Location.parse(str(location)) == location


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "s3://",
        "s3:///p",
        "gs://b",
        "s3://[b/p",
        "s3://b/../c",
        "s3://b/./c",
        "a\0b",
        "s3://b/a\nb",
        "s3://k:hunter2@b/p",
        "s3://b/p?X-Amz-Signature=hunter2",
        "https://k:hunter2@h/p",
        "s3://b#hunter2",
    ],
)
def test_what_is_no_location_is_refused_without_its_secret(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Location.parse(text, field="paths.x")
    assert caught.value.subject == "paths.x"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("base", ["s3://b", "s3://b/p", "file:///p", "file:///"])
def test_a_run_is_joined_once_and_has_its_name(base: str) -> None:
    location = Location.parse(base)
    run = location.join("run1")
    assert run.name == "run1"
    assert run.parent == location
    assert str(run) == (base if base.endswith("/") else f"{base}/") + "run1"


def test_a_bucket_is_no_directory() -> None:
    with pytest.raises(ValueError, match="not a directory"):
        _ = Location.parse("s3://b").directory
