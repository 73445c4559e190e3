"""Files as other trainers write them, made without those trainers."""

import io
import json
import struct
import zipfile
from pathlib import Path

PICKLE = b"\x80\x02ctorch._utils\nwhatever"
"""How the older format of ``torch.save`` begins."""


def safetensors(*sizes: int, metadata: bool = False) -> bytes:
    """Tensors of these sizes, one byte an element."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if metadata else {}
    end = 0
    for number, size in enumerate(sizes):
        header[f"tensor{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(range(256)) * (end // 256) + bytes(end % 256)


def torch_zip(*members: bytes, comment: bytes = b"") -> bytes:
    """What ``torch.save`` writes: an uncompressed zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for number, data in enumerate(members or (b"weights",)):
            archive.writestr(f"archive/data/{number}", data)
    return buffer.getvalue()


def hugging_face(path: Path, *, shards: int = 1, state: bool = True) -> Path:
    """``checkpoint-N/``, its files in the order in which the Trainer writes them."""
    path.mkdir(parents=True)
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    if shards == 1:
        names = ["model.safetensors"]
    else:
        index = {"weight_map": {f"layer{number}": name for number, name in enumerate(names)}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        (path / name).write_bytes(safetensors(100, 20, metadata=True))
    (path / "optimizer.pt").write_bytes(torch_zip(b"moments"))
    if state:
        (path / "trainer_state.json").write_text('{"global_step": 5}')
    return path


def dcp(path: Path, *, ranks: int = 2, metadata: bool = True) -> Path:
    """A directory of ``torch.distributed.checkpoint``; its index is written last."""
    path.mkdir(parents=True)
    for rank in range(ranks):
        (path / f"__{rank}_0.distcp").write_bytes(torch_zip(b"shard") * 2)
    if metadata:
        (path / ".metadata").write_bytes(PICKLE)
    return path
