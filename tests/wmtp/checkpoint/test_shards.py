"""Every tensor lies once in one file, aligned, and both safetensors and stock PyTorch read the files."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from toys import OPTIMIZERS, bits, make_net, train_step

from uploader import layout
from uploader.errors import WmtpError
from wmtp.checkpoint.collect import Collector, Groups
from wmtp.checkpoint.copying import Landing
from wmtp.checkpoint.shards import DTYPES, TensorSpec, plan_shards, shard_limit
from wmtp.checkpoint.snapshot import Snapshot

MIB = 1024**2
file_name = partial(layout.model_shard, 0)


@st.composite
def some_specs(draw: st.DrawFn) -> list[TensorSpec]:
    names = draw(st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=24))
    dtypes, lengths = st.sampled_from(sorted(DTYPES, key=str)), st.integers(0, 5)
    return [TensorSpec(name, draw(dtypes), tuple(draw(st.lists(lengths, max_size=3)))) for name in names]


@given(some_specs(), st.integers(1, 400))
def test_files_hold_every_tensor_once_without_gaps(specs: list[TensorSpec], limit: int) -> None:
    shards = plan_shards(specs, file_name, limit)
    placed = [spec for shard in shards for spec, _ in shard.tensors]
    assert sorted(placed, key=lambda one: one.name) == sorted(specs, key=lambda one: one.name)
    assert [shard.file_name for shard in shards] == [file_name(at) for at in range(1, len(shards) + 1)]
    for shard in shards:
        at = len(shard.header)
        assert at % 64 == 0
        for spec, position in shard.tensors:
            assert position == at
            assert position % spec.dtype.itemsize == 0
            at += spec.size_bytes
        assert at == shard.size_bytes
        assert at - len(shard.header) <= limit or len(shard.tensors) == 1


@given(some_specs(), st.integers(1, 400))
def test_the_header_says_where_the_bytes_are(specs: list[TensorSpec], limit: int) -> None:
    for shard in plan_shards(specs, file_name, limit):
        size = int.from_bytes(shard.header[:8], "little")
        assert size == len(shard.header) - 8
        header = json.loads(shard.header[8:])
        about = header.pop("__metadata__")
        assert set(json.loads(about["DCP_SHARDING_INFO"])) == set(header)
        for spec, position in shard.tensors:
            start, end = header[spec.name]["data_offsets"]
            assert (8 + size + start, end - start) == (position, spec.size_bytes)
            assert header[spec.name]["shape"] == list(spec.shape)
            assert header[spec.name]["dtype"] == DTYPES[spec.dtype]


def test_the_order_of_the_tensors_changes_nothing() -> None:
    specs = [TensorSpec(name, torch.float32, (3,)) for name in "dacb"]
    assert plan_shards(specs, file_name, 24) == plan_shards(reversed(specs), file_name, 24)


def test_a_large_state_is_cut_so_that_uploads_begin_early() -> None:
    specs = [TensorSpec(f"layer{number}", torch.float32, (MIB,)) for number in range(64)]  # 256 MiB
    assert len(plan_shards(specs, file_name, shard_limit(256 * MIB, 256 * MIB))) == 16
    assert len(plan_shards(specs[:16], file_name, shard_limit(64 * MIB, 256 * MIB))) == 8  # none below 8 MiB
    assert len(plan_shards(specs[:2], file_name, shard_limit(8 * MIB, 256 * MIB))) == 1
    assert shard_limit(2**40, 256 * MIB) == 256 * MIB


def test_numbers_go_on_where_they_are_told_to() -> None:
    shards = plan_shards([TensorSpec("a", torch.uint8, (1,))], file_name, 8, first=7)
    assert [shard.file_name for shard in shards] == ["model-rank00000-0007.safetensors"]


def test_nothing_makes_no_file() -> None:
    assert plan_shards([], file_name, 8) == []


@pytest.mark.parametrize("dtype", [torch.complex128, torch.qint8])
def test_a_type_that_safetensors_lacks_is_named(dtype: torch.dtype) -> None:
    with pytest.raises(WmtpError, match=r"tensor 'layer\.weight': .* can't be saved; .*float32"):
        plan_shards([TensorSpec("layer.weight", dtype, (2,))], file_name, 8)


def write(directory: Path, groups: Groups, shard_size_bytes: int) -> list[Path]:
    """The files of a snapshot, as the writer gets them."""
    snapshot = Snapshot(0, shard_size_bytes)
    snapshot.capture(groups, frozenset())
    snapshot.copy(Landing())
    paths = []
    for image in snapshot.arena.images:
        paths.append(directory / image.file_name)
        paths[-1].write_bytes(snapshot.arena.bytes_of(image))
    return paths


def every_kind_of_tensor() -> dict[str, Tensor]:
    numbers = torch.arange(-12, 12)
    tensors = {f"of.{dtype}": numbers.to(dtype).reshape(2, 12) for dtype in DTYPES}
    tensors |= {"0dim": torch.tensor(3.5, dtype=torch.bfloat16), "empty": torch.empty(0, 3)}
    return tensors | {"turned": torch.randn(4, 3).t(), "nan": torch.tensor([float("nan"), -0.0])}


@pytest.mark.parametrize("shard_size_bytes", [1, 100, MIB])
def test_safetensors_opens_the_files(tmp_path: Path, shard_size_bytes: int) -> None:
    tensors = every_kind_of_tensor()
    groups: Groups = {"model": tensors, "frozen": {}, "optim": {}, "extra": {}}
    read = {}
    for path in write(tmp_path, groups, shard_size_bytes):
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["format"] == "pt"
            read |= {name: bits(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    assert read == {name: bits(tensor) for name, tensor in tensors.items()}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("shard_size_bytes", [64, MIB])
def test_stock_pytorch_loads_a_step_directory(tmp_path: Path, shard_size_bytes: int) -> None:
    model = make_net().bfloat16()
    model.register_buffer("scale", torch.tensor(0.25))
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    collected, _ = Collector(model, {"main": optimizer}, {}, {}).collect()
    write(tmp_path, collected, shard_size_bytes)
    expected = {name: one.detach() for group in collected.values() for name, one in group.items()}
    assert len(expected) == sum(map(len, collected.values())) > 20
    target = {name: torch.zeros_like(one) for name, one in expected.items()}
    dcp.load(target, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert {name: bits(one) for name, one in target.items()} == {
        name: bits(one) for name, one in expected.items()
    }


def test_a_model_file_loads_into_a_module(tmp_path: Path) -> None:
    model = make_net(0)
    train_step(model)
    collected, _ = Collector(model, {}, {}, {}).collect()
    read = {}
    for path in write(tmp_path, collected, MIB):
        with safe_open(path, framework="pt") as file:
            read |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    other = make_net(1)
    other.load_state_dict(read)
    assert [bits(one) for one in other.state_dict().values()] == [
        bits(one) for one in model.state_dict().values()
    ]
