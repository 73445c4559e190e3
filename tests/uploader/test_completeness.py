"""A checkpoint is whole when its format says so; one that is cut off anywhere is not."""

import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from foreign_files import PICKLE, dcp, hugging_face, safetensors, torch_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uploader.completeness import Verdict, file_flaw, judge
from uploader.patterns import Kind
from uploader.tree import look_at

same_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
WHOLE, OPEN = Verdict(proven=True), Verdict()
sizes = st.lists(st.integers(0, 600), max_size=4)
members = st.lists(st.binary(max_size=200) | st.just(torch_zip()), min_size=1, max_size=4)


def of(path: Path, kind: Kind = Kind.DIRECTORY) -> Verdict:
    return judge(look_at(path), kind)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@same_directory
@given(st.data(), sizes, st.booleans())
def test_safetensors_cut_off_anywhere(
    tmp_path: Path, data: st.DataObject, sizes: list[int], meta: bool
) -> None:
    whole = safetensors(*sizes, metadata=meta)
    assert of(written(tmp_path / "step_1.safetensors", whole), Kind.FILE) == WHOLE
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert file_flaw(written(tmp_path / "step_1.safetensors", cut))


@same_directory
@given(st.data(), members, st.binary(max_size=30))
def test_zip_cut_off_anywhere(
    tmp_path: Path, data: st.DataObject, members: list[bytes], comment: bytes
) -> None:
    """Even right behind another zip file that is stored in it."""
    whole = torch_zip(*members, comment=comment)
    assert of(written(tmp_path / "step_1.pt", whole), Kind.FILE) == WHOLE
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert file_flaw(written(tmp_path / "step_1.pt", cut))


def test_a_zip_in_a_zip_cut_off_behind_the_inner_one(tmp_path: Path) -> None:
    inner = torch_zip()
    whole = torch_zip(inner)
    end = whole.index(inner) + len(inner)
    assert file_flaw(written(tmp_path / "step_1.pt", whole[:end])) == "its zip directory is damaged"


def test_a_zip_of_many_entries_has_long_records(tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(65_600):
            archive.writestr(f"{number}", b"")
    assert file_flaw(path) == ""
    whole = path.read_bytes()
    assert b"PK\x06\x06" in whole
    for cut in (1, 22, 23, 42, 60, 98, 99, 1000):
        assert file_flaw(written(path, whole[:-cut]))


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_torch_writes(tmp_path: Path, is_zip: bool) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "step_1.pt"
    torch.save({"a": torch.ones(1000), "b": 5}, path, _use_new_zipfile_serialization=is_zip)
    assert of(path, Kind.FILE) == (WHOLE if is_zip else OPEN)
    if is_zip:
        assert file_flaw(written(path, path.read_bytes()[:-1]))


@pytest.mark.parametrize(
    "data",
    [
        safetensors(10) + b"x",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b'{"a": 5}',
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 3) + b"\xff\xfe\xfd",
    ],
)
def test_no_safetensors(tmp_path: Path, data: bytes) -> None:
    assert file_flaw(written(tmp_path / "step_1.safetensors", data))


def test_other_formats_say_nothing(tmp_path: Path) -> None:
    assert of(written(tmp_path / "step_1.pt", PICKLE), Kind.FILE) == OPEN
    assert of(written(tmp_path / "step=1.ckpt", PICKLE), Kind.LIGHTNING) == OPEN
    assert of(written(tmp_path / "step_2.pt", b""), Kind.FILE).flaw == "step_2.pt: it is empty"


def test_hugging_face_is_whole_when_its_state_is_there(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "checkpoint-5", shards=2, state=False)
    assert of(path, Kind.HUGGING_FACE).flaw == "trainer_state.json is missing"
    state = path / "trainer_state.json"
    for part in ("", '{"global_step"', "[]"):
        state.write_text(part)
        assert "trainer_state.json" in of(path, Kind.HUGGING_FACE).flaw
    for whole in ("{}", '{"global_step": 5}'):
        state.write_text(whole)
        assert of(path, Kind.HUGGING_FACE) == WHOLE


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "optimizer.pt"])
def test_a_file_of_hugging_face_that_is_cut_off(tmp_path: Path, name: str) -> None:
    path = hugging_face(tmp_path / "checkpoint-5", shards=2)
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    assert of(path, Kind.HUGGING_FACE).flaw.startswith(f"{name}: ")


def test_a_shard_that_an_index_names(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "checkpoint-5", shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    flaw = of(path, Kind.HUGGING_FACE).flaw
    assert flaw == "model-00002-of-00002.safetensors, which model.safetensors.index.json names, is missing"
    (path / "model.safetensors.index.json").write_text("{")
    assert of(path, Kind.HUGGING_FACE).flaw.startswith("model.safetensors.index.json: ")


def write_ranks(path: Path) -> None:
    (path / "rng_state_1.pth").write_bytes(torch_zip())


def write_engine(path: Path) -> None:
    (path / "global_step5").mkdir()
    (path / "global_step5" / "mp_rank_00_model_states.pt").write_bytes(torch_zip())


@pytest.mark.parametrize("write", [write_ranks, write_engine])
def test_where_many_write_the_last_file_of_one_proves_nothing(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = hugging_face(tmp_path / "checkpoint-5")
    write(path)
    assert of(path, Kind.HUGGING_FACE) == OPEN


@pytest.mark.parametrize("kind", [Kind.DIRECTORY, Kind.DCP, Kind.HUGGING_FACE])
def test_dcp_has_its_index(tmp_path: Path, kind: Kind) -> None:
    path = dcp(tmp_path / "step-5", metadata=False)
    assert of(path, kind).flaw == ".metadata is missing"
    (path / ".metadata.tmp").write_bytes(PICKLE)
    assert of(path, kind).flaw == ".metadata.tmp is still being written"
    (path / ".metadata.tmp").rename(path / ".metadata")
    assert of(path, kind) == OPEN
    (path / ".metadata").write_bytes(b"")
    assert of(path, kind).flaw == ".metadata is missing"


def test_dcp_below_another_directory(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "checkpoint-5")
    dcp(path / "optimizer_0", metadata=False)
    assert of(path, Kind.HUGGING_FACE).flaw == "optimizer_0/.metadata is missing"


def test_dcp_with_an_index_of_each_rank(tmp_path: Path) -> None:
    path = dcp(tmp_path / "step-5", metadata=False)
    (path / "__0.metadata").write_bytes(PICKLE)
    assert of(path).flaw == ".metadata is missing"
    (path / "__1.metadata").write_bytes(PICKLE)
    assert of(path) == OPEN


def test_a_directory_that_holds_nothing_or_something_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "step_5"
    path.mkdir()
    assert of(path).flaw == "it is empty"
    (path / "weights").write_bytes(b"x")
    assert of(path) == OPEN
    (path / "more.partial").write_bytes(b"x")
    assert of(path).flaw == "more.partial is still being written"


def test_a_real_dcp_directory(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is one process, as it is told to be
        checkpoint.save({"a": torch.ones(10)}, checkpoint_id=tmp_path / "step-5", no_dist=True)
    assert of(tmp_path / "step-5") == OPEN
    assert json.dumps(sorted(look_at(tmp_path / "step-5").files)) == '[".metadata", "__0_0.distcp"]'
