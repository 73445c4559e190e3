"""``wmtp checkpoints verify`` finds what is damaged, and says where."""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from anyio import to_thread
from cli_runs import MODEL, RUN_FIELDS, Run, as_json, flip, wmtp

from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.layout import MANIFEST_KEY
from uploader.location import Location
from wmtp.cli.inventory import take_inventory
from wmtp.cli.places import reach
from wmtp.cli.verification import verify_index, verify_steps

HEADER = b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
LOADABLE = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)


def test_verify_reads_every_copy(run: Run) -> None:
    run.save(10)
    run.upload()
    run.save(20)
    result = wmtp("checkpoints", "verify", run.path)
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["ok", "step_20:", "local"],
        ["ok", "step_10:", "local,", "store"],
    ]
    found = as_json(wmtp("checkpoints", "verify", run.path, "--json"))
    assert found.keys() == RUN_FIELDS | {"ok", "deep", "steps", "problems"}
    assert found["ok"] is True
    assert found["steps"][1] == {"name": "step_10", "checked": ["local", "store"], "problems": []}


def test_verify_names_the_bytes_of_a_damaged_block(run: Run) -> None:
    step = run.save(10, files={MODEL: bytes(BLOCK_SIZE_BYTES + 9), "state-rank00000.json": b"{}"})
    run.save(20)
    run.upload()
    flip(step / MODEL, BLOCK_SIZE_BYTES + 5)
    result = wmtp("checkpoints", "verify", run.path)
    assert result.exit_code == 1
    damaged = [line for line in result.stdout.splitlines() if line.startswith("  damaged")]
    assert len(damaged) == 1
    assert f"{step / MODEL}: bytes {BLOCK_SIZE_BYTES} to {BLOCK_SIZE_BYTES + 9} (block 1)" in damaged[0]
    assert wmtp("checkpoints", "verify", run.path, "step_20").exit_code == 0


@pytest.mark.parametrize("what", ["bytes", "size", "object", "record"])
def test_verify_finds_damage_in_the_store(run: Run, what: str) -> None:
    run.save(10)
    run.upload()
    stored = run.store / "step_10" / "g1"
    match what:
        case "bytes":
            flip(stored / MODEL, 7)
        case "size":
            os.truncate(stored / MODEL, 7)
        case "object":
            (stored / MODEL).unlink()
        case "record":
            (stored / "checkpoint.json").unlink()
    found = as_json(result := wmtp("checkpoints", "verify", run.path, "--json"))
    assert result.exit_code == 1
    assert found["ok"] is False
    (problem,) = found["steps"][0]["problems"]
    assert ("checkpoint.json" if what == "record" else MODEL) in problem
    assert len(found["problems"]) == (what == "record")


def test_verify_finds_a_commit_record_that_the_manifest_does_not_name(run: Run) -> None:
    run.save(10)
    run.upload()
    before = (run.store / MANIFEST_KEY).read_bytes()
    run.save(20)
    run.upload()
    (run.store / MANIFEST_KEY).write_bytes(before)
    result = wmtp("checkpoints", "verify", run.location)
    assert result.exit_code == 1
    last = result.stdout.splitlines()[-1]
    assert "does not name the commit record step_20/g1/checkpoint.json" in last
    assert f"wmtp checkpoints rebuild {run.location}" in last


def test_verify_misses_a_lost_manifest(run: Run) -> None:
    run.save(10)
    run.upload()
    (run.store / MANIFEST_KEY).unlink()
    found = as_json(result := wmtp("checkpoints", "verify", run.location, "--json"))
    assert result.exit_code == 1
    assert "it is missing" in found["problems"][0]


def test_verify_a_run_in_place(in_place: Run) -> None:
    step = in_place.save(10)
    in_place.upload()
    assert wmtp("checkpoints", "verify", in_place.path).exit_code == 0
    flip(step / MODEL, 3)
    found = as_json(wmtp("checkpoints", "verify", in_place.location, "--json"))
    assert [step["checked"] for step in found["steps"]] == [["local", "store"]]
    assert len(found["steps"][0]["problems"]) == 1


def test_verify_tells_of_a_record_that_can_not_be_read(run: Run) -> None:
    (run.save(10) / "node-0000.json").write_text("{")
    result = wmtp("checkpoints", "verify", run.path)
    assert result.exit_code == 1
    assert "node-0000.json" in result.stdout.splitlines()[-1]


@pytest.mark.anyio
async def test_what_is_pruned_meanwhile_is_no_damage(run: Run) -> None:
    for step in (10, 20):
        run.save(step)
    await to_thread.run_sync(run.upload)
    with reach(Location("", str(run.path)), None) as place:
        async with take_inventory(place) as inventory:
            run.forget_here(10)
            run.mark_deleting(10)
            shutil.rmtree(run.store / "step_10")
            verdicts = [verdict async for verdict in verify_steps(inventory, inventory.steps)]
            problems = await verify_index(inventory)
    assert [(one.step.name, one.checked, one.problems) for one in verdicts] == [
        ("step_20", ["local", "store"], []),
        ("step_10", [], []),
    ]
    assert problems == []


SOUND = {MODEL: LOADABLE, "state-rank00000.json": b'{"model": {"w": {"$tensor": "w"}}}'}


def test_deep_downloads_every_byte_and_loads_dry(run: Run) -> None:
    run.save(10, files=SOUND)
    run.save(20, files={**SOUND, "large.bin": bytes(2 * BLOCK_SIZE_BYTES)})
    run.upload()
    result = wmtp("checkpoints", "verify", run.path, "--deep")
    assert result.exit_code == 0
    assert "verifying step_20" in result.stderr
    assert as_json(wmtp("checkpoints", "verify", run.location, "--deep", "--json"))["deep"] is True
    flip(run.store / "step_20" / "g1" / "large.bin", BLOCK_SIZE_BYTES + 5)
    found = as_json(result := wmtp("checkpoints", "verify", run.location, "step_20", "--deep", "--json"))
    assert result.exit_code == 1
    part = f"bytes 0 to {2 * BLOCK_SIZE_BYTES} (part 1) differ from the record"
    assert any("large.bin" in problem and part in problem for problem in found["steps"][0]["problems"])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (MODEL, LOADABLE[:-1], "its tensors take 8 bytes, it holds 7"),
        (
            "state-rank00000.json",
            b'{"model": {"w": {"$tensor": "lost"}}}',
            "tensors that no file holds: lost",
        ),
        ("state-rank00000.json", b"{", "it is no JSON"),
    ],
)
def test_deep_finds_what_was_written_right_but_would_not_load(
    run: Run, name: str, data: bytes, words: str
) -> None:
    run.save(10, files={**SOUND, name: data})
    run.upload()
    assert wmtp("checkpoints", "verify", run.path).exit_code == 0
    found = as_json(wmtp("checkpoints", "verify", run.path, "--deep", "--json"))
    here, there = found["steps"][0]["problems"]
    assert words in here and words in there


def test_steps_are_chosen(run: Run) -> None:
    for step in (10, 20, 30):
        run.save(step)
    run.upload()
    run.start(after_step=10)
    run.upload()

    def verified(*more: str) -> list[str]:
        found = as_json(wmtp("checkpoints", "verify", run.location, *more, "--json"))
        return [step["name"] for step in found["steps"]]

    assert verified() == ["step_10"]
    assert verified("--all") == ["step_30@g1", "step_20@g1", "step_10"]
    assert verified("step_20@g1", "latest") == ["step_20@g1", "step_10"]
    assert wmtp("checkpoints", "verify", run.location, "step_10", "--all").exit_code == 2


def test_what_another_trainer_wrote_is_compared_once_it_is_uploaded(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.mkdir()
    (path / "step_7.pt").write_bytes(b"weights")
    result = wmtp("checkpoints", "verify", path)
    assert (result.exit_code, result.stdout.splitlines()[-1].split()[:2]) == (0, ["unread", "step_7:"])
    upload = ("uploader", "--watch", path, "--to", tmp_path / "store", "--once", "--quiet-s", "0")
    assert wmtp(*upload).exit_code == 0
    result = wmtp("checkpoints", "verify", path, "--deep")
    assert result.stdout.splitlines()[-1].split() == ["ok", "step_7:", "local,", "store"]
    assert wmtp("checkpoints", "restore", path, "latest", tmp_path / "x").exit_code == 0
    assert (tmp_path / "x" / "step_7.pt").read_bytes() == b"weights"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Two checkpoints of another trainer, a file and a directory with a link in it, here and in the store."""
    path = tmp_path / "foreign"
    (path / "checkpoint-8" / "sub").mkdir(parents=True)
    (path / "step_7.pt").write_bytes(b"weights" * 1000)
    (path / "checkpoint-8" / "trainer_state.json").write_text("{}")
    (path / "checkpoint-8" / "sub" / "blob").write_bytes(b"blob")
    (path / "checkpoint-8" / "linked").symlink_to("sub/blob")
    upload = ("uploader", "--watch", path, "--to", tmp_path / "store", "--once", "--quiet-s", "0")
    assert wmtp(*upload).exit_code == 0
    return path


def told_of(foreign: Path, step: str) -> list[str]:
    """What is wrong with a copy on this disk; of what can't be looked at it is an error of the whole."""
    found = as_json(wmtp("checkpoints", "verify", foreign, step, "--json"))
    (verdict,) = found["steps"]
    assert verdict["checked"] == (["store"] if found["errors"] else ["local", "store"])
    return [one for one in [*verdict["problems"], *found["errors"]] if str(foreign) in one]


def test_what_another_trainer_has_here_is_what_it_was(foreign: Path) -> None:
    result = wmtp("checkpoints", "verify", foreign)
    verdicts = [line.split() for line in result.stdout.splitlines()[1:]]
    assert result.exit_code == 0
    assert verdicts == [["ok", f"step_{step}:", "local,", "store"] for step in (8, 7)]


@pytest.mark.parametrize(
    ("step", "damage", "says"),
    [
        ("step_7", lambda path: flip(path / "step_7.pt", 5), "step_7.pt: bytes 0 to 7000 (block 0) differ"),
        ("step_7", lambda path: os.truncate(path / "step_7.pt", 9), "it has 9 bytes, its record says 7000"),
        ("step_8", lambda path: flip(path / "checkpoint-8/sub/blob", 0), "sub/blob: bytes 0 to 4 (block 0)"),
        ("step_8", lambda path: (path / "checkpoint-8/linked").unlink(), "linked: the file is missing"),
        ("step_8", lambda path: (path / "checkpoint-8/new").touch(), "new: the record does not name it"),
        ("step_8", lambda path: (path / "checkpoint-8/new").symlink_to("/etc"), "new: it is a link to /etc"),
    ],
)
def test_what_another_trainer_has_here_differs(
    foreign: Path, step: str, damage: Callable[[Path], object], says: str
) -> None:
    damage(foreign)
    assert any(says in problem for problem in told_of(foreign, step))
    assert wmtp("checkpoints", "verify", foreign).exit_code == 1
