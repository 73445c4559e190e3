"""What ``docs/json.md`` promises is what the commands print: every field, no other, of the type it says."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from cli_runs import MODEL, Run, as_json, wmtp

from uploader.store import open_store
from wmtp.cli.steps import Step

DOCUMENT = Path(__file__).parents[3] / "docs/json.md"
KINDS: dict[str, Any] = {
    "text": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "true or false": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "list of text": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    "object": lambda value: isinstance(value, dict),
    "time": lambda value: datetime.fromisoformat(value).tzinfo is not None,
}


def tables() -> dict[str, dict[str, str]]:
    """For each heading of the document the first two columns of its table."""
    found: dict[str, dict[str, str]] = {}
    for section in re.split(r"^#+ ", DOCUMENT.read_text(), flags=re.M)[1:]:
        heading = section.partition("\n")[0].replace("`", "")
        found[heading] = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section, flags=re.M))
    return found


TABLES = tables()
COMMON = TABLES["Every command of wmtp checkpoints"]
STEP = TABLES["A step"]


def require(shown: dict[str, Any], *fields: dict[str, str]) -> None:
    """Exactly these fields, of these types."""
    expected = {name: kind for each in fields for name, kind in each.items()}
    assert shown.keys() == expected.keys()
    for name, kind in expected.items():
        plain = kind.removesuffix(" or null")
        assert (shown[name] is None and plain != kind) or KINDS[plain](shown[name]), (name, kind, shown[name])


@pytest.fixture
def stored(run: Run) -> Run:
    run.save(10)
    run.save(20)
    run.upload()
    return run


def shown(*arguments: object) -> dict[str, Any]:
    result: dict[str, Any] = as_json(wmtp("checkpoints", *arguments, "--json"))
    return result


def test_ls(stored: Run) -> None:
    for place in (stored.path, stored.location):
        found = shown("ls", place)
        require(found, COMMON, TABLES["ls"])
        for step in found["steps"]:
            require(step, STEP)
    (stored.save(30) / "node-0000.json").write_text("{")
    require(shown("ls", stored.path)["steps"][0], STEP)


def test_every_state_is_told() -> None:
    assert TABLES["The states"].keys() == {"local", "corrupt", "durable", "pinned", "superseded", "pruning"}
    assert Step(1, 1, damaged="x", live=False).states == ["corrupt", "superseded"]


def test_show(stored: Run) -> None:
    require(shown("show", stored.path), COMMON, STEP, TABLES["show"])
    assert wmtp("checkpoints", "pin", stored.path).exit_code == 0
    found = shown("show", stored.location)
    require(found, COMMON, STEP, TABLES["show"])
    assert found["pin"].keys() == {"by", "at", "note"}
    assert all(file.keys() == {"path", "size_bytes", "crc64nvme"} for file in found["files"])


def test_verify(stored: Run) -> None:
    (stored.store / "step_10/g1" / MODEL).unlink()
    for more in ((), ("--deep",), ("step_20",)):
        found = shown("verify", stored.path, *more)
        require(found, COMMON, TABLES["verify"])
        assert all(step.keys() == {"name", "checked", "problems"} for step in found["steps"])


def test_restore(stored: Run, tmp_path: Path) -> None:
    require(shown("restore", stored.path, "latest", tmp_path / "x"), COMMON, TABLES["restore"])


def test_pin_and_unpin(stored: Run) -> None:
    for command in ("pin", "pin", "unpin", "unpin"):
        require(shown(command, stored.path), COMMON, TABLES["pin and unpin"])


def test_prune(stored: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmtp.cli.pruning._this_host", lambda: "host")
    for more in (("--dry-run",), ()):
        found = shown("prune", stored.path, *more)
        require(found, COMMON, TABLES["prune"])
        for step in found["steps"]:
            require(step, TABLES["A step of the plan"])


def test_rebuild(stored: Run) -> None:
    named = {name: COMMON[name] for name in ("run", "store")}
    require(shown("rebuild", stored.location), named, TABLES["rebuild"])


def test_uploads(stored: Run) -> None:
    async def begin() -> None:
        async with open_store(stored.location, stored.storage) as store:
            await store.create_upload("step_30/g1/model")

    anyio.run(begin)
    found = shown("uploads", stored.path)
    require(found, COMMON, TABLES["uploads"])
    (upload,) = found["uploads"]
    require(upload, TABLES["An unfinished upload"])
